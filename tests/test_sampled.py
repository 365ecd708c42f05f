"""The published protocol: what is asked, how many tokens are drawn, what is right; and the same draws from the same seed."""

import pytest
import torch
from small_models import make_run

from glyphlm.corpus.tasks import Item
from glyphlm.evaluation.decoding import truncated
from glyphlm.evaluation.model import EvalModel, load_eval_model
from glyphlm.evaluation.sampled import answer_tokens, protocol_items, sample_answers, score_answer, subsample
from glyphlm.runs.generate import Sampling

LABELS = ("A", "B", "C", "D")


def choice(task="mmlu", prompt="Question: q\nAnswer:", key="B", labels=LABELS):
    return Item(task, prompt, (key,), labels, ("one", "two", "three", "four")[: len(labels)])


@pytest.fixture(scope="module")
def model(tokenizer, tmp_path_factory) -> EvalModel:
    return load_eval_model(str(make_run(tmp_path_factory.mktemp("runs") / "run", tokenizer)))


def draw(model, items, runs=10, seed=1, sampling=None):
    return sample_answers(model, items, sampling or Sampling(), runs, seed, lambda _: None)


def test_what_is_protocol_items():
    mmlu = [choice(prompt=str(number)) for number in range(300)]
    assert protocol_items(mmlu, 1) == mmlu
    pairs = [Item("en-ru", str(number), ("да",)) for number in range(300)]
    drawn = protocol_items(pairs, 1)
    assert len(drawn) == 128 and drawn == protocol_items(pairs, 1) != protocol_items(pairs, 2)
    squad = [Item("squad", str(number), ("12345678",)) for number in range(300)]
    others = [Item("squad", "long", ("123456789", "short")), Item("squad", "without_subject", ())]
    assert set(protocol_items(others + squad, 1)) <= set(squad) and len(protocol_items(others + squad, 1)) == 256
    assert protocol_items(others, 1) == []


def test_some_items_stay_in_their_order():
    items = [choice(prompt=str(number)) for number in range(50)]
    found = [int(item.prompt) for item in subsample(items, 9, 3)]
    assert found == sorted(found) and len(set(found)) == 9 and subsample(items, 50, 3) == subsample(items, None, 3) == items


@pytest.mark.parametrize(("item", "steps"), [
    (choice("mmlu"), 1), (choice("arc_easy"), 2), (choice("commonsense_qa"), 2),
    (Item("squad", "", ("1066", "in 1066")), 4), (Item("en-ru", "", ("да" * 80,)), 100), (Item("ru-en", "", ("yes",)), 3),
])  # fmt: skip
def test_as_many_tokens_as_published(item, steps):
    assert answer_tokens(item) == steps


@pytest.mark.parametrize(("item", "output", "value"), [
    (choice(), " b) two", 1), (choice(), "Bone", 1), (choice(), "A", 0), (choice(), "", 0), (choice(), "\n", 0),
    (choice("arc_easy", key="2", labels=("1", "2")), " 2", 1),
    (Item("squad", "", ("no",)), "cannot", 1), (Item("squad", "", ("No", "cannot")), "cannot", 0),
    (Item("ru-en", "", ("the cat sat on the mat",)), "THE CAT SAT ON THE MAT", 100),
])  # fmt: skip
def test_what_an_answer_is_score_answer(item, output, value):
    assert score_answer(item, output) == pytest.approx(value)


def test_draws_depend_on_the_seed_and_nothing_else(model, monkeypatch):
    items = [choice("arc_easy", f"Question: {'why ' * number}\nAnswer:") for number in range(1, 6)]
    first = draw(model, items)
    assert draw(model, items) == first != draw(model, items, seed=2)
    monkeypatch.setattr("glyphlm.evaluation.sampled.READ_TOKENS", {"cpu": 10000})
    assert [log["outputs"] for log in draw(model, items)] == [log["outputs"] for log in first]


def test_outputs_and_letter_mass_are_those_of_the_distribution(model, tokenizer):
    item, runs = choice(prompt="Question: what?\nAnswer:"), 4000
    (log,) = draw(model, [item], runs)
    assert log["scores"] == [score_answer(item, output) for output in log["outputs"]] and len(log["scores"]) == runs
    with torch.no_grad():
        logits_1V = model.model(torch.tensor([tokenizer.encode(item.prompt)])).logits[:, -1]
    possible = {tokenizer.decode([number]) for number in truncated(logits_1V, Sampling()).ids_BK[0].tolist()}
    assert set(log["outputs"]) <= possible
    letters = sum(output.strip().upper()[:1] in LABELS for output in log["outputs"]) / runs
    assert log["letter_mass"] == pytest.approx(letters, abs=0.03)


def test_a_model_that_knows_but_does_not_write_letters_falls_below_chance(model):
    """Why published scores lie below chance: they are about the letter mass times the share of right letters."""
    logs = draw(model, [choice(prompt=f"Question: {number}?\nAnswer:") for number in range(10)], 200)
    for log in logs:
        assert sum(log["scores"]) / 200 <= log["letter_mass"] + 0.1


def test_free_answers_have_no_letter_mass_and_long_prompts_are_counted(model):
    short, long = draw(model, [Item("squad", "When?\nAnswer:", ("1066",)), Item("squad", "?" * 400, ("1066",))])
    assert "letter_mass" not in short and (short["cut"], long["cut"]) == (False, True)
    assert short["answers"] == ("1066",) and len(short["outputs"]) == 10
