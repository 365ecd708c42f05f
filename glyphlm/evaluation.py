"""Evaluation of finished runs: results as rows, in the run folder and in a file."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from glyphlm.bits import score_documents
from glyphlm.corpus import STRICT, Reading, passages
from glyphlm.errors import InputError
from glyphlm.hf import GlyphLMForCausalLM
from glyphlm.outputs import read_lines, to_lines, write_atomic
from glyphlm.runfolder import load_run
from glyphlm.tokenizer import Tokenizer

RESULTS = "results.jsonl"
TASKS = ("bpb",)


def evaluate(
    runs: Sequence[str], tasks: Sequence[str], out: Path | None = None, device: str = "cpu", reading: Reading = STRICT
) -> list[dict[str, Any]]:
    """Run every task on every run; rows go into each run's results.jsonl, and all of them into `out`.

    Args:
        tasks: `bpb=TEXT`: bits per byte of a text, exact under chunking.

    Raises:
        InputError: a run or a text is bad, or a task is unknown.
    """
    asked = [parse_task(task) for task in tasks]
    rows = []
    for run in runs:
        model, tokenizer = load_run(run)
        own = [bits_per_byte(model.to(device), tokenizer, source, reading) for _, source in asked]
        keep_results(Path(run) / RESULTS, own)
        rows += [{"run": str(run), **row} for row in own]
    if out is not None:
        write_atomic(out, to_lines(rows))
    return rows


def parse_task(task: str) -> tuple[str, str]:
    """Split `bpb=FILE`.

    Raises:
        InputError: there is no `=`, or the task is unknown.
    """
    name, equals, source = task.partition("=")
    if not equals or not source or name not in TASKS:
        raise InputError(f"task {task!r} is not of the form NAME=FILE with NAME one of {', '.join(TASKS)}")
    return name, source


def bits_per_byte(model: GlyphLMForCausalLM, tokenizer: Tokenizer, source: str, reading: Reading) -> dict[str, Any]:
    """The row of one text under one model."""
    pieces = tokenizer.encode_passages(passages([source], reading, "scoring"))
    score = score_documents(model.gpt, pieces, tokenizer.end_id, tokenizer.bytes_per_id_V)
    return {
        "task": "bpb",
        "source": source,
        "bits_per_byte": score.bits_per_byte,
        "bytes": score.bytes,
        "tokens": score.tokens,
        "documents": score.documents,
        "nats": score.nats,
    }


def keep_results(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Add rows to a results file; a row of the same task and source is replaced."""
    new = {(row["task"], row["source"]) for row in rows}
    old = [row for row in read_lines(path) if (row["task"], row["source"]) not in new]
    write_atomic(path, to_lines([*old, *rows]))
