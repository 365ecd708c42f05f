"""Nats and bytes of each document of a text, for bits per byte; a text that is one document is split into blocks."""

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from torch import Tensor

from glyphlm.corpus.reading import Passage, Reading, passages
from glyphlm.evaluation.decoding import READ_TOKENS
from glyphlm.evaluation.model import EvalModel
from glyphlm.tokenizer.tokenizer import Piece, Tokenizer
from glyphlm.training.bits_per_byte import NotFinite, document_scores

# In bytes: resolution of the blocks and their smallest size; and their largest number.
CELL, SHORTEST_BLOCK, MOST_BLOCKS = 64, 256, 64


class Blocks:
    """Nats of document 0 by the byte offset of each token: resampling units for a text that is a single document.

    Blocks are equal in bytes, so that models with different tokenizers are paired block by block.
    """

    def __init__(self, bytes_per_id_V: np.ndarray):
        self._bytes_V, self._at, self._nats = bytes_per_id_V.astype(np.int64), 0, np.zeros(0)

    def add(self, number: int, nats_N: Tensor, y_N: Tensor) -> None:
        """Add the next targets of document `number`; only document 0 is kept."""
        if number == 0:
            sizes_N = self._bytes_V[y_N.cpu().numpy()]
            places_N = (self._at + sizes_N.cumsum() - sizes_N) // CELL
            self._at += int(sizes_N.sum())
            new = np.bincount(places_N, nats_N.double().cpu().numpy())
            self._nats = np.pad(self._nats, (0, max(0, len(new) - len(self._nats))))
            self._nats[: len(new)] += new

    def of(self, size: int) -> list[tuple[float, int]]:
        """Nats and bytes of each block of a document of `size` bytes; empty if it is too short for two blocks."""
        count = min(MOST_BLOCKS, size // SHORTEST_BLOCK)
        if count < 2:
            return []
        borders = np.linspace(0, size // CELL, count + 1).astype(int)
        sizes = np.diff([*(borders[:-1] * CELL), size]).tolist()
        ends = [*borders[1:-1], len(self._nats)]  # <unk> counts no bytes: the last block takes the rest
        return [(float(self._nats[low:high].sum()), many) for low, high, many in zip(borders, ends, sizes)]


def score_documents(model: EvalModel, source: str, reading: Reading) -> list[dict[str, Any]]:
    """A log entry for each document that has tokens: `nats`, `tokens`, `bytes` (of its text), `unknown` if there are any.

    A single document also has `blocks`.

    Raises:
        InputError: the text is bad, or logits are not finite.
    """
    tokenizer = model.tokenizer
    sizes: list[int] = []
    documents: list[tuple[int, dict[str, int]]] = []
    stream = _count_bytes(passages([source], reading, "scoring"), sizes)
    pieces = _number_documents(tokenizer.encode_passages(stream), tokenizer, documents)
    none_V, budget = np.zeros(tokenizer.vocab_size, np.uint16), READ_TOKENS.get(model.device.type, 0)
    found, blocks = [], Blocks(tokenizer.bytes_per_id_V)
    try:
        for score in document_scores(model.scorer, pieces, model.first_id, none_V, budget, blocks.add):
            document, unknown = documents[len(found)]
            found.append({"nats": score.nats, "tokens": score.tokens, "bytes": sizes[document], **unknown})
    except NotFinite:
        raise model.not_finite(f"in document {documents[len(found)][0] + 1} of {source}") from None
    if len(found) == 1 and (parts := blocks.of(found[0]["bytes"])):
        found[0]["blocks"] = parts
    return found


def _count_bytes(stream: Iterable[Passage], sizes: list[int]) -> Iterator[Passage]:
    """Yield the passages; append the bytes of each document to `sizes` before its last passage is yielded."""
    size = 0
    for passage in stream:
        size += len(passage.text.encode(errors="surrogatepass"))  # lone surrogates are refused where text is encoded
        if passage.last:
            sizes.append(size)
            size = 0
        yield passage


def _number_documents(
    pieces: Iterable[Piece], tokenizer: Tokenizer, documents: list[tuple[int, dict[str, int]]]
) -> Iterator[Piece]:
    """Yield the pieces; append the index and the count of `<unk>` of each document with tokens to `documents`."""
    number = tokens = unknown = 0
    for piece in pieces:
        tokens, unknown = tokens + len(piece.ids), unknown + int((piece.ids == tokenizer.unknown_id).sum())
        if piece.last:
            if tokens:
                documents.append((number, {"unknown": unknown} if unknown else {}))
            number, tokens, unknown = number + 1, 0, 0
        yield piece
