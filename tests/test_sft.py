"""Supervised examples come as prompt and answer, in the order given, and are known by their files."""

import hashlib
import io

import pytest
from rich.console import Console

from glyphlm.base import progress
from glyphlm.base.errors import InputError
from glyphlm.corpus.tasks import read_task
from glyphlm.data.sft import Example, describe_examples, examples, split_specs

SQUAD = """{"data": [{"paragraphs": [{"context": "Owls fly.", "qas": [
  {"question": "Who swims?", "answers": [], "is_impossible": true}%s]}]}]}"""
TOLD = ', {"question": "Who flies?", "answers": [{"text": "Owls"}, {"text": "owls"}], "is_impossible": false}'


@pytest.fixture
def files(tmp_path):
    """Two blocks, two pairs of sentences, a question with an answer and one without, two subjects."""
    texts = {
        "a.txt": "T: a\nQ: b\nA: c\n\nT: d\nQ: e\nA: f\n",
        "eng": "An owl.\nA cat.\n",
        "rus": "Сова.\nКот.\n",
        "squad.json": SQUAD % TOLD,
        "untold.json": SQUAD % "",
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


def test_examples_come_in_the_order_of_the_specs_and_of_their_files(files):
    specs = [f"en-ru={files}/eng,{files}/rus", f"qa={files}/a.txt", f"mmlu={files}/mmlu"]
    assert list(examples(specs)) == [
        Example("Translate from English to Russian:\nAn owl.\nAnswer:", "Сова."),
        Example("Translate from English to Russian:\nA cat.\nAnswer:", "Кот."),
        Example("Context: a\nQuestion: b\nAnswer:", "c"),
        Example("Context: d\nQuestion: e\nAnswer:", "f"),
        Example("Question: a?\nOptions: A) 1 B) 2 C) 3 D) 4\nAnswer:", "C"),
        Example("Question: b?\nOptions: A) 1 B) 2 C) 3 D) 4\nAnswer:", "D"),
    ]
    assert list(examples(specs[::-1]))[0].answer == "C"


def test_prompts_are_those_of_the_items(files):
    found = examples([f"qa={files}/a.txt"])
    assert [example.prompt for example in found] == [item.prompt for item in read_task("qa", files / "a.txt")]


def test_the_first_answer_is_taught_and_questions_without_one_are_left_out(files):
    assert list(examples([f"squad={files}/squad.json"])) == [
        Example("Context: Owls fly.\nQuestion: Who flies?\nAnswer:", "Owls")
    ]


def test_a_file_without_any_answer_is_refused(files):
    expected = f"squad={files}/untold.json holds no question with an answer; remove it or give another file"
    assert refusal(examples, [f"qa={files}/a.txt", f"squad={files}/untold.json"]) == expected


@pytest.mark.parametrize("spec", ["arc_easy", "arc_easy=", "=a.jsonl", ""])
def test_what_is_no_spec_is_refused_with_the_names(spec):
    expected = f"{spec!r} is no NAME=PATH, such as arc_easy=ARC-Easy-Train.jsonl; names: mmlu,"
    assert refusal(split_specs, [spec]).startswith(expected)


def test_a_path_may_hold_an_equals_sign():
    assert split_specs(["qa=a=b.txt"]) == [("qa", "a=b.txt")]


def test_no_spec_and_the_same_spec_twice_are_refused():
    assert refusal(examples, []).startswith("no examples were given: name them")
    assert refusal(examples, ["qa=a", "boolq=b", "qa=a"]).startswith("qa=a is given twice;")


def test_every_path_is_looked_for_before_the_first_file_is_read(files):
    assert "missing does not exist or is no file;" in refusal(next, examples([f"qa={files}/a.txt", "boolq=missing"]))


def test_a_spec_is_described_by_the_digest_of_its_file_or_files(files):
    one, pair, folder = f"qa={files}/a.txt", f"en-ru={files}/eng,{files}/rus", f"mmlu={files}/mmlu"
    digests = {file: hashlib.sha256((files / file).read_bytes()).hexdigest() for file in ("a.txt", "eng", "rus")}
    found = describe_examples([one, pair, folder])
    assert list(found) == [one, pair, folder] and found[one] == digests["a.txt"]
    assert found[pair] == hashlib.sha256((digests["eng"] + digests["rus"]).encode()).hexdigest()
    (files / "mmlu/b_dev.csv").write_text("b?,1,2,3,4,A\n", encoding="utf-8")
    assert describe_examples([folder])[folder] != found[folder]


def test_the_order_of_a_pair_is_part_of_its_digest(files):
    forth, back = f"en-ru={files}/eng,{files}/rus", f"en-ru={files}/rus,{files}/eng"
    assert describe_examples([forth])[forth] != describe_examples([back])[back]


def test_progress_counts_examples_and_the_bytes_of_finished_files(files, monkeypatch):
    monkeypatch.setattr("sys.stderr", io.StringIO())  # no terminal, wherever the test runs
    monkeypatch.setattr(progress, "PLAIN_SECONDS", 0.0)
    monkeypatch.setattr(progress, "console", Console(file=io.StringIO(), soft_wrap=True))
    list(examples([f"qa={files}/a.txt", f"en-ru={files}/eng,{files}/rus"], "mixing"))
    lines = progress.console.file.getvalue().splitlines()
    assert lines[0].startswith("mixing: 0%,") and lines[0].endswith("1 examples")
    assert lines[-1].startswith("mixing: 100%,") and lines[-1].endswith("4 examples")
