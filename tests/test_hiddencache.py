"""Kept hidden states: found again bit for bit, never more than fit, never those of another model."""

import numpy as np
import pytest
import torch
from torch import Tensor

from glyphlm.base.errors import InputError
from glyphlm.composition.hidden_cache import KEYS, ROWS, HiddenCache

T, D = 4, 6


class Blocks:
    """Stands for the frozen blocks, and counts what they are asked."""

    def __init__(self):
        self.computed = 0

    def of(self, ids_BT: Tensor) -> Tensor:
        return torch.sin(ids_BT[..., None] * torch.arange(1, D + 1.0))

    def through(self, cache: HiddenCache, ids_BT: Tensor) -> Tensor:
        def compute(rows_N: Tensor) -> Tensor:
            self.computed += len(rows_N)
            return self.of(ids_BT[rows_N])

        return cache(ids_BT, compute)


def ids(*numbers: int) -> Tensor:
    """Sequences [B, T] that differ by a number."""
    return torch.tensor(numbers)[:, None] * 100 + torch.arange(T)


@pytest.mark.parametrize("on_disk", [False, True])
def test_a_sequence_is_computed_once_wherever_it_stands_in_a_batch(tmp_path, on_disk):
    cache, blocks = HiddenCache(T, D, 8, tmp_path if on_disk else None), Blocks()
    for batch in (ids(1, 2, 3), ids(3, 1), ids(2, 4, 1)):
        assert torch.equal(blocks.through(cache, batch), blocks.of(batch))
    assert blocks.computed == 4 and cache.take_hits() == 4 and cache.take_hits() == 0


def test_no_more_is_kept_than_fits():
    cache, blocks = HiddenCache(T, D, 2), Blocks()
    for _ in range(2):
        assert torch.equal(blocks.through(cache, ids(1, 2, 3)), blocks.of(ids(1, 2, 3)))
    assert blocks.computed == 3 + 1


def test_sequences_of_another_length_pass_by():
    cache, blocks = HiddenCache(T, D, 8), Blocks()
    for _ in range(2):
        assert torch.equal(blocks.through(cache, ids(1)[:, :2]), blocks.of(ids(1)[:, :2]))
    assert blocks.computed == 2


def test_the_next_process_finds_them(tmp_path):
    Blocks().through(HiddenCache(T, D, 8, tmp_path, {"base": "a"}), ids(1, 2))
    blocks = Blocks()
    assert torch.equal(blocks.through(HiddenCache(T, D, 8, tmp_path, {"base": "a"}), ids(2, 3)), blocks.of(ids(2, 3)))
    assert blocks.computed == 1


@pytest.mark.parametrize("made_from", [{"base": "b"}, {"base": "a", "shards": ["x"]}])
def test_those_of_another_model_or_text_are_refused(tmp_path, made_from):
    HiddenCache(T, D, 8, tmp_path, {"base": "a"})
    with pytest.raises(InputError, match="hidden states of something else: (base was 'a', is now 'b'|shards was None)"):
        HiddenCache(T, D, 8, tmp_path, made_from)


def test_a_row_that_was_not_written_whole_is_computed_again(tmp_path):
    Blocks().through(HiddenCache(T, D, 8, tmp_path), ids(1, 2))
    rows = np.memmap(tmp_path / ROWS, np.float32, "r+", shape=(8, T, D))
    rows[0, 2] = 7
    rows.flush()
    blocks = Blocks()
    assert torch.equal(blocks.through(HiddenCache(T, D, 8, tmp_path), ids(1, 2)), blocks.of(ids(1, 2)))
    assert blocks.computed == 1 and (tmp_path / KEYS).exists()
