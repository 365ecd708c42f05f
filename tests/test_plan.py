"""Plans: the published sizes without allocating, sums that add up, and one line for what cannot be planned."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from glyphlm.base.errors import InputError
from glyphlm.cli.main import main
from glyphlm.composition.fuse import build_fusion, fuse
from glyphlm.composition.growth import GrowthSettings
from glyphlm.composition.settings import FusionSettings
from glyphlm.experiments.recipe import GrowthRecipe, Recipe, Stage
from glyphlm.modeling.config import model_fields
from glyphlm.modeling.model import GPT, ModelConfig, count_parameters
from glyphlm.modeling.substrate import Substrate, SubstrateConfig
from glyphlm.planning.plan import PlanSettings, make_plan, make_plans, planned_model, vocabulary_size
from glyphlm.planning.text import duration, plan_text, scaled
from glyphlm.runs.folder import export_model
from glyphlm.substrate.build import SubstrateSettings
from glyphlm.tokenizer.build import TokenizerSettings
from glyphlm.training.flops import parameters_by_part
from glyphlm.training.settings import TrainSettings

H200 = PlanSettings(gpu="h200")
SMALL = ModelConfig(d_model=32, n_layer=2, n_head=2, block_size=32)
TRAIN = TrainSettings(steps=10, batch_tokens=1024, micro_batch_tokens=128, device="cpu", precision="fp32")


def small(substrate: SubstrateSettings | None = None, **train) -> Recipe:
    return Recipe(
        tokenizer=TokenizerSettings(vocab_size=1024),
        substrate=substrate or SubstrateSettings(kind="learned", n_embed=16, trainable=True),
        model=SMALL,
        train=replace(TRAIN, **train),
    )


@pytest.mark.parametrize(
    ("layout", "substrate", "d_model", "n_layer", "total"),
    [
        ("bvv241-max", SubstrateSettings(n_embed=1024), 1024, 16, 470_042_624),
        ("bvv241-max", SubstrateSettings(kind="learned", n_embed=1024, trainable=True), 1024, 16, 470_042_624),
        ("bvv241-abs", SubstrateSettings(n_embed=4096, side=64), 4096, 6, 2_282_061_824),
        ("bvv241-abs", SubstrateSettings(n_embed=4096, side=64), 4096, 1, 1_275_244_544),
        ("bvv241-2-3", SubstrateSettings(n_embed=1024), 1024, 16, 335_759_360),
        ("bvv241-2-3", SubstrateSettings(n_embed=256), 1024, 16, 285_427_712),
        ("bvv241-2-3", SubstrateSettings(kind="random_bits", n_embed=16), 1024, 16, 269_699_072),
        ("bvv241-2-3", SubstrateSettings(kind="random_bits", n_embed=16), 1024, 9, 181_554_176),
        ("bvv241-2-3", SubstrateSettings(kind="affine_bits", n_embed=16, lift="tile"), 1024, 32, 470_124_544),
    ],
)
def test_published_sizes_are_reported_without_allocating(layout, substrate, d_model, n_layer, total):
    model = ModelConfig(d_model=d_model, n_layer=n_layer, n_head=32, block_size=1024, head_bias=True)
    recipe = Recipe(TokenizerSettings(layout=layout), substrate, model, train=TrainSettings(steps=1))
    plan = make_plan(recipe, H200)
    assert sum(part["trained"] + part["frozen"] for part in plan["parameters"].values()) == total
    assert f" {total:,}\n" in plan_text(plan)
    assert all(values.is_meta for values in [*planned_model(recipe).parameters(), *planned_model(recipe).buffers()])


def test_parts_are_those_of_the_twin_whatever_is_frozen():
    twin = make_plan(small(), H200)["parameters"]
    frozen = make_plan(small(SubstrateSettings(kind="random_float", n_embed=16)), H200)["parameters"]
    assert (twin.pop("substrate"), frozen.pop("substrate")) == (
        {"trained": 16384, "frozen": 0}, {"trained": 0, "frozen": 16384},
    )
    assert twin == frozen


def test_savings_are_what_the_option_takes_away():
    plan = make_plan(small(), H200)
    saved = {saving["option"]: saving for saving in plan["savings"]}
    table = 4 * 1024 * 16
    assert saved["--substrate.trainable false"]["bytes"] == 3 * table  # its gradient and both moments
    assert saved["bits of the id instead of a table"]["bytes"] == 4 * table
    assert saved["a vocabulary of 512 ids"]["flops_per_token"] == 6 * 512 * 32
    again = saved["--train.recompute true"]
    assert again["bytes"] > 0 and again["flops_per_token"] == -2 * (24 * 32**2 + 2 * 32 * 32)
    assert plan["memory"]["peak"] - saved["--train.micro_batch_tokens 64"]["bytes"] == make_plan(
        small(micro_batch_tokens=64), H200
    )["memory"]["peak"]


def test_options_in_use_are_not_offered():
    used = small(SubstrateSettings(kind="token_bits", n_embed=16), precision="bf16", recompute=True, micro_batch_tokens=32)
    options = make_plan(used, PlanSettings(gpu="h200", gpus=2, parallel="fsdp2"))["savings"]
    assert [saving["option"] for saving in options] == ["a vocabulary of 512 ids"]


def test_time_and_cost_follow_from_operations_and_devices():
    settings = PlanSettings("h200", mfu=0.5, price_per_hour=3)
    one, four = (make_plan(small(precision="bf16"), replace(settings, gpus=gpus)) for gpus in (1, 4))
    operations = sum(part["forward"] + part["backward"] for part in one["flops_per_token"].values())
    assert one["forecast"]["training_seconds"] == pytest.approx(10 * 1024 * operations / (0.5 * 989e12))
    assert four["forecast"]["training_seconds"] == pytest.approx(one["forecast"]["training_seconds"] / 4)
    assert four["forecast"]["cost"] == pytest.approx(3 * four["forecast"]["device_hours"])
    assert four["train"]["passes"] * 4 == one["train"]["passes"] == 8
    assert one["memory"]["sent_per_step"] == 0 < four["memory"]["sent_per_step"]


def test_this_machine_is_measured_or_computed_as_asked(monkeypatch, tmp_path):
    monkeypatch.setattr("glyphlm.base.devices._found", {})
    monkeypatch.setenv("GLYPHLM_CACHE", str(tmp_path))
    (assumed,) = make_plans(GrowthRecipe(**vars(small())), PlanSettings(measure=False))
    assert assumed["forecast"]["how"].startswith("computed: 40% of an assumed rate (--measure finds")
    measured, computed = (make_plan(small(), PlanSettings(measure=measure)) for measure in (True, False))
    assert measured["forecast"]["how"] == "measured: whole steps" and measured["forecast"]["step_seconds"] > 0
    assert computed["forecast"]["how"].startswith("computed: 40% of the rate of matrix products here")
    assert measured["memory"] == computed["memory"] and measured["memory"]["largest_micro_batch_tokens"] > 128


def test_folders_that_exist_are_asked_and_others_planned_as_described(tokenizer_folder, substrates, tmp_path, capsys):
    there = TokenizerSettings(str(tokenizer_folder)), SubstrateSettings(str(substrates["learned"]))
    plan = make_plan(Recipe(*there, SMALL, train=TRAIN), H200)
    assert plan["parameters"]["substrate"] == {"trained": 1024 * 32, "frozen": 0}
    away = TokenizerSettings(str(tmp_path / "tok"), vocab_size=2048), SubstrateSettings(str(tmp_path / "sub"), n_embed=8)
    plan = make_plan(Recipe(*away, SMALL, train=TRAIN), H200)
    assert plan["parameters"]["substrate"] == {"trained": 0, "frozen": 2048 * 8}
    reported = capsys.readouterr().err
    assert "tok does not exist yet: planned with the 2,048 ids" in reported and "planned as kind glyph, width 8" in reported


def test_a_foreign_tokenizer_is_asked_for_its_ids(tokenizer_folder):
    foreign = TokenizerSettings(layout="bvv241-nemo", base=str(tokenizer_folder))
    assert vocabulary_size(foreign) == 1024
    with pytest.raises(InputError, match="nowhere does not exist; give tokenizer.base"):
        vocabulary_size(replace(foreign, base="nowhere"))


@pytest.mark.parametrize(
    ("recipe", "settings", "said"),
    [
        (small(batch_tokens=1000), H200, "multiples of block_size"),
        (small(steps=None), H200, "train.steps or train.tokens"),
        (small(SubstrateSettings(n_embed=24)), H200, "n_embed 24 does not divide d_model 32"),
        (small(SubstrateSettings(n_embed=4096)), H200, "32 x 32 pixels"),
        (small(), PlanSettings("h200", 64), "--gpus 64 is more than the 32 sequences"),
    ],
)
def test_what_cannot_be_planned_is_refused(recipe, settings, said):
    with pytest.raises(InputError, match=said):
        make_plan(recipe, settings)


@pytest.mark.parametrize(
    ("name", "value", "limit"),
    [("gpus", 0, "at least 1"), ("mfu", 0, "above 0"), ("mfu", 1.5, "at most 1"), ("price_per_hour", -1, "at least 0"),
     ("price_per_hour", float("nan"), "at least 0"), ("parallel", "tp", "ddp, fsdp2")],
)  # fmt: skip
def test_settings_out_of_range_are_refused(name, value, limit):
    with pytest.raises(InputError, match=f"--{name} {value!r} must be .*{limit}"):
        PlanSettings(**{name: value})


# tokens a second on one H200, bf16, eager and with compiled blocks
@pytest.mark.parametrize(
    ("layout", "d_model", "n_layer", "block_size", "rows", "compiled", "measured"),
    [
        ("bvv241-max", 1024, 16, 1024, 16, False, 124e3), ("bvv241-max", 1024, 16, 1024, 16, True, 152e3),
        ("bvv241-2-3", 1024, 16, 1024, 16, False, 162e3), ("compact", 512, 8, 512, 64, False, 852e3),
        ("compact", 512, 8, 512, 64, True, 1163e3),
    ],
)  # fmt: skip
def test_the_forecast_for_a_gpu_is_near_what_was_measured(layout, d_model, n_layer, block_size, rows, compiled, measured):
    tokens = rows * block_size
    recipe = Recipe(
        TokenizerSettings(layout=layout, vocab_size=8192 if layout == "compact" else None),
        SubstrateSettings(n_embed=d_model),
        ModelConfig(d_model=d_model, n_layer=n_layer, n_head=d_model // 64, block_size=block_size),
        train=TrainSettings(steps=10, batch_tokens=tokens, micro_batch_tokens=tokens, precision="bf16", compile=compiled),
    )  # fmt: skip
    forecast = make_plan(recipe, H200)["forecast"]
    assert forecast["tokens_per_second"] == pytest.approx(measured, rel=0.25)
    assert forecast["how"].startswith("computed: as measured on an H200")


def test_a_tiny_model_is_limited_by_its_host_and_not_faster_on_more_gpus():
    one, eight = (make_plan(small(precision="bf16"), PlanSettings("h200", gpus=gpus))["forecast"] for gpus in (1, 8))
    assert eight["tokens_per_second"] < 1024 / 4e-3 and one["share_of_rate"] < 0.01
    assert eight["device_hours"] > 4 * one["device_hours"]


def test_a_folder_of_something_else_is_refused(tokenizer_folder):
    with pytest.raises(InputError, match="holds a tokenizer, not a substrate"):
        make_plan(replace(small(), substrate=SubstrateSettings(path=str(tokenizer_folder))), H200)


def test_the_verb_prints_and_writes_what_overrides_ask_for(tmp_path, capsys):
    recipe, out = tmp_path / "recipe.yaml", tmp_path / "plan.json"
    recipe.write_text("tokenizer: {layout: bvv241-2-3}\nsubstrate: {n_embed: 64}\nmodel: {d_model: 64, n_head: 2}")
    more = ["--model.n_layer", "3", "--train.tokens", "1e9", "--gpu", "h100", "--gpus", "2", "--price-per-hour", "2.5"]
    assert main(["plan", str(recipe), *more, "--out", str(out)]) == 0
    text, plan = capsys.readouterr().out, json.loads(out.read_text())
    assert plan["model"]["n_layer"] == 3 and plan["train"]["gpus"] == 2
    assert "machine    2 x h100, ddp, 80 GB each" in text and "GPU-hours (2 GPUs)" in text and "cost" in text
    assert "fits in 80 GB" in text and set(text.splitlines()) == set(plan_text(plan).splitlines())


def test_the_verb_reports_in_one_line_what_is_wrong(tmp_path, capsys):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("train: {steps: 3}")
    assert main(["plan", str(recipe), "--gpu", "abacus"]) == 2
    assert capsys.readouterr().err.startswith("glyphlm: --gpu abacus is not known")


def test_what_does_not_fit_is_reported():
    model = ModelConfig(d_model=8192, n_layer=80, n_head=64, block_size=1024)
    recipe = replace(small(), tokenizer=TokenizerSettings(layout="bvv241-max"), model=model, train=TrainSettings(steps=1))
    text = plan_text(make_plan(recipe, PlanSettings("l4")))
    assert "DOES NOT FIT in 24 GB; no micro-batch does" in text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0 B"), (999, "999 B"), (999.6, "1 kB"), (1.344e9, "1.34 GB"), (-4.36e8, "-436 MB"), (5e30, "5e+09 ZB")],
)
def test_numbers_have_three_digits_and_a_prefix(value, text):
    assert scaled(value, "B") == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.1234, "0.12 s"), (75, "1 min 15 s"), (3600, "1 h 0 min"), (90_000, "1 d 1 h"), (1e9, "11,574 d 1 h")],
)
def test_durations_have_two_units(seconds, text):
    assert duration(seconds) == text


def test_each_stage_of_growth_is_planned_with_what_it_freezes(tmp_path, capsys):
    (tmp_path / "grow.yaml").write_text(
        "tokenizer: {layout: bvv241-abs}\nsubstrate: {kind: glyph, n_embed: 4096, side: 64}\n"
        "model: {d_model: 4096, n_head: 32, block_size: 1024, head_bias: true}\n"
        "train: {steps: 10, batch_tokens: 8192, micro_batch_tokens: 8192}\n"
        "growth: {lora: {rank: 8, from_depth: 5}}\nstages: [{layers: 1}, {layers: 2}, {layers: 2}]\n"
    )
    out = tmp_path / "plan.json"
    assert main(["plan", str(tmp_path / "grow.yaml"), "--gpu", "h200", "--out", str(out)]) == 0
    first, second, third = json.loads(out.read_text())
    counts = [{kind: sum(part[kind] for part in plan["parameters"].values()) for kind in ("trained", "frozen")}
              for plan in (first, second, third)]  # fmt: skip
    adapters = 3 * 8 * (4096 + 3 * 4096 + 4096 + 4096)
    assert [sum(count.values()) for count in counts] == [1275244544, 1677971456, 2080698368 + adapters]
    assert counts[1]["frozen"] == 131072 * 4096 + 201363456  # the table and the first block
    assert first["flops_per_token"]["frozen"]["forward"] == 0 < second["flops_per_token"]["frozen"]["forward"]
    assert third["flops_per_token"]["frozen"]["forward"] == 0  # adapters train in the lowest block
    assert capsys.readouterr().out.count("stage ") == 3


# Fused and grown models

RECIPES = Path(__file__).parents[1] / "recipes"
EXPERTS = {"narrow": (32, 2, {}), "wide": (64, 1, {}), "again": (32, 2, {}), "other": (32, 2, {"fingerprint": "0" * 64})}


@pytest.fixture(scope="module")
def runs(tokenizer, tmp_path_factory) -> dict[str, str]:
    """Run folders of experts, of which one has codes of its own, and of two of them fused."""
    folder = tmp_path_factory.mktemp("runs")
    for name, (d_model, n_layer, codes) in EXPERTS.items():
        config = SubstrateConfig(tokenizer.vocab_size, 16, **{"fingerprint": "f" * 64} | codes)
        model = GPT(replace(SMALL, d_model=d_model, n_layer=n_layer), Substrate(config, d_model))
        model.init_weights(1)
        model.substrate.table_VE += len(codes)
        export_model(model, tokenizer, folder / name)
    fuse(FusionSettings([str(folder / "narrow"), str(folder / "wide")]), folder / "fused", "")
    return {name: str(folder / name) for name in [*EXPERTS, "fused"]}


def total(plan) -> int:
    return sum(sum(counts.values()) for counts in plan["parameters"].values())


def test_the_fused_recipe_is_planned_with_all_experts_and_one_substrate(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)  # where no expert is trained
    assert main(["plan", str(RECIPES / "best_bvv_moe.yaml"), "--gpu", "h200", "--out", "plan.json"]) == 0
    plan, reported = json.loads(Path("plan.json").read_text()), capsys.readouterr()
    assert (total(plan), plan["fusion"]["parameters_in_copies"]) == (805_867_520, 940_085_248)
    assert [part for part, counts in plan["parameters"].items() if counts["trained"]] == ["head"]
    assert plan["flops_per_token"]["frozen"] == {"forward": 2 * 16 * (24 * 1024**2 + 2 * 1024 * 1024), "backward": 0}
    assert "total       268,697,600  537,169,920  805,867,520\n2 experts as whole models: 940,085,248 param" in reported.out
    assert "model      head over 2 frozen experts (2 of d_model 1024, 16 layers, 32 heads), context of 1024" in reported.out
    assert "runs/best_bvv_ru, runs/best_bvv_zh: no finished run yet; planned with model and substrate of the" in reported.err


@pytest.mark.parametrize("method", ["head", "gate", "adapter"])
@pytest.mark.parametrize("names", [["narrow", "again"], ["narrow", "wide"], ["narrow", "other"], ["fused", "narrow"]])
def test_experts_that_are_trained_are_planned_as_they_are_fused(runs, names, method):
    settings = FusionSettings([runs[name] for name in names], method, allow_different_substrates=True)
    plan = make_plan(Recipe(fusion=settings, model=ModelConfig(block_size=32), train=TRAIN), H200)
    model, _ = build_fusion(settings)
    assert plan["parameters"] == parameters_by_part(model)
    assert plan["fusion"]["substrates"] == len(model.substrates)
    assert plan["fusion"]["experts"] == [model_fields(expert.config) for expert in model.experts]
    assert {saving["option"] for saving in plan["savings"]} == {
        "--train.precision bf16", "--train.micro_batch_tokens 64", "--train.parallel fsdp2 on 8 GPUs"
    }  # fmt: skip


def test_a_recipe_that_fuses_runs_and_grows_one_is_refused(runs):
    fusion = FusionSettings([runs["narrow"], runs["again"]], "head")
    with pytest.raises(InputError, match="narrow.* or growth.base .*wide"):
        Recipe(fusion=fusion, growth=GrowthSettings(runs["wide"]))


def test_an_expert_that_is_not_trained_yet_is_planned_as_described_beside_one_that_is(runs, tokenizer_folder):
    there, away = Recipe(TokenizerSettings(str(tokenizer_folder)), model=SMALL, train=TRAIN), "runs/away"
    for n_embed, substrates in ((16, 1), (8, 2)):
        fusion = FusionSettings([runs["narrow"], away], "head", allow_different_substrates=True)
        plan = make_plan(replace(there, fusion=fusion, substrate=SubstrateSettings(n_embed=n_embed)), H200)
        assert plan["fusion"]["substrates"] == substrates


def test_time_of_a_fused_model_is_computed(runs):
    fusion = FusionSettings([runs["narrow"], runs["wide"]], "gate")
    forecast = make_plan(Recipe(fusion=fusion, model=ModelConfig(block_size=32), train=TRAIN))["forecast"]
    assert forecast["how"].startswith("computed: 40% of the rate of matrix products here")


def test_a_run_that_is_grown_is_planned_with_what_it_freezes(runs):
    growth = GrowthSettings(runs["narrow"])
    (plan,) = make_plans(GrowthRecipe(model=replace(SMALL, n_layer=3), growth=growth, train=TRAIN), H200)
    staged = GrowthRecipe(model=SMALL, growth=growth, stages=[Stage(layers=1)], train=TRAIN)
    assert plan["parameters"] == make_plans(staged, H200)[0]["parameters"]
    blocks = count_parameters(planned_model(small()).blocks)["total"]
    frozen = sum(counts["frozen"] for counts in plan["parameters"].values())
    assert frozen == 1024 * 16 + blocks  # the codes of the run, not those of a recipe that names none


@pytest.mark.parametrize(
    ("fusion", "growth", "said"),
    [
        ({"method": "mean_logits"}, None, "method mean_logits has nothing to train; glyphlm fuse makes that model"),
        ({"method": "gate", "rank": 0}, None, "rank 0 must be at least 1"),
        ({"method": "gate", "experts": ["narrow"]}, None, "1 expert .*narrow.* cannot be fused; name at least two"),
        ({"method": "gate", "experts": ["narrow", "away"]}, None, "narrow has 1,024 ids, .*away has 2,048 ids; fuse"),
        ({"method": "gate"}, "narrow", "a model is fused or grown, not both"),
        ({"method": "gate", "experts": ["narrow", "other"]}, None, "substrates differ: .*allow-different-substrates"),
        (None, "fused", "fused is fused of 2 experts, .*; name one of its experts: .*narrow, .*wide$"),
        (None, "away", "away is not a finished run"),
        (None, "wide", "the base has d_model 64, the recipe 32; growth changes the depth only: set model.d_model to 64"),
    ],
)
def test_what_cannot_be_fused_or_grown_is_refused(runs, tmp_path, fusion, growth, said):
    runs = runs | {"away": str(tmp_path / "away")}
    described = TokenizerSettings(vocab_size=2048), SubstrateSettings(n_embed=16)
    recipe = GrowthRecipe(*described, SMALL, train=TRAIN)
    recipe.growth = GrowthSettings(runs[growth] if growth else None)
    with pytest.raises(InputError, match=said):
        if fusion:
            fusion = {"experts": ["narrow", "wide"]} | fusion
            recipe.fusion = FusionSettings(**fusion | {"experts": [runs[name] for name in fusion["experts"]]})
        make_plans(recipe, H200)


def test_a_context_other_than_that_of_the_experts_is_refused(runs):
    fusion = FusionSettings([runs["narrow"], runs["wide"]], "gate")
    with pytest.raises(InputError, match="the experts read 32 tokens at once, the recipe 64; set model.block_size to 32"):
        make_plan(Recipe(fusion=fusion, model=ModelConfig(block_size=64), train=TRAIN), H200)
