"""The published verdicts, recomputed from the published rows by a script that shares no code with the package."""

import json
import runpy
import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
check = runpy.run_path(str(ROOT / "scripts" / "recompute_verdicts.py"))["check"]


@pytest.mark.parametrize("study", ["freezing", "fusion", "unseen", "repeats"])
def test_published_verdicts_follow_from_the_published_rows(study, capsys):
    assert check(ROOT / "docs" / "results" / study) == 0
    claims = (ROOT / "docs" / "results" / study / "claims.jsonl").read_text(encoding="utf-8").splitlines()
    assert f"{len(claims)} of {len(claims)} verdicts" in capsys.readouterr().out


def test_every_figure_that_was_changed_is_found(tmp_path, capsys):
    study = shutil.copytree(ROOT / "docs" / "results" / "freezing", tmp_path / "study")
    lines = (study / "claims.jsonl").read_text(encoding="utf-8").splitlines()
    changes = {"verdict": "supported", "low": -0.5, "seeds": 9}
    for place, (name, value) in enumerate(changes.items()):
        lines[place] = json.dumps(json.loads(lines[place]) | {name: value})
    (study / "claims.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    assert check(Path(study)) == 3
    printed = capsys.readouterr().out
    assert f"{len(lines) - 3} of {len(lines)} verdicts" in printed
    assert all(f"{name}: recorded {value}" in printed for name, value in changes.items())
