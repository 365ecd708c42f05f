"""Evaluation of models: results as rows, in the run folder and in a file, each with an interval and what it is over.

A row of results.jsonl is one value. Accuracies, exact match, F1 and shares are 0 to 1, BLEU and chrF 0 to 100.
- what: `task`, `protocol` (likelihood, sampled; published in rows of `publishedresults`), `scoring` (letters, texts, greedy,
  first letter, or ""), `subject` (of MMLU; of SQuAD HasAns or NoAns; "" is the whole), `metric`, `source`, in files of
  several models also `run`;
- how much: `value`, `low` and `high` (95%), `interval` (what that is, and over what), `items` or `documents`;
- beside it: `chance`, `majority` (the constant answer that is right most often), `letter_mass` (probability that the first
  token begins with the letter of an option), `cut` (prompts that lost their left end to the context), `signature`
  (sacrebleu's); of the sampled protocol `runs`, `sigma`, `items_low`, `items_high`, `items_interval`; of bits per byte
  `bits_per_byte`, `nats`, `tokens`, `bytes`;
- `made_from`: model, task files and settings. A row made from the same is not computed again.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from glyphlm.base.devices import resolve_precision
from glyphlm.base.outputs import write_atomic
from glyphlm.base.progress import say
from glyphlm.base.records import read_json_lines, to_lines
from glyphlm.corpus.reading import STRICT, Reading
from glyphlm.evaluation.examination import BITS, Asked, EvalSettings, ask, examine
from glyphlm.evaluation.item_log import compare_items, folder_name, log_name, read_log, result_rows
from glyphlm.evaluation.model import Examinee, load_examinee

RESULTS = "results.jsonl"


class Evaluation(NamedTuple):
    """Rows of all models, and each later model paired with the first on the same items (see `itemlog.compare_items`)."""

    rows: list[dict[str, Any]]
    comparisons: list[dict[str, Any]]


def evaluate(
    runs: Sequence[str],
    tasks: Sequence[str],
    out: Path | None = None,
    device: str = "cpu",
    reading: Reading = STRICT,
    settings: EvalSettings | None = None,
    log_items: Path | None = None,
) -> Evaluation:
    """Run every task on every model; rows go into each run's results.jsonl, and all of them into `out`.

    A stopped evaluation goes on where it stopped when it is started again.

    Args:
        runs: Run folders, other folders that transformers read without remote code, or hf:NAME.
        tasks: NAME=PATH as `tasks.read_task` has them (`mmlu=FOLDER`), and `bpb=TEXT`, bits per byte of a text.
        log_items: Folder of the per-item logs, MODEL/TASK.*.jsonl, where models that were asked the same have equal names.

    Raises:
        InputError: a model, a text or a task file is bad, or a task is unknown.
    """
    settings = settings or EvalSettings()
    wanted = [ask(task, settings) for task in tasks]
    rows, comparisons, firsts = [], [], {}
    precision = resolve_precision(settings.precision, device)
    for run in runs:
        examinee = load_examinee(str(run), device, precision)
        for task in wanted:
            made_from = {"model": examinee.digest, "files": dict(task.digest)}
            made_from["settings"] = settings.of(task.name) | {"precision": precision}
            made_from["settings"] |= reading.settings() if task.name == BITS else {}
            path = log_items and log_items / folder_name(str(run)) / log_name(task.name, made_from)
            found, log = _finished(examinee, task, made_from, out, path)
            if found is None:
                log = examine(examinee, task, reading, settings)
                found = [row | {"source": task.source, "made_from": made_from} for row in _rows(log)]
                _keep(examinee, found, out, log, path)
            _report_losses(examinee, found)
            rows += [{"run": str(run), **row} for row in found]
            comparisons += _compare(firsts.setdefault(task[:2], (run, log)), (run, log), task)
    return Evaluation(rows, comparisons)


def _rows(log: list[dict[str, Any]]) -> list[dict[str, Any]]:
    if "nats" not in log[0]:
        return result_rows(log)
    (row,) = result_rows(log)
    sums = {name: sum(entry[name] for entry in log) for name in ("nats", "tokens", "bytes")}
    return [row | {"bits_per_byte": row["value"], **sums}]


def _finished(
    examinee: Examinee, task: Asked, made_from: dict[str, Any], out: Path | None, path: Path | None
) -> tuple[list[dict[str, Any]] | None, list[dict[str, Any]] | None]:
    """Rows made from the same before, and the log where it was kept; None for rows that are still to be made."""
    if path is not None and not path.is_file():
        return None, None
    places = [(examinee.folder / RESULTS, None)] if examinee.folder else []
    for place, run in [*places, *([(out, examinee.name)] if out else [])]:
        asked_for = {"run": run, "task": task.name, "source": task.source, "made_from": made_from}
        found = [row for row in read_json_lines(place) if all(row.get(key) == value for key, value in asked_for.items())]
        if found:
            rows = [{key: value for key, value in row.items() if key != "run"} for row in found]
            return rows, read_log(path) if path else None
    return None, None


def _keep(
    examinee: Examinee, rows: list[dict[str, Any]], out: Path | None, log: list[dict[str, Any]], path: Path | None
) -> None:
    """The log first: rows say that the work is done."""
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, to_lines(log))
    if examinee.folder is not None:
        keep_results(examinee.folder / RESULTS, rows)
    if out is not None:
        keep_results(out, [{"run": examinee.name, **row} for row in rows])


def keep_results(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Add rows to a results file; all rows of the same run, task, protocol and source are replaced."""
    new = {_key(row) for row in rows}
    write_atomic(path, to_lines([*(row for row in read_json_lines(path) if _key(row) not in new), *rows]))


def _key(row: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(row.get(name) for name in ("run", "task", "protocol", "source"))


def _report_losses(examinee: Examinee, rows: list[dict[str, Any]]) -> None:
    """Say how much of the texts the model did not see."""
    if unknown := rows[0].get("unknown"):
        say(f"{examinee.name}, {rows[0]['task']}: {unknown:,} tokens of {rows[0]['source']} are <unk>, characters that its "
            "vocabulary cannot spell; their bytes are counted, a model that spells them is not compared on equal terms")
    if cut := rows[0].get("cut"):
        say(f"{examinee.name}, {rows[0]['task']}: {cut:,} of {rows[0]['items']:,} prompts are longer than the context of "
            f"{examinee.block_size:,} tokens and lost their left end")


def _compare(first: tuple[Any, Any], other: tuple[Any, Any], task: Asked) -> list[dict[str, Any]]:
    (a, log_a), (b, log_b) = first, other
    if a == b:
        return []
    if log_a is None or log_b is None:
        say(f"{a} and {b} are not compared on {task.name}: it was done before and its items were not kept; give --log-items")
        return []
    return [{"a": str(a), "b": str(b), "source": task.source, **row} for row in compare_items(log_a, log_b)]
