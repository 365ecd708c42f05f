"""Shared by the verbs: their parser, groups of options, and the conversion of options to settings."""

import argparse
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import is_dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

import jsonargparse

from glyphlm.base.errors import InputError
from glyphlm.base.jobs import EXECUTORS, Engine
from glyphlm.base.outputs import read_build
from glyphlm.base.records import SURROGATE, parse_yaml, to_lines
from glyphlm.corpus.reading import Reading

TEXTS = "texts: .txt, .jsonl (.gz, .bz2, .xz, .zst), .parquet, folders, hf:NAME[:CONFIG][:SPLIT], or embedded:en,ru,zh"


Settings = TypeVar("Settings")
SHOW = "--print_config"
EXAMPLE = "example:"
YAML = "yaml-1.2"  # values are parsed as in our files
jsonargparse.set_loader(YAML, lambda text: parse_yaml(text, "the value", object), (InputError,))


# In the help of an option: types that its placeholder or text shows anyway, and defaults that mean "not given".
KNOWN_TYPE = re.compile(r",? ?type: (Literal\[[^\]]*\]|<class '\w+'>|str|bool|int|float)( \| null)?(?=[,)])")
NO_DEFAULT = re.compile(r",? ?default: (null|False|\[\]|\{\}|)\)$")


class _Formatter(jsonargparse.DefaultHelpFormatter):
    """Wraps descriptions, keeps the line breaks of examples, and leaves out what a reader of an option knows anyway."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return text if text.startswith(EXAMPLE) else super()._fill_text(text, width, indent)

    def _expand_help(self, action: argparse.Action) -> str:
        text = NO_DEFAULT.sub(")", KNOWN_TYPE.sub("", super()._expand_help(action)))
        return text.replace("(, ", "(").removesuffix(" ()")


class Parser(jsonargparse.ArgumentParser):
    """A verb's options; what cannot be parsed is an InputError. Options are shown with dashes, underscores are read, too."""

    names: Collection[str] = ()  # sections of a recipe: --SECTION.KEY is accepted besides the options

    @classmethod
    def of(cls, verb: str, about: str, example: str, json: bool = True) -> "Parser":
        """The parser of one verb, with --json unless it prints no results.

        It is not a constructor, because the library constructs parsers of this class for nested settings.
        """
        epilog = f"{EXAMPLE}\n  {example}"
        form: dict[str, Any] = {"formatter_class": _Formatter, "parser_mode": YAML, "exit_on_error": False}
        parser = cls(prog=f"glyphlm {verb}", description=about, epilog=epilog, **form)
        if json:
            parser.add_argument("--json", action="store_true", help="print JSON instead of text, an object a line")
        return parser

    def read(self, arguments: Sequence[str]) -> Any:
        """Parsed options of a verb.

        Raises:
            InputError: an option is unknown, missing or of the wrong type.
        """
        try:
            options = self.instantiate(self.parse_args([_with_underscores(argument) for argument in arguments]))
        except (argparse.ArgumentError, jsonargparse.ArgumentError, ValueError) as error:
            raise InputError(f"{self._explained(str(error))} (see {self.prog} --help)") from None
        self._check_numbers(arguments, options)
        if str(options.get("out")).startswith("~"):
            raise InputError(f"--out {options.out} would make a folder named ~, because shells do not expand it there; give "
                             "the full path")
        if SURROGATE.search(str(options.get("out"))):  # bytes that are not UTF-8
            raise InputError(f"--out {str(options.out)!r} is not UTF-8, as records that name it are; give another name")
        if "device" in options:
            from glyphlm.base.devices import resolve_device  # loads torch, as does the next

            options.device = resolve_device(options.device)
        if "threads" in options:
            from glyphlm.base.threads import use_threads

            use_threads(options.threads)
        return options

    def _check_numbers(self, arguments: Sequence[str], options: Any) -> None:
        """Refuse what only YAML 1.1 reads as a number, on which the library falls back: 1:30 (as 90), 1_000, 0b1, on."""
        for place, argument in enumerate(map(_with_underscores, arguments)):
            option, equals, value = argument.partition("=")
            action, found = self._option_string_actions.get(option), options.get(option.removeprefix("--"))
            if action is None or action.nargs == 0:
                continue
            found = found if isinstance(found, list) else [found]
            typed = [value] if equals else arguments[place + 1 : place + 1 + len(found)]
            for one, number in zip(typed, found):
                if isinstance(number, int | float) and isinstance(parse_yaml(one, option, object), str):
                    raise InputError(f"{option} {one!r} is neither a number nor true or false; give, for example, 10 or 1e3")

    def _explained(self, error: str) -> str:
        """The library's message in words of the command line: the option, what it takes, what was probably meant."""
        if unknown := re.search(r"unrecognized arguments: (--\S+?)(?:[ =]|$)", error):
            name, dot, key = unknown[1].partition(".")
            known = [*self._option_string_actions, *(f"--{one}" for one in self.names)]
            return _dashed(error) + _suggestion(name, known, dot + key)
        if missing := re.search(r"arguments are required: (.*)", error):
            return f"{', '.join(map(self._shown, missing[1].split(', ')))} missing"
        if found := re.search(r"argument (\S+): invalid choice: '?(.*?)'? \(choose from (.*)\)", error):
            option, value, choices = found[1], found[2], found[3].replace("'", "").split(", ")
        elif found := re.search(r'"([\w.]+)":\s.*Literal\[(.*?)\].*\bvalue: (.*)', error, re.DOTALL):
            option, value, choices = f"--{found[1]}", found[3], re.findall(r"'(.*?)'", found[2])
        elif found := re.search(r'"([\w.]+)":\s+Expected a <class \'(int|float)\'>. Got value: (.*)', error):
            return _dashed(f"--{found[1]} {found[3]} must be a {'whole ' * (found[2] == 'int')}number")
        else:
            return _dashed(error)
        return f"{_dashed(option)} {value} must be one of {', '.join(choices)}{_suggestion(value, choices)}"

    def _shown(self, name: str) -> str:
        """An argument as the help shows it: --NAME of an option, the placeholder of another."""
        action = next(action for action in self._actions if action.dest == name)
        return _dashed(f"--{name}") if action.option_strings else str(action.metavar or name).upper()

    def format_help(self, formatter: argparse.HelpFormatter | None = None) -> str:
        """The help, with dashes in the names of options."""
        return _dashed(super().format_help(formatter))

    def add_device(self) -> None:
        """--device, of the verbs that compute with a finished model; `read` resolves auto."""
        self.add_argument("--device", default="auto", help="auto, cpu or cuda; auto is cuda where there is one")

    def add_threads(self) -> None:
        """--threads, of the verbs that compute for long on a CPU."""
        self.add_argument("--threads", type=int, metavar="N", help="threads on a CPU (default: the cores that it may use); "
                          "the last digits of results depend on it")

    def add_settings(self, kind: type, flags: Mapping[str, str] = {}, skip: Collection[str] = ()) -> None:
        """An option for each value of a settings dataclass; `flags` (name -> help) are switched on by their name alone."""
        self.add_class_arguments(kind, skip={*flags, *skip})  # `settings_from` reads them
        for name, what in flags.items():
            self.add_argument(f"--{name}", action="store_true", help=what)

    def add_recipe(self, name: str = "recipe") -> None:
        """A file of settings and its profiles, for `read_recipe`."""
        self.add_argument(name, nargs="?", metavar=name.upper(), help=f"the YAML file; --{name} FILE is the same")
        self.add_argument("--profile", help=f"one of the {name}'s profiles, such as tiny: its values replace the {name}'s")
        self.add_argument(SHOW, action="store_true", help=f"show every value of the {name}, and do nothing else")

    def read_recipe(
        self, arguments: Sequence[str], kind: type[Settings], name: str = "recipe", own: Collection[str] = ()
    ) -> tuple[Any, Settings]:
        """Parsed options of the verb, and the recipe with its profile and what was overridden; --print_config ends here.

        Each `--section.key VALUE` is an override that `load_recipe` checks; `own` names values of the recipe that are also
        options of the verb.

        Raises:
            InputError: as `read` and `load_recipe`.
        """
        from glyphlm.experiments.recipe import load_recipe, schema_of, settings_text

        if helps := [one for one in arguments if one in ("-h", "--help") or one.endswith(".help")]:
            self.add_class_arguments(kind, skip={*own})
            self.read(helps[:1])  # shows the help and exits
        self.names = get_type_hints(kind).keys()
        rest, overrides = _overrides([_with_underscores(one) for one in arguments], kind, name, own)
        if shown := SHOW in rest:
            rest = [*(one for one in rest if one != SHOW), *(() if "--out" in rest else ("--out", "unused"))]
        options = self.read(rest)
        given = {key: options[key] for key in own if options[key] is not None}
        if not (options[name] or overrides or given or shown):
            cure = "give a YAML file, or the name of a recipe that comes with glyphlm"
            raise InputError(f"{name.upper()} missing; {cure} (see {self.prog} --help)")
        recipe = load_recipe(options[name], options.profile, [overrides, given], kind)
        if shown:
            print(f"# yaml-language-server: $schema={schema_of(name)}\n{settings_text(recipe)}", end="")
            raise SystemExit(0)
        return options, recipe

    def add_texts(self, needed: bool = True) -> None:
        """The options of every verb that reads text."""
        self.add_argument("texts", nargs="+" if needed else "*", metavar="TEXT", help=TEXTS)
        self.add_reading()

    def add_reading(self) -> None:
        """How text is read."""
        self.add_argument("--text_field", default="text", help="name of the text in JSON lines and parquet")
        self.add_argument("--errors", choices=("strict", "replace"), default="strict", help="bytes that are not UTF-8")
        self.add_argument("--skip_empty", action="store_true", help="leave out rows without text (null or blank)")

    def add_engine(self) -> None:
        """Options of the verbs that split a large corpus into tasks."""
        self.add_argument("--engine", choices=tuple(EXECUTORS), help="let tasks of datatrove make the parts instead of "
                          "--jobs; the bytes are the same (slurm only submits: the same command again joins the parts)")
        self.add_argument("--engine_options", type=dict, default={}, metavar="JSON",
                          help='what its executor takes: \'{"partition": "cpu", "time": "10:00:00"}\'')
        self.add_argument("--tasks", type=int, help="tasks of --engine (default: one a part)")

    def add_switch(self, name: str, what: str, default: bool = False) -> None:
        """An option that is switched on by --NAME and off by --no_NAME."""
        self.add_argument(name, action=jsonargparse.ActionYesNo, default=default, help=what)

    def add_out(self, what: str, **options: Any) -> None:
        """--out, the one place that a verb writes to."""
        self.add_argument("--out", type=Path, help=what, **options)


def _overrides(arguments: Sequence[str], kind: type, name: str, own: Collection[str]) -> tuple[list[str], dict[str, Any]]:
    """The arguments that are options of the verb, and the values of a recipe of type `kind` by their dotted names."""
    rest, found, given = [], {}, iter(arguments)
    names = get_type_hints(kind).keys() - own
    for argument in given:
        option, equals, value = argument.removeprefix("--").partition("=")
        if not argument.startswith("--") or (option != name and option.split(".")[0] not in names):
            rest.append(argument)
            continue
        value = value if equals else next(given, "--")
        if value.startswith("--"):
            raise InputError(f"--{option} has no value; give one, as in YAML: --{option} VALUE")
        if option == name:
            rest.append(value)
        else:
            found[option] = _typed(kind, option, value)
    return rest, found


def _typed(kind: Any, option: str, value: str) -> Any:
    """A value of the command line; text stays as it is typed, everything else is YAML."""
    for part in option.split("."):
        kind = get_type_hints(kind).get(part) if is_dataclass(kind) else None
    if kind is str or (kind == str | None and value != "null"):
        return value
    return parse_yaml(value, f"--{option}", object, "give a value as in YAML")


def _suggestion(typed: str, known: Iterable[str], ending: str = "") -> str:
    near = get_close_matches(typed, known, 1)
    return f"; did you mean {_dashed(near[0])}{ending}?" if near else ""


def _dashed(text: str) -> str:
    """Names of options with dashes; names of values of a recipe, which are dotted, as in its file."""
    return re.sub(r"(?<![\w-])--\w+(?![\w.])", lambda name: name[0].replace("_", "-"), text)


def _with_underscores(argument: str) -> str:
    name, equals, value = argument.partition("=")
    return name.replace("-", "_").replace("__", "--", 1) + equals + value if name.startswith("--") else argument


def print_results(options: Any, text: str, rows: Iterable[Mapping[str, Any]]) -> None:
    """Print `rows` as objects, each on a line, with --json, else `text`; an empty text is no line."""
    if options.json:
        print(to_lines(rows), end="", flush=True)
    elif text:
        print(text)


def print_build(options: Any, written: Path | None = None) -> None:
    """As `print_results`, of the output folder of --out: where it is, what was `written`, and the result in build.json."""
    row = {"folder": str(options.out), **({"path": str(written)} if written else {}), **read_build(options.out).result}
    print_results(options, str(written or ""), [row])


def settings_from(options: Any, kind: type[Settings], **more: Any) -> Settings:
    """Settings of type `kind` from the options of the same names, and `more`; what the verb has no option for is default."""
    given = {name: options[name] for name in get_type_hints(kind) if name in options}
    return kind(**given | more)


def reading_of(options: Any) -> Reading:
    """How text is read, from the options of `add_reading`."""
    return Reading(options.text_field, options.errors, options.skip_empty)


def engine_of(options: Any) -> Engine | None:
    """The engine of `add_engine`, if one is named.

    Raises:
        InputError: options of an engine are given without --engine.
    """
    if options.engine is None:
        if options.tasks is not None or options.engine_options:
            raise InputError(f"--tasks and --engine-options need an engine; name it: --engine {'|'.join(EXECUTORS)}")
        return None
    return Engine(options.engine, options.out, options.tasks, options.engine_options)
