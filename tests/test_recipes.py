"""The published models as recipes: each has the published number of parameters, and its tiny profile trains anywhere."""

from pathlib import Path

import pytest

from glyphlm.cli.parser import Parser
from glyphlm.corpus.reading import EMBEDDED
from glyphlm.experiments.grow_recipe import run_growth
from glyphlm.experiments.recipe import GrowthRecipe, Recipe
from glyphlm.experiments.train_recipe import run_recipe
from glyphlm.planning.plan import PlanSettings, make_plans

RECIPES = Path(__file__).parents[1] / "recipes"
ABS = [1_275_244_544, 1_476_608_000, 1_677_971_456, 1_879_334_912, 2_080_698_368, 2_282_061_824]
TOTALS = {  # of the last stage; published, with the table of codes
    **dict.fromkeys(("best_bvv_ru", "best_bvv_zh", "best_bvv_unfrozen_ru", "best_bvv_unfrozen_zh"), 470_042_624),
    "abs_bvv": ABS[-1],
    **{f"emergent_{name}": 335_759_360 for name in ("uni_glyph", "unfrozen", "1024_bit", "1024_float")},
    **{f"emergent_256_{name}": 285_427_712 for name in ("bit", "float")},
    **{f"emergent_64_{name}": 272_844_800 for name in ("bit", "float")},
    **{f"emergent_16_{name}": 269_699_072 for name in ("bit", "float")},
    **{f"growing_{name}": 247_614_464 for name in ("unicode", "unfrozen")},
    "growing_16_bit": 181_554_176,
    "llm_fix_min_classic": 537_233_408,
    "llm_fix_min_fixed": 471_173_120,
    "llm_fix_min_affine": 470_124_544,
}
BITS_AS_A_TABLE = {"emergent_16_bit", "growing_16_bit", "llm_fix_min_fixed"}  # there 65,536 x 16 more; here computed
FUSED = "best_bvv_moe"
GROWN = [name for name in TOTALS if name.startswith(("growing", "abs"))]
MERGED = ("--growth.lora.rank", "0")  # as adapters are when they have been trained
H200 = PlanSettings(gpu="h200", measure=False)


def read(name, *options):
    parser = Parser.of("plan", "", "")
    parser.add_recipe()
    return parser.read_recipe([str(RECIPES / f"{name}.yaml"), *options], GrowthRecipe)[1]


def total(plan):
    return sum(sum(counts.values()) for counts in plan["parameters"].values())


def test_every_recipe_is_reported_here():
    names = {path.stem for path in RECIPES.glob("*.yaml") if not path.stem.startswith("study")}
    assert names == {*TOTALS, FUSED, "code_head", "repeats", "unseen"}


@pytest.mark.parametrize("name", TOTALS)
def test_a_recipe_has_the_published_number_of_parameters(name):
    plan = make_plans(read(name, *MERGED), H200)[-1]
    assert total(plan) + 65_536 * 16 * (name in BITS_AS_A_TABLE) == TOTALS[name]


def test_the_stages_of_abs_bvv_are_its_six_models():
    assert [total(plan) for plan in make_plans(read("abs_bvv", *MERGED), H200)] == ABS


def test_two_experts_have_the_number_of_parameters_of_best_bvv_moe():
    experts = [make_plans(read(f"best_bvv_{language}"), H200)[0] for language in ("ru", "zh")]
    assert sum(map(total, experts)) == 940_085_248


@pytest.mark.parametrize("name", TOTALS)
def test_the_tokens_are_those_of_the_model_card(name):
    recipe = read(name)
    tokens = sum(stage.tokens for stage in recipe.stages) if recipe.stages else recipe.train.tokens
    assert tokens == (17e9 if name.startswith("llm_fix_min") else 9e9)


@pytest.mark.parametrize("name", [name for name in TOTALS if name.startswith(("best", "emergent", "abs"))])
def test_a_tenth_of_the_data_are_examples(name):
    data = read(name).data
    assert sum(source.weight for source in data if source.sft) == pytest.approx(0.1 * sum(source.weight for source in data))


@pytest.mark.parametrize("name", GROWN)
def test_a_grown_recipe_has_stages_and_its_control(name):
    recipe = read(name)
    assert [stage.layers for stage in recipe.stages] == ([1] * 6 if name == "abs_bvv" else [3, 3, 3])
    assert recipe.controls == ([] if name == "abs_bvv" else ["tokens"])


@pytest.mark.parametrize("name", TOTALS)
def test_the_small_profile_takes_one_gpu_for_about_an_hour(name):
    recipe = read(name, "--profile", "small")
    plans = make_plans(recipe, H200)
    hours = sum(plan["forecast"]["device_hours"] for plan in plans)
    if recipe.controls:  # as many tokens at the full depth: at most as long as all stages would take there
        hours += len(plans) * plans[-1]["forecast"]["device_hours"]
    assert 0.5 < hours < 1.5
    assert all(plan["memory"]["peak"] < plan["memory"]["limit"] for plan in plans)


@pytest.mark.parametrize("name", TOTALS)
def test_the_tiny_profile_needs_no_file_and_fits_anywhere(name):
    recipe = read(name, "--profile", "tiny")
    assert all(text.startswith(EMBEDDED) for source in recipe.data for text in source.texts)
    assert not any(source.sft or source.shards for source in recipe.data)
    assert (recipe.tokenizer.layout, recipe.tokenizer.ngrams) == ("compact", None)
    plans = make_plans(recipe, PlanSettings(gpu="rtx4090", measure=False))
    assert len(plans) == max(1, len(recipe.stages)) and all(total(plan) < 1_000_000 for plan in plans)


def test_a_tiny_profile_trains(tmp_path):
    recipe = read("llm_fix_min_classic", "--profile", "tiny", "--train.steps", "2")
    summary = run_recipe(Recipe(**{key: getattr(recipe, key) for key in Recipe.__dataclass_fields__}), tmp_path / "run", "")
    assert summary["steps"] == 2 and summary["bits_per_byte"]["validation"] < 9


def test_a_model_with_a_code_head_has_no_matrix_of_the_size_of_the_vocabulary():
    as_full = ("--model.head.kind", "full", "--model.head.order", "identity", "--model.head.shortlist", "0")
    [plan], [full] = (make_plans(read("code_head", *options), H200) for options in ((), as_full))
    heads = [sum(one["parameters"]["head"].values()) for one in (plan, full)]
    assert heads[1] == 65_536 * 256 and heads[0] < 1_200_000 and total(plan) == 22_620_152
    peaks = [one["memory"]["peak"] - one["memory"]["parts"]["beside tensors"] for one in (plan, full)]
    assert peaks[0] < 0.6 * peaks[1]
    assert sum(part["forward"] + part["backward"] for part in plan["flops_per_token"].values()) < 0.3 * sum(
        part["forward"] + part["backward"] for part in full["flops_per_token"].values())


def test_a_tiny_profile_grows(tmp_path):
    recipe = read("growing_16_bit", "--profile", "tiny")
    for stage in recipe.stages:
        stage.steps = 2
    runs = run_growth(recipe, tmp_path / "grown", "")
    assert [run.name for run in runs] == ["stage-1", "stage-2", "stage-3", "monolithic-tokens"]


def test_the_fused_recipe_trains_the_head_of_two_such_experts():
    recipe, expert = read(FUSED), read("best_bvv_ru")
    assert recipe.fusion.experts == ["runs/best_bvv_ru", "runs/best_bvv_zh"] and recipe.fusion.method == "head"
    assert (recipe.model, recipe.tokenizer, recipe.substrate) == (expert.model, expert.tokenizer, expert.substrate)
    tiny = read(FUSED, "--profile", "tiny")
    assert tiny.model == read("best_bvv_zh", "--profile", "tiny").model
