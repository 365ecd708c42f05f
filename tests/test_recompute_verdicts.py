"""The published verdicts, recomputed from the published rows by a script that shares no code with the package."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "scripts" / "recompute_verdicts.py"


def run(*folders: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, SCRIPT, *map(str, folders)], capture_output=True, text=True)


@pytest.mark.parametrize("study", ["freezing", "fusion"])
def test_published_verdicts_follow_from_the_published_rows(study):
    done = run(ROOT / "docs" / "results" / study)
    assert done.returncode == 0, done.stdout + done.stderr
    claims = (ROOT / "docs" / "results" / study / "claims.jsonl").read_text(encoding="utf-8").splitlines()
    assert f"{len(claims)} of {len(claims)} verdicts" in done.stdout


@pytest.mark.parametrize(("name", "value"), [("verdict", "supported"), ("low", -0.5), ("seeds", 9)])
def test_a_figure_that_was_changed_is_found(tmp_path, name, value):
    study = shutil.copytree(ROOT / "docs" / "results" / "freezing", tmp_path / "study")
    first, *others = (study / "claims.jsonl").read_text(encoding="utf-8").splitlines()
    changed = json.dumps(json.loads(first) | {name: value})
    (study / "claims.jsonl").write_text("\n".join([changed, *others]) + "\n", encoding="utf-8")
    done = run(study)
    assert done.returncode == 1
    assert f"{name}: recorded {value}" in done.stdout
