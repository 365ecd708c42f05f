"""Shards hold every document once, batches are a function of the seed and a position, validation is read once."""

import hashlib
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from glyphlm.base.errors import InputError
from glyphlm.corpus.phrasebook import phrases
from glyphlm.data.batches import (
    IGNORED,
    Batch,
    Batches,
    Source,
    TokenText,
    open_training,
    open_validation,
    unigram_bits_per_byte,
    validation_batches,
)
from glyphlm.data.shards import prepare_examples
from glyphlm.tokenizer.layouts import compact_backend
from glyphlm.tokenizer.ngrams import TextCounts
from glyphlm.tokenizer.tokenizer import Tokenizer


class Numbers:
    """A text whose ids are their own places, so that a batch shows where it was read."""

    folder, split = Path("numbers"), "train"

    def __init__(self, tokens, first=0):
        self.tokens, self.first = tokens, first

    def read(self, start, length):
        assert 0 <= start <= self.tokens - length
        return np.arange(self.first + start, self.first + start + length)


def batches(*texts, weights=(1,), block_size=4, batch_size=2, seed=1):
    return Batches(texts, weights, block_size, batch_size, seed)


def take(stream, count):
    return [next(stream).x_BT.tolist() for _ in range(count)]


# Shards that cannot be used


def test_a_cut_off_file_is_refused_with_both_sizes(several):
    path = several / "part-00000" / "train-00001.bin"
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.truncate(size - 2)
    with pytest.raises(InputError, match=f"{path} has {size - 2} bytes, not {size}; prepare the text again"):
        TokenText(several, "train")


def test_a_missing_file_is_refused_with_its_name(several):
    (several / "part-00000" / "train-00001.bin").unlink()
    with pytest.raises(InputError, match="train-00001.bin has 0 bytes"):
        TokenText(several, "train")


@pytest.mark.parametrize("damage", [None, b"", b"\x93NUMPY\x01\x00"])
def test_damaged_bytes_of_ids_are_refused_with_the_file(several, damage):
    (several / "token_bytes.npy").unlink()
    if damage is not None:
        (several / "token_bytes.npy").write_bytes(damage)
    with pytest.raises(InputError, match="token_bytes.npy cannot be read .*; prepare the text again"):
        TokenText(several, "train").bytes_per_id_V  # noqa: B018


def test_a_file_that_was_changed_is_refused_with_both_digests(several, tokenizer):
    path = several / "part-00000" / "train-00001.bin"
    recorded = hashlib.sha256(path.read_bytes()).hexdigest()
    np.fromfile(path, "<u2")[::-1].tofile(path)
    with pytest.raises(InputError, match=f"{path} has the sha256 .*, not the recorded {recorded[:12]}; prepare"):
        open_training([Source(str(several))], tokenizer)


def test_validation_files_are_checked_too(several, prepared, tokenizer):
    assert [text.split for text in open_validation([str(several)], tokenizer)] == ["validation"]
    path = several / "part-00000" / "validation-00000.bin"
    path.write_bytes(bytes(path.stat().st_size))
    with pytest.raises(InputError, match=f"{path} has the sha256"):
        open_validation([str(several)], tokenizer)


@pytest.mark.parametrize("shape", [(7,), (1 << 40,), ()])
def test_bytes_of_ids_of_another_size_are_refused_before_memory_is_taken(several, shape):
    header = repr({"descr": "<u2", "fortran_order": False, "shape": shape}).ljust(118).encode() + b"\n"
    (several / "token_bytes.npy").write_bytes(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + bytes(14))
    with pytest.raises(InputError, match="token_bytes.npy cannot be read .*; prepare the text again"):
        TokenText(several, "train").bytes_per_id_V  # noqa: B018


@pytest.mark.parametrize(
    "change",
    [
        lambda result: result.pop("splits"),
        lambda result: result["splits"].pop("train"),
        lambda result: result.update(splits=[]),
        lambda result: result.update(vocab_size="many"),
        lambda result: result.update(end_id=10**9),
        lambda result: result["splits"]["train"].update(dtype="O"),
        lambda result: result["splits"]["train"].update(tokens=-1),
        lambda result: result["splits"]["train"].update(tokens=10**15),
        lambda result: result["splits"]["train"].update(shards=None),
        lambda result: result["splits"]["train"]["shards"][0].pop("sha256"),
    ],
)
def test_a_damaged_record_is_refused_with_its_file(several, change):
    record = json.loads((several / "build.json").read_text(encoding="utf-8"))
    change(record["result"])
    (several / "build.json").write_text(json.dumps(record), encoding="utf-8")
    with pytest.raises(InputError, match=f"{several / 'build.json'} is damaged .*; prepare the text again"):
        TokenText(several, "train")


def test_shards_of_another_tokenizer_are_refused_with_both_fingerprints(prepared, tokenizer):
    TokenText(prepared, "train", tokenizer.fingerprint)
    with pytest.raises(InputError, match=f"was tokenized with {tokenizer.fingerprint[:12]}, .* is abcabcabcabc;"):
        TokenText(prepared, "train", "abc" * 8)


def test_a_folder_of_another_kind_is_refused(tokenizer_folder):
    with pytest.raises(InputError, match="holds a tokenizer, not token shards"):
        TokenText(tokenizer_folder, "train")


# Batches


def test_the_same_seed_gives_the_same_batches():
    assert take(batches(Numbers(100)), 40) == take(batches(Numbers(100)), 40)


def test_another_seed_gives_other_batches():
    assert take(batches(Numbers(100)), 10) != take(batches(Numbers(100), seed=2), 10)


def test_targets_are_the_ids_that_follow():
    for x_BT, y_BT in (next(batches(Numbers(100))) for _ in range(20)):
        assert torch.equal(y_BT, x_BT + 1)


def test_batches_are_int64_of_the_shape_asked_for():
    batch = next(batches(Numbers(100), block_size=7, batch_size=3))
    assert [(ids_BT.dtype, tuple(ids_BT.shape)) for ids_BT in batch] == [(torch.int64, (3, 7))] * 2


@settings(max_examples=60, deadline=None)
@given(position=st.integers(0, 80), weight=st.floats(0.1, 10))
def test_a_restored_position_continues_the_same_way(position, weight):
    def fresh():
        return batches(Numbers(50), Numbers(70, first=1000), weights=(1, weight))

    stream, restored = fresh(), fresh()
    take(stream, position)
    restored.restore(json.loads(json.dumps(stream.state())))
    assert take(restored, 30) == take(stream, 30) and restored.digest == stream.digest


@pytest.mark.parametrize("state", [
    {}, {"taken": [1, 2], "digest": 0}, {"taken": [-1], "digest": 0}, {"taken": ["1"], "digest": 0}, {"taken": [1]},
    {"taken": [10**30], "digest": 0}, {"taken": 1, "digest": 0},
])  # fmt: skip
def test_a_position_of_something_else_is_refused(state):
    with pytest.raises(InputError, match="the saved position .* does not belong to 1 sources"):
        batches(Numbers(50)).restore(state)


@pytest.mark.parametrize("numbers", [{"block_size": 0}, {"batch_size": 0}, {"seed": -1}])
def test_numbers_out_of_range_are_refused(numbers):
    ((name, value),) = numbers.items()
    with pytest.raises(InputError, match=f"{name} {value} is less than {value + 1}"):
        batches(Numbers(50), **numbers)


def test_a_position_can_be_restored_backwards():
    stream = batches(Numbers(50))
    state, first = stream.state(), take(stream, 60)
    stream.restore(state)
    assert take(stream, 60) == first


@settings(max_examples=100, deadline=None)
@given(block_size=st.integers(1, 9), extra=st.integers(1, 60), seed=st.integers(0, 99))
def test_an_epoch_visits_all_but_its_edges_exactly_once(block_size, extra, seed):
    tokens = 2 * block_size + extra
    windows = tokens // block_size - 1
    stream = batches(Numbers(tokens), block_size=block_size, batch_size=1, seed=seed)
    for _ in range(3):
        seen = sorted(number for (row,) in take(stream, windows) for number in row)
        assert seen == list(range(seen[0], seen[0] + windows * block_size)) and tokens - len(seen) < 2 * block_size


def test_every_token_is_seen_and_predicted_in_some_epoch():
    stream = batches(Numbers(31), block_size=4, batch_size=1)
    rows = [next(stream) for _ in range(600)]
    assert {int(number) for batch in rows for number in batch.x_BT[0]} == set(range(30))
    assert {int(number) for batch in rows for number in batch.y_BT[0]} == set(range(1, 31))


def test_epochs_differ_in_order_and_borders():
    epochs = [[row[0] for (row,) in take(stream, 24)] for stream in [batches(Numbers(100), batch_size=1)] for _ in range(9)]
    assert len({tuple(epoch) for epoch in epochs}) == 9 and len({min(epoch) for epoch in epochs}) > 3


def sources_of(stream, count):
    """Which source each sequence came from: the second text begins at 1000."""
    return [int(row[0] >= 1000) for rows in take(stream, count) for row in rows]


@pytest.mark.parametrize("weights", [(90, 10), (0.9, 0.1), (1, 1), (1, 999)])
def test_weights_hold_within_one_sequence_at_any_point(weights):
    drawn = sources_of(batches(Numbers(50), Numbers(500, first=1000), weights=weights, batch_size=1), 1000)
    wanted = np.arange(1, 1001) * weights[1] / sum(weights)
    assert np.abs(np.cumsum(drawn) - wanted).max() <= 1


def test_weights_of_nine_to_one_are_exact():
    assert sum(sources_of(batches(Numbers(50), Numbers(50, first=1000), weights=(90, 10)), 500)) == 100


def test_text_too_small_for_a_block_is_refused_with_the_limit():
    with pytest.raises(InputError, match="numbers has 8 train tokens, too few for block_size 4; .* a block_size below 4"):
        batches(Numbers(8))
    assert next(batches(Numbers(9))).x_BT.shape == (2, 4)


def test_the_digest_differs_for_other_batches():
    streams = [batches(Numbers(100)), batches(Numbers(100)), batches(Numbers(100), seed=2)]
    for stream in streams:
        take(stream, 3)
    assert streams[0].digest == streams[1].digest != streams[2].digest


def test_batches_of_a_prepared_text_are_its_ids(shards, tokenizer):
    text = TokenText(shards, "train", tokenizer.fingerprint)
    ids = text.read(0, text.tokens).tolist()
    stream = Batches([text], [1], 16, 2, 1)
    (row, _), start = next(stream).x_BT.tolist(), stream._window(0, 0)
    assert row == ids[start : start + 16] and stream.tokens_per_batch == 32


# Sources


def test_sources_without_weights_count_by_their_size(prepared, shards, tokenizer):
    texts, weights = open_training([Source(shards=str(prepared)), Source(shards=str(shards))], tokenizer)
    assert weights == [text.tokens for text in texts] and texts[0].tokens < texts[1].tokens


def test_weights_given_are_kept(prepared, tokenizer):
    assert open_training([Source(shards=str(prepared), weight=w) for w in (9, 1)], tokenizer)[1] == [9, 1]


@pytest.mark.parametrize(("weights", "message"), [
    ((), "names no training data"),
    ((1, None), "1 of 2 data sources have weight"),
    ((1, 0), "data.weight 0 must be above 0"),
    ((1, -1), "data.weight -1 must be above 0"),
    ((1, math.inf), "data.weight inf must be above 0"),
    ((1, math.nan), "data.weight nan must be above 0"),
    ((1, True), "data.weight True must be"),
])  # fmt: skip
def test_weights_that_cannot_be_meant_are_refused(prepared, tokenizer, weights, message):
    with pytest.raises(InputError, match=message):
        open_training([Source(shards=str(prepared), weight=weight) for weight in weights], tokenizer)


def test_training_on_shards_of_another_tokenizer_is_refused(prepared):
    counts = TextCounts()
    counts.add("\n".join(phrase.text for phrase in phrases()[:300]))
    with pytest.raises(InputError, match="was tokenized with"):
        open_training([Source(shards=str(prepared))], Tokenizer(compact_backend(counts, 600)))


@pytest.mark.parametrize(("text", "texts"), [(None, []), ("a", ["a"]), (["a", "b"], ["a", "b"])])
def test_the_text_of_a_source_is_a_list(text, texts):
    assert Source(text=text).texts == texts


# Validation


def flat(tensors):
    return [number for tensor in tensors for number in tensor.flatten().tolist()]


@settings(max_examples=100, deadline=None)
@given(tokens=st.integers(0, 40), block_size=st.integers(1, 9), batch_size=st.integers(1, 4))
def test_validation_reads_each_token_of_a_short_text_once(tokens, block_size, batch_size):
    found = list(validation_batches([Numbers(tokens)], block_size, batch_size, 40))
    expected = list(range(max(tokens - 1, 0)))
    assert flat(batch.x_BT for batch in found) == expected
    assert flat(batch.y_BT for batch in found) == [number + 1 for number in expected]
    assert all(batch.x_BT.shape[0] <= batch_size and batch.x_BT.shape[1] <= block_size for batch in found)


@settings(max_examples=100, deadline=None)
@given(tokens=st.integers(60, 200), block_size=st.integers(1, 9), limit=st.integers(9, 50))
def test_validation_of_a_long_text_is_spread_over_it_within_the_limit(tokens, block_size, limit):
    seen = flat(batch.x_BT for batch in validation_batches([Numbers(tokens)], block_size, 2, limit))
    assert len(seen) == len(set(seen)) <= limit
    assert seen[0] == 0 and seen[-1] == tokens - 2 or len(seen) <= block_size
    assert len(seen) > limit - 2 * block_size


def test_validation_texts_come_in_turn_and_never_share_a_row():
    found = list(validation_batches([Numbers(10), Numbers(6, first=100)], 4, 8, 99))
    assert [row for batch in found for row in batch.x_BT.tolist()] == [
        [0, 1, 2, 3], [4, 5, 6, 7], [8], [100, 101, 102, 103], [104]
    ]  # fmt: skip


class Counted:
    bytes_per_id_V = np.array([1, 2, 3], dtype=np.uint16)

    def __init__(self, *counts):
        self._counts = np.array(counts)

    def count_ids(self):
        return self._counts


def test_unigram_bits_are_those_of_the_hand():
    ids_BT = torch.tensor([[0, 0], [1, 2]])
    found = unigram_bits_per_byte([Counted(2, 1, 0), Counted(1, 0, 0)], [Batch(ids_BT, ids_BT)])
    # of 4 + 3 counted (one added to each): 4, 2, 1; the targets hold 1 + 1 + 2 + 3 bytes
    assert found == pytest.approx((2 * math.log2(7 / 4) + math.log2(7 / 2) + math.log2(7)) / 7)


# Examples


QUESTIONS = [("Which colour is the sky?", "blue"), ("How many legs has a spider?", "eight"), ("Is ice warm?", "no")]


@pytest.fixture(scope="module")
def example_shards(tokenizer, tmp_path_factory):
    """Sixty small questions as shards with answers."""
    folder = tmp_path_factory.mktemp("examples")
    blocks = "".join(f"T: Case {n}.\nQ: {question}\nA: {answer}\n\n" for n in range(20) for question, answer in QUESTIONS)
    (folder / "qa.txt").write_text(blocks, encoding="utf-8")
    return prepare_examples(tokenizer, [f"qa={folder / 'qa.txt'}"], folder / "shards", 0.1)


def test_answers_are_distinguished_from_prompts(example_shards, tokenizer):
    text = TokenText(example_shards, "train")
    ids = text.read(0, text.tokens)
    documents = np.split(np.arange(text.tokens), np.flatnonzero(ids == tokenizer.end_id) + 1)[:-1]
    for places in documents:
        answer = tokenizer.decode(ids[places[text.answers[places]]])
        prompt = tokenizer.decode(ids[places[~text.answers[places]]])
        assert (prompt.split("Question: ")[1].split("\n")[0], answer.strip()) in QUESTIONS
        assert prompt.endswith("Answer:") and text.answers[places[-1]]  # the end of an answer is learned, too


def test_only_answers_are_targets_where_the_loss_is_on_answers(example_shards, tokenizer):
    text = TokenText(example_shards, "train")
    learned = Batches([text], [1], 64, 4, seed=1, answers_only=[True])
    whole = Batches([text], [1], 64, 4, seed=1)
    for _ in range(5):
        (x_BT, y_BT), (same_BT, all_BT) = next(learned), next(whole)
        kept = y_BT != IGNORED
        assert torch.equal(x_BT, same_BT) and torch.equal(y_BT[kept], all_BT[kept]) and 0 < kept.sum() < kept.numel() / 2
    assert learned.digest == whole.digest


def test_answers_of_plain_text_are_refused(prepared):
    with pytest.raises(InputError, match="has no marks of answers; loss: answers is for sft sources"):
        next(Batches([TokenText(prepared, "train")], [1], 16, 2, seed=1, answers_only=[True]))


def test_examples_found_again_are_not_made_again(example_shards, tokenizer):
    before = (example_shards / "train-00000.bin").stat().st_mtime_ns
    prepare_examples(tokenizer, [f"qa={example_shards.parent / 'qa.txt'}"], example_shards, 0.1)
    assert (example_shards / "train-00000.bin").stat().st_mtime_ns == before


def test_epochs_weigh_sources_by_their_size(prepared, shards, tokenizer):
    texts, weights = open_training([Source(str(prepared), epochs=1), Source(str(shards), epochs=3)], tokenizer)
    assert weights == [texts[0].tokens, 3 * texts[1].tokens]


def test_ids_outside_the_vocabulary_are_refused_with_the_file(several, tokenizer):
    path = several / "part-00000" / "train-00000.bin"
    ids = np.fromfile(path, "<u2")
    ids[5] = 60_000
    ids.tofile(path)
    with pytest.raises(InputError, match=f"{path} holds id 60000, the vocabulary has 1024"):
        open_training([Source(str(several))], tokenizer)


def test_epochs_read_so_far_are_reported():
    stream = batches(Numbers(100), Numbers(50, first=1000), weights=(1, 1), block_size=5, batch_size=2)
    take(stream, 10)
    assert stream.epochs == [10 * 5 / 100, 10 * 5 / 50]
