"""constraints.txt locks what pyproject.toml asks for, and names no place to take it from."""

import re
import tomllib
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LINES = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
LOCKED = [Requirement(line) for line in LINES]
ASKED = [Requirement(line) for line in sum(PROJECT["optional-dependencies"].values(), PROJECT["dependencies"])]


def pins(name: str) -> list[str]:
    """The versions that are locked of a package, one for each kind of machine."""
    return [next(iter(r.specifier)).version for r in LOCKED if canonicalize_name(r.name) == canonicalize_name(name)]


def test_every_line_is_one_exact_version():
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+( ;.*)?", line) for line in LINES)


@pytest.mark.parametrize("asked", [r for r in ASKED if r.name != "glyphlm"], ids=str)
def test_what_is_asked_for_is_locked_within_its_range(asked):
    assert pins(asked.name) and all(asked.specifier.contains(version) for version in pins(asked.name))


def test_what_the_requirements_need_is_locked_too():
    missing, waiting, seen = set(), [*ASKED], set()
    while waiting:
        asked = waiting.pop()
        if (asked.name, *sorted(asked.extras)) in seen or asked.name == "glyphlm":
            continue
        seen.add((asked.name, *sorted(asked.extras)))
        missing |= set() if pins(asked.name) else {asked.name}
        try:
            installed = distribution(asked.name)
        except PackageNotFoundError:  # an extra that is not installed here
            continue
        if installed.version.partition("+")[0] not in pins(asked.name):  # of another version we know nothing
            continue
        needs = map(Requirement, installed.requires or [])
        extras = ["", *asked.extras]
        waiting += [r for r in needs if r.marker is None or any(r.marker.evaluate({"extra": extra}) for extra in extras)]
    assert seen and not missing


def test_torch_is_the_release_that_a_cpu_build_satisfies():
    assert pins("torch") == ["2.13.0"]  # without a local version, so that +cpu is as good as the build of the registry


def test_a_commit_is_checked_by_the_ruff_that_is_locked():
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert [hook["rev"] for hook in hooks if hook["repo"].endswith("/ruff-pre-commit")] == [f"v{pins('ruff')[0]}"]
