"""Rows of several runs side by side: who shares a line, what differs from chance, experts, depths."""

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats
from small_models import make_run

from glyphlm.base.errors import InputError
from glyphlm.evaluation.evaluate import evaluate
from glyphlm.evaluation.rows import ResultRow
from glyphlm.pages import results_view
from glyphlm.pages.results_view import (
    Line,
    cell,
    differences,
    fused,
    intervals,
    labels,
    names_of,
    published_rows,
    result_lines,
    scores_by_depth,
    side_by_side,
    subject_maps,
    surviving,
    table,
)
from glyphlm.pages.run_data import Run, read_runs


def row(value: float = 0.5, half: float = 0.1, **more: Any) -> ResultRow:
    """A row as glyphlm eval makes it."""
    made_from = {"model": "m", "files": {"f": "d"}, "settings": {"precision": "fp32", "limit": None, "seed": 1}}
    made = ResultRow("mmlu", "likelihood", "letters", "", "accuracy", value, value - half, value + half,
                     "Wilson 95% over items", items=100, chance=0.25, majority=0.3, source="data/mmlu/test",
                     made_from=made_from)  # fmt: skip
    return replace(made, **more)


def bits(value: float, source: str = "notes.txt") -> ResultRow:
    more = {"metric": "bits_per_byte", "bits_per_byte": value, "scoring": "", "bytes": 9, "items": None, "documents": 3}
    return row(value, 0.25, task="bpb", source=source, chance=None, majority=None, **more)


def sampled(value: float, **more: Any) -> ResultRow:
    over_items = {"items_low": value - 0.03, "items_high": value + 0.03, "items_interval": "bootstrap 95% over items"}
    made = {"protocol": "sampled", "scoring": "first letter", "sigma": 0.02, "letter_mass": 0.5, **over_items, **more}
    return row(value, 0.01, interval="mean ± 1.96 σ/√n over decoding runs", **made)


def make_runs(folder: Path, results: dict[str, list[ResultRow]], **summaries: dict[str, Any]) -> list[Run]:
    for name, rows in results.items():
        (folder / name).mkdir(parents=True)
        summary = {"name": name, "substrate": {"kind": "glyph"}, **summaries.get(name.replace("-", "_"), {})}
        (folder / name / "summary.json").write_text(json.dumps(summary))
        (folder / name / "results.jsonl").write_text("".join(json.dumps(row.to_json()) + "\n" for row in rows))
    return read_runs([folder / name for name in results])


def test_only_equal_protocols_share_a_line(tmp_path):
    other = (row().made_from or {}) | {"settings": {"precision": "fp32", "limit": 20, "seed": 2}}
    bf16 = (row().made_from or {}) | {"model": "n", "settings": {"precision": "bf16", "limit": None, "seed": 1}}
    runs = make_runs(tmp_path, {"a": [row(0.4), row(0.5)], "b": [row(0.6, made_from=bf16)], "c": [row(made_from=other)]})
    first, second = result_lines(runs).items()
    assert list(first[1]) == ["a", "b"] and first[1]["a"].value == 0.5  # the last row of a run counts
    assert list(second[1]) == ["c"] and (first[0].drawn, second[0].drawn) == ("", "drawn by seed 2")
    assert labels(result_lines(runs), runs[::-1]) == ["c", "b", "a"]


def test_a_row_that_lacks_something_is_named(tmp_path):
    with pytest.raises(InputError, match=r"a/results.jsonl line 1 .*'low'.*delete that line"):
        make_runs(tmp_path, {"a": [row(low=None)]})


@pytest.mark.parametrize(
    ("shown_row", "value", "sign", "notes"),
    [
        (row(0.5, cut=1200, items=24000), "50.00%", 1, ["[40.00, 60.00]", "1,200 cut"]),
        (row(0.5, cut=1201, items=24000, unknown=2), "50.00%", None,
         ["[40.00, 60.00]", "1,201 cut: another task", "2 <unk>"]),
        (row(0.3), "30.00%", 0, ["[20.00, 40.00]"]),
        (row(0.5, majority=0.45), "50.00%", 0, ["[40.00, 60.00]"]),
        (row(0.125), "12.50%", -1, ["[2.50, 22.50]"]),
        (row(31.5, 1, metric="bleu", chance=None), "31.50", None, ["[30.50, 32.50]"]),
        (sampled(0.26), "26.00% ± 1.00%", 0, ["(σ=2.00%)", "[23.00, 29.00]", "letter mass 50.0%"]),
        (row(0.2, 0.01, sigma=0.02), "20.00% ± 1.00%", None, ["(σ=2.00%)"]),  # published: nothing is known over items
    ],
)
def test_a_cell_is_compared_with_chance_by_its_interval_over_items(shown_row, value, sign, notes):
    assert cell(shown_row) == (value, sign, notes)


def test_intervals_are_named_once_with_what_has_them(tmp_path):
    rows = [row(), row(scoring="texts"), row(task="squad", metric="f1", interval="bootstrap 95% over items"), sampled(0.3)]
    lines = result_lines(make_runs(tmp_path, {"a": rows}))
    assert intervals(table(lines, "likelihood")) == {
        "Wilson 95% over items": ["accuracy"], "bootstrap 95% over items": ["f1"]}  # fmt: skip
    assert list(intervals(table(lines, "sampled"))) == ["bootstrap 95% over items"]


def test_a_map_of_subjects_marks_what_survives_the_correction(tmp_path):
    shares = {"": 0.4, "astronomy": 0.6, "high_school_biology": 0.35, "law": 0.05, "virology": 0.25}
    rows = [row(value, subject=subject) for subject, value in shares.items()]
    rows += [sampled(0.25, subject=subject) for subject in ("", "law", "virology")]
    lines = result_lines(make_runs(tmp_path, {"a": rows, "b": rows[:2]}))
    published = [row(0.9, run="pub", scoring="first letter", subject="law", items=None, sigma=0.1)]
    assert not [line for line in table(lines, "likelihood") if line.subject]
    first, second = subject_maps(lines, published)
    assert first.subjects == ["all subjects", "astronomy", "high school biology", "law", "virology"]
    assert first.names == ["a", "b"] and math.isnan(first.values_SR[3, 1])
    assert stats.binomtest(35, 100, 0.25).pvalue < 0.05  # biology: of four subjects one such p is to be expected sooner
    assert first.signs_SR[:, 0].tolist() == [1, 1, 0, -1, 0]
    assert surviving(first) == [("a", ["astronomy"], ["law"]), ("b", ["astronomy"], [])]
    assert second.names == ["a", "pub"] and second.tested == ["a"]
    assert second.values_SR[1].tolist() == [0.25, 0.9] and not np.any(second.signs_SR)


def test_published_rows_are_those_of_the_same_task_and_scoring():
    published = [row(run="x", scoring="first letter"), row(run="y", scoring="first letter", subject="law")]
    assert list(published_rows(Line.of(sampled(0.3)), published)) == ["x"]
    assert not published_rows(Line.of(row()), published)


def test_experts_are_found_and_stand_beside_their_fusion(tmp_path):
    runs = make_runs(
        tmp_path / "runs",
        {"en": [row(0.3), bits(2.0), row(task="boolq")], "ru": [bits(3.0)], "both": [row(0.4), bits(2.5)]},
        both={"fusion": {"experts": ["old/en", "runs/ru", "runs/zh"], "method": "mean_logits"}},
    )
    (found,) = fused(runs)
    assert [expert.label for expert in found.experts] == ["en", "ru"] and found.missing == ["runs/zh"]
    bars = side_by_side(found, result_lines(runs))
    assert bars["bits_per_byte"].values == {"en": {"notes.txt": 2.0}, "ru": {"notes.txt": 3.0}, "both": {"notes.txt": 2.5}}
    assert bars["bits_per_byte"].spans["both"] == {"notes.txt": (2.25, 2.75)}
    assert list(bars["percent"].values["both"].items()) == [("mmlu letters", 40.0)]
    assert math.isnan(bars["percent"].values["ru"]["mmlu letters"]) and bars["percent"].levels == {"mmlu letters": 25.0}


def test_an_expert_is_distinguished_from_another_run_of_its_name_by_its_folder(tmp_path):
    runs = make_runs(tmp_path, {"a/en": [], "b/en": [], "c": []}, c={"fusion": {"experts": ["b/en", "a/en"]}})
    assert [expert.folder.parent.name for expert in fused(runs)[0].experts] == ["b", "a"]


def test_lines_of_one_task_in_two_files_have_names_of_their_own():
    lines = [Line.of(row()), Line.of(row(source="data/mmlu/val")), Line.of(sampled(0.3))]
    assert list(names_of(lines).values()) == ["mmlu letters mmlu/test", "mmlu letters mmlu/val", "mmlu sampled"]


def test_stages_have_their_scores_over_depth(tmp_path):
    growth = {"start": "zero", "blocks": "new", "head": "full", "lora": {"rank": 0}}
    summaries = {
        "stage_1": {"model": {"n_layer": 1}},
        "stage_2": {"model": {"n_layer": 2}, "growth": growth | {"base": "stage-1"}},
    }
    runs = make_runs(tmp_path, {"stage-1": [row(0.3), bits(3.0, "x")], "stage-2": [row(0.4)], "other": [row()]}, **summaries)
    lines = result_lines(runs)
    of_text, of_mmlu = (scores_by_depth(runs, line, rows) for line, rows in lines.items())
    assert of_text == {}  # one depth is no curve
    assert of_mmlu == {"zero start": [{"depth": 1, "percent": 30.0, "low": pytest.approx(20), "high": pytest.approx(40)},
                                      {"depth": 2, "percent": 40.0, "low": pytest.approx(30), "high": pytest.approx(50)}]}


# Paired differences


@pytest.fixture(scope="module")
def folder(tokenizer, tmp_path_factory) -> Path:
    """Runs a, b and c; all asked the same of two texts, and c also of a text of one document; logs."""
    folder = tmp_path_factory.mktemp("pairs")
    for seed, name in enumerate("abc"):
        make_run(folder / "runs" / name, tokenizer, seed=seed)
        summary = {"name": name, "substrate": {"kind": "learned", "trainable": True}}
        (folder / "runs" / name / "summary.json").write_text(json.dumps(summary))
    texts = {"two": ["An owl flies.", "A cat sleeps."], "three": ["One.", "Two owls.", "Three cats."], "one": ["Alone."]}
    for name, lines in texts.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
    everything = [str(folder / "runs" / name) for name in "abc"]
    evaluate(everything, [f"bpb={folder}/{name}.jsonl" for name in texts], log_items=folder / "logs")
    return folder


@pytest.fixture
def runs(folder) -> list[Run]:
    return read_runs([folder / "runs" / name for name in "abc"])


def test_each_run_is_paired_with_the_first(folder, runs):
    rows = differences(runs, folder / "logs")
    assert [(row.b, Path(row.source).stem, row.count) for row in rows] == [
        ("b", "two", 2), ("c", "two", 2), ("b", "three", 3), ("c", "three", 3)]  # fmt: skip
    values = {(run.label, row.source): row.value for run in runs for row in run.results}
    for row in rows:
        assert row.difference == pytest.approx(values[row.b, row.source] - values["a", row.source])
        assert row.interval.low <= row.difference <= row.interval.high and row.test == "permutation"


def test_logs_are_found_from_elsewhere(folder, runs, monkeypatch):
    monkeypatch.chdir(folder / "runs")
    assert differences(read_runs([Path("a"), Path("b")]), Path("../logs")) == [
        row for row in differences(runs, folder / "logs") if row.b == "b"]  # fmt: skip


def test_other_results_than_the_log_gives_are_not_compared(folder, runs, monkeypatch):
    said: list[str] = []
    monkeypatch.setattr(results_view, "say", said.append)
    runs[1].results[:] = [replace(row, value=row.value + 0.1) for row in runs[1].results]
    assert {row.b for row in differences(runs, folder / "logs")} == {"c"}
    assert len(said) == 2 and "b is not compared by" in said[0] and "run glyphlm eval again with --log-items" in said[0]


def test_logs_of_another_model_do_not_answer(folder, runs, tokenizer, tmp_path):
    """Whatever a run is named, its logs are those of its digest."""
    moved = shutil.copytree(folder / "runs" / "b", tmp_path / "a")
    (first,), (same,) = read_runs([folder / "runs" / "a"]), read_runs([moved])
    found = [row.value_b for row in differences([first, replace(same, label="a #2")], folder / "logs")]
    assert found == [row.value_b for row in differences(runs[:2], folder / "logs")]


def test_without_logs_there_is_nothing_to_compare(folder, runs, tmp_path):
    assert differences(runs, tmp_path) == [] and differences(runs[:1], folder / "logs") == []
    with pytest.raises(InputError, match="is not a folder; give the one that glyphlm eval --log-items has filled"):
        differences(runs, tmp_path / "nothing")
