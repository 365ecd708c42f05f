"""Bits per byte, nats / ln 2 / bytes of the text: a measure that is independent of the tokenizer."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import astuple, dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from glyphlm.base.errors import InputError
from glyphlm.data.batches import Batch
from glyphlm.modeling.model import LanguageModel
from glyphlm.tokenizer.tokenizer import Piece
from glyphlm.training.loss import target_nats


class NotFinite(InputError):
    """The loss of a model is NaN or infinite."""


@dataclass
class Score:
    """Summed cross-entropy in nats of `tokens` targets, which decode to `bytes` bytes of text."""

    nats: float = 0.0
    tokens: int = 0
    bytes: int = 0
    documents: int = 0

    @property
    def loss(self) -> float:
        """Nats a token."""
        return self.nats / self.tokens if self.tokens else math.nan

    @property
    def bits_per_byte(self) -> float:
        """Bits a byte of text; special tokens add nats but no bytes."""
        return self.nats / math.log(2) / self.bytes if self.bytes else math.nan

    def __add__(self, other: "Score") -> "Score":
        return Score(*(a + b for a, b in zip(astuple(self), astuple(other))))

    def add(self, nats_N: Tensor, y_N: Tensor, bytes_per_id_V: np.ndarray) -> None:
        """Count more targets.

        Raises:
            NotFinite: a loss is NaN or infinite.
        """
        nats = float(nats_N.double().sum())
        if not math.isfinite(nats):
            raise NotFinite(f"the model gives a loss of {nats}; its weights are damaged, or its training diverged")
        self.nats += nats
        self.tokens += len(y_N)
        self.bytes += int(bytes_per_id_V[y_N.cpu().numpy()].sum())


class Window(NamedTuple):
    """At most block + 1 ids of one document, of which the last `fresh` have not been scored before."""

    ids_T: np.ndarray
    fresh: int
    begins: bool  # a document


@torch.no_grad()
def score_batches(
    nats_of: Callable[[Tensor, Tensor], Tensor], batches: Iterable[Batch], bytes_per_id_V: np.ndarray, device: torch.device
) -> Score:
    """The score of all targets of `batches`; `nats_of(x_BT, y_BT)` returns the nats of each target [N]."""
    score = Score()
    for x_BT, y_BT in batches:
        score.add(nats_of(x_BT.to(device), y_BT.to(device)), y_BT.flatten(), bytes_per_id_V)
    return score


def score_documents(model: LanguageModel, pieces: Iterable[Piece], end_id: int, bytes_per_id_V: np.ndarray) -> Score:
    """The sum of `document_scores`: independent of the files and the order of the documents."""
    return sum(document_scores(model, pieces, end_id, bytes_per_id_V), Score())


@torch.no_grad()
def document_scores(
    model: LanguageModel,
    pieces: Iterable[Piece],
    end_id: int,
    bytes_per_id_V: np.ndarray,
    batch_tokens: int = 0,
    seen: Callable[[int, Tensor, Tensor], None] | None = None,
) -> Iterator[Score]:
    """The score of each document that has tokens; each token is scored once.

    A document starts after `</s>`, as in training. A longer one is read in windows that slide by half a context, so that
    every token but the first ones has at least block_size / 2 tokens before it.

    Args:
        batch_tokens: Windows are computed together up to this many tokens with padding; one at a time by default, which is
            fastest on a CPU.
        seen: Called with the number of the document, from 0, and nats and ids of its next targets [N].
    """
    score, number = Score(), -1  # empty
    for batch in _batched(windows(pieces, end_id, model.config.block_size), batch_tokens):
        for window, nats_N, y_N in zip(batch, *_window_nats(model, batch)):
            if window.begins:
                if score.documents:
                    yield score
                score, number = Score(documents=1), number + 1
            score.add(nats_N, y_N, bytes_per_id_V)
            if seen is not None:
                seen(number, nats_N, y_N)
    if score.documents:
        yield score


def _window_nats(model: LanguageModel, batch: list[Window]) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
    """Nats and ids of the fresh targets of each window. Attention is causal, so padding on the right has no effect."""
    if document_nats := getattr(model, "document_nats", None):  # of ByteFusion, which knows where tokens end
        ids = [torch.from_numpy(window.ids_T.astype(np.int64)) for window in batch]
        return ([document_nats(ids_T)[-window.fresh :] for ids_T, window in zip(ids, batch)],
                [ids_T[-window.fresh :] for ids_T, window in zip(ids, batch)])
    longest, fresh = max(len(window.ids_T) for window in batch) - 1, [window.fresh for window in batch]
    x_BT = np.stack([np.pad(w.ids_T[:-1].astype(np.int64), (0, longest + 1 - len(w.ids_T))) for w in batch])
    x_BTD = model.hidden(torch.from_numpy(x_BT).to(model.device))
    x_ND = torch.cat([x_TD[len(w.ids_T) - 1 - w.fresh : len(w.ids_T) - 1] for x_TD, w in zip(x_BTD, batch)])
    y_N = torch.from_numpy(np.concatenate([w.ids_T[-w.fresh :] for w in batch]).astype(np.int64)).to(model.device)
    nats_N = target_nats(model, x_ND, y_N)
    return nats_N.split(fresh), y_N.split(fresh)


def _batched(stream: Iterable[Window], tokens: int) -> Iterator[list[Window]]:
    batch: list[Window] = []
    for window in stream:
        if batch and (len(batch) + 1) * max(len(w.ids_T) for w in (*batch, window)) > tokens:
            yield batch
            batch = []
        batch.append(window)
    if batch:
        yield batch


def windows(pieces: Iterable[Piece], end_id: int, block: int) -> Iterator[Window]:
    """The documents of `pieces`, each after `</s>`, in windows that overlap by half of the context."""
    start = np.array([end_id], dtype=np.uint32)
    held, fresh, begins = start, 0, True
    for ids, last in pieces:
        held, fresh = np.concatenate([held, ids]), fresh + len(ids)
        while fresh and (last or len(held) > block + 1):
            span = held[: block + 1]
            scored = fresh - (len(held) - len(span))
            yield Window(span, scored, begins)
            fresh, begins = fresh - scored, False
            held = held[max(0, len(span) - 1 - block // 2) :]
        if last:
            held, fresh, begins = start, 0, True
