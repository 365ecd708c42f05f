"""A run folder goes on with what it was begun with, wherever it and its inputs lie; what is refused stands in no way."""

import json
import os
import shutil
import sys
from pathlib import Path

import pytest
import yaml

import glyphlm.training.loop as loop
from glyphlm.cli.main import main
from glyphlm.runs.chat import chat_ids
from glyphlm.runs.folder import read_summary
from glyphlm.runs.opening import open_model


@pytest.fixture
def recipe(tokenizer_folder, text) -> dict:
    return {
        "tokenizer": {"path": str(tokenizer_folder)},
        "substrate": {"kind": "token_bits", "n_embed": 16},
        "model": {"d_model": 32, "n_layer": 1, "n_head": 2, "block_size": 32},
        "data": [{"text": text}],
        "train": {"steps": 6, "batch_tokens": 128, "micro_batch_tokens": 128, "save_every": 2, "log_every": 2,
                  "validate_every": 6, "validation_tokens": 512, "precision": "fp32", "device": "cpu"},
    }  # fmt: skip


def train(recipe: dict, out: Path, *options: str) -> int:
    (out.parent / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return main(["train", str(out.parent / "recipe.yaml"), "--out", str(out), *options])


def begin(recipe: dict, out: Path, monkeypatch) -> None:
    """Train `recipe` into `out` and stop after the first checkpoint."""
    saved, save = [], loop.save_state

    def save_and_stop(*arguments):
        if saved:
            raise KeyboardInterrupt
        saved.append(save(*arguments))

    monkeypatch.setattr(loop, "save_state", save_and_stop)
    assert train(recipe, out) == 130
    monkeypatch.undo()


def last_error(capsys) -> str:
    return capsys.readouterr().err.strip().splitlines()[-1]


def settings(out: Path) -> dict:
    return yaml.safe_load((out / "settings.yaml").read_text())


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """The weights that the recipe gives without a stop."""
    made = {}

    def weights(recipe: dict) -> bytes:
        if not made:
            out = tmp_path_factory.mktemp("straight") / "run"
            assert train(recipe, out) == 0
            made["weights"] = (out / "model.safetensors").read_bytes()
        return made["weights"]

    return weights


def test_a_run_that_was_renamed_continues(recipe, straight, tmp_path, monkeypatch, capsys):
    begin(recipe, tmp_path / "before", monkeypatch)
    os.rename(tmp_path / "before", tmp_path / "after")
    assert train(recipe, tmp_path / "after") == 0
    assert "resuming from step 2" in capsys.readouterr().err
    assert (tmp_path / "after" / "model.safetensors").read_bytes() == straight(recipe)


@pytest.mark.parametrize("head", [{"kind": "tied"}, {"kind": "code", "width": 16, "order": "frequency"},
                                  {"kind": "code", "width": 16, "digits": 3, "order": "clusters"}])  # fmt: skip
def test_a_run_with_another_head_continues_bit_for_bit_and_is_used_as_any_run(recipe, head, tmp_path, monkeypatch, capsys):
    recipe["model"]["head"] = head
    assert train(recipe, tmp_path / "straight") == 0
    begin(recipe, tmp_path / "run", monkeypatch)
    assert train(recipe, tmp_path / "run") == 0
    assert "resuming from step 2" in capsys.readouterr().err
    files = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("straight", "run")]
    assert files[0] == files[1]
    found = json.loads((tmp_path / "run" / "config.json").read_text())["model"]["head"]
    assert found == found | head
    assert main(["generate", str(tmp_path / "run"), "--prompt", "Hello", "--max-new-tokens", "4"]) == 0
    assert capsys.readouterr().out.startswith("Hello")
    assert main(["export", str(tmp_path / "run"), "--to", "gpt_neox", "--out", str(tmp_path / "neox")]) == (
        2 if head["kind"] == "code" else 0)
    if head["kind"] == "code":
        assert "head of kind code, which no stock architecture expresses; train with" in last_error(capsys)


def test_inputs_that_are_spelled_otherwise_or_moved_are_the_same(recipe, straight, text, tmp_path, monkeypatch, capsys):
    moved = shutil.copyfile(text, tmp_path / "moved.jsonl")
    begin(recipe, tmp_path / "run", monkeypatch)
    monkeypatch.chdir(tmp_path)
    other = recipe | {"data": [{"text": "./moved.jsonl"}],
                      "tokenizer": {"path": os.path.relpath(recipe["tokenizer"]["path"])}}  # fmt: skip
    assert train(other, Path("run")) == 0
    assert "resuming from step 2" in capsys.readouterr().err
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == straight(recipe)
    assert settings(tmp_path / "run")["data"][0]["text"] == "./moved.jsonl"
    assert train(recipe, tmp_path / "run") == 0  # finished, and asked for by the first spelling
    assert "done already" in capsys.readouterr().err and moved.exists()


def test_a_run_does_not_continue_with_another_text(recipe, tmp_path, monkeypatch, capsys):
    begin(recipe, tmp_path / "run", monkeypatch)
    other = tmp_path / "other.jsonl"
    other.write_text("\n".join(Path(recipe["data"][0]["text"]).read_text().splitlines()[:200]))
    before = (tmp_path / "run" / "settings.yaml").read_bytes()
    assert train(recipe | {"data": [{"text": str(other)}]}, tmp_path / "run") == 2
    assert "other work" in last_error(capsys) and (tmp_path / "run" / "settings.yaml").read_bytes() == before
    assert train(recipe, tmp_path / "run") == 0
    assert train(recipe | {"data": [{"text": str(other)}]}, tmp_path / "run") == 2  # nor is a finished run that of another


def test_digests_by_path_of_older_runs_are_read(recipe, tmp_path, monkeypatch):
    begin(recipe, tmp_path / "run", monkeypatch)
    path = tmp_path / "run" / "inputs.json"
    inputs = json.loads(path.read_text())
    path.write_text(json.dumps({"tokenizer": inputs["tokenizer"], "substrate": inputs["substrate"],
                                "shards": {"run/inputs/shards-0": inputs["shards"][0]}}))  # fmt: skip
    assert train(recipe, tmp_path / "run") == 0


def test_what_changes_no_result_may_change_when_a_run_continues(recipe, tmp_path, monkeypatch, capsys):
    begin(recipe, tmp_path / "run", monkeypatch)
    changes = {"micro_batch_tokens": 64, "recompute": True, "save_every": 3, "keep": 1, "log_every": 1, "validate_every": 3}
    options = [part for name, value in changes.items() for part in (f"--train.{name}", str(value).lower())]
    assert train(recipe | {"prompts": ["Hello"]}, tmp_path / "run", *options) == 0
    assert "resuming from step 2" in capsys.readouterr().err
    recorded = settings(tmp_path / "run")
    assert {name: recorded["train"][name] for name in changes} == changes and recorded["prompts"] == ["Hello"]


@pytest.mark.parametrize(("name", "value"), [("steps", 60), ("lr", 0.5), ("seed", 9), ("clip", 0.5), ("batch_tokens", 256)])
def test_what_changes_a_result_may_not(recipe, tmp_path, monkeypatch, capsys, name, value):
    begin(recipe, tmp_path / "run", monkeypatch)
    assert train(recipe, tmp_path / "run", f"--train.{name}", str(value)) == 2
    assert f"train.{name} was" in last_error(capsys) and settings(tmp_path / "run")["train"][name] != value


def test_where_validation_ends_a_training_when_it_validates_may_not_change(recipe, tmp_path, monkeypatch, capsys):
    recipe["train"] |= {"flat_after": 3}
    begin(recipe, tmp_path / "run", monkeypatch)
    assert train(recipe, tmp_path / "run", "--train.validate_every", "3") == 2
    assert "train.validate_every was 6, is now 3" in last_error(capsys)


@pytest.mark.parametrize("change", ["", "{}", "train: [", "train: {lr: 0.5}", None])
def test_damaged_settings_are_refused(recipe, tmp_path, monkeypatch, capsys, change):
    begin(recipe, tmp_path / "run", monkeypatch)
    path = tmp_path / "run" / "settings.yaml"
    text = path.read_text().replace("lr: 0.001", "lr: 0.5") if change is None else change
    path.write_text(text)
    assert train(recipe, tmp_path / "run", "--train.lr", "0.5") == 2
    assert str(path) in last_error(capsys) and path.read_text() == text


def test_a_begun_run_without_its_digests_is_refused(recipe, tmp_path, monkeypatch, capsys):
    begin(recipe, tmp_path / "run", monkeypatch)
    (tmp_path / "run" / "inputs.json").unlink()
    assert train(recipe, tmp_path / "run") == 2 and "inputs.json does not exist" in last_error(capsys)


def test_a_width_is_checked_before_codes_are_made(recipe, tmp_path, capsys):
    recipe["substrate"]["n_embed"] = 256
    assert train(recipe, tmp_path / "run") == 2
    assert "256 does not divide d_model 32" in last_error(capsys) and not (tmp_path / "run" / "inputs").exists()


def test_a_refused_recipe_leaves_nothing_that_stands_in_the_way(recipe, straight, text, tmp_path, capsys):
    short = tmp_path / "short.txt"
    short.write_text("Too short to train on.")
    refused = recipe | {"substrate": {"kind": "learned", "n_embed": 8}, "data": [{"text": str(short)}]}
    assert train(refused, tmp_path / "run") == 2
    assert "too few" in last_error(capsys) and (tmp_path / "run" / "inputs" / "shards-0").exists()
    assert train(recipe, tmp_path / "run") == 0
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == straight(recipe)


def test_a_folder_of_something_else_is_left_alone(recipe, tmp_path, capsys):
    for name, text in (("thesis.txt", "years of work"), ("settings.yaml", "mine: true")):
        out = tmp_path / f"{name}.out"
        out.mkdir()
        (out / name).write_text(text)
        assert train(recipe, out) == 2 and "choose another --out" in last_error(capsys)
        assert [path.name for path in out.iterdir()] == [name] and (out / name).read_text() == text


def test_a_kill_before_the_first_rename_stands_in_no_way(recipe, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".settings.yaml.partial").touch()
    assert train(recipe, tmp_path / "run") == 0


def test_settings_and_card_name_the_substrate_and_tokenizer_that_were_used(recipe, substrates, tmp_path):
    """A recipe that names folders says nothing of what is in them; a run that was recorded otherwise goes on as it was."""
    named, out = recipe | {"substrate": {"path": str(substrates["learned"])}}, tmp_path / "twin"
    assert train(named, out) == 0
    recorded = settings(out)
    assert (recorded["substrate"]["kind"], recorded["substrate"]["trainable"], recorded["substrate"]["n_embed"]) == (
        "learned", True, 32)
    assert recorded["tokenizer"]["vocab_size"] == 1024 and "kind: learned" in (out / "README.md").read_text()
    assert train(named, out) == 0


def test_a_run_that_was_recorded_without_them_continues(recipe, substrates, tmp_path, monkeypatch):
    named, out = recipe | {"substrate": {"path": str(substrates["learned"])}}, tmp_path / "run"
    monkeypatch.setattr("glyphlm.experiments.resume.as_used", lambda recipe, recorded: recipe)  # as version 0.1
    begin(named, out, monkeypatch)
    assert settings(out)["substrate"]["kind"] == "glyph"
    assert train(named, out) == 0 and settings(out)["substrate"]["kind"] == "glyph"


def test_a_dry_run_refuses_a_tracker_that_is_not_installed(recipe, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "wandb", None)
    recipe["train"]["trackers"] = ["wandb"]
    assert train(recipe, tmp_path / "run", "--dry-run") == 2
    assert "pip install wandb" in last_error(capsys)


def test_a_run_that_learned_examples_has_a_chat_template(recipe, tmp_path):
    rows = [{"instruction": f"{number} plus {number}?", "input": "", "output": str(2 * number), "history": []}
            for number in range(40)]
    (tmp_path / "sums.json").write_text(json.dumps(rows))
    recipe["data"].append({"sft": [f"instructions={tmp_path / 'sums.json'}"], "weight": 0.5})
    recipe["data"][0]["weight"] = 0.5
    assert train(recipe, tmp_path / "run") == 0
    opened = open_model(tmp_path / "run")
    ids = chat_ids(opened, [{"role": "user", "content": "1 plus 1?"}])
    assert opened.tokenizer.decode(ids) == "Question: 1 plus 1?\nAnswer:"


def test_a_run_that_is_renamed_has_its_new_name(recipe, tmp_path):
    assert train(recipe, tmp_path / "old") == 0
    (tmp_path / "old").rename(tmp_path / "new")
    assert read_summary(tmp_path / "new")["name"] == "new" and open_model(tmp_path / "new").name == "new"
