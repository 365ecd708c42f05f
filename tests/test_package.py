"""What the wheel holds: every package, recipes with their schemas, templates, types; and what only extras install."""

import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from glyphlm.cli.main import EXTRAS, main

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def test_every_package_is_in_the_wheel():
    found = {".".join(path.parent.relative_to(ROOT).parts) for path in (ROOT / "glyphlm").rglob("*.py")}
    assert {*PROJECT["tool"]["setuptools"]["packages"]} == found | {"glyphlm.recipes"}
    assert PROJECT["tool"]["setuptools"]["package-dir"]["glyphlm.recipes"] == "recipes" and (ROOT / "recipes").is_dir()


@pytest.mark.parametrize("package", EXTRAS)
def test_a_package_of_an_extra_is_named_with_its_installation(package, monkeypatch, capsys):
    asked = PROJECT["project"]["optional-dependencies"][EXTRAS[package]]
    assert any(one.startswith(name) for one in asked for name in packages_distributions()[package])

    def fail(arguments):
        raise ModuleNotFoundError(f"No module named '{package}'", name=f"{package}.part")

    monkeypatch.setattr("glyphlm.cli.main._run", fail)
    assert main(["eval"]) == 2
    assert f"pip install 'glyphlm[{EXTRAS[package]}]'" in capsys.readouterr().err


IMPORT_THE_CORE = """
import importlib, sys
sys.modules.update(dict.fromkeys(sys.argv[1].split()))  # as if they were not installed
for name in ("analysis.probes", "corpus.reading", "evaluation.evaluate", "pages.report", "pages.show", "runs.generate",
             "studies.quickstart"):
    importlib.import_module(f"glyphlm.{name}")
"""


def test_the_core_needs_no_package_of_an_extra():
    absent = " ".join([*EXTRAS, "scipy"])
    done = subprocess.run([sys.executable, "-c", IMPORT_THE_CORE, absent], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
