"""Tables say what a number is and what to compare it with; published lines are read and written without loss."""

import re
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from glyphlm.base.errors import InputError
from glyphlm.evaluation.rows import ComparisonRow, ResultRow
from glyphlm.evaluation.stats import Interval
from glyphlm.evaluation.text import (
    beside_line,
    comparison_table,
    published_line,
    published_lines,
    read_published,
    result_table,
)

ROW = ResultRow(
    "mmlu", "likelihood", "letters", "virology", "accuracy", 0.25, 0.2, 0.31, "Wilson 95% over items", run="runs/mine",
    items=1166, chance=0.25, majority=0.3, letter_mass=0.5, cut=0,
)  # fmt: skip
SAMPLED = replace(ROW, protocol="sampled", scoring="first letter", sigma=0.01, runs=10, cut=3, items_low=0.1, items_high=0.4,
                  items_interval="bootstrap 95% over items")
BITS = ResultRow("bpb", "likelihood", "", "", "bits_per_byte", 1.25, 1.2, 1.3, "bootstrap 95% over documents", run="mine",
                 documents=4, source="texts/en.txt")
PAIR = ComparisonRow("mmlu", "likelihood", "letters", "virology", "accuracy", 1166, 0.25, 0.3, 0.05,
                     Interval(-0.01, 0.11, "paired bootstrap 95% over items"), "McNemar, exact", 0.0312, 0.084, 0.5,
                     "runs/mine", "runs/twin")  # fmt: skip
LINES = """best_bvv_ru Total parameters:     0.5B
best_bvv_ru MMLU [virology]: 21.30% ± 1.22% (σ=1.98%)
best_bvv_ru MMLU: 22.29% ± 0.12% (σ=0.20%)

best_bvv_ru BLEU [zh-en]: 0.74% ± 0.10% (σ=0.17%)
best_bvv_ru SQUAD: 14.84% ± 0.85% (σ=1.36%)abs-bvv-1 Total parameters:     1.3B
abs-bvv-1 ARC-e: 19.21% ± 0.48% (σ=0.77%)
"""
ONE_FILE = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


def read(tmp_path, text):
    (tmp_path / "lines.txt").write_text(text, encoding="utf-8")
    return read_published(tmp_path / "lines.txt")


def test_a_table_of_results_has_intervals_and_reference_levels():
    assert result_table([ROW, SAMPLED, BITS]).splitlines() == [
        "run   task                               value      95% interval  chance  majority  letter mass  items",
        "mine  mmlu [virology] letters accuracy  25.00%  20.00% to 31.00%   25.0%     30.0%        50.0%  1,166",
        "mine  bpb en.txt bits per byte          1.2500  1.2000 to 1.3000                                     4",
        "(accuracy: Wilson 95% over items; bits per byte: bootstrap 95% over documents)",
    ]
    assert result_table([SAMPLED]) == ""


def test_the_sampled_protocol_has_the_published_line_and_the_rest_beside_it(tmp_path):
    (row,) = read(tmp_path, published_lines([ROW, SAMPLED]))
    assert (row.run, row.subject, row.value) == ("mine", "virology", 0.25)
    assert beside_line(SAMPLED) == (
        "mine mmlu [virology] first letter accuracy: 25.00% [10.00%, 40.00%] (bootstrap 95% over items), "
        "chance 25.0%, majority 30.0%, letter mass 50.0%, 1,166 items, 3 prompts cut")


def test_a_table_of_comparisons_has_the_test_and_the_detectable_difference():
    head, row, below = comparison_table([PAIR]).splitlines()
    assert re.split(r" {2,}", row) == ["twin - mine", "mmlu [virology] letters accuracy", "+5.00%", "-1.00% to +11.00%",
                               "0.031, Holm 0.5", "McNemar, exact", "8.40%"]
    assert head.split()[-2:] == ["test", "detectable"] and below == "(accuracy: paired bootstrap 95% over items)"
    assert comparison_table([replace(PAIR, mde=None, subject="")]).splitlines()[1].endswith("McNemar, exact   not known")
    assert "none with so few items" in comparison_table([replace(PAIR, mde=1.5)])
    assert comparison_table([]) == ""


def test_lines_become_rows(tmp_path):
    subject, whole, bleu, squad, arc = read(tmp_path, LINES)
    assert subject.run == "best_bvv_ru" and subject.parameters == "0.5B" and arc.parameters == "1.3B"
    assert (subject.task, subject.subject, whole.subject) == ("mmlu", "virology", "")
    assert [subject.value, subject.low, subject.high, subject.sigma, subject.chance] == pytest.approx(
        [0.2130, 0.2008, 0.2252, 0.0198, 0.25])
    assert (bleu.task, bleu.metric, bleu.value) == ("zh-en", "bleu", 0.74)
    assert (squad.task, squad.metric, arc.task) == ("squad", "contains", "arc_easy")
    assert {row.protocol for row in (subject, bleu)} == {"published"} and "decoding runs" in bleu.interval


def test_rows_become_the_same_lines(tmp_path):
    results = [line for line in LINES.replace("%)abs", "%)\nabs").splitlines() if "%" in line]
    assert [published_line(row.run, row) for row in read(tmp_path, LINES)] == results


@ONE_FILE
@given(value=st.integers(0, 9999), half=st.integers(0, 999), task=st.sampled_from(["mmlu", "boolq", "en-ru", "squad"]))
def test_every_line_that_is_written_is_read_again(tmp_path, value, half, task):
    percent = 1 if task == "en-ru" else 100
    row = ResultRow(task, "sampled", "", "", "bleu" if task == "en-ru" else "accuracy", value / 100 / percent, 0,
                    (value + half) / 100 / percent, sigma=0.01 / percent)  # fmt: skip
    line = published_line("mine-1", row)
    (again,) = read(tmp_path, line)
    assert published_line("mine-1", again) == line and again.task == task


@pytest.mark.parametrize("line", [
    "mine MMLU [virology]: 21.30% ± 1.22%",
    "mine MMLO: 21.30% ± 1.22% (σ=1.98%)",
    "MMLU: 21.30% ± 1.22% (σ=1.98%)",
    "mine BLEU: 21.30% ± 1.22% (σ=1.98%)",
    "hello",
])  # fmt: skip
def test_a_line_of_another_form_is_named(tmp_path, line):
    with pytest.raises(InputError, match=r"lines.txt:8: .* is not a line such as"):
        read(tmp_path, LINES + line)


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(InputError, match="nowhere.txt cannot be read"):
        read_published(tmp_path / "nowhere.txt")


def test_all_published_files_are_read(data):
    rows = [row for path in sorted((data / "published_results").glob("*.txt")) for row in read_published(path)]
    assert len({row.run for row in rows}) == 21 and all(row.parameters for row in rows)
    assert sum(row.task == "mmlu" and row.subject != "" for row in rows) == 21 * 57
    found = {(row.run, row.task): row.value for row in rows if not row.subject}
    assert found["best_bvv_unfrozen_ru", "mmlu"] == pytest.approx(0.1137) and found["best_bvv_moe", "en-zh"] == 2.93
