"""Runs, exports and names of the Hub are opened to generate from; a run on a CPU without transformers, with equal text."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from small_models import make_foreign, make_run, spoil

from glyphlm.base.errors import InputError
from glyphlm.base.hub import Pulled
from glyphlm.composition.fuse import fuse
from glyphlm.composition.settings import FusionSettings
from glyphlm.interop.export_neox import export_gpt_neox
from glyphlm.modeling.config import ModelConfig, SubstrateConfig
from glyphlm.modeling.model import GPT
from glyphlm.modeling.substrate import Substrate
from glyphlm.runs.folder import export_model, load_run
from glyphlm.runs.foreign import cached_reader
from glyphlm.runs.generate import TextStream, continue_ids, generate, reader, stream
from glyphlm.runs.opening import open_model
from glyphlm.runs.sampling import Sampling
from glyphlm.runs.where import name_of

WAYS = [Sampling(12), Sampling(12, temperature=0), Sampling(12, top_k=0, top_p=1.0, seed=5), Sampling(12, 1.3, 7, seed=3)]


@pytest.fixture(scope="module")
def run(tokenizer, tmp_path_factory) -> Path:
    return make_run(tmp_path_factory.mktemp("runs") / "mine", tokenizer)


@pytest.fixture(scope="module")
def fused(run, tokenizer, tmp_path_factory) -> Path:
    other, out = make_run(tmp_path_factory.mktemp("runs") / "other", tokenizer, seed=2), tmp_path_factory.mktemp("f") / "moe"
    fuse(FusionSettings([str(run), str(other)], allow_different_substrates=True), out, "glyphlm fuse")
    return out


def written_by_transformers(run: Path, ids: list[int], sampling: Sampling) -> list[int]:
    model, _ = load_run(run)
    how = {"do_sample": False, "temperature": None, "top_k": None, "top_p": None}
    if sampling.temperature:
        how = {"do_sample": True, "temperature": sampling.temperature, "top_k": sampling.top_k, "top_p": sampling.top_p}
    torch.manual_seed(sampling.seed)
    with torch.no_grad():
        return model.generate(torch.tensor([ids]), max_new_tokens=sampling.max_new_tokens, **how)[0, len(ids) :].tolist()


@pytest.mark.parametrize("sampling", WAYS, ids=Sampling.describe)
@pytest.mark.parametrize("kind", ["run", "fused"])
def test_the_ids_drawn_are_those_of_transformers(kind, sampling, request):
    folder = request.getfixturevalue(kind)
    opened = open_model(folder)
    ids = opened.prompt_ids("Hello, мир! ")
    found = continue_ids(opened.model, ids, sampling, end_id=opened.tokenizer.end_id)
    assert found == written_by_transformers(folder, ids, sampling)
    shown = TextStream(opened.tokenizer, ids)
    assert "".join(stream(opened, ids, sampling)) == shown.text(found)[0]


@pytest.mark.parametrize("kind", ["run", "fused"])
def test_a_cache_of_fixed_length_as_on_a_gpu_gives_the_same_logits(kind, request):
    model, tokenizer = load_run(request.getfixturevalue(kind))
    ids_BT = torch.tensor([tokenizer.encode("Hello, мир! ")])
    length = ids_BT.shape[1] + 6
    readers = [reader(model, length), cached_reader(model, length, fixed=True), cached_reader(model, length, fixed=False)]
    with torch.no_grad():
        for _ in range(6):
            logits = [read(ids_BT) for read in readers]
            for others_BV in logits[1:]:
                torch.testing.assert_close(others_BV, logits[0], atol=1e-5, rtol=1e-5)
            ids_BT = logits[0].argmax(-1, keepdim=True)


def test_a_stop_text_ends_a_stream_before_it(run):
    opened = open_model(run)
    ids, sampling = opened.prompt_ids("Hello"), Sampling(30, seed=4)
    whole = "".join(stream(opened, ids, sampling))
    stop = whole[5:7]
    assert "".join(stream(opened, ids, sampling, [stop])) == whole[: whole.index(stop)]


def test_generating_from_a_run_imports_no_transformers(run):
    code = ("import sys; from glyphlm.cli.main import main; "
            f"main(['generate', {str(run)!r}, '--prompt', 'Hello', '--max-new-tokens', '3']); "
            "sys.exit(bool({'transformers', 'torch._dynamo', 'scipy'} & {*sys.modules}))")
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


def test_a_stock_export_and_a_foreign_model_generate(run, tokenizer, tmp_path):
    substrate = Substrate(SubstrateConfig(tokenizer.vocab_size, 16, "learned"), 32)
    torch.nn.init.normal_(substrate.table_VE, generator=torch.Generator().manual_seed(1))
    model = GPT(ModelConfig(32, 2, 4, 64), substrate)
    model.init_weights(1)
    export_model(model, tokenizer, tmp_path / "run")
    export = export_gpt_neox(tmp_path / "run", tmp_path / "neox")
    ours, theirs = (generate(folder, ["Hello"], Sampling(8, temperature=0)) for folder in (tmp_path / "run", export))
    assert ours == theirs
    foreign = make_foreign(tmp_path / "llama", tokenizer)
    assert generate(foreign, ["Hello"], Sampling(4))[0].startswith("Hello")


def test_hf_names_a_run_of_the_hub(run, monkeypatch):
    asked = []
    monkeypatch.setattr("glyphlm.base.hub.pull", lambda name: asked.append(name) or Pulled(run, "me/mine", "abc"))
    assert generate("hf:me/mine@v1", ["Hello"], Sampling(3)) == generate(run, ["Hello"], Sampling(3))
    assert asked == ["hf:me/mine@v1"] and name_of("hf:me/mine@v1") == "mine"


@pytest.mark.parametrize("wrong", ["config", "weights", "tokenizer", "key"])
def test_a_folder_that_does_not_fit_is_refused_as_load_run_refuses_it(tokenizer, tmp_path, wrong):
    run = make_run(tmp_path / "run", tokenizer)
    config = json.loads((run / "config.json").read_text())
    if wrong == "config":
        config["model"]["n_layer"] = 10**9
    if wrong == "key":
        config["quantization_config"] = {}
    if wrong == "tokenizer":
        config["tokenizer_fingerprint"] = "0" * 64
    if wrong == "weights":
        spoil(run, lambda tensors: {name: tensor * float("nan") for name, tensor in tensors.items()})
    (run / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError) as found:
        open_model(run)
    with pytest.raises(InputError) as expected:
        load_run(run)
    assert str(found.value) == str(expected.value)


def test_a_run_of_ours_is_opened_as_torch_modules_with_its_context(run):
    opened = open_model(run)
    assert isinstance(opened.model, GPT) and (opened.name, opened.block_size) == ("mine", 256)
    assert not opened.model.training and not any(p.requires_grad for p in opened.model.parameters())
