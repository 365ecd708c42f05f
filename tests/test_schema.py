"""The JSON schemas of recipes are those of the settings; recipes that come with glyphlm name and satisfy their own."""

import importlib.util
import json
from pathlib import Path

import jsonargparse
import pytest

from glyphlm.base.errors import InputError
from glyphlm.base.records import read_yaml
from glyphlm.experiments.recipe import find_recipe, load_recipe

ROOT = Path(__file__).parents[1]
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))


def maker():
    spec = importlib.util.spec_from_file_location("schema", ROOT / "scripts" / "schema.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.skipif(not hasattr(jsonargparse.ArgumentParser, "get_completion_script"), reason="an older jsonargparse")
@pytest.mark.parametrize("kind", ["recipe", "study"])
def test_a_schema_is_that_of_the_settings(kind):
    """After a change of settings: python scripts/schema.py"""
    assert (ROOT / "recipes" / f"{kind}.schema.json").read_text(encoding="utf-8") == maker().schema_text(kind)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_names_its_schema_and_satisfies_it(path):
    jsonschema = pytest.importorskip("jsonschema")
    kind = "study" if "arms" in read_yaml(path) else "recipe"
    assert path.read_text(encoding="utf-8").splitlines()[0] == f"# yaml-language-server: $schema={kind}.schema.json"
    schema = json.loads((path.parent / f"{kind}.schema.json").read_text(encoding="utf-8"))
    validator = jsonschema.Draft202012Validator(schema)
    assert [error.message for error in validator.iter_errors(read_yaml(path))] == []
    assert list(validator.iter_errors({"train": {"stepz": 3}}))


def test_recipes_that_come_with_glyphlm_are_found_by_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert load_recipe("best_bvv_ru").model.d_model == 1024
    assert find_recipe("best_bvv_ru").parent == ROOT / "recipes"
    with pytest.raises(InputError, match="best_bvv_rus does not exist.*did you mean best_bvv_ru"):
        load_recipe("best_bvv_rus")
    Path("best_bvv_ru").write_text("model: {d_model: 32}")
    assert load_recipe("best_bvv_ru").model.d_model == 32  # a file of the user comes first
