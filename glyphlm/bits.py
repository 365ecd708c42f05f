"""Bits per byte: the measure that compares models whatever their tokenizer (nats / ln 2 / bytes of the text)."""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from glyphlm.dataset import Batch
from glyphlm.loss import target_nats
from glyphlm.model import GPT
from glyphlm.tokenizer import Piece


@dataclass
class Score:
    """Summed cross-entropy in nats over `tokens` targets that stand for `bytes` bytes of text."""

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
        """Bits a byte of text; tokens that stand for no text cost bits and bring no bytes."""
        return self.nats / math.log(2) / self.bytes if self.bytes else math.nan

    def add(self, nats_N: Tensor, y_N: Tensor, bytes_per_id_V: np.ndarray) -> None:
        """Count more targets."""
        self.nats += float(nats_N.double().sum())
        self.tokens += len(y_N)
        self.bytes += int(bytes_per_id_V[y_N.cpu().numpy()].sum())


@torch.no_grad()
def score_batches(
    nats_of: Callable[[Tensor, Tensor], Tensor], batches: Iterable[Batch], bytes_per_id_V: np.ndarray, device: torch.device
) -> Score:
    """The score of every target of `batches`; `nats_of(x_BT, y_BT)` gives the nats of each target [N]."""
    score = Score()
    for x_BT, y_BT in batches:
        score.add(nats_of(x_BT.to(device), y_BT.to(device)), y_BT.flatten(), bytes_per_id_V)
    return score


@torch.no_grad()
def score_documents(model: GPT, pieces: Iterable[Piece], end_id: int, bytes_per_id_V: np.ndarray) -> Score:
    """The score of every token of a stream of documents; each token is scored once.

    A document starts after `</s>`, as in training. Longer ones slide through the context by half of it, so that every
    token but the first ones sees at least block_size / 2 tokens before it.
    """
    score, block = Score(), model.config.block_size
    device = model.device
    for ids_T, fresh in _windows(pieces, end_id, block):
        x_BT = torch.from_numpy(ids_T[:-1].astype(np.int64))[None].to(device)
        y_N = torch.from_numpy(ids_T[-fresh:].astype(np.int64)).to(device)
        x_ND = model.hidden(x_BT)[0, -fresh:]
        score.add(target_nats(model.logits, x_ND, y_N, model.vocab_size), y_N, bytes_per_id_V)
        score.documents += int(ids_T[0] == end_id)
    return score


def _windows(pieces: Iterable[Piece], end_id: int, block: int) -> Iterator[tuple[np.ndarray, int]]:
    """Spans of at most block + 1 ids and how many of their last ids have not been scored before."""
    start = np.array([end_id], dtype=np.uint32)
    held, fresh = start, 0
    for ids, last in pieces:
        held, fresh = np.concatenate([held, ids]), fresh + len(ids)
        while fresh and (last or len(held) > block + 1):
            span = held[: block + 1]
            scored = fresh - (len(held) - len(span))
            yield span, scored
            fresh -= scored
            held = held[max(0, len(span) - 1 - block // 2) :]
        if last:
            held, fresh = start, 0
