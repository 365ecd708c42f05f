"""The feed: the same batches whether made ahead or not, and a position that is that of the last one taken."""

import time

import numpy as np
import pytest
import torch

from glyphlm.data.batches import IGNORED, Batches
from glyphlm.training.feed import AHEAD, Feed

BLOCK, ROWS = 8, 4


class Text:
    """Random ids, every third of which is an answer."""

    folder, split, end_id, tokens = "text", "train", 0, 4000

    def __init__(self):
        self.ids = np.random.default_rng(1).integers(1, 50, self.tokens)
        self.answers = np.arange(self.tokens) % 3 == 0
        self.bytes_per_id_V = np.arange(50, dtype=np.uint16)

    def read(self, start, length):
        """Ids start .. start + length."""
        return self.ids[start : start + length]


def batches(answers_only=False) -> Batches:
    return Batches([Text()], [1.0], BLOCK, ROWS, seed=1, answers_only=[answers_only])


@pytest.mark.parametrize("ahead", [False, True])
def test_every_rank_gets_its_rows_in_micro_batches_and_all_know_the_targets_of_the_whole(ahead):
    plain, feeds = batches(True), [Feed(batches(True), rank, 2, 1, ahead) for rank in range(2)]
    for _ in range(3):
        x_BT, y_BT = next(plain)
        for rank, feed in enumerate(feeds):
            batch = next(feed)
            for number, (x_1T, y_1T) in enumerate(batch.parts):
                assert torch.equal(x_1T[0], x_BT[rank + 2 * number]) and torch.equal(y_1T[0], y_BT[rank + 2 * number])
            y_N = y_BT[y_BT != IGNORED]
            assert (len(batch.parts), batch.targets, batch.bytes) == (2, len(y_N), int(y_N.sum()))
            assert batch.position == feed.position == plain.state()
    for feed in feeds:
        feed.close()


def test_batches_made_ahead_are_given_back():
    plain, source = batches(), batches()
    feed = Feed(source, 0, 1, ROWS, ahead=True)
    next(feed), next(plain)
    until = time.monotonic() + 10
    while not feed._made.full() and time.monotonic() < until:
        time.sleep(0.001)
    assert source.state()["taken"][0] >= (1 + AHEAD) * ROWS
    feed.close()
    assert source.state() == plain.state() and not feed._thread.is_alive()
    assert torch.equal(next(source).x_BT, next(plain).x_BT)


def test_an_error_in_the_thread_is_raised_where_the_batch_is_taken():
    source = batches()
    source._texts[0].read = lambda start, length: 1 / 0
    feed = Feed(source, 0, 1, ROWS, ahead=True)
    with pytest.raises(ZeroDivisionError):
        next(feed)
    feed.close()
