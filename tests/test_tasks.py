"""Every layout gives its items with the published prompts; what is damaged is refused with its file and place."""

import bz2
import csv
import gzip
import io
import json
import lzma
import string
from types import SimpleNamespace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from glyphlm.base.errors import InputError
from glyphlm.corpus.tasks import TASKS, Item, describe_task, read_task, task_files

MAKERS = {
    "id": "x1",
    "question": {"stem": "What do owls eat?", "choices": [{"text": "mice", "label": "A"}, {"text": "tar", "label": "B"}]},
    "answerKey": "A",
}
HUB = {
    "id": "x1", "question": "What do owls eat?", "choices": {"text": ["mice", "tar"], "label": ["A", "B"]}, "answerKey": "A",
}  # fmt: skip
OWLS = "Question: What do owls eat?\nOptions:\nA) mice\nB) tar\nAnswer:"
BOOLQ = {"question": "do owls swim", "passage": "Owls\nfly.", "idx": 0, "label": False}
STORED = {"prompt": "passage: Owls\nfly.\nquestion: {}", "subject": "do owls swim", "target_new": {"str": "False"}}
ITEM = {"question": "What flies?", "id": "1", "answers": [{"text": "owls", "answer_start": 4}], "is_impossible": False}
UNTOLD = {"question": "Who swims?", "id": "2", "answers": [], "plausible_answers": [{"text": "owls"}], "is_impossible": True}
ASKED = {"instruction": "Name a bird.", "input": "", "output": "An owl.", "history": []}


def write(path, *lines):
    """`lines` into a file, dictionaries as JSON."""
    texts = (line if isinstance(line, str) else json.dumps(line) for line in lines)
    path.write_bytes("".join(f"{text}\n" for text in texts).encode())
    return path


def squad(path, *questions, context="Big owls fly."):
    return write(path, {"version": "v2.0", "data": [{"paragraphs": [{"context": context, "qas": list(questions)}]}]})


def read(name, path):
    return list(read_task(name, path))


def refusal(name, path):
    with pytest.raises(InputError) as caught:
        read(name, path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def changed(record, **fields):
    """A copy of `record` with other fields, without those that are None."""
    return {key: value for key, value in {**record, **fields}.items() if value is not None}


# Layouts and prompts


def test_mmlu_is_a_file_a_subject_with_the_options_on_one_line(tmp_path):
    write(tmp_path / "zoology_val.csv", 'What is "big" and flies?,an ant,"an owl, grey",a cat,a cod,B')
    write(tmp_path / "arithmetic_dev.csv", "1+1=,1,2,3,4,B", '"Two\nlines?",a,b,c,d,D')
    first, second, third = read("mmlu", tmp_path)
    assert first.prompt == "Question: 1+1=\nOptions: A) 1 B) 2 C) 3 D) 4\nAnswer:"
    assert second.prompt == "Question: Two\nlines?\nOptions: A) a B) b C) c D) d\nAnswer:"
    assert third.choices == ("an ant", "an owl, grey", "a cat", "a cod")
    assert [item.subject for item in (first, second, third)] == ["arithmetic", "arithmetic", "zoology"]
    assert [(item.labels, item.answers, item.correct) for item in (first, second)] == [
        (("A", "B", "C", "D"), ("B",), 1), (("A", "B", "C", "D"), ("D",), 3)
    ]  # fmt: skip


def test_one_subject_of_mmlu_is_read_alone(tmp_path):
    path = write(tmp_path / "zoology_val.csv", "What flies?,an ant,an owl,a cat,a cod,B")
    write(tmp_path / "arithmetic_val.csv", "1+1=,1,2,3,4,B")
    assert [item.subject for item in read("mmlu", path)] == ["zoology"]
    assert list(describe_task("mmlu", path)) == [f"mmlu={path}"]


@pytest.mark.parametrize("pack", [gzip, bz2, lzma])
def test_packed_files_are_read(tmp_path, pack):
    ending = {gzip: "gz", bz2: "bz2", lzma: "xz"}[pack]
    for name, line in (("zoology_val.csv", "What flies?,an ant,an owl,a cat,a cod,B"), ("arc.jsonl", json.dumps(MAKERS))):
        (tmp_path / f"{name}.{ending}").write_bytes(pack.compress(f"{line}\n".encode()))
    assert [item.subject for item in read("mmlu", tmp_path)] == ["zoology"]
    assert [item.prompt for item in read("arc_easy", tmp_path / f"arc.jsonl.{ending}")] == [OWLS]
    (tmp_path / f"cut.jsonl.{ending}").write_bytes(pack.compress(json.dumps(MAKERS).encode())[:-8])
    assert "is damaged or cut off" in refusal("arc_easy", tmp_path / f"cut.jsonl.{ending}")


@pytest.mark.parametrize("record", [MAKERS, HUB], ids=["makers", "hub"])
@pytest.mark.parametrize("task", ["arc_easy", "arc_challenge"])
def test_arc_has_an_option_a_line_in_either_layout(tmp_path, task, record):
    found = read(task, write(tmp_path / "a.jsonl", record, "", record))
    assert found == [Item(task, OWLS, ("A",), ("A", "B"), ("mice", "tar"))] * 2
    assert found[0].correct == 0


def test_labels_stand_as_the_file_has_them(tmp_path):
    choices = {"text": ["mice", "tar", "wood"], "label": ["1", "2", "3"]}
    [item] = read("arc_easy", write(tmp_path / "a.jsonl", changed(HUB, choices=choices, answerKey="3")))
    assert item.prompt.endswith("\nOptions:\n1) mice\n2) tar\n3) wood\nAnswer:")
    assert (item.labels, item.answers, item.correct) == (("1", "2", "3"), ("3",), 2)


def test_commonsense_qa_has_five_options(tmp_path):
    choices = [{"label": letter, "text": f"choice {letter}"} for letter in "ABCDE"]
    question = {"question_concept": "owl", "choices": choices, "stem": "Where?"}
    [item] = read("commonsense_qa", write(tmp_path / "a.jsonl", {"answerKey": "E", "id": "1", "question": question}))
    options = "A) choice A\nB) choice B\nC) choice C\nD) choice D\nE) choice E"
    assert (item.prompt, item.correct) == (f"Question: Where?\nOptions:\n{options}\nAnswer:", 4)
    assert "a.jsonl:1: 2 options, not 5;" in refusal("commonsense_qa", write(tmp_path / "a.jsonl", HUB))


def test_squad_keeps_every_answer_once_and_questions_without_one(tmp_path):
    several = changed(ITEM, answers=[{"text": text} for text in ("owls", "big owls", "owls")])
    prompt = "Context: Big owls fly.\nQuestion: {}\nAnswer:"
    assert read("squad", squad(tmp_path / "a.json", several, UNTOLD)) == [
        Item("squad", prompt.format("What flies?"), ("owls", "big owls")),
        Item("squad", prompt.format("Who swims?"), ()),
    ]


def test_boolq_is_the_same_in_every_layout(tmp_path):
    hub = {"question": "do owls swim", "answer": False, "passage": "Owls\nfly."}
    found = read("boolq", write(tmp_path / "a.jsonl", BOOLQ, STORED, hub))
    prompt = "Context: Owls\nfly.\nQuestion: do owls swim\nAnswer (True/False):"
    assert found == [Item("boolq", prompt, ("False",), ("False", "True"), ("False", "True"))] * 3
    true = changed(BOOLQ, label=True), changed(STORED, target_new={"str": "True"})
    assert [item.correct for item in read("boolq", write(tmp_path / "a.jsonl", *true))] == [1, 1]


def test_blocks_of_premise_question_answer(tmp_path):
    lines = ["", "", "T: Совы летают.", "Q: кто летает?", "A: совы", "", "T:Ночь.", "Q:что сейчас?", "A:ночь"]
    first, second = read("qa", write(tmp_path / "a.txt", *lines))
    assert (first.prompt, first.answers) == ("Context: Совы летают.\nQuestion: кто летает?\nAnswer:", ("совы",))
    assert (second.prompt, second.answers) == ("Context: Ночь.\nQuestion: что сейчас?\nAnswer:", ("ночь",))


def test_instructions_with_input_and_history_are_one_prompt(tmp_path):
    talk = changed(ASKED, input="It flies.", history=[["Hello", "Hi"], ["Well?", "Yes."]])
    plain, long = read("instructions", write(tmp_path / "a.json", json.dumps([ASKED, talk], indent=2)))
    assert (plain.prompt, plain.answers) == ("Question: Name a bird.\nAnswer:", ("An owl.",))
    before = "Question: Hello\nAnswer:Hi\nQuestion: Well?\nAnswer:Yes.\n"
    assert long.prompt == f"{before}Question: Name a bird.\nIt flies.\nAnswer:"


def test_translation_pairs_of_two_files(tmp_path):
    english, russian = write(tmp_path / "a.eng", "An owl.", "A \u2028 cat."), write(tmp_path / "a.rus", "Сова.", "Кот.")
    first, second = read("en-ru", f"{english},{russian}")
    assert (first.prompt, first.answers) == ("Translate from English to Russian:\nAn owl.\nAnswer:", ("Сова.",))
    assert second.prompt == "Translate from English to Russian:\nA \u2028 cat.\nAnswer:"
    assert [item.answers for item in read("ru-en", f"{russian},{english}")] == [("An owl.",), ("A \u2028 cat.",)]


def test_translation_pairs_of_one_file_have_english_first(tmp_path):
    path = write(tmp_path / "a.tsv", 'An "owl.\t猫头鹰。\tby me')
    [forth], [back] = read("en-zh", path), read("zh-en", path)
    assert (forth.prompt, forth.answers) == ('Translate from English to Chinese:\nAn "owl.\nAnswer:', ("猫头鹰。",))
    assert (back.prompt, back.answers) == ("Translate from Chinese to English:\n猫头鹰。\nAnswer:", ('An "owl.',))


def test_line_ends_and_a_byte_order_mark_are_not_text(tmp_path):
    paths = [tmp_path / name for name in ("a.tsv", "a.txt", "a.jsonl", "a.json", "m/a.csv", "a")]
    texts = ["a\tb\tc", "T: a\r\nQ: b\r\nA: c", json.dumps(HUB), json.dumps([ASKED]), "q,1,2,3,4,A\r\n", "a\r\n\ufeffb"]
    (tmp_path / "m").mkdir()
    for path, text in zip(paths, texts):
        path.write_bytes(b"\xef\xbb\xbf" + text.encode() + b"\r\n")
    [pair], [block] = read("en-ru", paths[0]), read("qa", paths[1])
    assert (pair.prompt[-10:], pair.answers) == ("\na\nAnswer:", ("b",))
    assert (block.prompt, block.answers) == ("Context: a\nQuestion: b\nAnswer:", ("c",))
    assert [item.answers for item in read("en-ru", f"{paths[5]},{paths[5]}")] == [("a",), ("\ufeffb",)]
    assert len(read("arc_easy", paths[2]) + read("instructions", paths[3]) + read("mmlu", tmp_path / "m")) == 3


# Files that cannot be used


@pytest.mark.parametrize(("line", "what"), [
    ("a,1,2,3,A", "2: 5 columns, not the 6 of question, A, B, C, D, key"),
    ("a,1,2,3,4,5,A", "2: 7 columns, not the 6 of question, A, B, C, D, key"),
    ("a,1,2,3,4,E", "2: the key 'E' is not one of the labels A, B, C, D"),
    ("a,1,2,3,4,", "2: an empty 'key'"),
    ("a,1,,3,4,A", "2: an empty 'B'"),
    (" ,1,2,3,4,A", "2: an empty 'question'"),
    ('"a"b,1,2,3,4,A', "2: not CSV (',' expected after '\"')"),
    ('"a,1,2,3,4,A', "2: not CSV (unexpected end of data)"),
])  # fmt: skip
def test_a_damaged_line_of_mmlu_is_named(tmp_path, line, what):
    path = write(tmp_path / "a_dev.csv", "ok,1,2,3,4,A", line)
    assert refusal("mmlu", tmp_path) == f"{path}:{what}; fix or remove it"


def test_a_record_after_a_field_of_many_lines_is_named_by_its_first_line(tmp_path):
    path = write(tmp_path / "a.csv", '"one\ntwo\n",1,2,3,4,A', '"three\nfour",1,2')
    assert refusal("mmlu", tmp_path).startswith(f"{path}:4: 3 columns")


@pytest.mark.parametrize(("record", "what"), [
    (changed(HUB, answerKey=None), "no text in 'answerKey'"),
    (changed(HUB, answerKey=""), "an empty 'answerKey'"),
    (changed(HUB, answerKey="C"), "the key 'C' is not one of the labels A, B"),
    (changed(HUB, answerKey=1), "no text in 'answerKey'"),
    (changed(HUB, question=" "), "an empty 'question'"),
    (changed(HUB, question=None), "no text in 'question.stem'"),
    (changed(HUB, choices=["a", "b"]), "no list in 'choices.text'"),
    (changed(HUB, choices={"text": ["a", "b"], "label": ["A"]}), "2 choices with 1 labels"),
    (changed(HUB, choices={"text": ["a", "b"], "label": ["A", "A"]}), "labels A, A, which are not two or more different"),
    (changed(HUB, choices={"text": [], "label": []}), "labels of no option, which are not two or more different"),
    (changed(HUB, choices={"text": ["a", ""], "label": ["A", "B"]}), "an empty 'text'"),
    (changed(HUB, question="\ud83d"), "half of a character pair (a lone surrogate) in 'question'"),
    (changed(MAKERS, question={"stem": "Why?"}), "no list in 'question.choices'"),
    (changed(MAKERS, question={"stem": "Why?", "choices": [{"text": "a", "label": "A"}]}), "labels A, which are not"),
    ([HUB], "no object in the entry"),
    ("{", "(not JSON: "),
    ("[" * 200_000, "(not JSON: "),
])  # fmt: skip
def test_a_damaged_line_of_arc_is_named(tmp_path, record, what):
    path = write(tmp_path / "a.jsonl", HUB, "", record)
    said = refusal("arc_easy", path)
    assert said.startswith(f"{path}:3") and what in said


def test_a_damaged_option_is_named_by_its_place(tmp_path):
    question = {"stem": "Why?", "choices": [{"text": "a", "label": "A"}, {"label": "B"}]}
    path = write(tmp_path / "a.jsonl", changed(MAKERS, question=question))
    assert refusal("arc_easy", path) == f"{path}:1:question.choices[1]: no text in 'text'; fix or remove it"


@pytest.mark.parametrize(("question", "what"), [
    (changed(ITEM, question=None), "qas[1]: no text in 'question';"),
    (changed(ITEM, is_impossible=None), "qas[1]: no true or false in 'is_impossible';"),
    (changed(ITEM, is_impossible=True), "qas[1]: is_impossible is True with 1 answers;"),
    (changed(UNTOLD, is_impossible=False), "qas[1]: is_impossible is False with 0 answers;"),
    (changed(ITEM, answers=None), "qas[1]: no list in 'answers';"),
    (changed(ITEM, answers=[{"text": ""}]), "qas[1]:answers[0]: an empty 'text';"),
    ("owls", "qas[1]: no object in the entry;"),
])  # fmt: skip
def test_a_damaged_question_of_squad_is_named_by_its_place(tmp_path, question, what):
    path = squad(tmp_path / "a.json", ITEM, question)
    assert refusal("squad", path).startswith(f"{path}:data[0]:paragraphs[0]:{what}")


def test_a_paragraph_of_squad_without_text_is_named(tmp_path):
    path = squad(tmp_path / "a.json", ITEM, context="")
    assert refusal("squad", path) == f"{path}:data[0]:paragraphs[0]: an empty 'context'; fix or remove it"


@pytest.mark.parametrize(("record", "what"), [
    (changed(BOOLQ, label=None), "no true or false in 'answer'"),
    (changed(BOOLQ, label=1), "no true or false in 'label'"),
    (changed(BOOLQ, passage=None), "no text in 'passage'"),
    (changed(BOOLQ, question=""), "an empty 'question'"),
    (changed(STORED, prompt="Owls fly.\nquestion: {}"), "a prompt that is not 'passage: ..', a new line and 'question: {}'"),
    (changed(STORED, prompt="passage: \nquestion: {}"), "a prompt that is not 'passage: ..', a new line and 'question: {}'"),
    (changed(STORED, subject=None), "no text in 'subject'"),
    (changed(STORED, target_new={"str": "yes"}), "the key 'yes' is not one of the labels False, True"),
])  # fmt: skip
def test_a_damaged_line_of_boolq_is_named(tmp_path, record, what):
    path = write(tmp_path / "a.jsonl", BOOLQ, record)
    assert refusal("boolq", path) == f"{path}:2: {what}; fix or remove it"


@pytest.mark.parametrize(("lines", "what"), [
    (["T: a", "Q: b"], "a block of 2 lines that is not T: .., Q: .., A: .."),
    (["T: a", "Q: b", "A: c", "T: d"], "a block of 4 lines that is not T: .., Q: .., A: .."),
    (["T: a", "A: c", "Q: b"], "a block of 3 lines that is not T: .., Q: .., A: .."),
    (["T: a", "Q: b", "A: "], "an empty 'A'"),
    (["T:", "Q: b", "A: c"], "an empty 'T'"),
])  # fmt: skip
def test_a_damaged_block_is_named_by_its_first_line(tmp_path, lines, what):
    path = write(tmp_path / "a.txt", "", "T: a", "Q: b", "A: c", "", *lines)
    assert refusal("qa", path) == f"{path}:6: {what}; fix or remove it"


@pytest.mark.parametrize(("record", "what"), [
    (changed(ASKED, output=""), "[1]: an empty 'output'"),
    (changed(ASKED, instruction=None), "[1]: no text in 'instruction'"),
    (changed(ASKED, input=None), "[1]: no text in 'input'"),
    (changed(ASKED, history=None), "[1]: no list in 'history'"),
    (changed(ASKED, history=[["Hello", "Hi"], ["Well?"]]), "[1]:history[1]: 1 texts, not a question and its answer"),
    (changed(ASKED, history=[["Hello", ""]]), "[1]:history[0]: an empty 'answer'"),
    (changed(ASKED, history=["Hello"]), "[1]:history[0]: no list in the entry"),
])  # fmt: skip
def test_a_damaged_instruction_is_named_by_its_place(tmp_path, record, what):
    path = write(tmp_path / "a.json", json.dumps([ASKED, record]))
    assert refusal("instructions", path) == f"{path}:{what}; fix or remove it"


def test_files_that_are_not_aligned_are_refused_with_the_first_line_too_many(tmp_path):
    long, short = write(tmp_path / "long", "a", "b"), write(tmp_path / "short", "c")
    cure = "give files with a line for each line"
    assert refusal("en-ru", f"{long},{short}") == f"{long}:2: no such line in {short}; {cure}"
    assert refusal("en-ru", f"{short},{long}") == f"{long}:2: no such line in {short}; {cure}"


def test_an_empty_line_among_pairs_is_named_by_its_file(tmp_path):
    first, second = write(tmp_path / "a", "a", "b"), write(tmp_path / "b", "c", "")
    assert refusal("en-ru", f"{first},{second}") == f"{second}:2: an empty 'ru'; fix or remove it"


def test_a_pair_with_other_columns_is_named(tmp_path):
    path = write(tmp_path / "a.tsv", "a\tb\tc", "a\tb")
    assert refusal("en-zh", path) == f"{path}:2: 2 columns, not the 3 of en, zh, attribution; fix or remove it"


def test_an_empty_line_of_a_table_is_not_a_record(tmp_path):
    path = write(tmp_path / "a.tsv", "a\tb\tc", "", "d\te\tf", "")
    assert len(read("en-zh", path)) == 2


def test_only_two_files_or_one_with_english_are_pairs(tmp_path):
    path = write(tmp_path / "a", "a\tb\tc")
    assert "give two files SOURCE,TARGET, or, with English on one side, one TSV" in refusal("ru-zh", path)
    assert "give two files SOURCE,TARGET, or, with English on one side, one TSV" in refusal("en-zh", f"{path},{path},{path}")


@pytest.mark.parametrize("task", ["arc_easy", "boolq", "squad", "instructions", "qa", "en-ru"])
def test_bytes_that_are_not_utf8_are_named_by_their_line(tmp_path, task):
    path = tmp_path / "a"
    path.write_bytes(b"\nab\xff\n")
    assert refusal(task, path).startswith(f"{path}:2: not UTF-8 at byte 2 of the line; convert the file")


@pytest.mark.parametrize(("task", "text"), [
    ("arc_easy", ""), ("boolq", "\n"), ("squad", '{"data": []}'), ("instructions", "[]"), ("qa", "\n\n"), ("en-ru", ""),
])  # fmt: skip
def test_a_file_without_a_question_is_refused(tmp_path, task, text):
    path = tmp_path / "a"
    path.write_text(text, encoding="utf-8")
    assert refusal(task, path) == f"{task}={path} holds no question; remove it or give another file"


@pytest.mark.parametrize("task", TASKS)
def test_a_path_that_is_not_there_is_refused_before_reading_with_what_is_needed(tmp_path, task):
    with pytest.raises(InputError) as caught:
        read_task(task, tmp_path / "a")
    assert str(caught.value) == f"{tmp_path / 'a'} does not exist or is not a file; {task} needs {TASKS[task].path}"


def test_a_folder_is_not_a_file_and_a_file_is_not_a_folder(tmp_path):
    assert f"{tmp_path} does not exist or is not a file; boolq needs a .jsonl file" in refusal("boolq", tmp_path)
    assert f"{tmp_path} does not exist or is not a file; mmlu needs a .csv file, or a folder" in refusal("mmlu", tmp_path)


def test_unknown_names_are_refused(tmp_path):
    for path in (tmp_path, "hf:"):
        assert refusal("arc", path).startswith("'arc' is not a task; known are mmlu, arc_easy,")


# The Hub

ON_THE_HUB = {
    "mmlu": {"question": "What is it?", "subject": "virology", "choices": ["1", "2", "3", "4"], "answer": 2},
    "arc_easy": HUB,
    "commonsense_qa": HUB | {"choices": {"text": list("12345"), "label": list("ABCDE")}},
    "squad": {"context": "Big owls fly.", "question": "What flies?", "answers": {"text": ["owls", "owls"]}},
    "boolq": {"passage": "Owls\nfly.", "question": "do owls swim", "answer": False},
    "zh-en": {"translation": {"en": "An owl.", "zh": "猫头鹰。"}},
}


@pytest.fixture
def hub(monkeypatch):
    """A Hub that answers with `rows`, or an error, and keeps what it was asked for."""
    import datasets

    found = SimpleNamespace(rows=[], asked=None)

    def load_dataset(name, config, **options):
        found.asked = (name, config, options["split"])
        if isinstance(found.rows, Exception):
            raise found.rows
        return iter(found.rows)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return found


@pytest.mark.parametrize("task", ON_THE_HUB)
def test_a_row_of_the_hub_is_the_item_of_a_file(hub, tmp_path, task):
    hub.rows = [ON_THE_HUB[task]]
    (item,) = read(task, "hf:")
    assert f"hf:{':'.join(part or '' for part in hub.asked)}" == TASKS[task].hub
    if task == "mmlu":
        (tmp_path / "virology_test.csv").write_text("What is it?,1,2,3,4,C\n")
        assert [item] == read(task, tmp_path)
    elif task == "squad":
        assert [item] == read(task, squad(tmp_path / "a.json", ITEM | {"question": "What flies?"}))
    elif task == "zh-en":
        assert [item] == read(task, write(tmp_path / "a.tsv", "An owl.\t猫头鹰。\tme"))
    else:
        assert [item] == read(task, write(tmp_path / "a.jsonl", ON_THE_HUB[task]))


def test_another_set_of_the_hub_is_taken_by_its_name(hub):
    hub.rows = [HUB]
    assert read("arc_easy", "hf:me/mine:hard:test")[0].prompt == OWLS and hub.asked == ("me/mine", "hard", "test")


@pytest.mark.parametrize(("fields", "what"), [
    ({"choices": ["1", "2"]}, "2 choices and the answer 2"),
    ({"answer": 4}, "4 choices and the answer 4"),
    ({"answer": "C"}, "no number in 'answer'"),
    ({"subject": None}, "no text in 'subject'"),
])  # fmt: skip
def test_a_damaged_row_of_the_hub_is_named(hub, fields, what):
    hub.rows = [ON_THE_HUB["mmlu"], changed(ON_THE_HUB["mmlu"], **fields)]
    assert refusal("mmlu", "hf:").startswith(f"hf:cais/mmlu:all:test row 2: {what}")


def test_a_hub_that_cannot_be_reached_and_sets_that_are_not_there_are_refused(hub):
    hub.rows = ConnectionError("no network")
    assert refusal("boolq", "hf:").startswith("hf:google/boolq::validation cannot be read (no network); check the name,")
    assert "there is no such set on the Hub; ru-zh needs two files" in refusal("ru-zh", "hf:")
    hub.rows = []
    assert "holds no question" in refusal("boolq", "hf:")


def test_what_was_read_is_identified(tmp_path):
    for name in ("a", "b"):
        write(tmp_path / name, name)
    one, both = describe_task("boolq", tmp_path / "a"), describe_task("en-ru", f"{tmp_path}/a,{tmp_path}/b")
    write(tmp_path / "b", "c")
    assert describe_task("boolq", tmp_path / "a") == one
    assert describe_task("en-ru", f"{tmp_path}/a,{tmp_path}/b") != both
    assert describe_task("mmlu", "hf:") == {"mmlu=hf:": "hub"}


def test_files_come_in_the_order_in_which_they_are_read(tmp_path):
    for name in ("b.csv", "a.csv", "c.txt"):
        write(tmp_path / name, "")
    assert task_files("mmlu", tmp_path) == [tmp_path / "a.csv", tmp_path / "b.csv"]
    assert task_files("ru-en", f"{tmp_path}/b.csv,{tmp_path}/a.csv") == [tmp_path / "b.csv", tmp_path / "a.csv"]


# Any text, any damage

ONE_FILE = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
words = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(str.strip)
lines = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\n\t\ufeff"), min_size=1).filter(str.strip)
json_values = st.recursive(st.none() | st.booleans() | st.integers() | st.text(), lambda inner: (
    st.lists(inner, max_size=3) | st.dictionaries(st.text(string.ascii_letters, max_size=3), inner, max_size=3)
), max_leaves=4)  # fmt: skip


@ONE_FILE
@given(cells=st.lists(words, min_size=5, max_size=5), key=st.sampled_from("ABCD"))
def test_mmlu_keeps_any_text(tmp_path, cells, key):
    file = io.StringIO(newline="")
    csv.writer(file).writerow([*cells, key])
    (tmp_path / "a.csv").write_bytes(file.getvalue().encode())
    if cells[0].startswith("\ufeff"):  # taken for a byte order mark
        return
    question, a, b, c, d = cells
    [item] = read("mmlu", tmp_path)
    assert item.prompt == f"Question: {question}\nOptions: A) {a} B) {b} C) {c} D) {d}\nAnswer:"
    assert (item.choices, item.answers) == ((a, b, c, d), (key,))


@ONE_FILE
@given(options=st.dictionaries(words, words, min_size=2, max_size=5), question=words, data=st.data())
def test_both_layouts_of_arc_keep_any_text(tmp_path, options, question, data):
    key = data.draw(st.sampled_from(sorted(options)))
    listed = [{"text": text, "label": label} for label, text in options.items()]
    turned = {"text": list(options.values()), "label": list(options)}
    records = ({"question": {"stem": question, "choices": listed}}, {"question": question, "choices": turned})
    path = write(tmp_path / "a.jsonl", *({**record, "answerKey": key} for record in records))
    first, second = read("arc_easy", path)
    assert first == second and first.labels == tuple(options) and first.choices == tuple(options.values())
    assert first.labels[first.correct] == key and first.prompt.startswith(f"Question: {question}\nOptions:\n")


@ONE_FILE
@given(pairs=st.lists(st.tuples(lines, lines), min_size=1))
def test_pairs_keep_any_line_whether_in_two_files_or_one(tmp_path, pairs):
    english, russian = (write(tmp_path / name, *side) for name, side in zip(("a", "b"), zip(*pairs)))
    table = write(tmp_path / "c", *(f"{first}\t{second}\tx" for first, second in pairs))
    found = read("en-ru", f"{english},{russian}")
    assert found == read("en-ru", table) and [item.answers[0] for item in found] == [second for _, second in pairs]


@ONE_FILE
@given(data=st.data(), task=st.sampled_from(["arc_easy", "boolq", "squad", "instructions"]))
def test_any_json_gives_items_or_one_line_that_names_the_file(tmp_path, data, task):
    whole = {"arc_easy": MAKERS, "boolq": STORED, "squad": {"data": [{"paragraphs": [{"context": "c", "qas": [ITEM]}]}]},
             "instructions": [changed(ASKED, history=[["a", "b"]])]}[task]  # fmt: skip
    path = write(tmp_path / "a", json.dumps(damaged(whole, data)))
    try:
        assert all(isinstance(item, Item) for item in read_task(task, path))
    except InputError as error:
        assert str(path) in str(error) and "\n" not in str(error)


def damaged(value, data):
    """`value` with something else at one place of it, drawn level by level."""
    children = list(value) if isinstance(value, dict) else list(range(len(value))) if isinstance(value, list) else []
    place = data.draw(st.sampled_from([None, *children]))
    if place is None:
        return data.draw(json_values)
    copy = value.copy()
    copy[place] = damaged(value[place], data)
    return copy


# The real files

REAL = [
    ("mmlu", "eval/mmlu/dev", 285), ("mmlu", "eval/mmlu/val", 1531),
    ("arc_easy", "sft/ARC-Easy-Train.jsonl", 2251), ("arc_challenge", "sft/ARC-Challenge-Train.jsonl", 1119),
    ("arc_easy", "eval/arc/ARC-Easy-validation.jsonl", 570),
    ("arc_challenge", "eval/arc/ARC-Challenge-validation.jsonl", 299),
    ("commonsense_qa", "sft/commonsense_qa_train.jsonl", 9741), ("commonsense_qa", "eval/commonsense_qa/dev.jsonl", 1221),
    ("squad", "eval/squad_v2/dev-v2.0.json", 6078),
    ("boolq", "eval/boolq/validation.jsonl", 3270), ("boolq", "eval/boolq/val.superglue_layout.jsonl", 3270),
    ("qa", "sft/premise_question_answer4_1s.txt", 34729), ("qa", "sft/premise_question_answer6.txt", 17376),
    ("instructions", "sft/oaast_sft_zh.json", 689),
    ("en-ru", "parallel/tatoeba.rus-eng.eng,parallel/tatoeba.rus-eng.rus", 1000),
    ("zh-en", "parallel/tatoeba.cmn-eng.cmn,parallel/tatoeba.cmn-eng.eng", 1000),
    ("en-zh", "parallel/tatoeba.cmn-eng.tsv", 26388),
    ("en-ru", "eval/flores200/eng_Latn.dev,eval/flores200/rus_Cyrl.dev", 997),
    ("zh-ru", "eval/flores200/zho_Hans.dev,eval/flores200/rus_Cyrl.dev", 997),
]  # fmt: skip


def real(data, task, path):
    paths = [data / part for part in path.split(",")]
    if not all(part.exists() for part in paths):
        pytest.skip(f"{path} is not in {data}")
    return read(task, ",".join(map(str, paths)))


@pytest.mark.parametrize(("task", "path", "count"), REAL)
def test_real_files_are_read_whole(data, task, path, count):
    found = real(data, task, path)
    assert len(found) == count
    assert all(item.answers or task == "squad" for item in found)
    assert all(item.prompt.endswith("Answer (True/False):" if task == "boolq" else "\nAnswer:") for item in found)
    if TASKS[task].path.endswith("of the Hub") or task == "mmlu":
        assert all(f"{item.labels[item.correct]}) {item.choices[item.correct]}" in item.prompt for item in found)


def test_real_squad_has_its_impossible_questions(data):
    found = real(data, "squad", "eval/squad_v2/dev-v2.0.json")
    assert sum(not item.answers for item in found) == 3168
    assert all(answer in item.prompt for item in found for answer in item.answers)


def test_real_boolq_is_the_same_in_both_layouts(data):
    stored = real(data, "boolq", "eval/boolq/validation.jsonl")
    assert stored == real(data, "boolq", "eval/boolq/val.superglue_layout.jsonl")


def test_real_mmlu_has_57_subjects_under_their_published_names(data):
    found = real(data, "mmlu", "eval/mmlu/val")
    assert len({item.subject for item in found}) == 57 and "high_school_us_history" in {item.subject for item in found}


def test_real_arc_has_numbered_options(data):
    found = real(data, "arc_easy", "sft/ARC-Easy-Train.jsonl")
    assert sum(item.labels[0] == "1" for item in found) == 102
