"""What the documents say of keys, defaults, files and commands is what the code has."""

import contextlib
import io
import re
import shlex
import tomllib
from dataclasses import MISSING, Field, fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest
import yaml

from glyphlm.cli.main import VERBS, main
from glyphlm.composition.settings import FusionSettings, GrowthSettings, LoraSettings
from glyphlm.data.source import Source
from glyphlm.experiments.recipe import GrowthRecipe, Recipe, Stage
from glyphlm.modeling.config import HeadConfig, ModelConfig
from glyphlm.runs.card import PAPERS
from glyphlm.studies.settings import Claim, Study
from glyphlm.substrate.settings import SubstrateSettings
from glyphlm.tokenizer.settings import TokenizerSettings
from glyphlm.training.settings import TrainSettings

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
KEYS = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
SECTIONS = {  # heading of docs/recipes.md -> the settings that its table lists
    "Recipe": Recipe,
    "`tokenizer`": TokenizerSettings,
    "`substrate`": SubstrateSettings,
    "`model`": ModelConfig,
    "`model.head`": HeadConfig,
    "`data`": Source,
    "`train`": TrainSettings,
    "`growth`": GrowthSettings,
    "`growth.lora`": LoraSettings,
    "`fusion`": FusionSettings,
    "`stages` and `controls`": GrowthRecipe,
    "A stage": Stage,
    "Study": Study,
    "A claim": Claim,
}
ROW = re.compile(r"^\| `([\w.]+)` \| [^|]+ \| ([^|]+) \| .+ \|$", re.MULTILINE)
COMMAND = re.compile(r"(?:^|\n|-m )(?:[A-Z_]+=\S+ )*glyphlm ((?!VERB\b)[^\n]+)")


def section(heading: str) -> str:
    """The text under a heading of docs/recipes.md."""
    return re.search(rf"^#+ {re.escape(heading)}\n(.*?)(?=^#|\Z)", KEYS, re.DOTALL | re.MULTILINE)[1]


def own_fields(kind: type) -> list[Field]:
    """Those of a dataclass that are not of the dataclass below it."""
    inherited = getattr(kind.__base__, "__dataclass_fields__", {})
    return [field for field in fields(kind) if field.name not in inherited]


def documented_default(field: Field) -> Any:
    """The default as the document has to state it."""
    if field.default is MISSING and field.default_factory is MISSING:
        return "required"
    value = field.default_factory() if field.default is MISSING else field.default
    return {} if is_dataclass(value) else value


def choices(hint: Any) -> list[str]:
    """The words of the Literals in a type."""
    return [*get_args(hint)] if get_origin(hint) is Literal else [word for part in get_args(hint) for word in choices(part)]


@pytest.mark.parametrize("heading", SECTIONS)
def test_every_key_and_its_default_is_reported(heading):
    documented = {key: yaml.safe_load(default.strip("`")) for key, default in ROW.findall(section(heading))}
    assert documented == {field.name: documented_default(field) for field in own_fields(SECTIONS[heading])}


@pytest.mark.parametrize("heading", SECTIONS)
def test_every_choice_is_reported(heading):
    hints, rows = get_type_hints(SECTIONS[heading]), {row[1]: row[0] for row in ROW.finditer(section(heading))}
    assert not [(field.name, word) for field in own_fields(SECTIONS[heading]) for word in choices(hints[field.name])
                if f"`{word}`" not in rows[field.name]]


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_recipe_is_reported_with_its_parameters_and_profiles(path):
    text = path.read_text(encoding="utf-8")
    row = re.search(rf"^\| `{path.name}` .*$", KEYS, re.MULTILINE)[0]
    assert re.findall(r"\d[\d,]{9,}", text.partition("\n\n")[0]) == re.findall(r"\d[\d,]{9,}", row)
    profiles = [*yaml.safe_load(text)["profiles"]]
    assert profiles == (re.findall(r"`(\w+)`", row) if "arms" in yaml.safe_load(text) else ["small", "tiny"])


def test_no_recipe_is_reported_that_is_not_there():
    assert {f"{name}.yaml" for name in re.findall(r"^\| `(\w+)\.yaml` ", KEYS, re.MULTILINE)} == {
        path.name for path in (ROOT / "recipes").glob("*.yaml")
    }


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_to_files(document):
    targets = re.findall(r"\]\((?!https?:)([^)#]+)", document.read_text(encoding="utf-8"))
    assert not [target for target in targets if not (document.parent / target).exists()]


def test_the_design_names_files_and_what_stands_in_them():
    design = (ROOT / "docs" / "design.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([\w./]+\.py)` \| (.+?) \|", design, re.MULTILINE)
    assert rows
    for file, names in rows:
        path = ROOT / (file if file.startswith("tests/") else f"glyphlm/{file}")
        text = path.read_text(encoding="utf-8")
        assert not [name for name in re.findall(r"`([\w.]+)`", names) if not re.search(rf"\b{name}\b", text)], file


def commands(document: Path) -> list[str]:
    """What follows `glyphlm` in the blocks and the inline code of a document, each on one line."""
    text = document.read_text(encoding="utf-8")
    blocks = re.findall(r"^```\w*\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    inline = re.findall(r"`([^`]+)`", re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE))
    code = [re.sub(r"\\\n\s*", "", block) for block in blocks] + [" ".join(part.split()) for part in inline]
    return [found for part in code for found in COMMAND.findall(part)]


@cache
def options_of(verb: str) -> set[str]:
    """The options that a verb's help lists, with underscores."""
    with contextlib.redirect_stdout(io.StringIO()) as said, contextlib.suppress(SystemExit):
        main([*verb.split(), "--help"])
    listed = (line.strip().partition("  ")[0] for line in said.getvalue().split("\n") if line.startswith("  -"))
    return {"--" + name.replace("-", "_") for line in listed for name in re.findall(r"--([\w.-]+)", line)}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_commands_are_of_verbs_and_options_that_exist(document):
    for command in commands(document):
        words = shlex.split(command.partition(" -- ")[0], comments=True)
        verb = next((name for name in (" ".join(words[:2]), words[0]) if name in VERBS), None)
        assert verb or words[0].startswith("--"), command
        given = {"--" + word.partition("=")[0][2:].replace("-", "_") for word in words if re.match("--[a-z]", word)}
        assert not (given - options_of(verb) if verb else given - {"--help", "--version"}), command


def test_the_citation_and_the_changelog_are_of_this_version():
    version = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert (cited["cff-version"], cited["version"]) == ("1.2.0", version)
    assert re.search(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)[1] == version
    assert {paper["title"] for paper in cited["references"]} == {title for _, title in PAPERS.values()}
