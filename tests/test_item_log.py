"""A log alone gives the results again, and two logs of the same items the paired comparison."""

import json
import math

import pytest

from glyphlm.base.errors import InputError
from glyphlm.evaluation.item_log import compare_items, read_log, result_rows
from glyphlm.evaluation.stats import holm, mcnemar, wilson
from glyphlm.evaluation.text import comparison_table


def entry(number, **fields):
    return {"task": "mmlu", "protocol": "likelihood", "number": number, "prompt": f"{number}?", "subject": ""} | fields


def choices(right, subjects=None, letter_mass=0.5):
    """A log in which the letters are right as given, the texts never."""
    return [
        entry(number, subject=subject, labels=["A", "B"], correct=0, letters=[-1.0, -2.0] if is_right else [-2.0, -1.0],
              choices=["ab", "abcdef"], texts=[-1.0, -2.0], letter_mass=letter_mass, cut=number == 0)
        for number, (is_right, subject) in enumerate(zip(right, subjects or [""] * len(right)))
    ]  # fmt: skip


def only(rows, **wanted):
    (found,) = (row for row in rows if all(getattr(row, key) == value for key, value in wanted.items()))
    return found


def test_choices_by_letters_and_by_texts_a_character():
    rows = result_rows(choices([1, 1, 0, 1]))
    letters, texts = only(rows, scoring="letters"), only(rows, scoring="texts")
    assert (letters.value, letters.items, letters.cut) == (0.75, 4, 1)
    assert (letters.low, letters.high, letters.interval) == wilson(3, 4)
    assert (letters.chance, letters.majority, letters.letter_mass) == (0.5, 1.0, 0.5)
    assert texts.value == 0  # -1/2 is less than -2/6, though -1 is more than -2


def test_the_whole_comes_first_and_then_each_subject():
    rows = result_rows(choices([1, 0, 1], ["virology", "astronomy", "virology"]))
    assert [(row.subject, row.value, row.items) for row in rows if row.scoring == "letters"] == [
        ("", 2 / 3, 3), ("astronomy", 0.0, 1), ("virology", 1.0, 2)]


def test_squad_has_both_scores_and_reports_what_no_answer_would_score():
    answerable = entry(0, task="squad", subject="HasAns", answers=["the cat"], output="cat sat", cut=False)
    unanswerable = entry(1, task="squad", subject="NoAns", answers=[], output="", cut=False)
    rows = result_rows([answerable, unanswerable])
    whole = only(rows, metric="f1", subject="")
    assert whole.value == pytest.approx((2 / 3 + 1) / 2) and whole.majority == 0.5 and "bootstrap" in whole.interval
    assert only(rows, metric="exact_match", subject="HasAns").value == 0
    assert only(rows, metric="exact_match", subject="NoAns").value == 1


def test_translations_are_scored_as_a_corpus_with_the_signature():
    translated = {"answers": ["the cat sat on the mat"], "output": "the cat sat on a mat", "cut": False}
    log = [entry(number, task="ru-en", **translated) for number in range(3)]
    bleu, chrf = result_rows(log)
    assert (bleu.metric, chrf.metric) == ("bleu", "chrf") and bleu.low == bleu.value == bleu.high > 0
    assert "tok:13a" in bleu.signature and bleu.chance is None


def test_bits_per_byte_are_the_ratio_of_the_sums():
    log = [entry(n, task="bpb", nats=nats, bytes=size, tokens=1) for n, (nats, size) in enumerate([(8.0, 1), (2.0, 99)])]
    (row,) = result_rows(log)
    assert row.value == pytest.approx(10 / math.log(2) / 100)
    assert row.documents == 2 and row.interval == "bootstrap 95% over documents" and row.items is None


def test_sampled_keeps_the_interval_over_runs_and_that_over_items_apart():
    scores = [[1, 0, 1, 1], [0, 0, 1, 0]]
    same = {"protocol": "sampled", "labels": ["A", "B"], "correct": 0, "letter_mass": 0.7, "cut": False}
    log = [entry(number, outputs=["A"] * 4, scores=found, **same) for number, found in enumerate(scores)]
    (row,) = result_rows(log)
    assert row.value == 0.5 and row.runs == 4 and row.sigma == pytest.approx(math.sqrt(0.125))
    assert row.high - row.value == pytest.approx(1.96 * row.sigma / 2) and "decoding runs" in row.interval
    assert (row.items_low, row.items_high) == (0.25, 0.75) and "over items" in row.items_interval


def test_two_models_are_paired_by_item_and_corrected_over_subjects():
    subjects = ["a"] * 20 + ["b"] * 20
    first, second = [0] * 12 + [1] * 28, [1] * 20 + [1] * 13 + [0] * 7
    rows = compare_items(choices(first, subjects), choices(second, subjects))
    letters = [row for row in rows if row.scoring == "letters"]
    assert [row.subject for row in letters] == ["", "a", "b"]
    whole, a, b = letters
    assert whole.p == whole.p_holm == mcnemar(first, second) and whole.test.startswith("McNemar")
    assert whole.difference == pytest.approx(5 / 40) == pytest.approx(whole.value_b - whole.value_a)
    assert [a.p_holm, b.p_holm] == holm([a.p, b.p]) and a.p_holm > a.p
    assert all(row.interval.low <= row.difference <= row.interval.high and row.mde > 0 for row in letters)
    texts = only(rows, scoring="texts", subject="")
    assert texts.difference == 0 and texts.p == 1


def test_a_subject_whose_prompts_are_cut_is_not_a_test_of_the_family():
    first, second, subjects = [0] * 12 + [1] * 28, [1] * 20 + [1] * 13 + [0] * 7, ["a"] * 20 + ["b"] * 20
    cut = [row | {"cut": number < 2} for number, row in enumerate(choices(first, subjects))]
    whole, a, b = (row for row in compare_items(cut, choices(second, subjects)) if row.scoring == "letters")
    assert (a.cut, b.cut, whole.cut) == (0.1, 0, 0.05) and math.isnan(a.p_holm)
    assert b.p_holm == b.p and whole.p_holm == whole.p
    assert "not judged: 10% of the prompts are cut" in comparison_table([a]) and "Holm" in comparison_table([b])


def test_a_text_that_is_one_document_has_the_interval_of_its_blocks():
    log = [entry(0, task="bpb", nats=10.0, bytes=100, tokens=9, blocks=[[8.0, 60], [2.0, 40]])]
    (row,) = result_rows(log)
    assert (row.value, row.documents, row.interval) == (
        pytest.approx(10 / math.log(2) / 100), 1, "bootstrap 95% over blocks of a document")
    assert row.low < row.value < row.high
    (plain,) = result_rows([{key: value for key, value in log[0].items() if key != "blocks"}])
    assert plain.interval == "none: a single document"
    (same,) = compare_items(log, [plain_row := log[0] | {"nats": 12.0, "blocks": [[9.0, 60], [3.0, 40]]}])
    assert same.interval.name == "paired bootstrap 95% over blocks of a document" and same.difference > 0
    del plain_row["blocks"]
    (old,) = compare_items(log, [plain_row])
    assert old.interval.low == -math.inf


def test_logs_come_from_files_as_well(tmp_path):
    log = choices([1, 0, 1])
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in log))
    assert read_log(tmp_path / "a.jsonl") == log
    assert compare_items(tmp_path / "a.jsonl", log) == compare_items(log, log)


def test_what_cannot_be_paired_is_refused(tmp_path):
    log = choices([1, 0, 1])
    with pytest.raises(InputError, match="3 items of mmlu likelihood and 2 items of mmlu likelihood cannot be paired"):
        compare_items(log, log[:2])
    with pytest.raises(InputError, match="3 items of mmlu likelihood and 3 items of mmlu sampled"):
        compare_items(log, [row | {"protocol": "sampled"} for row in log])
    with pytest.raises(InputError, match="item 1 has another prompt in the other log"):
        compare_items(log, [row | {"prompt": "0?"} for row in log])
    with pytest.raises(InputError, match="none.jsonl does not exist or is empty; make it with: glyphlm eval"):
        read_log(tmp_path / "none.jsonl")
