"""glyphlm VERB: this file imports only the errors, so that help is shown without delay."""

import errno
import importlib
import io
import os
import sys
from collections.abc import Sequence
from difflib import get_close_matches

from glyphlm.base.errors import InputError

VERBS = {  # verb -> its module, and a description
    "quickstart": ("models", "everything on an embedded corpus: three models and a report in minutes"),
    "tokenizer build": ("data", "text -> a vocabulary of code points and n-grams"),
    "tokenizer extend": ("data", "a run or a tokenizer, and characters -> the same with ids for them"),
    "tokenizer ngrams": ("data", "texts of some languages -> their most frequent n-grams"),
    "tokenizer compare": ("data", "tokenizers and texts -> characters per token, losses, speed"),
    "substrate build": ("data", "a tokenizer -> the code of every token"),
    "substrate inspect": ("data", "codes -> shared codes, rank, neighbours, a map"),
    "prepare": ("data", "text -> token shards"),
    "plan": ("models", "a recipe -> what it costs: parameters, memory, FLOPs, time"),
    "train": ("models", "a recipe -> a trained model in a run folder"),
    "grow": ("models", "a recipe with stages -> one model per stage, each grown from the previous one"),
    "fuse": ("models", "runs -> one model out of all of them"),
    "import": ("share", "a published checkpoint -> a run folder; its code is never run"),
    "study": ("models", "arms x seeds of a recipe -> models, results and a table with intervals"),
    "generate": ("use", "a run and a prompt -> text"),
    "chat": ("use", "one or several runs -> a conversation"),
    "eval": ("use", "models and tasks -> scores with intervals, bits per byte, paired comparisons"),
    "probe": ("use", "runs -> representations by layer: neighbours, classes, translations"),
    "export": ("share", "a run -> a stock GPT-NeoX folder, or a GGUF file"),
    "serve": ("share", "a run -> an OpenAI-compatible endpoint"),
    "pull": ("share", "a model repository on the Hub -> a folder here, with its revision and digest"),
    "push": ("share", "a run or an export -> a model repository on the Hub"),
    "report": ("use", "runs -> one HTML page"),
    "show": ("use", "a run and its twin -> a page of tokens: pictures, codes, neighbours, predictions"),
    "completion": ("completion", "a shell -> a script that completes verbs and options in it"),
}
# Packages, as they are imported, that only some verbs need -> the extra of pyproject.toml that installs them.
EXTRAS = {
    "datasets": "hub", "datatrove": "cluster", "gguf": "gguf", "matplotlib": "report", "peft": "lora",
    "pyarrow": "hub", "pydantic": "serve", "sacrebleu": "eval", "sklearn": "tsne", "snakemake": "study",
    "starlette": "serve", "uvicorn": "serve",
}  # fmt: skip
# torch then asks for huge pages for tensors of 2 MiB and more. Otherwise the system clears them page by page, at each step
# anew: a step of V 8,192, d 384, 2,048 tokens on a CPU had 170,000 page faults, 10% of its time. Read when torch starts.
HUGE_PAGES = ("THP_MEM_ALLOC_ENABLE", "1")
HELP = """usage: glyphlm {prefix}VERB [options]

Language models over frozen codes of Unicode text, next to their trainable twins.

{verbs}

glyphlm VERB --help shows the options of a verb, with an example. Start with:

  glyphlm quickstart --out runs/quickstart
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; the exit code is 0, 2 after an error, 130 after Ctrl-C, 141 after `| head`, 143 after SIGTERM.

    Errors of any library are printed as one line; with GLYPHLM_TRACEBACK=1 with the whole traceback.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # for terminals that cannot show a character
    try:
        try:
            return _run(arguments)
        finally:
            sys.stdout.flush()
    except KeyboardInterrupt:
        return 130
    except (SystemExit, GeneratorExit):
        raise
    except BrokenPipeError:  # the reader of the output, such as head, has ended
        _discard_output()
        return 141
    except BaseException as error:  # panics of Rust libraries are not Exceptions
        if os.environ.get("GLYPHLM_TRACEBACK"):
            raise
        print(f"glyphlm: {_one_line(error)}", file=sys.stderr)
        _discard_output()
        return 2


def _discard_output() -> None:
    """Drop output that could not be printed; the interpreter would try to print it again at exit."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _run(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_help(), end="")
        return 0
    if arguments[0] == "--version":
        from importlib.metadata import version

        print(f"glyphlm {version('glyphlm')}")
        return 0
    verb = next((v for v in (" ".join(arguments[:2]), arguments[0]) if v in VERBS), None)
    if verb is None and any(v.startswith(f"{arguments[0]} ") for v in VERBS) and arguments[1:] in ([], ["-h"], ["--help"]):
        print(_help(f"{arguments[0]} "), end="")
        return 0
    if verb is None:
        given = " ".join(arguments[:2])
        near = get_close_matches(given, VERBS, 1) or get_close_matches(arguments[0], VERBS, 1)
        cure = f"did you mean {near[0]}?" if near else f"choose from {', '.join(VERBS)}"
        raise InputError(f"{given!r} is not a verb; {cure} (glyphlm --help describes them)")
    if sys.stderr.isatty() and "--help" not in arguments:
        print(f"glyphlm {verb}: loading", file=sys.stderr)  # torch alone takes seconds
    os.environ.setdefault(*HUGE_PAGES)
    if os.environ.keys() & {"GLYPHLM_LAUNCHER", "TORCHELASTIC_RUN_ID"}:
        importlib.import_module("glyphlm.base.jobs").end_with_launcher()
    verbs = importlib.import_module(f"glyphlm.cli.{VERBS[verb][0]}")
    getattr(verbs, f"run_{verb.replace(' ', '_')}")(arguments[len(verb.split()) :])
    return 0


def _help(prefix: str = "") -> str:
    """The verbs that begin with `prefix`, with what each does."""
    width = max(map(len, VERBS))
    verbs = "\n".join(f"  {verb:{width}}  {text}" for verb, (_, text) in VERBS.items() if verb.startswith(prefix))
    return HELP.format(prefix=prefix, verbs=verbs)


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    if isinstance(error, InputError):
        return text
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        place = f" at {error.filename}" if error.filename else ""
        return f"the disk is full{place}; free some space and run the same command again (nothing finished is lost)"
    if isinstance(error, ModuleNotFoundError) and (extra := EXTRAS.get((error.name or "").partition(".")[0])):
        return f"{error.name} is not installed; it comes with the extra {extra}: pip install 'glyphlm[{extra}]'"
    no_memory = "allocate memory" in text or "not enough memory" in text  # of torch on a CPU
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or no_memory:
        return f"out of memory ({text or 'no details'}); use smaller batches or fewer processes"
    if text == "embedded null byte":
        return "a file name holds the character U+0000, which no file system allows; correct it in the recipe or the list"
    if text.startswith("Symlink loop"):  # a RuntimeError before Python 3.13
        return f"{text}: a link leads to itself; give another path"
    if isinstance(error, OSError) and error.filename:
        return text
    return f"{type(error).__name__}: {text or 'no reason was given'} (GLYPHLM_TRACEBACK=1 shows where)"
