"""A recipe is read strictly: no unknown key, no value of another type, nothing imported, whatever people write."""

import sys
from dataclasses import asdict, replace

import pytest

from glyphlm.base.errors import InputError
from glyphlm.base.records import parse_yaml
from glyphlm.experiments.recipe import GrowthRecipe, Recipe, load_recipe, resolve, settings_text
from glyphlm.experiments.resume import digest_of
from glyphlm.studies.commands import Study


def refused(values, message, **options):
    with pytest.raises(InputError, match=message):
        load_recipe(values, **options)


def test_values_and_overrides_are_laid_over_the_defaults():
    values = {"train": {"lr": 1, "steps": 1e3}, "data": [{"text": "a"}, {"text": ["b", "c"]}], "stages": [{"layers": 2}]}
    recipe = load_recipe(values, None, [{"train.seed": 3}, {"train": {"seed": 4}}])
    assert (recipe.train.lr, recipe.train.steps, recipe.train.seed) == (1.0, 1000, 4)
    assert [source.texts for source in recipe.data] == [["a"], ["b", "c"]] and recipe.stages[0].layers == 2
    assert values == {"train": {"lr": 1, "steps": 1e3}, "data": [{"text": "a"}, {"text": ["b", "c"]}],
                      "stages": [{"layers": 2}]}  # fmt: skip


def test_settings_are_read_as_they_were_written():
    recipe = load_recipe({"train": {"lr": 1e-5, "tokens": 1e9}, "tokenizer": {"path": "no"}}, kind=Recipe)
    assert load_recipe(parse_yaml(settings_text(recipe), "it"), kind=Recipe) == recipe
    assert asdict(load_recipe(None)) == asdict(GrowthRecipe())


@pytest.mark.parametrize("where", ["model", "data[0]", "growth.lora", "train"])
@pytest.mark.parametrize("key", ["class_path", "init_args"])
def test_no_key_names_a_class_to_import(where, key):
    part = {key: "this.d"}
    values = {"model": {"model": part}, "data[0]": {"data": [part]}, "growth.lora": {"growth": {"lora": part}},
              "train": {"train": part}}  # fmt: skip
    refused(values[where], f"unknown key '{key}' in {where}".replace("[", r"\[").replace("]", r"\]"))
    assert "this" not in sys.modules


@pytest.mark.parametrize(
    "values", [{"model": "this.d"}, {"data": ["this.d"]}, {"stages": ["this.d"]}, {"growth": {"lora": "this.d"}}]
)
def test_no_value_names_a_class_to_import(values):
    refused(values, "'this.d', and must be a mapping")
    assert "this" not in sys.modules


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"train": None}, "train is empty, and must be a mapping"),
        ({"model": [1]}, r"model is \[1\], and must be a mapping"),
        ({"data": "a.txt"}, "data is 'a.txt', and must be a list"),
        ({"data": [{"text": 5}]}, r"data\[0\].text is 5, and must be text or a list"),
        ({"prompts": [1]}, r"prompts\[0\] is 1, and must be text"),
        ({"train": {"steps": "many"}}, "train.steps is 'many', and must be a whole number"),
        ({"train": {"steps": "1:30"}}, "train.steps is '1:30'"),
        ({"train": {"seed": 1.5}}, "train.seed is 1.5, and must be a whole number"),
        ({"train": {"steps": float("nan")}}, "train.steps is nan"),
        ({"train": {"lr": True}}, "train.lr is True, and must be a number"),
        ({"train": {"schedule": "linear"}}, "'linear', and must be one of cosine, wsd, constant"),
        ({"train": {"stepz": 1}}, "unknown key 'stepz' in train; did you mean steps?"),
        ({"colour": 1}, "unknown key 'colour'; choose from tokenizer, "),
        ({1: 2}, "unknown key 1"),
        ({"model": {"n_head": 5}}, "does not split into 5 heads"),
        ({"stages": [{"lr": -1}]}, "stages.lr -1.0 must be .*0"),
        ({"stages": [{"steps": 0}]}, "stages.steps 0 must be .*1"),
        ({"stages": [{"lora_rank": -1}]}, "stages.lora_rank -1 must be .*0"),
        ({"profiles": [1]}, "profiles must be a mapping"),
        ({"profiles": None}, "profiles must be a mapping"),
        ({"profiles": {"a": [1]}}, "profiles must be a mapping"),
    ],
)
def test_what_is_not_a_recipe_is_refused(values, message):
    refused(values, message)


def test_a_profile_that_is_not_there_is_refused_with_those_that_are():
    refused({"profiles": {"1": {}, "no": {}}}, "no profile 'tiny'; it has 1, no", profile="tiny")
    assert load_recipe({"profiles": {"1": {"train": {"seed": 7}}}}, "1").train.seed == 7


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1]", "a list, not an object"),
        ("", "nothing, not an object"),
        ("train: {steps: 3}\ntrain: {lr: 1}", "'train' is given twice"),
        ("[" * 20_000, "damaged"),
        ("a: &a [*a]", r"\*a refers to"),
        ("a: &a {model: *a}", r"\*a refers to"),
        (f"train: {{steps: {'9' * 5000}}}", "damaged"),
        ("train: {steps: 1", "damaged"),
    ],
)
def test_a_file_that_is_not_a_recipe_is_refused(tmp_path, text, message):
    (tmp_path / "r.yaml").write_text(text)
    refused(tmp_path / "r.yaml", message)


def test_words_and_numbers_are_those_of_yaml_1_2(tmp_path):
    (tmp_path / "s.yaml").write_text("recipe: {train: {steps: 010}}\narms:\n  no:\n  1: {train: {seed: 0o17}}\n")
    study = load_recipe(tmp_path / "s.yaml", kind=Study)
    assert study.arms == {"no": None, "1": {"train": {"seed": 15}}} and study.recipe == {"train": {"steps": 10}}


@pytest.mark.parametrize(("name", "value"), [("weight", 0), ("weight", -1), ("epochs", float("nan"))])
def test_the_weight_of_a_source_is_above_0(name, value):
    with pytest.raises(InputError, match=f"data.{name} {float(value)} must be above 0"):
        resolve(load_recipe({"data": [{"text": "a", name: value}], "train": {"steps": 1}}))


def test_a_margin_is_a_number():
    claim = {"claim": "c", "arm": "a", "against": "b", "margin": float("nan")}
    refused({"recipe": {}, "arms": {"a": None, "b": None}, "claims": [claim]}, "claims.margin nan must be", kind=Study)


def test_a_study_without_arms_is_refused():
    refused({"recipe": {}}, "has no 'arms'", kind=Study)


def test_settings_that_came_later_leave_the_digest_of_a_begun_run_as_it_was():
    recipe = load_recipe({
        "tokenizer": {"path": "a"}, "substrate": {"path": "b"}, "model": {"d_model": 64, "n_layer": 2, "block_size": 64},
        "data": [{"shards": "c"}],
        "train": {"steps": 300, "batch_tokens": 1024, "lr": 4e-3, "precision": "fp32", "device": "cpu", "compile": False,
                  "validation_tokens": 2048},
    }, kind=Recipe)  # fmt: skip
    assert digest_of(recipe) == "f953bed4fb07ace923c0f61f92241ae385f8f6e0f50282fabc78dc8194303fc9"  # of version 0.2
    (source,) = recipe.data
    assert digest_of(replace(recipe, data=[replace(source, weight=2.0)])) != digest_of(recipe)
