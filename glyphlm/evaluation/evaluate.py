"""Evaluate models on tasks: result rows with named intervals, and paired comparisons.

Results are written to results.jsonl of each run folder and to a file, item logs to a folder. Results of the same model,
files and settings are reused.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from glyphlm.base.devices import resolve_precision
from glyphlm.base.errors import InputError
from glyphlm.base.names import RESULTS
from glyphlm.base.outputs import check_file, one_writer, write_atomic
from glyphlm.base.progress import meter, say, working
from glyphlm.base.records import to_lines
from glyphlm.corpus.reading import STRICT, Reading
from glyphlm.corpus.sources import describe
from glyphlm.corpus.tasks import Item, describe_task, read_task
from glyphlm.evaluation.documents import score_documents
from glyphlm.evaluation.item_log import Log, compare_items, gives, log_name, model_logs, read_log, result_rows
from glyphlm.evaluation.likelihood import generate_answers, score_options
from glyphlm.evaluation.model import EvalModel, is_run, load_eval_model
from glyphlm.evaluation.rows import ComparisonRow, ResultRow, keep_results, read_results
from glyphlm.evaluation.sampled import protocol_items, sample_answers, subsample
from glyphlm.evaluation.settings import BPB, TASK_NAMES, EvalSettings


class EvalTask(NamedTuple):
    """A task with its items (none for bits per byte), and the digests of its files by their names."""

    name: str
    source: str
    items: list[Item]
    digest: Mapping[str, str]


class Evaluation(NamedTuple):
    """Results of all models, and comparisons of each later model with the first on the same items."""

    rows: list[ResultRow]
    comparisons: list[ComparisonRow]


def evaluate(
    runs: Sequence[str | Path],
    tasks: Sequence[str],
    out: Path | None = None,
    device: str = "cpu",
    reading: Reading = STRICT,
    settings: EvalSettings | None = None,
    log_items: Path | None = None,
) -> Evaluation:
    """Evaluate every model on every task; rows are also written to each run's results.jsonl and to the file `out`.

    The same call resumes an evaluation that was stopped: finished tasks are reused.

    Args:
        runs: Run folders, other folders that transformers read without remote code, or hf:NAME.
        tasks: NAME=PATH as `tasks.read_task` has them (`mmlu=FOLDER`), and `bpb=TEXT`, bits per byte of a text.
        log_items: Folder of the item logs, MODEL.DIGEST/TASK.*.jsonl. Logs of the same items and settings have the same file
            name.

    Raises:
        InputError: a model, a text, a task file or an output is bad, a task is unknown, or logits are not finite.
    """
    settings = settings or EvalSettings()
    _check_outputs(out, log_items)
    wanted = [_read_task_items(task, settings) for task in tasks]
    job = _Job(settings, reading, resolve_precision(settings.precision, device), out, log_items)
    rows, comparisons = [], []
    firsts: dict[tuple[str, str], tuple[str, Log | None]] = {}
    with ExitStack() as locks:
        for output in ([out] if out else []) + [Path(run) for run in runs if is_run(run)]:
            locks.enter_context(one_writer(output))
        for run in map(str, runs):
            with working(f"opening {run}"):
                model = load_eval_model(run, device, job.precision)
            for task in wanted:
                found, log = job.results(model, task)
                _report_losses(model, found)
                rows += [replace(row, run=run) for row in found]
                first = firsts.setdefault((task.name, task.source), (run, log))
                with working(f"comparing {run} with {first[0]}"):
                    comparisons += _compare(first, (run, log), task)
    return Evaluation(rows, comparisons)


class _Place(NamedTuple):
    """A results file, and the value of `run` of the model's rows in it (None in the run's own)."""

    file: Path
    run: str | None


class _Job(NamedTuple):
    """What all models and tasks of a call of `evaluate` share."""

    settings: EvalSettings
    reading: Reading
    precision: str
    out: Path | None
    log_items: Path | None

    def results(self, model: EvalModel, task: EvalTask) -> tuple[list[ResultRow], Log | None]:
        """The rows of one task, reused or computed, and its log if there is one; rows are written to each output."""
        made_from = self._made_from(model, task)
        folder = self.log_items and model_logs(self.log_items, model.digest, model.name)
        path = folder / log_name(task.name, made_from) if folder else None
        places = [_Place(model.folder / RESULTS, None)] if model.folder else []
        places += [_Place(self.out, model.name)] if self.out else []
        rows, log = _kept(places, task, made_from, path)
        if not rows:
            log = run_task(model, task, self.reading, self.settings)
            rows = [replace(row, source=task.source, made_from=made_from) for row in result_rows(log)]
            if path is not None:  # before the rows, which mark the task as finished
                path.parent.mkdir(parents=True, exist_ok=True)
                write_atomic(path, to_lines(log))
        _complete(places, rows)
        return rows, log

    def _made_from(self, model: EvalModel, task: EvalTask) -> dict[str, Any]:
        """What identifies results: model, files and settings."""
        settings = self.settings.of(task.name) | {"precision": self.precision}
        settings |= self.reading.settings() if task.name == BPB else {}
        return {"model": model.digest, "files": dict(task.digest), "settings": settings}


def _check_outputs(out: Path | None, log_items: Path | None) -> None:
    if out:
        check_file(out, (), RESULTS)
        read_results(out)  # what holds anything else is refused before the work
        out.parent.mkdir(parents=True, exist_ok=True)
    if log_items and log_items.exists() and not log_items.is_dir():
        raise InputError(f"--log_items {log_items} is a file; give a folder for the logs")


def _kept(
    places: Sequence[_Place], task: EvalTask, made_from: dict[str, Any], path: Path | None
) -> tuple[list[ResultRow], Log | None]:
    """Rows of an earlier evaluation of the same, with their log if `path` names one; none if that log is missing."""
    for place in places:
        rows = [replace(row, run=None) for row in read_results(place.file)
                if (row.run, row.task, row.source, row.made_from) == (place.run, task.name, task.source, made_from)]
        if rows and path is None:
            return rows, None
        if rows and path and path.is_file() and gives(log := read_log(path), rows):
            return rows, log
    return [], None


def _complete(places: Sequence[_Place], rows: Sequence[ResultRow]) -> None:
    """Add the rows to each file that lacks one of them."""
    for place in places:
        named, present = [replace(row, run=place.run) for row in rows], read_results(place.file)
        if not all(row in present for row in named):
            keep_results(place.file, named)


def _report_losses(model: EvalModel, rows: Sequence[ResultRow]) -> None:
    """Print how many prompts were truncated, and how many tokens are `<unk>`."""
    row = rows[0]
    if row.cut:
        many = "; with so many cut it is another task, and its results are marked" if row.many_cut else ""
        say(f"{model.name}, {row.task}: {row.cut:,} of {row.items:,} prompts are longer than the context of "
            f"{model.block_size:,} tokens and lost their left end{many}")
    if row.unknown:
        say(f"{model.name}, {row.task}: {row.unknown:,} tokens of {row.source} are <unk>, characters that its vocabulary "
            "cannot spell; their bytes are counted")


def _compare(first: tuple[str, Log | None], other: tuple[str, Log | None], task: EvalTask) -> list[ComparisonRow]:
    (a, log_a), (b, log_b) = first, other
    if a == b:
        return []
    if log_a is None or log_b is None:
        say(f"{a} and {b} are not compared on {task.name}: its results were kept without its items; give --log-items")
        return []
    return [replace(row, a=a, b=b, source=task.source) for row in compare_items(log_a, log_b)]


def parse_task(task: str) -> tuple[str, str]:
    """Split `NAME=SOURCE`.

    Raises:
        InputError: there is no `=`, or the task is unknown.
    """
    name, equals, source = task.partition("=")
    if not equals or not source or name not in TASK_NAMES:
        raise InputError(f"task {task!r} is not of the form NAME=FILE with NAME one of {', '.join(TASK_NAMES)}")
    return name, source


def _read_task_items(task: str, settings: EvalSettings) -> EvalTask:
    """Read a task, with the items that the settings select."""
    name, source = parse_task(task)
    if name == BPB:
        return EvalTask(name, source, [], describe([source]))
    items = list(read_task(name, source))
    chosen = protocol_items(items, settings.seed) if settings.protocol == "sampled" else items
    if not chosen:
        raise InputError(f"{name}={source} holds no question for the sampled protocol (SQuAD: an answer of at most 8 "
                         "characters); give another file or --protocol likelihood")
    return EvalTask(name, source, subsample(chosen, settings.limit, settings.seed), describe_task(name, source))


def run_task(model: EvalModel, task: EvalTask, reading: Reading, settings: EvalSettings) -> list[dict[str, Any]]:
    """The item log of one task (see `item_log`).

    Raises:
        InputError: the text of bits per byte is bad, or logits are not finite.
    """
    if task.name == BPB:
        scores = score_documents(model, task.source, reading)
        return [_entry(task, "likelihood", number, "", "") | score for number, score in enumerate(scores)]
    with meter(f"{task.name}, {Path(model.name).name}", len(task.items)) as bar:
        answers = _answer(model, task.items, settings, bar.advance)
    return [
        _entry(task, settings.protocol, number, item.prompt, _subject(item, settings)) | answer | _count_unknown(model, item)
        for number, (item, answer) in enumerate(zip(task.items, answers))
    ]


def _answer(
    model: EvalModel, items: Sequence[Item], settings: EvalSettings, advance: Callable[[int], None]
) -> list[dict[str, Any]]:
    if settings.protocol == "sampled":
        return sample_answers(model, items, settings.sampling(), settings.runs_per_item, settings.seed, advance)
    if items[0].labels:
        return score_options(model, items, settings.between, advance)
    return generate_answers(model, items, settings.new_tokens, advance)


def _entry(task: EvalTask, protocol: str, number: int, prompt: str, subject: str) -> dict[str, Any]:
    return {"task": task.name, "protocol": protocol, "number": number, "prompt": prompt, "subject": subject}


def _subject(item: Item, settings: EvalSettings) -> str:
    if item.task == "squad" and settings.protocol == "likelihood":
        return "HasAns" if item.answers else "NoAns"  # the names of the official script
    return item.subject


def _count_unknown(model: EvalModel, item: Item) -> dict[str, int]:
    """The number of `<unk>` tokens in an item's texts, if there are any."""
    encode, unknown = model.tokenizer.encode, model.tokenizer.unknown_id
    texts = (item.prompt, *item.labels, *item.choices)
    count = 0 if unknown is None else sum(encode(text).count(unknown) for text in texts)
    return {"unknown": count} if count else {}
