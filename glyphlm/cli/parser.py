"""What all verbs have in common: their parser, its groups of options, and what these come to."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jsonargparse

from glyphlm.base.errors import InputError
from glyphlm.base.jobs import EXECUTORS, Engine
from glyphlm.corpus.reading import Reading

TEXTS = "texts: .txt, .jsonl, .parquet (.gz, .zst), folders of these, hf:NAME[:CONFIG][:SPLIT], or embedded:en,ru,zh"


class _Formatter(jsonargparse.DefaultHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Keeps the line breaks of the examples."""


class Parser(jsonargparse.ArgumentParser):
    """A verb's options; what cannot be parsed is an InputError, and dashes may stand for underscores."""

    @classmethod
    def of(cls, verb: str, about: str, example: str) -> "Parser":
        """The parser of one verb (no constructor of our own: the library makes more of these for nested settings)."""
        return cls(
            prog=f"glyphlm {verb}",
            description=about,
            epilog=f"example:\n  {example}",
            formatter_class=_Formatter,
            exit_on_error=False,
        )

    def read(self, arguments: Sequence[str]) -> Any:
        """Parsed options, settings groups as their dataclasses.

        Raises:
            InputError: an option or key is unknown, missing or of the wrong type.
        """
        try:
            return self.instantiate(self.parse_args([_with_underscores(argument) for argument in arguments]))
        except (argparse.ArgumentError, jsonargparse.ArgumentError, ValueError) as error:
            raise InputError(f"{error} (see {self.prog} --help)") from None

    def add_texts(self, needed: bool = True) -> None:
        """The options of every verb that reads text."""
        self.add_argument("texts", nargs="+" if needed else "*", metavar="TEXT", help=TEXTS)
        self.add_reading()

    def add_reading(self) -> None:
        """How text is read."""
        self.add_argument("--text_field", default="text", help="name of the text in JSON lines and parquet")
        self.add_argument("--errors", choices=("strict", "replace"), default="strict", help="bytes that are not UTF-8")

    def add_engine(self) -> None:
        """Who makes the parts of a large corpus."""
        self.add_argument("--engine", choices=tuple(EXECUTORS), help="let tasks of datatrove make the parts, in place of "
                          "--jobs; the bytes are the same (slurm only submits: the same command again joins the parts)")
        self.add_argument("--engine_options", type=dict, default={}, metavar="JSON",
                          help='what its executor takes: \'{"partition": "cpu", "time": "10:00:00"}\'')
        self.add_argument("--tasks", type=int, help="tasks of --engine (default: one a part)")

    def add_recipe(self, kind: type) -> None:
        """The recipe, and each of its values; `kind` is Recipe or a class of its own kind."""
        self.add_argument("--recipe", action="config", help="the YAML file; its name may also stand first")
        self.add_argument("--profile", help="one of the recipe's profiles, such as tiny: its values replace the recipe's")
        self.add_class_arguments(kind)

    def read_recipe(self, arguments: Sequence[str], kind: type, name: str = "recipe") -> tuple[Any, Any]:
        """Parsed options, and the recipe with its profile and what was overridden.

        Raises:
            InputError: as `read` and `recipe_text`.
        """
        from glyphlm.experiments.recipe import recipe_text

        given = list(arguments)
        if given and not given[0].startswith("-"):
            given[:1] = [f"--{name}", recipe_text(Path(given[0]), _value_of("--profile", given))]
        options = self.read(given)
        return options, kind(**{name: options[name] for name in kind.__dataclass_fields__})

    def add_switch(self, name: str, what: str, default: bool = False) -> None:
        """An option that is switched on by --NAME and off by --no_NAME."""
        self.add_argument(name, action=jsonargparse.ActionYesNo, default=default, help=what)

    def add_out(self, what: str, **options: Any) -> None:
        """--out, the one place that a verb writes to."""
        self.add_argument("--out", type=Path, help=what, **options)


def _value_of(name: str, arguments: Sequence[str]) -> str | None:
    """What follows an option, before the options are parsed."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument(name)
    return vars(parser.parse_known_args(arguments)[0])[name.lstrip("-")]


def _with_underscores(argument: str) -> str:
    name, equals, value = argument.partition("=")
    return name.replace("-", "_").replace("__", "--", 1) + equals + value if name.startswith("--") else argument


def reading_of(options: Any) -> Reading:
    """How the options say that text is read."""
    return Reading(options.text_field, options.errors)


def engine_of(options: Any) -> Engine | None:
    """The engine that the options name, if any.

    Raises:
        InputError: they say how an engine works and name none.
    """
    if options.engine is None:
        if options.tasks is not None or options.engine_options:
            raise InputError(f"--tasks and --engine-options are of an engine; name it: --engine {'|'.join(EXECUTORS)}")
        return None
    return Engine(options.engine, options.out, options.tasks, options.engine_options)
