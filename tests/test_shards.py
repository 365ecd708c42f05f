"""Shards hold every document once, whatever the number of processes and however often the work was interrupted."""

import copy
import hashlib
import io
import json
import math
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from glyphlm.base import progress
from glyphlm.base.errors import InputError
from glyphlm.corpus.phrasebook import phrases
from glyphlm.corpus.reading import Reading
from glyphlm.corpus.tasks import read_task
from glyphlm.data import shards as preparation
from glyphlm.data.batches import TokenText
from glyphlm.data.exclusion import Exclusion
from glyphlm.data.shards import Example, describe_examples, examples, part_name, prepare, split_specs
from glyphlm.tokenizer.tokenizer import Piece

DOCUMENTS = [phrase.text for phrase in phrases()[:300]]


def write_documents(path, documents=DOCUMENTS):
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents), encoding="utf-8")
    return str(path)


def split_ids(folder, split, end_id):
    """Ids of each document of a split, without `</s>`."""
    text = TokenText(folder, split)
    ids = text.read(0, text.tokens).tolist() if text.tokens else []
    documents, start = [], 0
    for place, number in enumerate(ids):
        if number == end_id:
            documents.append(ids[start:place])
            start = place + 1
    assert start == len(ids)
    return documents


def decoded(folder, split, tokenizer):
    return [tokenizer.decode(ids) for ids in split_ids(folder, split, tokenizer.end_id)]


def result(folder):
    return json.loads((folder / "build.json").read_text(encoding="utf-8"))["result"]


class WideTokenizer:
    """Each character is its own id, counted from the top of a vocabulary of `vocab_size`."""

    fingerprint, specials_in_text, unknown_id = "wide", "literal", None

    def __init__(self, vocab_size):
        self.vocab_size, self.end_id = vocab_size, 0
        self.bytes_per_id_V = np.ones(vocab_size, dtype=np.uint16)

    def encode_passages(self, stream):
        for passage in stream:
            yield Piece(np.array([self.vocab_size - ord(c) for c in passage.text], dtype=np.uint32), passage.last)


# Documents to shards


def test_train_and_validation_hold_every_document_once(prepared, tokenizer):
    found = decoded(prepared, "train", tokenizer) + decoded(prepared, "validation", tokenizer)
    assert Counter(found) == Counter(DOCUMENTS)


def test_a_split_keeps_the_order_of_its_documents(prepared, tokenizer):
    train = decoded(prepared, "train", tokenizer)
    assert train == [document for document in DOCUMENTS if document in set(train)]


def test_about_the_share_asked_for_is_held_out(prepared, tokenizer):
    assert 0.1 < len(decoded(prepared, "validation", tokenizer)) / len(DOCUMENTS) < 0.3


@pytest.mark.parametrize(("share", "full", "empty"), [(0, "train", "validation"), (1, "validation", "train")])
def test_a_share_of_zero_or_one_leaves_one_split_empty(tokenizer, text, tmp_path, share, full, empty):
    out = prepare(tokenizer, [text], tmp_path / "out", share)
    assert decoded(out, full, tokenizer) == DOCUMENTS and TokenText(out, empty).tokens == 0


@pytest.mark.parametrize("share", [-0.1, 1.1, math.nan])
def test_a_share_that_is_none_is_refused(tokenizer, text, tmp_path, share):
    with pytest.raises(InputError, match=f"validation share {share} is not between 0 and 1"):
        prepare(tokenizer, [text], tmp_path / "out", share)


def test_what_is_held_out_does_not_depend_on_the_order(prepared, tokenizer, tmp_path):
    turned = prepare(tokenizer, [write_documents(tmp_path / "b.jsonl", DOCUMENTS[::-1])], tmp_path / "out", 0.2)
    assert decoded(turned, "validation", tokenizer) == decoded(prepared, "validation", tokenizer)[::-1]


def test_equal_documents_stay_on_one_side(tokenizer, tmp_path):
    out = prepare(tokenizer, [write_documents(tmp_path / "a.jsonl", DOCUMENTS[:40] * 3)], tmp_path / "out", 0.5)
    sides = [set(decoded(out, split, tokenizer)) for split in ("train", "validation")]
    assert all(sides) and not sides[0] & sides[1]


def test_pieces_of_a_long_document_join_to_it_in_order(tokenizer, tmp_path):
    whole = "\n".join(DOCUMENTS * 5)
    (tmp_path / "a.txt").write_text(whole, encoding="utf-8")
    out = prepare(tokenizer, [str(tmp_path / "a.txt")], tmp_path / "out", 0.5)
    parts = decoded(out, "train", tokenizer) + decoded(out, "validation", tokenizer)
    assert len(parts) > 2 and all(part in whole for part in parts) and sum(map(len, parts)) == len(whole)


def test_documents_without_text_are_kept_as_their_end_alone(tokenizer, tmp_path):
    out = prepare(tokenizer, [write_documents(tmp_path / "a.jsonl", ["", "a", ""])], tmp_path / "out", 0)
    assert decoded(out, "train", tokenizer) == ["", "a", ""]


def test_counts_are_of_what_was_written(prepared, tokenizer):
    for split, counted in result(prepared)["splits"].items():
        documents = decoded(prepared, split, tokenizer)
        assert counted["documents"] == len(documents)
        assert counted["bytes"] == sum(len(document.encode()) for document in documents)
        assert counted["tokens"] == sum(len(tokenizer.encode(document)) + 1 for document in documents)


@pytest.mark.parametrize(("vocab_size", "dtype"), [(1 << 16, "<u2"), ((1 << 16) + 1, "<u4")])
def test_ids_take_two_bytes_where_they_fit_and_four_where_not(tmp_path, vocab_size, dtype):
    out = prepare(WideTokenizer(vocab_size), [write_documents(tmp_path / "a.jsonl", ["\x01b", "c"])], tmp_path / "out", 0)
    path = out / "part-00000" / "train-00000.bin"
    assert np.fromfile(path, dtype).tolist() == [vocab_size - 1, vocab_size - 98, 0, vocab_size - 99, 0]
    assert split_ids(out, "train", 0) == [[vocab_size - 1, vocab_size - 98], [vocab_size - 99]]


def test_document_files_hold_where_each_document_begins(several, tokenizer):
    for split, counted in result(several)["splits"].items():
        for number, shard in enumerate(counted["shards"]):
            ids = np.fromfile(several / shard["file"], counted["dtype"])
            starts = np.fromfile(several / "part-00000" / f"{split}-{number:05}.documents", "<u8")
            assert starts.tolist() == [0, *(np.flatnonzero(ids == tokenizer.end_id)[:-1] + 1)]


def test_files_hold_whole_documents_and_join_to_the_split(several, prepared, tokenizer):
    shards = result(several)["splits"]["train"]["shards"]
    assert len(shards) > 3
    assert decoded(several, "train", tokenizer) == decoded(prepared, "train", tokenizer)


def test_a_range_may_cross_files(several, prepared):
    one, many = TokenText(prepared, "train"), TokenText(several, "train")
    for start in range(0, one.tokens - 4500, 777):
        assert np.array_equal(one.read(start, 4500), many.read(start, 4500))


def test_ids_are_counted_over_all_files(several):
    text = TokenText(several, "train")
    assert np.array_equal(text.count_ids(), np.bincount(text.read(0, text.tokens), minlength=text.vocab_size))


def test_bytes_of_each_id_come_with_the_shards(prepared, tokenizer):
    assert np.array_equal(TokenText(prepared, "train").bytes_per_id_V, tokenizer.bytes_per_id_V)


# Found again, or nothing


def test_the_same_command_writes_nothing(prepared, tokenizer, text):
    before = {path.name: path.stat().st_mtime_ns for path in prepared.iterdir()}
    assert prepare(tokenizer, [text], prepared, 0.2) == prepared
    assert {path.name: path.stat().st_mtime_ns for path in prepared.iterdir()} == before


def test_another_share_is_refused_with_both_values(prepared, tokenizer, text):
    with pytest.raises(InputError, match="validation_share = 0.2, not 0.3"):
        prepare(tokenizer, [text], prepared, 0.3)


def test_text_that_has_changed_is_refused_with_its_name(tokenizer, tmp_path):
    path = write_documents(tmp_path / "a.jsonl")
    out = prepare(tokenizer, [path], tmp_path / "out")
    write_documents(tmp_path / "a.jsonl", DOCUMENTS[1:])
    with pytest.raises(InputError, match=f"{out} already holds other work: {path} = "):
        prepare(tokenizer, [path], out)


def test_another_tokenizer_is_refused(prepared, text):
    with pytest.raises(InputError, match="other work: tokenizer = "):
        prepare(WideTokenizer(300), [text], prepared, 0.2)


def test_bad_text_leaves_nothing(tokenizer, text, tmp_path):
    (tmp_path / "bad.txt").write_bytes(b"a" * 1_000_000 + b"\xff")
    with pytest.raises(InputError, match="bad.txt is not UTF-8 at byte 1000000"):
        prepare(tokenizer, [text, str(tmp_path / "bad.txt")], tmp_path / "made" / "out")
    assert not (tmp_path / "made").exists()


def test_an_interrupted_command_leaves_nothing(tokenizer, text, tmp_path, monkeypatch):
    def interrupted(stream):
        yield Piece(np.array([300], dtype=np.uint32), False)
        raise KeyboardInterrupt

    monkeypatch.setattr(tokenizer, "encode_passages", interrupted)
    with pytest.raises(KeyboardInterrupt):
        prepare(tokenizer, [text], tmp_path / "made" / "out")
    assert not (tmp_path / "made").exists()


# Parts


@pytest.fixture
def files(tmp_path, monkeypatch):
    """Five files, each a part of its own."""
    monkeypatch.setattr(preparation, "PART_BYTES", 1)
    return [write_documents(tmp_path / f"{number}.jsonl", DOCUMENTS[number::5]) for number in range(5)]


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_small_files_share_a_part_and_large_ones_have_their_own(tmp_path, monkeypatch):
    sizes = [10, 10, 10, 30, 10]
    for number, size in enumerate(sizes):
        (tmp_path / f"{number}.txt").write_bytes(b"a" * size)
    monkeypatch.setattr(preparation, "PART_BYTES", 20)
    paths = [str(tmp_path / f"{number}.txt") for number in range(5)]
    assert preparation.group_sources(paths) == [paths[:2], paths[2:4], paths[4:]]


def test_parts_join_to_the_whole(tokenizer, files, prepared, tmp_path):
    out = prepare(tokenizer, files, tmp_path / "out", 0.2)
    assert len(list(out.glob("part-*"))) == 5
    for split in ("train", "validation"):
        assert sorted(decoded(out, split, tokenizer)) == sorted(decoded(prepared, split, tokenizer))
        assert TokenText(out, split).tokens == TokenText(prepared, split).tokens


def test_the_number_of_processes_changes_nothing(tokenizer, files, tmp_path):
    one, two = (prepare(tokenizer, files, tmp_path / f"out-{jobs}", 0.2, jobs=jobs) for jobs in (1, 2))
    assert contents(one) == contents(two)


def stop_at(monkeypatch, number):
    """Let the work be interrupted when it comes to part `number`."""
    whole = preparation.Preparation.write_part

    def write_part(self, folder, wanted, title=None):
        if wanted == number:
            raise KeyboardInterrupt
        whole(self, folder, wanted, title)

    monkeypatch.setattr(preparation.Preparation, "write_part", write_part)


def test_an_interrupted_command_continues_with_the_missing_parts(tokenizer, files, tmp_path, monkeypatch, capsys):
    once = prepare(tokenizer, files, tmp_path / "once", 0.2)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_at(patch, 3)
        prepare(tokenizer, files, tmp_path / "out", 0.2)
    assert not (tmp_path / "out").exists()
    first = (tmp_path / ".out.partial" / part_name(0) / "build.json").stat().st_mtime_ns
    out = prepare(tokenizer, files, tmp_path / "out", 0.2)
    assert "resuming: 3 of 5 parts are finished" in capsys.readouterr().err
    assert (out / part_name(0) / "build.json").stat().st_mtime_ns == first
    assert contents(out) == contents(once) and not (tmp_path / ".out.partial").exists()


@pytest.mark.parametrize("share", [0.2, 0.5])
def test_parts_of_other_files_or_settings_are_made_again(tokenizer, files, tmp_path, monkeypatch, share):
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_at(patch, 4)
        prepare(tokenizer, files, tmp_path / "out", 0.2)
    write_documents(Path(files[1]), DOCUMENTS[:7])
    out = prepare(tokenizer, files[:4], tmp_path / "out", share)
    assert contents(out) == contents(prepare(tokenizer, files[:4], tmp_path / "fresh", share))


def test_bad_text_in_one_part_keeps_the_others_for_the_next_try(tokenizer, files, tmp_path):
    good = Path(files[2]).read_bytes()
    Path(files[2]).write_bytes(b'{"text": "a"}\n{"text": 1}')
    with pytest.raises(InputError, match="2.jsonl:2 has no text in 'text'"):
        prepare(tokenizer, files, tmp_path / "out", 0.2, jobs=2)
    Path(files[2]).write_bytes(good)
    assert contents(prepare(tokenizer, files, tmp_path / "out", 0.2)) == contents(
        prepare(tokenizer, files, tmp_path / "fresh", 0.2)
    )


def test_a_mistake_at_the_head_of_any_file_is_found_before_the_work(tokenizer, files, tmp_path, monkeypatch):
    monkeypatch.setattr(preparation, "describe", None)  # digests of all files are work, too
    Path(files[4]).write_bytes(b'{"body": "a"}')
    with pytest.raises(InputError, match=r"4.jsonl:1 has no text in 'text' \(it has: body\)"):
        prepare(tokenizer, files, tmp_path / "out")


@pytest.mark.parametrize("out", ["notes.txt", "thesis", "."])
def test_an_output_that_cannot_be_is_refused_before_the_text_is_read(tokenizer, tmp_path, monkeypatch, out):
    monkeypatch.chdir(tmp_path)
    Path("notes.txt").write_text("my only copy")
    Path("thesis").mkdir()
    Path("thesis/notes.txt").touch()
    with pytest.raises(InputError, match="is a file|no build.json"):
        prepare(tokenizer, ["missing.txt"], Path(out))
    assert Path("notes.txt").read_text() == "my only copy"


def test_negative_jobs_are_refused(tokenizer, text, tmp_path):
    with pytest.raises(InputError, match="jobs -1 is less than 0; .*0 for one a core"):
        prepare(tokenizer, [text], tmp_path / "out", jobs=-1)


def test_moved_texts_are_known_by_their_digests(tokenizer, files, tmp_path):
    out = prepare(tokenizer, files, tmp_path / "out")
    before = contents(out)
    (tmp_path / "moved").mkdir()
    moved = [str(Path(file).rename(tmp_path / "moved" / Path(file).name)) for file in files]
    assert prepare(tokenizer, moved, out.rename(tmp_path / "new")) == tmp_path / "new"
    assert contents(tmp_path / "new") == before


def test_a_file_whose_name_is_not_utf8_is_prepared(tokenizer, tmp_path):
    name = write_documents(tmp_path / os.fsdecode(b"caf\xe9{}.jsonl"))
    out = prepare(tokenizer, [name], tmp_path / os.fsdecode(b"out\xe9"))
    assert name in json.loads((out / "build.json").read_text(encoding="utf-8"))["inputs"]
    assert prepare(tokenizer, [name], out) == out


def test_rows_left_out_are_counted(tokenizer, tmp_path, capsys):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a"}\n{"text": null}\n{"text": " "}\n{"text": "b"}\n')
    out = prepare(tokenizer, [str(path)], tmp_path / "out", 0, Reading(skip_empty=True))
    assert decoded(out, "train", tokenizer) == ["a", "b"] and result(out)["skipped"] == 2
    assert "2 rows without text are left out" in capsys.readouterr().err


def test_excluded_characters_are_nowhere_and_what_is_left_out_is_counted(tokenizer, tmp_path, capsys):
    path = tmp_path / "a.jsonl"
    texts = ["One. 国 two. Three.", "Four.", "国"]
    path.write_text("".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts), encoding="utf-8")
    kept = {"drop": ["Four."], "cut": ["One. ", "Three.", "Four."]}
    for how, expected in kept.items():
        out = prepare(tokenizer, [str(path)], tmp_path / how, 0, exclusion=Exclusion("国", how))
        assert decoded(out, "train", tokenizer) == expected
        left_out = sum(map(len, texts)) - sum(map(len, expected))
        assert result(out)["excluded"] == {"documents": 2, "occurrences": 2, "characters": left_out}
    assert "2 documents hold excluded characters" in capsys.readouterr().err
    with pytest.raises(InputError, match="already holds other work"):
        prepare(tokenizer, [str(path)], tmp_path / "cut", 0)


PREPARE = """
import sys
from glyphlm.cli.main import main
from glyphlm.data import shards
shards.PART_BYTES = 1
if __name__ == "__main__":
    sys.exit(main(["prepare", "--tokenizer", *sys.argv[1:]]))
"""


def start(tokenizer_folder, files, out, jobs):
    command = [sys.executable, "-c", PREPARE, str(tokenizer_folder), "--out", str(out), "--jobs", jobs, *files]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize("jobs", ["1", "2"])
def test_of_two_commands_on_one_folder_the_second_is_refused(tokenizer, tokenizer_folder, files, tmp_path, jobs):
    pair = [start(tokenizer_folder, files, tmp_path / "out", jobs) for _ in range(2)]
    ended = [(process.communicate()[1], process.returncode) for process in pair]
    assert sorted(code for _, code in ended) in ([0, 2], [0, 0])
    assert all("is being written by process" in said for said, code in ended if code)
    assert contents(tmp_path / "out") == contents(prepare(tokenizer, files, tmp_path / "alone"))


def test_a_killed_command_continues_at_once(tokenizer, tokenizer_folder, files, tmp_path):
    """Whatever its processes were writing when it was killed."""
    killed = start(tokenizer_folder, files, tmp_path / "out", "2")
    while not list(tmp_path.glob(".out.partial/.part-*")):
        assert killed.poll() is None
    os.kill(killed.pid, signal.SIGKILL)
    killed.communicate()
    assert contents(prepare(tokenizer, files, tmp_path / "out")) == contents(prepare(tokenizer, files, tmp_path / "alone"))
    assert not list(tmp_path.glob(".*"))


def test_a_tokenizer_is_the_same_in_another_process(tokenizer):
    again = copy.copy(tokenizer)  # goes the way of sending it to a process
    assert again.fingerprint == tokenizer.fingerprint and again.encode("a</s>") == tokenizer.encode("a</s>")


# Supervised examples


SQUAD = """{"data": [{"paragraphs": [{"context": "Owls fly.", "qas": [
  {"question": "Who swims?", "answers": [], "is_impossible": true}%s]}]}]}"""
ANSWERED = ', {"question": "Who flies?", "answers": [{"text": "Owls"}, {"text": "owls"}], "is_impossible": false}'


@pytest.fixture
def asked(tmp_path):
    """Two blocks, two pairs of sentences, a question with an answer and one without, two subjects."""
    texts = {
        "a.txt": "T: a\nQ: b\nA: c\n\nT: d\nQ: e\nA: f\n",
        "eng": "An owl.\nA cat.\n",
        "rus": "Сова.\nКот.\n",
        "squad.json": SQUAD % ANSWERED,
        "unanswered.json": SQUAD % "",
        "mmlu/b_dev.csv": "b?,1,2,3,4,D\n",
        "mmlu/a_dev.csv": "a?,1,2,3,4,C\n",
    }
    (tmp_path / "mmlu").mkdir()
    for name, text in texts.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    return tmp_path


def refusal(read, *arguments):
    with pytest.raises(InputError) as caught:
        list(read(*arguments))
    return str(caught.value)


def test_examples_come_in_the_order_of_the_specs_and_of_their_files(asked):
    specs = [f"en-ru={asked}/eng,{asked}/rus", f"qa={asked}/a.txt", f"mmlu={asked}/mmlu"]
    assert list(examples(specs)) == [
        Example("Translate from English to Russian:\nAn owl.\nAnswer:", "Сова."),
        Example("Translate from English to Russian:\nA cat.\nAnswer:", "Кот."),
        Example("Context: a\nQuestion: b\nAnswer:", "c"),
        Example("Context: d\nQuestion: e\nAnswer:", "f"),
        Example("Question: a?\nOptions: A) 1 B) 2 C) 3 D) 4\nAnswer:", "C"),
        Example("Question: b?\nOptions: A) 1 B) 2 C) 3 D) 4\nAnswer:", "D"),
    ]
    assert list(examples(specs[::-1]))[0].answer == "C"


def test_prompts_are_those_of_the_items(asked):
    found = examples([f"qa={asked}/a.txt"])
    assert [example.prompt for example in found] == [item.prompt for item in read_task("qa", asked / "a.txt")]


def test_the_first_answer_is_taught_and_questions_without_one_are_left_out(asked):
    assert list(examples([f"squad={asked}/squad.json"])) == [
        Example("Context: Owls fly.\nQuestion: Who flies?\nAnswer:", "Owls")
    ]


def test_a_file_without_any_answer_is_refused(asked):
    expected = f"squad={asked}/unanswered.json holds no question with an answer; remove it or give another file"
    assert refusal(examples, [f"qa={asked}/a.txt", f"squad={asked}/unanswered.json"]) == expected


@pytest.mark.parametrize("spec", ["arc_easy", "arc_easy=", "=a.jsonl", ""])
def test_what_is_not_a_spec_is_refused_with_the_names(spec):
    expected = f"{spec!r} is not NAME=PATH, such as arc_easy=ARC-Easy-Train.jsonl; names: mmlu,"
    assert refusal(split_specs, [spec]).startswith(expected)


def test_a_path_may_hold_an_equals_sign():
    assert split_specs(["qa=a=b.txt"]) == [("qa", "a=b.txt")]


def test_no_spec_and_the_same_spec_twice_are_refused():
    assert refusal(examples, []).startswith("no examples were given: name them")
    assert refusal(examples, ["qa=a", "boolq=b", "qa=a"]).startswith("qa=a is given twice;")


def test_every_path_is_looked_for_before_the_first_file_is_read(asked):
    assert "missing does not exist or is not a file;" in refusal(next, examples([f"qa={asked}/a.txt", "boolq=missing"]))


def test_a_spec_is_described_by_the_digest_of_its_file_or_files(asked):
    one, pair, folder = f"qa={asked}/a.txt", f"en-ru={asked}/eng,{asked}/rus", f"mmlu={asked}/mmlu"
    digests = {file: hashlib.sha256((asked / file).read_bytes()).hexdigest() for file in ("a.txt", "eng", "rus")}
    found = describe_examples([one, pair, folder])
    assert list(found) == [one, pair, folder] and found[one] == digests["a.txt"]
    assert found[pair] == hashlib.sha256((digests["eng"] + digests["rus"]).encode()).hexdigest()
    (asked / "mmlu/b_dev.csv").write_text("b?,1,2,3,4,A\n", encoding="utf-8")
    assert describe_examples([folder])[folder] != found[folder]


def test_the_order_of_a_pair_is_part_of_its_digest(asked):
    forth, back = f"en-ru={asked}/eng,{asked}/rus", f"en-ru={asked}/rus,{asked}/eng"
    assert describe_examples([forth])[forth] != describe_examples([back])[back]


def test_progress_counts_examples_and_the_bytes_of_finished_files(asked, monkeypatch):
    monkeypatch.setattr("sys.stderr", io.StringIO())  # no terminal, wherever the test runs
    monkeypatch.setattr(progress, "PLAIN_SECONDS", 0.0)
    monkeypatch.setattr(progress, "console", Console(file=io.StringIO(), soft_wrap=True))
    list(examples([f"qa={asked}/a.txt", f"en-ru={asked}/eng,{asked}/rus"], "mixing"))
    lines = progress.console.file.getvalue().splitlines()
    assert lines[0].startswith("mixing: 0%,") and lines[0].endswith("1 examples")
    assert lines[-1].startswith("mixing: 100%,") and lines[-1].endswith("4 examples")
