"""A recipe that names experts trains a fused model: the same train(), frozen experts, from the mean of their logits."""

import json
import re
from pathlib import Path

import pytest
import torch
import yaml

from glyphlm.base.tensors import load_tensors
from glyphlm.cli.main import main
from glyphlm.composition.fuse import fuse
from glyphlm.composition.settings import FusionSettings
from glyphlm.runs.folder import load_run

BLOCK = 32


def recipe(tokenizer_folder, substrate, shards, **changes) -> dict:
    return {
        "tokenizer": {"path": str(tokenizer_folder)},
        "substrate": {"path": str(substrate)},
        "model": {"d_model": 32, "n_layer": 1, "n_head": 2, "block_size": BLOCK},
        "data": [{"shards": str(shards)}],
        "train": {"steps": 6, "batch_tokens": 4 * BLOCK, "micro_batch_tokens": 2 * BLOCK, "lr": 0.01, "precision": "fp32",
                  "device": "cpu", "log_every": 2, "validate_every": 6, "validation_tokens": 512, "save_every": 3},
    } | changes  # fmt: skip


def train(given: dict, out: Path, *options: str) -> int:
    path = out.parent / f"{out.name}.yaml"
    path.write_text(yaml.safe_dump(given))
    return main(["train", str(path), "--out", str(out), *options])


@pytest.fixture(scope="module")
def experts(tokenizer_folder, substrates, shards, tmp_path_factory) -> list[str]:
    """Two runs over one substrate, trained from different seeds, the second wider."""
    folder = tmp_path_factory.mktemp("experts")
    for seed, d_model in ((1, 32), (2, 64)):
        given = recipe(tokenizer_folder, substrates["token_bits"], shards)
        sizes = ("--train.seed", str(seed), "--model.d_model", str(d_model))
        assert train(given, folder / str(seed), *sizes) == 0
    return [str(folder / "1"), str(folder / "2")]


def fusing(experts: list[str], shards: Path, **fusion) -> dict:
    given = recipe("", "", shards, fusion={"experts": experts} | fusion, model={"block_size": BLOCK})
    return {key: value for key, value in given.items() if key not in ("tokenizer", "substrate")}


@pytest.mark.parametrize("method", ["gate", "head", "adapter"])
def test_what_the_method_trains_learns_and_experts_stay(experts, shards, tmp_path, method):
    given = fusing(experts, shards, method=method, rank=4)
    given["train"] |= {"validate_first": True, "steps": 24}  # a gate of 6 steps still follows its start
    assert train(given, tmp_path / "run") == 0
    fuse(FusionSettings(experts), tmp_path / "mean", "")
    mean, made = (load_tensors(tmp_path / name / "model.safetensors") for name in ("mean", "run"))
    frozen = [name for name in mean if method != "head" or not name.endswith("head.weight")]
    assert frozen and all(torch.equal(mean[name], made[name]) for name in frozen)
    assert set(made) - set(mean) == {"gate": {f"gpt.gates.{n}.{part}" for n in (0, 1) for part in ("weight", "bias")},
                                     "adapter": {"gpt.adapter.0.weight", "gpt.adapter.1.weight"}, "head": set()}[method]
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    validation = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
                  if "validation" in line]  # fmt: skip
    assert validation[-1]["bits_per_byte"] < validation[0]["bits_per_byte"]
    assert summary["fusion"]["method"] == method and summary["cost"]["flops"]["frozen"] > 0
    assert summary["parameters"]["trained"] == sum(made[name].numel() for name in made if name not in frozen)
    assert "fused by GlyphLM" in (tmp_path / "run" / "README.md").read_text()


def test_a_fused_training_continues_after_a_stop_with_the_same_bits(experts, shards, tmp_path, monkeypatch):
    given = fusing(experts, shards, method="gate")
    assert train(given, tmp_path / "straight") == 0
    saved = []

    def save_and_leave(*arguments):
        if saved:
            raise KeyboardInterrupt
        saved.append(save(*arguments))

    import glyphlm.training.loop

    save = glyphlm.training.loop.save_state
    monkeypatch.setattr(glyphlm.training.loop, "save_state", save_and_leave)
    assert train(given, tmp_path / "run") == 130
    monkeypatch.undo()
    assert train(given, tmp_path / "run") == 0
    ours, straight = (tmp_path / name / "model.safetensors" for name in ("run", "straight"))
    assert ours.read_bytes() == straight.read_bytes()


def test_the_run_folder_loads_as_what_was_trained(experts, shards, tmp_path):
    assert train(fusing(experts, shards, method="head"), tmp_path / "run") == 0
    model, tokenizer = load_run(tmp_path / "run")
    ids_BT = torch.tensor([tokenizer.encode("The currency of")])
    assert model.generate(ids_BT, max_new_tokens=4, do_sample=False).shape[1] == ids_BT.shape[1] + 4


def test_a_fused_run_is_not_grown(experts, tokenizer_folder, substrates, shards, tmp_path, capsys):
    fuse(FusionSettings(experts), tmp_path / "moe", "")
    given = recipe(tokenizer_folder, substrates["token_bits"], shards, growth={"base": str(tmp_path / "moe")})
    assert train(given, tmp_path / "run") == 2
    line = f"glyphlm: growth.base {tmp_path / 'moe'} is fused of 2 experts, and growth adds blocks to a single model; name "
    assert capsys.readouterr().err.splitlines()[-1] == line + f"one of its experts: {', '.join(experts)}"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fusion": {"experts": ["A", "B"]}}, "method mean_logits has nothing to train; glyphlm fuse makes that model"),
        ({"fusion": {"experts": ["A"], "method": "gate"}}, "1 expert .*at least two"),
        ({"fusion": {"method": "gate"}}, "name them as fusion.experts"),
        ({"fusion": {"experts": ["A", "B"], "method": "gate"}, "model": {"block_size": 16}}, "read 32 tokens at once, .*16"),
        ({"fusion": {"experts": ["A", "B"], "method": "gate"}, "growth": {"base": "A"}}, "fused or grown, not both"),
        ({"fusion": {"experts": ["A", "none"], "method": "gate"}}, "none is not a finished run"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_in_one_line(experts, shards, tmp_path, capsys, changes, message):
    asked = json.dumps(fusing(experts, shards) | changes)
    for name, run in zip("AB", experts):
        asked = asked.replace(f'"{name}"', json.dumps(run))
    assert train(json.loads(asked), tmp_path / "run") == 2
    assert re.search(message, capsys.readouterr().err.splitlines()[-1])
