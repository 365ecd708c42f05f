"""What the report shows of growth: the order of stages, the loss at a border, sums over stages, depths over seeds."""

import json
from pathlib import Path

import pytest

from glyphlm.pages.growth_view import chains, controls, operations_unit, stage_rows, validation_by_depth, whole
from glyphlm.pages.report import write_report
from glyphlm.pages.run_data import Run, read_runs

PARTS = {"substrate": 0, "frozen": 2e9, "attention": 1e9, "scores": 1e9, "mlp": 2e9, "head": 4e9}


def make_run(folder: Path, layers: int, bits: list[float], base: Path | None = None, start: str = "zero") -> Path:
    folder.mkdir(parents=True)
    growth = {"base": str(base), "start": start, "blocks": "new", "head": "full", "lora": {"rank": 0}} if base else None
    (folder / "summary.json").write_text(json.dumps({
        "name": folder.name, "command": "glyphlm grow", "substrate": {"kind": "glyph", "trainable": False}, "growth": growth,
        "model": {"n_layer": layers, "d_model": 8}, "tokens": 200, "steps": 2, "seconds": 4.0,
        "bits_per_byte": {"train": bits[-1], "validation": bits[-1]},
        "cost": {"flops": PARTS, "flops_total": sum(PARTS.values()), "trained": 10, "optimizer_bytes": 80},
    }))  # fmt: skip
    steps = range(len(bits)) if base else range(1, len(bits) + 1)
    rows = [{"split": "validation", "step": step, "tokens": 100 * step, "seconds": 2.0 * step, "loss": 3.0,
             "bits_per_byte": value} for step, value in zip(steps, bits)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def grown(folder: Path, spike: float = 0.0) -> list[Path]:
    first = make_run(folder / "stage-1", 1, [3.5, 3.0])
    second = make_run(folder / "stage-2", 2, [3.0 + spike, 2.5, 2.25], first, "random" if spike else "zero")
    return [second, first, make_run(folder / "monolithic-tokens", 2, [3.25, 2.75]), make_run(folder / "other", 3, [1.0])]


@pytest.fixture
def runs(tmp_path) -> list[Run]:
    return read_runs(grown(tmp_path / "a", spike=0.5))


def labels(found: list[Run]) -> list[str]:
    return [run.label for run in found]


def test_a_chain_is_read_from_its_lowest_stage_and_has_its_control(runs):
    (chain,) = chains(runs)
    assert labels(chain) == ["stage-1", "stage-2"] and labels(controls(chain, runs)) == ["monolithic-tokens"]


def test_a_folder_that_was_moved_keeps_its_chain(tmp_path):
    paths = grown(tmp_path / "a")
    moved = [(tmp_path / "a").rename(tmp_path / "b") / path.name if path is paths[0] else tmp_path / "b" / path.name
             for path in paths]  # fmt: skip
    assert [labels(chain) for chain in chains(read_runs(moved))] == [["stage-1", "stage-2"]]


def test_a_row_shows_what_adding_layers_did_to_the_loss(runs):
    first, second = stage_rows(chains(runs)[0])
    assert (first.layers, first.added, first.border) == (1, 1, None)
    assert (second.layers, second.added, second.start) == (2, 1, "random")
    assert (second.before, second.after, second.border, second.end) == (3.0, 3.5, 0.5, 2.25)
    assert (second.frozen, second.blocks, second.head) == (2e9, 4e9, 4e9)


def test_stages_add_up_as_if_they_were_one_training(runs):
    run = whole(chains(runs)[0])
    assert (run.get("tokens"), run.get("seconds"), run.get("tokens_per_second")) == (400, 8.0, 50.0)
    assert [row["tokens"] for row in run.validation] == [100, 200, 200, 300, 400]
    assert [row["flops"] for row in run.validation] == [5e9, 10e9, 10e9, 15e9, 20e9]
    assert [row["stage"] for row in run.validation] == ["stage-1"] * 2 + ["stage-2"] * 3


def test_runs_of_several_seeds_have_an_interval_at_each_depth(tmp_path):
    runs = read_runs([path for seed in "ab" for path in grown(tmp_path / seed)])
    points = validation_by_depth(runs)
    assert list(points) == ["zero start", "monolithic, equal tokens"]
    assert [point["depth"] for point in points["zero start"]] == [1, 2]
    assert all(point["low"] == point["bits_per_byte"] == point["high"] for point in points["zero start"])


def test_the_unit_of_operations_follows_their_size(runs):
    assert operations_unit(runs) == 9 and operations_unit([]) == 0


def test_the_page_shows_stages_once_and_sums_in_the_table_of_arms(tmp_path):
    page = write_report(grown(tmp_path / "a", spike=0.5), tmp_path / "report.html").read_text(encoding="utf-8")
    assert page.count("<h2 id=\"growth\">") == 1 and "+0.500" in page
    arms = page[page.index('id="arms"') : page.index('id="comparison"')]
    assert "stage-1" not in arms and ">400<" in arms
    assert page.count("glyphlm grow\n") == 1  # of one command, however many folders it filled
