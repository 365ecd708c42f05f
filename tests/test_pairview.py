"""Logs of several runs -> differences from the first: only where the same was asked, and only of the logs' own results."""

import json
from pathlib import Path

import pytest
from examinees import make_run

from glyphlm.analysis import pairview
from glyphlm.analysis.pairview import differences
from glyphlm.analysis.run_data import Run, read_runs
from glyphlm.base.errors import InputError
from glyphlm.evaluation import evaluate


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
    assert [(row["run"], Path(row["source"]).stem, row["documents"]) for row in rows] == [
        ("b", "two", 2), ("c", "two", 2), ("b", "three", 3), ("c", "three", 3)]  # fmt: skip
    values = {(run.label, row["source"]): row["value"] for run in runs for row in run.results}
    for row in rows:
        assert row["difference"] == pytest.approx(values[row["run"], row["source"]] - values["a", row["source"]])
        assert row["low"] <= row["difference"] <= row["high"] and row["test"] == "paired bootstrap"


def test_logs_are_found_from_elsewhere(folder, runs, monkeypatch):
    monkeypatch.chdir(folder / "runs")
    assert differences(read_runs([Path("a"), Path("b")]), Path("../logs")) == [
        row for row in differences(runs, folder / "logs") if row["run"] == "b"]  # fmt: skip


def test_other_results_than_the_log_gives_are_not_compared(folder, runs, monkeypatch):
    said: list[str] = []
    monkeypatch.setattr(pairview, "say", said.append)
    for row in runs[1].results:
        row["value"] += 0.1
    assert {row["run"] for row in differences(runs, folder / "logs")} == {"c"}
    assert len(said) == 2 and "b is not compared by bpb." in said[0] and "run glyphlm eval again with --log-items" in said[0]


def test_without_logs_there_is_nothing_to_compare(folder, runs, tmp_path):
    assert differences(runs, tmp_path) == [] and differences(runs[:1], folder / "logs") == []
    with pytest.raises(InputError, match="is no folder; give the one that glyphlm eval --log-items has filled"):
        differences(runs, tmp_path / "nothing")
