"""glyphlm VERB: this file knows the verbs and nothing else, so that help and errors come at once."""

import errno
import importlib
import os
import sys
from collections.abc import Sequence

from glyphlm.base.errors import InputError

VERBS = {  # verb -> the file that has it, and what it does
    "quickstart": ("models", "the whole way on an embedded corpus: three models and a report in minutes"),
    "tokenizer build": ("data", "text -> a vocabulary of code points and n-grams"),
    "tokenizer ngrams": ("data", "texts of some languages -> their most frequent n-grams"),
    "tokenizer compare": ("data", "tokenizers and texts -> characters per token, what is lost, speed"),
    "substrate build": ("data", "a vocabulary -> the codes below the first block"),
    "substrate inspect": ("data", "codes -> what they hold: shared codes, rank, neighbours, a map"),
    "prepare": ("data", "text -> token shards"),
    "plan": ("models", "a recipe -> what it costs: parameters, memory, FLOPs, time"),
    "train": ("models", "a recipe -> a trained model in a run folder"),
    "grow": ("models", "a recipe with stages -> a model a stage, each grown out of the one before"),
    "fuse": ("models", "runs over one vocabulary -> one model"),
    "import": ("share", "a published checkpoint -> a run folder; its code is never run"),
    "study": ("models", "arms x seeds of a recipe -> models, measures and a table with intervals"),
    "generate": ("use", "a run and a prompt -> text"),
    "eval": ("use", "models and tasks -> scores with intervals, bits per byte, paired comparisons"),
    "probe": ("use", "runs -> what tokens are to each layer: neighbours, classes, translations"),
    "export": ("share", "a run -> a stock GPT-NeoX folder, or a GGUF file"),
    "serve": ("share", "a run -> an OpenAI-compatible endpoint"),
    "push": ("share", "a run or an export -> a model repository on the Hub"),
    "report": ("use", "runs -> one HTML page"),
}
HELP = """usage: glyphlm VERB [options]

Language models over frozen codes of Unicode text, next to their trainable twins.

{verbs}

glyphlm VERB --help tells the options of a verb, with an example. Start with:

  glyphlm quickstart --out runs/quickstart
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; the exit code is 0, 2 for what the user can mend, 130 after Ctrl-C."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    try:
        return _run(arguments)
    except (InputError, OSError) as error:
        if os.environ.get("GLYPHLM_TRACEBACK"):
            raise
        print(f"glyphlm: {_one_line(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def _run(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_help(), end="")
        return 0
    if arguments[0] == "--version":
        from importlib.metadata import version

        print(f"glyphlm {version('glyphlm')}")
        return 0
    verb = next((v for v in (" ".join(arguments[:2]), arguments[0]) if v in VERBS), None)
    if verb is None:
        raise InputError(f"{' '.join(arguments[:2])!r} is no verb; the verbs are: {', '.join(VERBS)}")
    verbs = importlib.import_module(f"glyphlm.cli.{VERBS[verb][0]}")
    getattr(verbs, f"run_{verb.replace(' ', '_')}")(arguments[len(verb.split()) :])
    return 0


def _help() -> str:
    width = max(map(len, VERBS))
    return HELP.format(verbs="\n".join(f"  {verb:{width}}  {text}" for verb, (_, text) in VERBS.items()))


def _one_line(error: Exception) -> str:
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        place = f" at {error.filename}" if error.filename else ""
        return f"the disk is full{place}; free some space and run the same command again (nothing finished is lost)"
    return " ".join(str(error).split())
