"""A run as one object in Python: from a recipe, from objects, from a folder; saved, loaded, generated from, evaluated."""

from pathlib import Path

import pytest
import torch

import glyphlm
from glyphlm.base.errors import InputError
from glyphlm.data.batches import validation_batches

SMALL = {"d_model": 32, "n_layer": 1, "n_head": 2, "block_size": 32}
TRAIN = {"steps": 4, "batch_tokens": 128, "micro_batch_tokens": 128, "validate_every": 4, "device": "cpu",
         "precision": "fp32"}


@pytest.fixture(scope="module")
def recipe(tokenizer_folder, substrates, shards) -> dict:
    return {"tokenizer": {"path": str(tokenizer_folder)}, "substrate": {"path": str(substrates["token_bits"])},
            "model": SMALL, "data": [{"shards": str(shards)}], "train": TRAIN}


@pytest.fixture(scope="module")
def run(recipe, tmp_path_factory) -> glyphlm.Run:
    return glyphlm.train_recipe(recipe, tmp_path_factory.mktemp("runs") / "mine")


def test_a_trained_recipe_generates_and_resumes(run, recipe):
    text = run.generate("Hello", max_new_tokens=5)
    assert isinstance(text, str) and text.startswith("Hello")
    assert run.generate(["Hello", "мир"], max_new_tokens=5)[0] == text
    assert text == "Hello" + "".join(run.stream("Hello", max_new_tokens=5))
    again = glyphlm.train_recipe(recipe, run.folder)
    assert again.generate("Hello", glyphlm.Sampling(5)) == text and again.summary["steps"] == 4


def test_overrides_and_stages(recipe, tmp_path):
    run = glyphlm.train_recipe(recipe, tmp_path / "short", overrides={"train.steps": 2})
    assert run.summary["steps"] == 2 and "overrides={'train.steps': 2}" in run.summary["command"]
    stages = {"stages": [{"layers": 1, "steps": 2}, {"layers": 1, "steps": 2}]}
    grown = glyphlm.train_recipe(recipe | stages, tmp_path / "grown")
    assert grown.folder.name == "stage-2" and len(grown.model.blocks) == 2


def test_it_is_evaluated_and_keeps_the_rows(run, tmp_path):
    (tmp_path / "held.txt").write_text("A text that was held out.")
    found = run.evaluate([f"bpb={tmp_path / 'held.txt'}"])
    assert found.rows[0].metric == "bits_per_byte" and (run.folder / "results.jsonl").is_file()


def test_a_copy_is_a_run_without_checkpoints(run, tmp_path):
    copy = run.save(tmp_path / "copy")
    assert (run.folder / "state").is_dir() and not (copy.folder / "state").exists()
    assert copy.name == "copy" and copy.generate("Hello", max_new_tokens=4) == run.generate("Hello", max_new_tokens=4)
    with pytest.raises(InputError, match="not empty"):
        run.save(copy.folder)


def test_load_run_gives_the_run_and_still_a_pair(run):
    loaded = glyphlm.load_run(run.folder)
    model, tokenizer = loaded
    assert type(model).__name__ == "GlyphLMForCausalLM" and tokenizer.fingerprint == run.tokenizer.fingerprint
    with pytest.raises(InputError, match="finished run"):
        glyphlm.load_run(run.folder / "nowhere")


def test_it_is_pushed_and_exported(run, tmp_path, monkeypatch):
    pushed = []
    monkeypatch.setattr("glyphlm.base.hub.push", lambda *given: pushed.append(given) or "https://hub/me/mine")
    assert run.push("me/mine") == "https://hub/me/mine" and pushed == [(run.folder, "me/mine", False)]
    assert glyphlm.load_run(run.export(tmp_path / "neox")).generate("Hello", max_new_tokens=3).startswith("Hello")
    with pytest.raises(InputError, match="gpt_neox, gguf"):
        run.export(tmp_path / "x", to="onnx")


@pytest.mark.parametrize("option", [{"max_tokens": 3}, {"temperature": -1}])
def test_wrong_options_are_refused(run, option):
    with pytest.raises(InputError, match=next(iter(option))):
        run.generate("Hello", **option)


def test_training_of_objects_ends_in_a_run(tokenizer, shards, tmp_path):
    text, held_out = glyphlm.TokenText(shards, "train"), glyphlm.TokenText(shards, "validation")
    substrate = glyphlm.Substrate(glyphlm.SubstrateConfig(tokenizer.vocab_size, 16, "learned", trainable=True), 32)
    model = glyphlm.GPT(glyphlm.ModelConfig(**SMALL), substrate)
    model.init_weights(1)
    run = glyphlm.train(
        model, glyphlm.Batches([text], [1.0], 32, 4, seed=1), glyphlm.TrainSettings(**TRAIN), tmp_path / "run",
        lambda: validation_batches([held_out], 32, 4, 1024), tokenizer=tokenizer,
    )
    loaded = glyphlm.load_run(tmp_path / "run")
    assert run.state.step == loaded.summary["steps"] == 4
    assert run.generate("Hello", max_new_tokens=5) == loaded.generate("Hello", max_new_tokens=5)
    assert loaded.summary["bits_per_byte"]["validation"] > 0 and (loaded.folder / "README.md").is_file()
    assert torch.equal(loaded.model.head.weight, model.head.weight)


def test_dir_shows_the_api_and_help_an_example():
    assert {*glyphlm.__all__} <= {*dir(glyphlm)} and not {"importlib", "Any", "wrapt"} & {*dir(glyphlm)}
    assert "load_run" in glyphlm.__doc__ and glyphlm.__version__
    assert Path(glyphlm.__file__).with_name("py.typed").exists()
