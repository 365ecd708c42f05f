"""The verbs of the command line: each reads its options, checks them and calls one library function."""

import argparse
import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jsonargparse

from glyphlm.corpus import Reading
from glyphlm.errors import InputError

TEXTS = "texts: .txt, .jsonl, .parquet (.gz, .zst), folders of these, or hf:NAME[:CONFIG][:SPLIT]"


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

    def add_texts(self) -> None:
        """The options of every verb that reads text."""
        self.add_argument("texts", nargs="+", metavar="TEXT", help=TEXTS)
        self.add_reading()

    def add_reading(self) -> None:
        """How text is read."""
        self.add_argument("--text_field", default="text", help="name of the text in JSON lines and parquet")
        self.add_argument("--errors", choices=("strict", "replace"), default="strict", help="bytes that are not UTF-8")

    def add_out(self, what: str, **options: Any) -> None:
        """--out, the one place that a verb writes to."""
        self.add_argument("--out", type=Path, help=what, **options)


def _with_underscores(argument: str) -> str:
    name, equals, value = argument.partition("=")
    return name.replace("-", "_").replace("__", "--", 1) + equals + value if name.startswith("--") else argument


def _reading(options: Any) -> Reading:
    return Reading(options.text_field, options.errors)


def run_quickstart(arguments: Sequence[str]) -> None:
    """glyphlm quickstart."""
    parser = Parser.of(
        "quickstart",
        "The whole way on a phrase book in English, Russian and Chinese that needs no network: tokenizer, substrates, "
        "shards, a frozen glyph model, its trainable twin, a frozen token-bits model, and a report.",
        "glyphlm quickstart --out runs/quickstart",
    )
    parser.add_out("folder of everything", default=Path("runs/quickstart"))
    parser.add_argument("--steps", type=int, default=None, help="optimizer steps of each arm (default: about 5 minutes)")
    parser.add_argument("--font", nargs="*", default=[], help="font files, in order of preference")
    options = parser.read(arguments)
    from glyphlm.quickstart import quickstart

    print(quickstart(options.out, options.steps, options.font))


def run_tokenizer_build(arguments: Sequence[str]) -> None:
    """glyphlm tokenizer build."""
    from glyphlm.tokenizer import TokenizerSettings, build_tokenizer

    parser = Parser.of(
        "tokenizer build",
        "Count a text and lay out its vocabulary: tokenizer.json for any library, vocab.txt for the eye.",
        "glyphlm tokenizer build --layout compact --vocab-size 8192 --out tok/ texts/ more.jsonl.gz",
    )
    parser.add_class_arguments(TokenizerSettings, skip={"path"})
    parser.add_texts()
    parser.add_out("folder of the tokenizer", required=True)
    options = parser.read(arguments)
    settings = TokenizerSettings(layout=options.layout, vocab_size=options.vocab_size)
    build_tokenizer(options.texts, settings, options.out, _reading(options))


def run_substrate_build(arguments: Sequence[str]) -> None:
    """glyphlm substrate build."""
    from glyphlm.substrate import SubstrateSettings, build_substrate
    from glyphlm.tokenizer import Tokenizer

    parser = Parser.of(
        "substrate build",
        "Make the code of every token: pictures of glyphs, bits of the id, or a random start to be learned.",
        "glyphlm substrate build --tokenizer tok/ --kind glyph --n-embed 256 --out sub/",
    )
    parser.add_argument("--tokenizer", required=True, help="folder of the tokenizer")
    names = parser.add_class_arguments(SubstrateSettings, skip={"path", "font", "strict", "trainable"})
    parser.add_argument("--font", nargs="*", default=[], help="font files in order of preference (default: GNU Unifont)")
    parser.add_argument("--strict", action="store_true", help="stop where a character is in no font")
    parser.add_argument("--trainable", action="store_true", help="training may change the table")
    parser.add_out("folder of the substrate", required=True)
    options = parser.read(arguments)
    settings = SubstrateSettings(**{name: options[name] for name in (*names, "font", "strict", "trainable")})
    build_substrate(Tokenizer.load(options.tokenizer), settings, options.out)


def run_prepare(arguments: Sequence[str]) -> None:
    """glyphlm prepare."""
    from glyphlm.dataset import prepare
    from glyphlm.tokenizer import Tokenizer

    parser = Parser.of(
        "prepare",
        "Tokenize a text into shards, a share of it held out for validation.",
        "glyphlm prepare --tokenizer tok/ --out shards/ texts/",
    )
    parser.add_argument("--tokenizer", required=True, help="folder of the tokenizer")
    parser.add_argument("--validation_share", type=float, default=0.01, help="share of the documents held out")
    parser.add_texts()
    parser.add_out("folder of the shards", required=True)
    options = parser.read(arguments)
    tokenizer = Tokenizer.load(options.tokenizer)
    prepare(tokenizer, options.texts, options.out, options.validation_share, _reading(options))


def run_train(arguments: Sequence[str]) -> None:
    """glyphlm train."""
    from glyphlm.recipe import Recipe

    parser = Parser.of(
        "train",
        "Train the arm of a recipe; any of its values can be overridden. The same command again goes on after a stop.",
        "glyphlm train recipe.yaml --train.steps 2000 --out runs/mine",
    )
    parser.usage = "glyphlm train RECIPE [--section.key VALUE ...] --out RUN"
    parser.add_argument("--recipe", action="config", help="the YAML file; its name may also stand first")
    parser.add_class_arguments(Recipe)
    parser.add_out("run folder", required=True)
    given = list(arguments)
    if given and not given[0].startswith("-"):
        _check_recipe(given[0])
        given.insert(0, "--recipe")
    options = parser.read(given)
    recipe = Recipe(**{name: options[name] for name in Recipe.__dataclass_fields__})
    from glyphlm.arm import run_recipe  # loads transformers, which --help need not wait for

    run_recipe(recipe, options.out, f"glyphlm train {shlex.join(arguments)}")


def _check_recipe(path: str) -> None:
    if not Path(path).is_file():
        raise InputError(f"{path} does not exist; give the recipe's YAML file first, such as: glyphlm train recipe.yaml")


def run_generate(arguments: Sequence[str]) -> None:
    """glyphlm generate."""
    from glyphlm.generation import Sampling, generate

    parser = Parser.of(
        "generate",
        "Continue prompts with a trained run.",
        'glyphlm generate runs/mine --prompt "Hello, мир! " --temperature 0.8',
    )
    parser.add_argument("run", help="run folder")
    parser.add_argument("--prompt", action="append", required=True, help="text to continue; may be given several times")
    names = parser.add_class_arguments(Sampling)
    options = parser.read(arguments)
    for text in generate(options.run, options.prompt, Sampling(**{name: options[name] for name in names})):
        print(text)


def run_eval(arguments: Sequence[str]) -> None:
    """glyphlm eval."""
    from glyphlm.evaluation import evaluate
    from glyphlm.training import resolve_device

    parser = Parser.of(
        "eval",
        "Score texts with trained runs. Rows are printed, and kept in results.jsonl of each run.",
        "glyphlm eval runs/mine runs/twin --tasks bpb=held_out.txt --out results.jsonl",
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run folders")
    parser.add_argument("--tasks", nargs="+", required=True, metavar="NAME=TEXT", help="bpb=TEXT: bits per byte")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_reading()
    parser.add_out("also write all rows to this file")
    options = parser.read(arguments)
    rows = evaluate(options.runs, options.tasks, options.out, resolve_device(options.device), _reading(options))
    for row in rows:
        json.dump(row, sys.stdout, ensure_ascii=False)
        print()


def run_report(arguments: Sequence[str]) -> None:
    """glyphlm report."""
    parser = Parser.of(
        "report",
        "Compare finished runs on one HTML page that opens without network.",
        "glyphlm report runs/* --out report.html",
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run folders; other paths are passed over")
    parser.add_argument("--title", default="GlyphLM report", help="heading of the page")
    parser.add_out("the page", default=Path("report.html"))
    options = parser.read(arguments)
    from glyphlm.report import write_report

    print(write_report(options.runs, options.out, options.title))
