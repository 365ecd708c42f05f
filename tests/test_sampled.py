"""The published protocol: what is asked, how many tokens are drawn, what is right; and the same draws from the same seed."""

import pytest
import torch
from examinees import make_run

from glyphlm.corpus.tasks import Item
from glyphlm.evaluation.decoding import candidates
from glyphlm.evaluation.model import Examinee, load_examinee
from glyphlm.evaluation.sampled import asked, draw_answers, some, steps_of, worth
from glyphlm.runs.generate import Sampling

LABELS = ("A", "B", "C", "D")


def choice(task="mmlu", prompt="Question: q\nAnswer:", key="B", labels=LABELS):
    return Item(task, prompt, (key,), labels, ("one", "two", "three", "four")[: len(labels)])


@pytest.fixture(scope="module")
def examinee(tokenizer, tmp_path_factory) -> Examinee:
    return load_examinee(str(make_run(tmp_path_factory.mktemp("runs") / "run", tokenizer)))


def draw(examinee, items, runs=10, seed=1, sampling=None):
    return draw_answers(examinee, items, sampling or Sampling(), runs, seed, lambda _: None)


def test_what_is_asked():
    mmlu = [choice(prompt=str(number)) for number in range(300)]
    assert asked(mmlu, 1) == mmlu
    pairs = [Item("en-ru", str(number), ("да",)) for number in range(300)]
    assert len(asked(pairs, 1)) == 128 and asked(pairs, 1) == asked(pairs, 1) != asked(pairs, 2)
    squad = [Item("squad", str(number), ("12345678",)) for number in range(300)]
    others = [Item("squad", "long", ("123456789", "short")), Item("squad", "untold", ())]
    assert set(asked(others + squad, 1)) <= set(squad) and len(asked(others + squad, 1)) == 256
    assert asked(others, 1) == []


def test_some_items_stay_in_their_order():
    items = [choice(prompt=str(number)) for number in range(50)]
    found = [int(item.prompt) for item in some(items, 9, 3)]
    assert found == sorted(found) and len(set(found)) == 9 and some(items, 50, 3) == some(items, None, 3) == items


@pytest.mark.parametrize(("item", "steps"), [
    (choice("mmlu"), 1), (choice("arc_easy"), 2), (choice("commonsense_qa"), 2),
    (Item("squad", "", ("1066", "in 1066")), 4), (Item("en-ru", "", ("да" * 80,)), 100), (Item("ru-en", "", ("yes",)), 3),
])  # fmt: skip
def test_as_many_tokens_as_published(item, steps):
    assert steps_of(item) == steps


@pytest.mark.parametrize(("item", "output", "value"), [
    (choice(), " b) two", 1), (choice(), "Bone", 1), (choice(), "A", 0), (choice(), "", 0), (choice(), "\n", 0),
    (choice("arc_easy", key="2", labels=("1", "2")), " 2", 1),
    (Item("squad", "", ("no",)), "cannot", 1), (Item("squad", "", ("No", "cannot")), "cannot", 0),
    (Item("ru-en", "", ("the cat sat on the mat",)), "THE CAT SAT ON THE MAT", 100),
])  # fmt: skip
def test_what_an_answer_is_worth(item, output, value):
    assert worth(item, output) == pytest.approx(value)


def test_draws_depend_on_the_seed_and_nothing_else(examinee, monkeypatch):
    items = [choice("arc_easy", f"Question: {'why ' * number}\nAnswer:") for number in range(1, 6)]
    first = draw(examinee, items)
    assert draw(examinee, items) == first != draw(examinee, items, seed=2)
    monkeypatch.setattr("glyphlm.evaluation.sampled.READ_TOKENS", {"cpu": 10000})
    assert [log["outputs"] for log in draw(examinee, items)] == [log["outputs"] for log in first]


def test_outputs_and_letter_mass_are_those_of_the_distribution(examinee, tokenizer):
    item, runs = choice(prompt="Question: what?\nAnswer:"), 4000
    (log,) = draw(examinee, [item], runs)
    assert log["scores"] == [worth(item, output) for output in log["outputs"]] and len(log["scores"]) == runs
    with torch.no_grad():
        logits_1V = examinee.model(torch.tensor([tokenizer.encode(item.prompt)])).logits[:, -1]
    possible = {tokenizer.decode([number]) for number in candidates(logits_1V, Sampling()).ids_BK[0].tolist()}
    assert set(log["outputs"]) <= possible
    letters = sum(output.strip().upper()[:1] in LABELS for output in log["outputs"]) / runs
    assert log["letter_mass"] == pytest.approx(letters, abs=0.03)


def test_a_model_that_knows_but_does_not_say_letters_falls_below_chance(examinee):
    """Why published scores lie below chance: they are about the letter mass times the share of right letters."""
    logs = draw(examinee, [choice(prompt=f"Question: {number}?\nAnswer:") for number in range(10)], 200)
    for log in logs:
        assert sum(log["scores"]) / 200 <= log["letter_mass"] + 0.1


def test_free_answers_have_no_letter_mass_and_long_prompts_are_counted(examinee):
    short, long = draw(examinee, [Item("squad", "When?\nAnswer:", ("1066",)), Item("squad", "?" * 400, ("1066",))])
    assert "letter_mass" not in short and (short["cut"], long["cut"]) == (False, True)
    assert short["answers"] == ("1066",) and len(short["outputs"]) == 10
