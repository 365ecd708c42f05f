"""TriviaQA, HotpotQA and NQ-Open: the same items from the makers' files and from rows of the Hub; damage is named."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_tasks import ONE_FILE, damaged

from glyphlm.base.errors import InputError
from glyphlm.corpus.task_files import Row
from glyphlm.corpus.tasks import TASKS, Item, read_task
from glyphlm.data.shards import examples
from glyphlm.evaluation.item_log import metrics

TRIVIA = {"Question": "Which bird hoots?", "QuestionId": "qz_1", "SearchResults": [],
          "Answer": {"Value": "Owl", "Aliases": ["Owls", "Owl", "Strigiformes", " "], "NormalizedAliases": ["owl"]}}
TRIVIA_ROW = {"question": "Which bird hoots?", "answer": {"value": "Owl", "aliases": ["Owls", "Strigiformes"]}}
PAGES = [["Owl", ["Owls hunt.", " They hoot."]], ["Snowy owl", [" It is white. "]]]
HOTPOT = {"_id": "1", "question": "What hoots?", "answer": "the owl", "supporting_facts": [["Owl", 1]], "context": PAGES}
HOTPOT_ROW = HOTPOT | {"context": {"title": [title for title, _ in PAGES], "sentences": [text for _, text in PAGES]}}
NQ = {"question": "what does an owl eat", "answer": ["mice", "a mouse", "mice"]}
WHOLE = {"triviaqa": {"Data": [TRIVIA]}, "hotpotqa": [HOTPOT], "nq_open": NQ}
ROWS = {"triviaqa": TRIVIA_ROW, "hotpotqa": HOTPOT_ROW, "nq_open": NQ}
ITEMS = {
    "triviaqa": Item("triviaqa", "Question: Which bird hoots?\nAnswer:", ("Owl", "Owls", "Strigiformes")),
    "hotpotqa": Item("hotpotqa", "Context: Owl: Owls hunt. They hoot.\nSnowy owl: It is white.\nQuestion: What hoots?\n"
                                 "Answer:", ("the owl",)),
    "nq_open": Item("nq_open", "Question: what does an owl eat\nAnswer:", ("mice", "a mouse")),
}  # fmt: skip


def write(path, value):
    path.write_text(json.dumps(value) + "\n", encoding="utf-8")
    return path


def refusal(task, path):
    with pytest.raises(InputError) as caught:
        list(read_task(task, path))
    return str(caught.value)


@pytest.mark.parametrize("task", ITEMS)
def test_the_makers_file_and_the_row_of_the_hub_are_one_item(tmp_path, task):
    assert list(read_task(task, write(tmp_path / "a", WHOLE[task]))) == [ITEMS[task]]
    assert TASKS[task].item(task, Row("row 1", ROWS[task])) == ITEMS[task]


@pytest.mark.parametrize("task", ITEMS)
def test_the_hub_is_asked_for_its_set(monkeypatch, task):
    import datasets

    def load_dataset(name, config, **options):
        assert f"hf:{name}:{config or ''}:{options['split']}" == TASKS[task].hub
        return iter([ROWS[task]])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert list(read_task(task, "hf:")) == [ITEMS[task]]


def test_all_three_are_examples_to_train_on(tmp_path):
    found = list(examples([f"{task}={write(tmp_path / task, WHOLE[task])}" for task in ITEMS]))
    assert found == [(item.prompt, item.answers[0]) for item in ITEMS.values()]


def test_a_question_without_paragraphs_is_asked_alone(tmp_path):
    (item,) = read_task("hotpotqa", write(tmp_path / "a", [HOTPOT | {"context": []}]))
    assert item.prompt == "Question: What hoots?\nAnswer:"


@pytest.mark.parametrize(("task", "changes", "what"), [
    ("triviaqa", {"Answer": None}, "Data[0]: no text in 'Answer.Value'"),  # a test file without answers
    ("triviaqa", {"Answer": {"Value": "", "Aliases": []}}, "Data[0]: an empty 'Answer.Value'"),
    ("triviaqa", {"Answer": {"Value": "<unk>", "Aliases": []}}, "Data[0]: the undisclosed answer <unk>"),
    ("triviaqa", {"Answer": {"Value": "a", "Aliases": [1]}}, "Data[0]:Answer.Aliases[0]: no text in the entry"),
    ("triviaqa", {"Question": None}, "Data[0]: no text in 'Question'"),
    ("hotpotqa", {"answer": None}, "[0]: no text in 'answer'"),
    ("hotpotqa", {"context": None}, "[0]: no list in 'context'"),
    ("hotpotqa", {"context": [["Owl"]]}, "[0]:context[0]: 1 entries, not a title and its sentences"),
    ("hotpotqa", {"context": [["Owl", "It hoots."]]}, "[0]:context[0]: no list in 'sentences'"),
    ("hotpotqa", {"context": [[" ", []]]}, "[0]:context[0]: an empty 'title'"),
    ("hotpotqa", {"context": [["Owl", [1]]]}, "[0]:context[0]:sentences[0]: no text in the entry"),
    ("hotpotqa", {"context": {"title": ["a"], "sentences": []}}, "[0]: 1 titles with 0 paragraphs"),
    ("nq_open", {"answer": []}, "1: no answer"),
    ("nq_open", {"answer": "mice"}, "1: no list in 'answer'"),
    ("nq_open", {"answer": [""]}, "1:answer[0]: an empty entry"),
    ("nq_open", {"question": None}, "1: no text in 'question'"),
])  # fmt: skip
def test_what_is_damaged_is_named_by_its_place(tmp_path, task, changes, what):
    whole = {"triviaqa": {"Data": [TRIVIA | changes]}, "hotpotqa": [HOTPOT | changes], "nq_open": NQ | changes}[task]
    path = write(tmp_path / "a", whole)
    assert refusal(task, path) == f"{path}:{what}; fix or remove it"


@ONE_FILE
@given(data=st.data(), task=st.sampled_from(sorted(WHOLE)))
def test_any_json_gives_items_or_one_line_that_names_the_file(tmp_path, data, task):
    path = write(tmp_path / "a", damaged(WHOLE[task], data))
    try:
        assert all(isinstance(item, Item) for item in read_task(task, path))
    except InputError as error:
        assert str(path) in str(error) and "\n" not in str(error)


def test_answers_are_scored_by_the_rules_of_squad():
    log = [{"task": "triviaqa", "output": output, "answers": ["Owl", "Owls"]} for output in ("the owl!", "an owl hoots")]
    exact, f1 = metrics(log)
    assert (exact.name, exact.sums_NS.tolist()) == ("exact_match", [[1, 1], [0, 1]])
    assert (f1.name, f1.sums_NS[:, 0].tolist()) == ("f1", [1, pytest.approx(2 / 3)])
