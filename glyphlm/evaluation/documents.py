"""Bits per byte of the documents of a text: nats and bytes of each, and of the parts of a text that is one document."""

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from torch import Tensor

from glyphlm.corpus.reading import Passage, Reading, passages
from glyphlm.evaluation.decoding import READ_TOKENS
from glyphlm.evaluation.model import EvalModel
from glyphlm.tokenizer.tokenizer import Piece, Tokenizer
from glyphlm.training.bits_per_byte import NotFinite, document_scores

# Bytes; a text that is one document has at most so many blocks, none of them shorter than that.
CELL, SHORTEST_BLOCK, MOST_BLOCKS = 64, 256, 64


class Blocks:
    """Nats of the first document by where in it a token begins, for the interval of a text that is a single document.

    The parts are equal in bytes, so that models with other tokenizers are compared part by part.
    """

    def __init__(self, bytes_per_id_V: np.ndarray):
        self._bytes_V, self._at, self._nats = bytes_per_id_V.astype(np.int64), 0, np.zeros(0)

    def add(self, number: int, nats_N: Tensor, y_N: Tensor) -> None:
        """Count the next targets, if they are of document 0."""
        if number == 0:
            sizes_N = self._bytes_V[y_N.cpu().numpy()]
            places_N = (self._at + sizes_N.cumsum() - sizes_N) // CELL
            self._at += int(sizes_N.sum())
            new = np.bincount(places_N, nats_N.double().cpu().numpy())
            self._nats = np.pad(self._nats, (0, max(0, len(new) - len(self._nats))))
            self._nats[: len(new)] += new

    def of(self, size: int) -> list[tuple[float, int]]:
        """Nats and bytes of each block of a document of `size` bytes; none where it has not two blocks."""
        count = min(MOST_BLOCKS, size // SHORTEST_BLOCK)
        if count < 2:
            return []
        borders = np.linspace(0, size // CELL, count + 1).astype(int)
        sizes = np.diff([*(borders[:-1] * CELL), size]).tolist()
        ends = [*borders[1:-1], len(self._nats)]  # <unk> has no bytes in the vocabulary: the last block takes what is left
        return [(float(self._nats[low:high].sum()), many) for low, high, many in zip(borders, ends, sizes)]


def score_documents(model: EvalModel, source: str, reading: Reading) -> list[dict[str, Any]]:
    """`nats`, `tokens` and `bytes` of each document that has tokens, and its `unknown` ones; bytes are those of its text.

    A single document also has `blocks`.
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
    """Pass passages through; the bytes of each document are appended to `sizes` before its last passage is yielded."""
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
    """Pass pieces through; for each document with tokens append its number and its count of `<unk>` to `documents`."""
    number = tokens = unknown = 0
    for piece in pieces:
        tokens, unknown = tokens + len(piece.ids), unknown + int((piece.ids == tokenizer.unknown_id).sum())
        if piece.last:
            if tokens:
                documents.append((number, {"unknown": unknown} if unknown else {}))
            number, tokens, unknown = number + 1, 0, 0
        yield piece
