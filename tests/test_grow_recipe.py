"""glyphlm grow: a run folder a stage, stopped anywhere and gone on, next to controls that see the same data."""

import json
import random
import re
import shutil
import time
import warnings
from pathlib import Path

import pytest
import torch
import yaml
from forked import start
from peft import PeftModel
from transformers import AutoModelForCausalLM

from glyphlm.base.errors import InputError
from glyphlm.base.tensors import load_tensors
from glyphlm.cli.main import main
from glyphlm.composition.fuse import fuse
from glyphlm.composition.growth import GrowthSettings
from glyphlm.composition.settings import FusionSettings
from glyphlm.data.shards import prepare
from glyphlm.experiments.recipe import Recipe, load_recipe
from glyphlm.experiments.train_recipe import run_recipe
from glyphlm.modeling.model import ModelConfig
from glyphlm.runs.folder import load_run
from glyphlm.runs.generate import generate
from glyphlm.runs.sampling import Sampling
from glyphlm.training.checkpoint import list_states

BLOCK = 32
STAGES = [{"layers": 1, "steps": 12}, {"layers": 1, "steps": 12}, {"layers": 2, "steps": 12, "start": "random"}]


def settings(tokenizer_folder, substrate, shards, **changes) -> dict:
    return {
        "tokenizer": {"path": str(tokenizer_folder)},
        "substrate": {"path": str(substrate)},
        "model": {"d_model": 32, "n_head": 2, "block_size": BLOCK},
        "data": [{"shards": str(shards)}],
        "train": {"batch_tokens": 4 * BLOCK, "micro_batch_tokens": 4 * BLOCK, "lr": 0.01, "precision": "fp32",
                  "device": "cpu", "log_every": 3, "validate_every": 6, "validation_tokens": 512, "save_every": 3},
        "growth": {"start": "zero"},
        "stages": STAGES,
        "controls": ["tokens", "flops"],
    } | changes  # fmt: skip


@pytest.fixture(scope="module")
def given(tokenizer_folder, substrates, shards) -> dict:
    return settings(tokenizer_folder, substrates["learned"], shards)


def grow(folder: Path, given: dict, *options: str) -> int:
    folder.mkdir(exist_ok=True, parents=True)
    (folder / "recipe.yaml").write_text(yaml.safe_dump(given))
    return main(["grow", str(folder / "recipe.yaml"), "--out", str(folder / "grown"), *options])


@pytest.fixture(scope="module")
def grown(given, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("growth")
    assert grow(folder, given) == 0
    return folder / "grown"


def test_growth_where_nothing_was_held_out_has_a_report(tokenizer, tokenizer_folder, substrates, text, tmp_path):
    shards = prepare(tokenizer, [text], tmp_path / "shards", 0.0)
    stages = {"stages": STAGES[:2], "controls": []}
    assert grow(tmp_path, settings(tokenizer_folder, substrates["learned"], shards, **stages)) == 0
    page = (tmp_path / "grown" / "report.html").read_text(encoding="utf-8")
    assert "Growth</h2>" in page and "Held-out bits per byte at the end of each stage" not in page


def summary(run: Path) -> dict:
    return json.loads((run / "summary.json").read_text(encoding="utf-8"))


def rows(run: Path, split: str) -> list[dict]:
    lines = map(json.loads, (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    return [row for row in lines if row["split"] == split]


def test_each_stage_is_a_model_that_loads(grown):
    for stage, layers in ((1, 1), (2, 2), (3, 4)):
        model, _ = load_run(grown / f"stage-{stage}")
        assert len(model.gpt.blocks) == layers
    assert (grown / "report.html").exists()


def test_bytes_of_the_stage_before_are_those_of_the_stage_after(grown):
    before, after = (load_tensors(grown / f"stage-{stage}" / "model.safetensors") for stage in (2, 3))
    frozen = [name for name in before if name.startswith(("gpt.blocks.", "gpt.substrate."))]
    assert frozen and all(torch.equal(before[name], after[name]) for name in frozen)


def test_a_table_is_trained_in_the_first_stage_only(grown, substrates):
    start = load_tensors(substrates["learned"] / "substrate.safetensors")["table_VE"]
    tables = [load_tensors(grown / f"stage-{stage}" / "model.safetensors")["gpt.substrate.table_VE"] for stage in (1, 2, 3)]
    assert not torch.equal(start, tables[0]) and torch.equal(tables[0], tables[1]) and torch.equal(tables[0], tables[2])
    assert [summary(grown / f"stage-{stage}")["substrate"]["trainable"] for stage in (1, 2, 3)] == [True, False, False]


def test_a_zero_start_starts_at_the_loss_of_the_stage_before(grown):
    last, first = rows(grown / "stage-1", "validation")[-1], rows(grown / "stage-2", "validation")[0]
    assert (first["step"], first["bits_per_byte"]) == (0, pytest.approx(last["bits_per_byte"], rel=1e-6))
    spike = rows(grown / "stage-3", "validation")[0]["bits_per_byte"]
    assert spike != pytest.approx(rows(grown / "stage-2", "validation")[-1]["bits_per_byte"], rel=1e-6)


def test_the_control_of_equal_tokens_sees_the_same_batches(grown):
    stages, control = [summary(grown / f"stage-{stage}") for stage in (1, 2, 3)], summary(grown / "monolithic-tokens")
    assert control["tokens"] == sum(stage["tokens"] for stage in stages)
    assert control["data_order"] == stages[-1]["data_order"] and control["model"] == stages[-1]["model"]
    assert control["substrate"]["trainable"] and control["parameters"]["frozen"] == 0


def test_the_control_of_equal_operations_spends_what_the_stages_spent(grown):
    spent = sum(summary(grown / f"stage-{stage}")["cost"]["flops_total"] for stage in (1, 2, 3))
    control = summary(grown / "monolithic-flops")
    assert control["cost"]["flops_total"] == pytest.approx(spent, abs=control["cost"]["flops_total"] / control["steps"])
    assert control["steps"] < summary(grown / "monolithic-tokens")["steps"]


def test_settings_of_a_stage_make_the_stage_again(grown, tmp_path):
    assert main(["train", str(grown / "stage-2" / "settings.yaml"), "--out", str(tmp_path / "again")]) == 0
    ours, again = (folder / "model.safetensors" for folder in (grown / "stage-2", tmp_path / "again"))
    assert ours.read_bytes() == again.read_bytes()


def test_a_finished_run_is_grown_further_from_its_folder_alone(grown, shards, tmp_path, capsys):
    folder = shutil.copytree(grown / "stage-2", tmp_path / "given")
    shutil.rmtree(folder / "state")
    recipe = {"model": {"d_model": 32, "n_head": 2, "block_size": BLOCK}, "data": [{"shards": str(shards)}],
              "train": {"batch_tokens": 128, "micro_batch_tokens": 128, "precision": "fp32", "device": "cpu"},
              "growth": {"base": str(folder), "start": "copy"}, "stages": [{"layers": 1, "steps": 2}]}  # fmt: skip
    assert grow(tmp_path, recipe) == 0, capsys.readouterr().err
    made = summary(tmp_path / "grown" / "stage-1")
    assert made["model"]["n_layer"] == 3 and made["position"]["taken"] == [3 * 12 * 4 - 12 * 4 + 2 * 4]


def test_with_another_stage_in_the_recipe_it_grows_further(given, grown, tmp_path):
    folder = shutil.copytree(grown.parent, tmp_path / "copy")
    text = (folder / "recipe.yaml").read_text()
    more = yaml.safe_load(text) | {"stages": [*STAGES, {"layers": 0, "steps": 3, "lora_rank": 2}], "controls": []}
    before = (folder / "grown" / "stage-3" / "model.safetensors").stat().st_mtime_ns
    assert grow(folder, more) == 0
    assert (folder / "grown" / "stage-3" / "model.safetensors").stat().st_mtime_ns == before
    old, new = (load_tensors(folder / "grown" / f"stage-{stage}" / "model.safetensors") for stage in (3, 4))
    assert old.keys() == new.keys()
    adapted = {name for name in old if not torch.equal(old[name], new[name]) and ".blocks." in name}
    assert adapted == {f"gpt.blocks.{layer}.attention.{name}.weight" for layer in range(4) for name in ("qkv", "out")}


def test_a_stage_ends_when_validation_is_flat(given, tmp_path):
    stages = [{"layers": 1, "steps": 60, "flat_after": 1, "lr": 1e-9}]
    assert grow(tmp_path, given | {"stages": stages, "controls": []}) == 0
    made = summary(tmp_path / "grown" / "stage-1")
    assert made["steps"] == 12  # validations at 6 and 12, no better
    assert grow(tmp_path, given | {"stages": stages, "controls": []}) == 0  # finished stages are skipped


def test_adapters_kept_apart_are_a_peft_folder_and_give_what_merged_ones_give(given, grown, tmp_path):
    growth, stages = {"base": str(grown / "stage-2"), "head": "low_rank"}, [{"layers": 1, "steps": 3}]
    given = {key: value for key, value in given.items() if key != "substrate"}
    for name, apart in (("merged", False), ("apart", True)):
        asked = given | {"growth": growth | {"lora": {"rank": 2, "apart": apart}}, "stages": stages, "controls": []}
        assert grow(tmp_path / name, asked) == 0
    merged, apart = (tmp_path / name / "grown" / "stage-1" for name in ("merged", "apart"))
    base, stored = (load_tensors(run / "model.safetensors") for run in (grown / "stage-2", apart))
    assert all(torch.equal(values, stored[name]) for name, values in base.items() if "norm" not in name)
    ids_BT = torch.arange(20)[None]
    logits = [load_run(run)[0](ids_BT).logits for run in (merged, apart)]
    torch.testing.assert_close(*logits, atol=1e-5, rtol=1e-4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft asks transformers for an attribute under its old name
        by_peft = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(apart), apart / "adapter").eval()
    torch.testing.assert_close(by_peft(ids_BT).logits, logits[1], atol=1e-5, rtol=1e-4)
    config = apart / "adapter" / "adapter_config.json"
    written = json.loads(config.read_text())
    for name, value in {"r": 10**9, "use_dora": True, "megatron_config": {"a": 1}, "init_lora_weights": "pissa"}.items():
        config.write_text(json.dumps(written | {name: value}))
        with pytest.raises(InputError, match=rf"adapter_config.json (sets {name} to|names the rank 1000000000)"):
            load_run(apart)
    config.write_text(json.dumps(written))
    (apart / "adapter" / "adapter_model.safetensors").write_bytes(b"cut off")
    with pytest.raises(InputError, match="adapter_model.safetensors cannot be read"):
        load_run(apart)


@pytest.mark.parametrize("where", ["memory", "folder"])
def test_kept_hidden_states_change_nothing_but_the_work(tokenizer, tokenizer_folder, substrates, text, tmp_path, where):
    few = tmp_path / "few.jsonl"  # so that a few steps are several epochs
    few.write_text("".join(Path(text).read_text().splitlines(keepends=True)[:60]))
    shards = prepare(tokenizer, [str(few)], tmp_path / "shards", 0.2)
    given = settings(tokenizer_folder, substrates["token_bits"], shards, stages=STAGES[:1], controls=[])
    assert grow(tmp_path, given) == 0
    folder, growth = tmp_path / "kept", {"base": str(tmp_path / "grown" / "stage-1")}
    cache = "memory" if where == "memory" else str(folder)
    kinds = {"kept": {"cache": cache}, "shared": {"cache": cache}, "tight": {"cache": "memory", "cache_gb": 1e-4}}
    for name, growing in kinds.items():
        stage = {"layers": 1, "steps": 50}
        assert grow(tmp_path / name, given | {"stages": [stage], "growth": growth | growing | {"start": "zero"}}) == 0
    runs = {name: summary(tmp_path / name / "grown" / "stage-1") for name in kinds}
    losses = {name: [row["loss"] for row in rows(tmp_path / name / "grown" / "stage-1", "train")] for name in kinds}
    assert losses["kept"] == pytest.approx(losses["tight"], rel=1e-5)
    assert losses["kept"] == pytest.approx(losses["shared"], rel=1e-5)
    cached = {name: run["cost"]["cached_tokens"] for name, run in runs.items()}
    assert runs["kept"]["epochs"][0] > 2 and 0 < cached["tight"] < cached["kept"] < runs["kept"]["tokens"]
    assert (cached["shared"] == runs["shared"]["tokens"]) == (where == "folder")  # each run has a memory of its own
    assert runs["kept"]["cost"]["flops"]["frozen"] < runs["tight"]["cost"]["flops"]["frozen"]


@pytest.fixture(scope="module")
def fused(grown, tmp_path_factory) -> str:
    """A run that two stages were fused into."""
    folder = tmp_path_factory.mktemp("fused") / "moe"
    fuse(FusionSettings([str(grown / "stage-2"), str(grown / "stage-3")], allow_different_substrates=True), folder, "")
    return str(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"growth": {"base": "FUSED"}, "controls": []},
         "moe is fused of 2 experts, and growth adds blocks .*; name one of its experts: .*stage-2, .*stage-3$"),
        ({"fusion": {"experts": ["RUN", "RUN"], "method": "head"}, "controls": []}, "fused or grown, not both"),
        ({"stages": []}, "has no stages"),
        ({"stages": [{"layers": 1}, {"layers": -1}]}, "stage 2 adds -1 layers"),
        ({"stages": [{"layers": -1}]}, "stage 1 adds -1 layers; growth only adds, at least 0"),
        ({"stages": [{"steps": 2, "tokens": 1e5}]}, "stage 1 has steps 2 and tokens 100000"),
        ({"growth": {"base": "RUN"}}, "leave them out where the first stage has a base"),
        ({"growth": {"base": "RUN"}, "controls": [], "substrate": {"path": "OTHER"}},
         "has a substrate learned .*, the recipe token_bits"),
        ({"growth": {"base": "RUN"}, "controls": [], "model": {"d_model": 64, "n_head": 2, "block_size": BLOCK}},
         "the base has d_model 32, the recipe 64"),
        ({"growth": {"base": "NOTHING"}, "controls": []}, "is not a finished run"),
        ({"stages": [{"steps": 3}, {"steps": 3}], "growth": {"lora": {"rank": 2, "targets": ["q"]}}},
         r"'q'.* attention\.qkv, attention\.out, mlp\.up, mlp\.down"),
        ({"stages": [{"steps": 3}, {"steps": 3}], "growth": {"cache": "memory", "lora": {"rank": 2}}},
         "growth.cache memory has nothing to keep"),
    ],
)  # fmt: skip
def test_what_cannot_be_grown_is_refused_in_one_line(given, grown, fused, substrates, tmp_path, capsys, changes, message):
    names = {"RUN": str(grown / "stage-1"), "OTHER": str(substrates["token_bits"]), "FUSED": fused}
    asked = json.dumps(given | changes)
    for name, folder in names.items():
        asked = asked.replace(f'"{name}"', json.dumps(folder))
    assert grow(tmp_path, json.loads(asked)) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("glyphlm: ")
    assert re.search(message, error), error


def test_growth_settings_without_a_base_are_refused_by_train(tokenizer_folder, substrates, shards, tmp_path):
    with pytest.raises(InputError, match="name that run as growth.base"):
        run_recipe(Recipe(model=ModelConfig(32, 1, 2, BLOCK), growth=GrowthSettings(start="zero")), tmp_path / "run", "")


@pytest.mark.parametrize(("name", "layers", "blocks"), [
    ("late_one", [1, 7], "all"), ("late_zero", [0, 8], "all"), ("stack", [2, 6], "all"), ("stack_frozen", [2, 6], "new"),
    ("llama_pro", [6, 2], "new"), ("published", [3, 3, 2], None)])  # fmt: skip
def test_a_schedule_is_a_list_of_stages_to_the_depth_of_the_model(name, layers, blocks):
    found = load_recipe({"schedule": name, "model": {"n_layer": 8}, "train": {"tokens": 1e6}}).stages
    assert [stage.layers for stage in found] == layers and found[-1].blocks == blocks
    assert sum(stage.tokens or 0 for stage in found) == pytest.approx(1e6)


@pytest.mark.parametrize(("changes", "message"), [
    ({"stages": [{"layers": 1}]}, "schedule stack makes the stages, but the recipe has 1 of its own"),
    ({"model": {"n_layer": 1}}, "schedule stack needs more blocks than model.n_layer 1")])
def test_a_schedule_that_does_not_fit_is_refused(changes, message):
    with pytest.raises(InputError, match=message):
        load_recipe({"schedule": "stack", "train": {"steps": 10}} | changes)


def test_a_late_expansion_grows_all_blocks_from_none_with_the_moments_of_the_base(given, tmp_path):
    recipe = {key: value for key, value in given.items() if key not in ("stages", "growth")} | {"controls": []}
    recipe |= {"schedule": "late_zero", "model": recipe["model"] | {"n_layer": 2}, "train": recipe["train"] | {"steps": 15}}
    assert grow(tmp_path, recipe) == 0
    first, last = (tmp_path / "grown" / f"stage-{number}" for number in (1, 2))
    assert (summary(first)["steps"], summary(last)["steps"]) == (12, 3)
    assert summary(first)["model"]["n_layer"] == 0 and summary(last)["parameters"]["frozen"] == 0
    held, grown = (load_tensors(list_states(run)[-1] / "optimizer.safetensors") for run in (first, last))
    assert float(grown["head.weight/step"]) == float(held["head.weight/step"]) + 3
    assert float(grown["blocks.1.mlp.up.weight/step"]) == 3
    assert generate(first, ["Hello"], Sampling(max_new_tokens=3))[0].startswith("Hello")


def test_missing_moments_are_named(given, grown, tmp_path, capsys):
    folder = shutil.copytree(grown / "stage-1", tmp_path / "given")
    shutil.rmtree(folder / "state")
    changes = {"growth": {"base": str(folder), "carry": True}, "stages": [{"layers": 1, "steps": 2}], "controls": []}
    assert grow(tmp_path, given | changes) == 2
    assert "given/state does not exist" in capsys.readouterr().err


def checkpoints(folder: Path) -> list[Path]:
    return sorted(folder.glob("grown/stage-*/state/step-*"), key=lambda path: path.parts[-3:])


def test_growth_that_was_killed_anywhere_ends_as_if_it_had_not(given, tmp_path):
    asked = given | {"stages": [dict(stage, steps=18) for stage in STAGES[:2]], "controls": []}
    assert grow(tmp_path / "straight", asked) == 0
    folder, moments = tmp_path / "killed", random.Random(0)
    folder.mkdir()
    (folder / "recipe.yaml").write_text(yaml.safe_dump(asked))
    kills = 0
    while not (folder / "grown" / "stage-2" / "summary.json").exists():
        seen, deadline = checkpoints(folder)[-1:], time.monotonic() + 60
        process = start("grow", folder / "recipe.yaml", "--out", folder / "grown")
        while checkpoints(folder)[-1:] == seen and process.is_alive():
            assert time.monotonic() < deadline
            time.sleep(0.002)
        time.sleep(moments.uniform(0, 0.15))
        kills += process.is_alive()
        process.kill()  # does nothing to one that is done
        process.join(60)
    assert kills >= 2
    for stage in ("stage-1", "stage-2"):
        ours, straight = folder / "grown" / stage, tmp_path / "straight" / "grown" / stage
        assert (ours / "model.safetensors").read_bytes() == (straight / "model.safetensors").read_bytes()
        assert [row["loss"] for row in rows(ours, "train")] == [row["loss"] for row in rows(straight, "train")]
