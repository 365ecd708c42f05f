"""Published lines are read as rows, rows of the same protocol are written as such lines, and nothing is guessed."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from glyphlm.base.errors import InputError
from glyphlm.evaluation.published import published_line, read_published
from glyphlm.evaluation.rows import ResultRow

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
