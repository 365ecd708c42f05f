"""Each script in examples/ runs, at a fraction of its steps, and so does the notebook where nbclient is installed."""

import json
import runpy
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPTS = sorted((ROOT / "examples").glob("*.py"))
NOTEBOOK = ROOT / "examples" / "own_text.ipynb"
FEW = '"steps": 4, "validation_tokens": 2048, "batch'
SHORTER = {'"steps": 200, "batch': FEW, '"steps": 100, "batch': FEW, '"steps": 100': '"steps": 4', "steps=100": "steps=4",
           '"bpb=embedded:en,validation", ': "",
           '"validate_every": 100': '"validate_every": 4', '"batch_tokens": 1024': '"batch_tokens": 128',
           '"micro_batch_tokens": 1024': '"micro_batch_tokens": 128'}


def shortened(code: str) -> str:
    """The code with fewer and smaller steps."""
    for was, now in SHORTER.items():
        code = code.replace(was, now)
    return code


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_a_script_runs_and_has_at_most_40_lines(script, tmp_path, monkeypatch, capsys):
    code = script.read_text(encoding="utf-8")
    assert len(code.splitlines()) <= 40
    (tmp_path / script.name).write_text(shortened(code), encoding="utf-8")
    given = ["out"] if script.stem == "grow_and_fuse" else ["embedded:en,ru", "out"]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [script.name, *given])
    runpy.run_path(script.name, run_name="__main__")
    printed = capsys.readouterr().out
    assert "The " in printed or "bits per byte" in printed


def test_the_notebook_runs(tmp_path, monkeypatch):
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    for cell in notebook.cells:
        cell.source = "pass" if cell.source.startswith("%pip") else shortened(cell.source)
    nbclient.NotebookClient(notebook, timeout=600, kernel_name="python3").execute()
    assert all(cell.execution_count for cell in notebook.cells if cell.cell_type == "code")


def test_the_notebook_is_code_that_compiles():
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    assert len(code) >= 5 and not any(cell.get("outputs") for cell in cells)
    for cell in code:
        if not cell.startswith("%pip"):
            compile(cell, "notebook", "exec")
