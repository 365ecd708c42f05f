"""A task is put to a model: NAME=SOURCE and settings -> the per-item log (see `itemlog`)."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from glyphlm.base.errors import InputError
from glyphlm.base.progress import meter
from glyphlm.corpus.reading import Passage, Reading, passages
from glyphlm.corpus.sources import describe
from glyphlm.corpus.tasks import BETWEEN, TASKS, Item, describe_task, read_task
from glyphlm.evaluation.decoding import READ_TOKENS
from glyphlm.evaluation.likelihood import choose_options, write_answers
from glyphlm.evaluation.model import Examinee
from glyphlm.evaluation.sampled import asked, draw_answers, some
from glyphlm.runs.generate import Sampling
from glyphlm.tokenizer.tokenizer import Piece, Tokenizer
from glyphlm.training.bits_per_byte import document_scores

BITS = "bpb"
NAMES = (BITS, *(name for name in TASKS if name != "instructions"))


@dataclass(frozen=True)
class EvalSettings:
    """How models are asked.

    Args:
        protocol: likelihood: options by their log-probability, free answers by the likeliest text of a line. sampled: the
            protocol of the published lines, to reproduce them; its ± is decoding noise alone, a model that does not answer
            with a letter falls below chance (see letter_mass), answers' lengths leak, BLEU is of single sentences.
        limit: Questions of a task, drawn by the seed; by default all. (The sampled protocol takes 256 of SQuAD and 128
            pairs of a translation.)
        seed: Of what is drawn.
        precision: bf16 is faster where the machine has it; auto measures.
        between: What stands between "Answer:" and an option (likelihood): nothing, as in training here; a space is usual
            for models trained elsewhere.
        new_tokens: Most tokens of a free answer (likelihood).
        runs_per_item: Times n that the sampled protocol asks each question.
        temperature: Of the sampled protocol, from the model cards, as top_k and top_p: the published code has not told.
        top_k: Choose among the k likeliest tokens; 0 for all.
        top_p: Choose among the likeliest tokens that together have this probability.
    """

    protocol: Literal["likelihood", "sampled"] = "likelihood"
    limit: int | None = None
    seed: int = 1
    precision: Literal["fp32", "bf16", "auto"] = "fp32"
    between: str = BETWEEN
    new_tokens: int = 128
    runs_per_item: int = 10
    temperature: float = Sampling.temperature
    top_k: int = Sampling.top_k
    top_p: float = Sampling.top_p

    def __post_init__(self) -> None:
        for name in ("limit", "new_tokens", "runs_per_item"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise InputError(f"{name} {value} is less than 1; give 1 or more")
        if self.seed < 0:
            raise InputError(f"seed {self.seed} is negative; give 0 or more")
        self.sampling()

    def sampling(self) -> Sampling:
        """How the sampled protocol draws, checked."""
        return Sampling(temperature=self.temperature, top_k=self.top_k, top_p=self.top_p)

    def of(self, task: str) -> dict[str, Any]:
        """What matters for a task."""
        drawing = ("runs_per_item", "temperature", "top_k", "top_p")
        asking = ("protocol", "limit", "seed", *(drawing if self.protocol == "sampled" else ("between", "new_tokens")))
        return {name: getattr(self, name) for name in ("precision", *(asking if task != BITS else ()))}


class Asked(NamedTuple):
    """A task: its name, where it was read, its items (of bits per byte none), and what identifies the files."""

    name: str
    source: str
    items: list[Item]
    digest: Mapping[str, str]


def parse_task(task: str) -> tuple[str, str]:
    """Split `NAME=SOURCE`.

    Raises:
        InputError: there is no `=`, or the task is unknown.
    """
    name, equals, source = task.partition("=")
    if not equals or not source or name not in NAMES:
        raise InputError(f"task {task!r} is not of the form NAME=FILE with NAME one of {', '.join(NAMES)}")
    return name, source


def ask(task: str, settings: EvalSettings) -> Asked:
    """Read what a task asks under these settings.

    Raises:
        InputError: the name is unknown, a file of it is bad, or it holds nothing that the protocol asks.
    """
    name, source = parse_task(task)
    if name == BITS:
        return Asked(name, source, [], describe([source]))
    items = list(read_task(name, source))
    chosen = asked(items, settings.seed) if settings.protocol == "sampled" else items
    if not chosen:
        raise InputError(f"{name}={source} holds no question that the sampled protocol asks (SQuAD: an answer of at most 8 "
                         "characters); give another file or --protocol likelihood")
    return Asked(name, source, some(chosen, settings.limit, settings.seed), describe_task(name, source))


def examine(examinee: Examinee, task: Asked, reading: Reading, settings: EvalSettings) -> list[dict[str, Any]]:
    """The per-item log of one task.

    Raises:
        InputError: the text of bits per byte is bad.
    """
    if task.name == BITS:
        scores = _document_scores(examinee, task.source, reading)
        return [_entry(task, "likelihood", number, "", "") | score for number, score in enumerate(scores)]
    with meter(f"{task.name}, {Path(examinee.name).name}", len(task.items)) as bar:
        answers = _answer(examinee, task.items, settings, bar.advance)
    return [
        _entry(task, settings.protocol, number, item.prompt, _subject(item, settings)) | answer | _unknown(examinee, item)
        for number, (item, answer) in enumerate(zip(task.items, answers))
    ]


def _unknown(examinee: Examinee, item: Item) -> dict[str, int]:
    """How many tokens of an item's texts are `<unk>`, where any is."""
    texts = (item.prompt, *item.labels, *item.choices) if examinee.tokenizer.unknown_id is not None else ()
    count = sum(examinee.tokenizer.encode(text).count(examinee.tokenizer.unknown_id) for text in texts)
    return {"unknown": count} if count else {}


def _answer(
    examinee: Examinee, items: Sequence[Item], settings: EvalSettings, advance: Callable[[int], None]
) -> list[dict[str, Any]]:
    if settings.protocol == "sampled":
        return draw_answers(examinee, items, settings.sampling(), settings.runs_per_item, settings.seed, advance)
    if items[0].labels:
        return choose_options(examinee, items, settings.between, advance)
    return write_answers(examinee, items, settings.new_tokens, advance)


def _entry(task: Asked, protocol: str, number: int, prompt: str, subject: str) -> dict[str, Any]:
    return {"task": task.name, "protocol": protocol, "number": number, "prompt": prompt, "subject": subject}


def _subject(item: Item, settings: EvalSettings) -> str:
    if item.task == "squad" and settings.protocol == "likelihood":
        return "HasAns" if item.answers else "NoAns"  # the names of the official script
    return item.subject


def _document_scores(examinee: Examinee, source: str, reading: Reading) -> Iterator[dict[str, Any]]:
    """`nats`, `tokens` and `bytes` of each document that has tokens, and its `unknown` ones; bytes are those of its text."""
    tokenizer, sizes, seen = examinee.tokenizer, [], []
    pieces = _watched(tokenizer.encode_passages(_measured(passages([source], reading, "scoring"), sizes)), tokenizer, seen)
    none_V, budget = np.zeros(tokenizer.vocab_size, np.uint16), READ_TOKENS.get(examinee.device.type, 0)
    scores = document_scores(examinee.plain, pieces, examinee.first_id, none_V, budget)
    for number, score in enumerate(scores):
        document, unknown = seen[number]
        if not math.isfinite(score.nats):
            raise InputError(f"{examinee.name} gives no probabilities (NaN or infinite logits) in document {document + 1} "
                             f"of {source}; its training has diverged or a weight is damaged: give another checkpoint")
        yield {"nats": score.nats, "tokens": score.tokens, "bytes": sizes[document], **unknown}


def _measured(stream: Iterable[Passage], sizes: list[int]) -> Iterator[Passage]:
    """The same passages; the bytes of each document are appended to `sizes` before its last one is given."""
    size = 0
    for passage in stream:
        size += len(passage.text.encode(errors="surrogatepass"))  # what is no text is refused where it is encoded
        if passage.last:
            sizes.append(size)
            size = 0
        yield passage


def _watched(pieces: Iterable[Piece], tokenizer: Tokenizer, seen: list[tuple[int, dict[str, int]]]) -> Iterator[Piece]:
    """The same pieces; to `seen` goes the number of each document that has tokens, and how many of them are `<unk>`."""
    document = tokens = unknown = 0
    for piece in pieces:
        tokens, unknown = tokens + len(piece.ids), unknown + int((piece.ids == tokenizer.unknown_id).sum())
        if piece.last:
            if tokens:
                seen.append((document, {"unknown": unknown} if unknown else {}))
            document, tokens, unknown = document + 1, 0, 0
        yield piece
