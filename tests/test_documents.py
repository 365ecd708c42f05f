"""The parts of a text that is one document: equal in bytes whatever the tokenizer, and together the whole."""

import numpy as np
import pytest
import torch

from glyphlm.evaluation.documents import CELL, MOST_BLOCKS, SHORTEST_BLOCK, Blocks


def blocks_of(widths, size):
    """Blocks of a document of `size` bytes in tokens of these widths in turn; a token costs as many nats as bytes."""
    found, bytes_V = Blocks(np.arange(8, dtype=np.uint16)), np.resize(widths, size)
    ids_N = torch.from_numpy(bytes_V[bytes_V.cumsum() <= size].copy())
    for part in ids_N.split(100):
        found.add(0, part.float(), part)
        found.add(1, part.float(), part)  # of another document: not counted
    return found.of(size)


@pytest.mark.parametrize("size", [SHORTEST_BLOCK * 2, 5000, 100_000])
@pytest.mark.parametrize("widths", [[1], [2, 5], [7, 1, 3]])
def test_blocks_add_up_and_are_the_same_for_every_tokenizer(size, widths):
    blocks = blocks_of(widths, size)
    assert 2 <= len(blocks) == min(MOST_BLOCKS, size // SHORTEST_BLOCK)
    nats, sizes = (sum(part) for part in zip(*blocks))
    assert sizes == size and size - 7 < nats <= size
    assert [many for _, many in blocks] == [many for _, many in blocks_of([1], size)]
    for found, many in blocks:
        assert abs(found - many) < CELL


def test_a_short_text_has_no_blocks():
    assert blocks_of([1], 2 * SHORTEST_BLOCK - 1) == []
