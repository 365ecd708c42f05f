"""A run folder is a Hugging Face folder: it loads with and without glyphlm, bit for bit, and says what is wrong with it."""

import copy
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from glyphlm.base.errors import InputError
from glyphlm.modeling.config import HeadConfig
from glyphlm.modeling.fusion import Fusion, FusionConfig
from glyphlm.modeling.heads import CodeHead
from glyphlm.modeling.hf import GlyphLMForCausalLM
from glyphlm.modeling.model import GPT, ModelConfig
from glyphlm.modeling.substrate import Substrate, SubstrateConfig
from glyphlm.runs.folder import export_model, load_run
from glyphlm.substrate.numbering import number_ids

TEXTS = ["Hello, world!", "Привет, мир — ёж", "你好，世界", "👩‍🚀🙂 a\n\tb  c", ""]
SUBSTRATES = {
    "frozen": {"kind": "glyph"},
    "trainable": {"kind": "learned", "n_embed": 32, "trainable": True},
    "rule": {"kind": "token_bits"},
    "affine": {"kind": "affine_bits", "shuffle_seed": 3, "lift": "orthogonal", "lift_seed": 2, "seed": 5},
}
HEADS = {  # on the frozen table
    "tied": HeadConfig("tied"),
    "code": HeadConfig("code", width=24, order="shuffled"),
}
FUSIONS = {  # of the first two, whose substrates differ
    "fused": FusionConfig("mean_logits"),
    "posterior": FusionConfig("posterior", temperature=20.0),
    "sparse": FusionConfig("gate", top_k=1, route_after=4),
}
RUNS = [*SUBSTRATES, *HEADS, *FUSIONS]
GREEDY = {"do_sample": False, "temperature": None, "top_k": None, "top_p": None}
# Opens a run as a stranger does, and writes what it finds to a file.
STRANGER = """
import json, sys
way, run, others, again, found, texts = *sys.argv[1:3], json.loads(sys.argv[3]), *sys.argv[4:6], json.loads(sys.argv[6])
if way == "remote code":
    sys.modules["glyphlm"] = None  # as where it is not installed
if way == "glyphlm first":
    import glyphlm
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
if way == "glyphlm second":
    import glyphlm
tokenizer = AutoTokenizer.from_pretrained(run)
model = AutoModelForCausalLM.from_pretrained(run, trust_remote_code=way == "remote code").eval()
ids_BT = torch.arange(20)[None] * 37
with torch.no_grad():
    logits = model(ids_BT).logits
    others = {name: AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=way == "remote code").eval()
              for name, folder in others.items()}
    other_logits = {name: other(ids_BT).logits[0].tolist() for name, other in others.items()}
sampled, copied = {}, {}
how = {"do_sample": True, "top_k": 50, "top_p": 0.95, "max_new_tokens": 8, "min_new_tokens": 8}
for name, one in {"frozen": model, "fused": others["fused"]}.items() if way == "remote code" else ():
    sampled[name] = one.generate(ids_BT, **how)[0].tolist()
    one.save_pretrained(again + name)
    copied[name] = AutoModelForCausalLM.from_pretrained(again + name, trust_remote_code=True)(ids_BT).logits[0].tolist()
report = {
    "module": type(model).__module__.split(".")[0],
    "logits": logits[0].tolist(),
    "others": other_logits,
    "copied": copied,
    "sampled": sampled,
    "ids": [tokenizer(text)["input_ids"] for text in texts],
    "texts": [tokenizer.decode(tokenizer(text)["input_ids"]) for text in texts],
    "specials": [tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id],
    "trained": sorted(name for name, p in model.named_parameters() if p.requires_grad),
}
with open(found, "w") as file:
    json.dump(report, file)
"""
OTHERS = ["affine", "tied", "code", "fused"]
WAYS = ["remote code", "glyphlm first", "glyphlm second"]


@pytest.fixture(scope="module")
def runs(tokenizer, tmp_path_factory) -> dict[str, SimpleNamespace]:
    """A run folder of each substrate, next to the model in it; every tensor is random."""
    found = {}
    for seed, (name, options) in enumerate((SUBSTRATES | dict.fromkeys(HEADS, SUBSTRATES["frozen"])).items()):
        substrate = Substrate(SubstrateConfig(**{"vocab_size": tokenizer.vocab_size, "n_embed": 16} | options), 32)
        head = HEADS.get(name, HeadConfig())
        model = GPT(ModelConfig(32, 2, 4, 64, head_bias=True, head=head), substrate).eval()
        generator = torch.Generator().manual_seed(seed)
        for tensor in model.state_dict().values():
            random = torch.randn(tensor.shape, generator=generator)
            tensor.copy_(random / 3 if tensor.is_floating_point() else random > 0)
        if isinstance(model.head, CodeHead):
            number_ids(model.head, substrate, torch.zeros(tokenizer.vocab_size))
        found[name] = model
    for name, config in FUSIONS.items():
        found[name] = Fusion(config, copy.deepcopy([found["frozen"], found["trainable"]])).eval()
        for seed, gate in enumerate(getattr(found[name], "gates", [])):
            gate.weight.data = torch.randn(1, 32, generator=torch.Generator().manual_seed(seed))
    for name, model in found.items():
        folder = tmp_path_factory.mktemp(name)
        export_model(model, tokenizer, folder)
        found[name] = SimpleNamespace(model=model, folder=folder)
    return found


@pytest.fixture(scope="module", params=["frozen", *HEADS, *FUSIONS])
def loaded(runs, request) -> GlyphLMForCausalLM:
    return load_run(runs[request.param].folder)[0]


@pytest.fixture(scope="module")
def strangers(runs, tmp_path_factory) -> dict[str, dict]:
    """What an interpreter finds in the folder with the frozen table, for each way of opening it.

    This one has imported glyphlm before transformers (conftest.py), so it is the second way; the others are fresh.
    """
    folder = tmp_path_factory.mktemp("strangers")
    env = os.environ | {"HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(folder / "modules"), "OMP_NUM_THREADS": "1"}
    started = []
    for way in WAYS:
        others = {name: str(runs[name].folder) for name in OTHERS}
        given = [way, runs["frozen"].folder, json.dumps(others), folder / f"copy {way}", folder / f"{way}.json"]
        arguments = ["-c", *map(str, given), json.dumps(TEXTS)]
        if way == "glyphlm first":
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(sys, "argv", arguments)
                exec(STRANGER, {})
        else:
            command = [sys.executable, "-c", STRANGER, *arguments[1:]]
            started.append(subprocess.Popen(command, cwd=folder, env=env, stderr=subprocess.PIPE, text=True))
    errors = [process.communicate(timeout=120)[1] for process in started]
    assert [process.returncode for process in started] == [0, 0], errors
    return {way: json.loads((folder / f"{way}.json").read_text()) for way in WAYS}


def some_ids(batch: int = 1, length: int = 12) -> Tensor:
    return torch.randint(300, 1000, (batch, length), generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("name", RUNS)
def test_model_comes_back_bit_for_bit(runs, tokenizer, name):
    model, read_tokenizer = load_run(runs[name].folder)
    state = runs[name].model.state_dict()
    assert model.gpt.state_dict().keys() == state.keys()
    assert all(torch.equal(tensor, state[key]) for key, tensor in model.gpt.state_dict().items())
    with torch.no_grad():
        assert torch.equal(model(some_ids(2)).logits, runs[name].model(some_ids(2)))
    assert read_tokenizer.fingerprint == tokenizer.fingerprint
    assert model.gpt.config == runs[name].model.config
    assert model.gpt.substrate.config == runs[name].model.substrate.config


@pytest.mark.parametrize("name", RUNS)
def test_what_was_frozen_stays_frozen(runs, name):
    model = GlyphLMForCausalLM.from_pretrained(runs[name].folder).train()
    model(some_ids(), labels=some_ids()).loss.backward()
    trained = {key for key, p in model.gpt.named_parameters() if p.requires_grad and p.grad is not None}
    assert trained == {key for key, p in runs[name].model.named_parameters()}
    assert ("substrate.table_VE" in trained) == (name == "trainable")


@pytest.mark.parametrize("way", WAYS)
def test_a_folder_opens_in_every_way(strangers, runs, tokenizer, way):
    found = strangers[way]
    assert found["module"] == ("transformers_modules" if way == "remote code" else "glyphlm")
    with torch.no_grad():
        for name, logits in {"frozen": found["logits"], **found["others"]}.items():
            expected = runs[name].model(torch.arange(20)[None] * 37)[0]
            torch.testing.assert_close(torch.tensor(logits), expected, atol=1e-5, rtol=1e-5)
    assert found["ids"] == [tokenizer.encode(text) for text in TEXTS]
    assert found["texts"] == TEXTS
    assert found["specials"] == [tokenizer.pad_id, tokenizer.end_id, tokenizer.end_id]
    assert found["trained"] == sorted(f"gpt.{name}" for name, _ in runs["frozen"].model.named_parameters())


def test_without_glyphlm_it_also_generates_and_is_saved_again(strangers):
    found = strangers["remote code"]
    for sampled in found["sampled"].values():
        assert sampled[:20] == [i * 37 for i in range(20)] and len(sampled) == 28
    assert found["copied"] == {"frozen": found["logits"], "fused": found["others"]["fused"]}


def test_all_ways_of_opening_give_the_same_logits(strangers):
    remote, first, second = (strangers[way] for way in WAYS)
    assert remote["logits"] == first["logits"] == second["logits"]
    assert remote["others"] == first["others"] == second["others"]


def test_given_positions_count_by_their_distance(loaded):
    places_T = torch.arange(12)
    with torch.no_grad():
        given = (places_T, places_T + 5, places_T * 2)
        plain, moved, stretched = (loaded(some_ids(), position_ids=p[None]).logits for p in given)
    torch.testing.assert_close(plain, loaded(some_ids()).logits.detach())
    torch.testing.assert_close(moved, plain, atol=1e-4, rtol=1e-4)
    assert (stretched - plain).abs().max() > 0.1


def test_beam_search_finds_the_likeliest_pair_of_tokens(loaded):
    ids_BT = some_ids()
    found_T = loaded.generate(
        ids_BT, attention_mask=torch.ones_like(ids_BT), num_beams=64, max_new_tokens=2, min_new_tokens=2, **GREEDY
    )[0, -2:]
    with torch.no_grad():
        first_V = loaded(ids_BT).logits[0, -1].log_softmax(-1)
        every_BT = torch.cat([ids_BT.expand(len(first_V), -1), torch.arange(len(first_V))[:, None]], 1)
        pairs_VV = first_V[:, None] + loaded(every_BT, logits_to_keep=1).logits[:, 0].log_softmax(-1)
    assert found_T.tolist() == [int(i) for i in torch.unravel_index(pairs_VV.argmax(), pairs_VV.shape)]


def test_labels_give_the_shifted_cross_entropy(loaded):
    ids_BT, labels_BT = some_ids(2), some_ids(2)
    labels_BT[0, :4] = -100
    with torch.no_grad():
        out = loaded(ids_BT, labels=labels_BT)
        expected = F.cross_entropy(out.logits[:, :-1].flatten(0, 1), labels_BT[:, 1:].flatten(), ignore_index=-100)
    torch.testing.assert_close(out.loss, expected)
    assert loaded(ids_BT).loss is None


def test_trainer_has_to_average_accumulated_batches_itself(loaded):
    assert loaded.accepts_loss_kwargs is False


def test_only_the_last_logits_are_computed_where_asked(loaded):
    with torch.no_grad():
        full, kept = loaded(some_ids(2)).logits, loaded(some_ids(2), logits_to_keep=3).logits
    assert kept.shape[1] == 3
    torch.testing.assert_close(kept, full[:, -3:], atol=1e-5, rtol=1e-5)


def test_saved_model_loads_again(loaded, tmp_path):
    loaded.save_pretrained(tmp_path)
    again = GlyphLMForCausalLM.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        assert torch.equal(again(some_ids()).logits, loaded(some_ids()).logits)
    assert not again.gpt.substrate.table_VE.requires_grad  # of a fused model, that of the first expert


@pytest.mark.parametrize("again", [False, True])
def test_a_rule_keeps_its_integers_in_bfloat16_and_when_saved_again(runs, tmp_path, again):
    folder, expected = runs["affine"].folder, runs["affine"].model.substrate
    if again:
        GlyphLMForCausalLM.from_pretrained(folder).save_pretrained(tmp_path)
    found = GlyphLMForCausalLM.from_pretrained(tmp_path if again else folder, dtype=torch.bfloat16).gpt.substrate
    assert found.config == expected.config and found.lift_ED.dtype == torch.bfloat16
    for name in ("shuffled_V", "affine_NE", "offset_E"):
        assert torch.equal(getattr(found, name), getattr(expected, name)) and getattr(expected, name).any()


def test_exporting_again_replaces_the_folder_and_leaves_nothing_behind(runs, tokenizer, tmp_path):
    for name in ("trainable", "frozen"):
        export_model(runs[name].model, tokenizer, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in runs["frozen"].folder.iterdir()}
    with torch.no_grad():
        assert torch.equal(load_run(tmp_path)[0](some_ids()).logits, runs["frozen"].model(some_ids()))


def change_tokenizer(run: Path) -> None:
    data = json.loads((run / "tokenizer.json").read_text(encoding="utf-8"))
    vocab = data["model"]["vocab"]
    vocab["<0x41>"], vocab["<0x42>"] = vocab["<0x42>"], vocab["<0x41>"]
    (run / "tokenizer.json").write_text(json.dumps(data), encoding="utf-8")


def change_tensors(run: Path, change) -> None:
    tensors = safetensors.torch.load_file(run / "model.safetensors")
    change(tensors)
    safetensors.torch.save_file(tensors, run / "model.safetensors", metadata={"format": "pt"})


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def change_config(run: Path, **parts) -> None:
    """Keys of a part of config.json, or of the whole."""
    config = json.loads((run / "config.json").read_text())
    for name, value in parts.items():
        config[name] = config[name] | value if isinstance(value, dict) and name in config else value
    (run / "config.json").write_text(json.dumps(config))


def rename_blocks(tensors: dict[str, Tensor]) -> None:
    for name in [name for name in tensors if ".blocks." in name]:
        tensors[name.replace(".blocks.", ".layers.")] = tensors.pop(name)


def pickle_weights(run: Path) -> None:
    (run / "model.safetensors").rename(run / "pytorch_model.bin")


NAN = float("nan")
DAMAGES = {  # what else transformers would load, filled in with random values or computed otherwise
    "no tensor": (lambda run: change_tensors(run, lambda t: t.pop("gpt.norm.weight")), "missing gpt.norm.weight"),
    "no table": (lambda run: change_tensors(run, lambda t: t.pop("gpt.substrate.table_VE")), "substrate.table_VE"),
    "one tensor more": (lambda run: change_tensors(run, lambda t: t.update(other=torch.ones(2))), "unexpected other"),
    "another shape": (lambda run: change_tensors(run, lambda t: t.update({"gpt.norm.weight": torch.ones(7)})), "mismatch"),
    "other names": (lambda run: change_tensors(run, rename_blocks), "2 blocks.*hold 0"),
    "no numbers": (lambda run: change_tensors(run, lambda t: t["gpt.head.weight"][3].fill_(NAN)), "gpt.head.weight .*NaN"),
    "infinity": (lambda run: change_tensors(run, lambda t: t["gpt.norm.bias"].fill_(-torch.inf)), "norm.bias .*NaN"),
    "activation": (lambda run: change_config(run, model={"activation": "x"}), "activation 'x'.*gelu, gelu_tanh"),
    "lift": (lambda run: change_config(run, substrate={"lift": 5}), "lift 5.*tile"),
    "depth": (lambda run: change_config(run, model={"n_layer": 10**4}), "10000 blocks.*hold 2"),
    "vocabulary": (lambda run: change_config(run, substrate={"vocab_size": 10**12}), "mismatch"),
    "key": (lambda run: change_config(run, model={"rope": 5}), "unknown keys of ModelConfig: rope"),
    "key of the whole": (lambda run: change_config(run, models={}), "unknown keys: models"),
    "quantization": (lambda run: change_config(run, quantization_config={"quant_method": "fp8"}), "quantization_config"),
    "kernel": (lambda run: change_config(run, attn_implementation="kernels-community/some"), "kernels-community.*sdpa"),
    "fusion beside": (lambda run: change_config(run, fusion={"method": "head"}), "beside experts and fusion"),
    "no size": (lambda run: change_config(run, substrate=7), "7"),
    "pickled weights": (pickle_weights, "model.safetensors"),
    "no weights": (lambda run: (run / "model.safetensors").unlink(), "model.safetensors"),
    "half the weights": (lambda run: cut(run / "model.safetensors"), "cannot be loaded|deserializing"),
}
RUN_DAMAGES = DAMAGES | {
    "another tokenizer": (change_tokenizer, "trained with tokenizer .* put the right one back"),
    "no tokenizer": (lambda run: (run / "tokenizer.json").unlink(), "tokenizer.json does not exist"),
    "half the config": (lambda run: cut(run / "config.json"), "config.json is damaged"),
    "no config": (lambda run: (run / "config.json").unlink(), "not a finished run.*glyphlm train"),
    "a list": (lambda run: (run / "config.json").write_text("[]"), "config.json is damaged"),
    "another model": (lambda run: change_config(run, model_type="llama"), "model_type 'llama'"),
    "adapters": (lambda run: (run / "adapter_config.json").write_text("{}"), "adapter_config.json.*folder adapter"),
}


def test_a_numbering_that_gives_two_ids_one_number_is_refused(runs, tmp_path):
    run = shutil.copytree(runs["code"].folder, tmp_path / "run")
    change_tensors(run, lambda tensors: tensors["gpt.head.place_V"][:2].fill_(7))
    with pytest.raises(InputError, match="head.place_V does not hold each number from 0 to V - 1 once"):
        load_run(run)


@pytest.mark.parametrize("damage", RUN_DAMAGES)
def test_damaged_run_is_refused_by_name(runs, tmp_path, damage):
    run = shutil.copytree(runs["frozen"].folder, tmp_path / "run")
    act, message = RUN_DAMAGES[damage]
    act(run)
    with pytest.raises(InputError, match=message) as refused:
        load_run(run)
    assert str(run) in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize("damage", DAMAGES)
def test_transformers_refuse_a_damaged_run_too(runs, tmp_path, damage):
    run = shutil.copytree(runs["frozen"].folder, tmp_path / "run")
    act, message = DAMAGES[damage]
    act(run)
    with pytest.raises((ValueError, RuntimeError, OSError, safetensors.SafetensorError), match=message):
        AutoModelForCausalLM.from_pretrained(run)


FUSED_DAMAGES = {
    "sharing with a later one": (lambda config: config["experts"][0].update(substrate=1), "earlier"),
    "sharing with none": (lambda config: config["experts"][1].update(substrate=-1), "earlier"),
    "no expert": (lambda config: config.update(experts=None), "list of experts"),
    "no model": (lambda config: config["experts"][1].pop("model"), "expert 1"),
    "method": (lambda config: config["fusion"].update(method="vote"), "method 'vote'.*mean_logits"),
    "weights": (lambda config: config["fusion"].update(weights=[1.0]), "2 experts"),
    "depth": (lambda config: config["experts"][1]["model"].update(n_layer=10**4), "10002 blocks.*hold 4"),
    "no fusion": (lambda config: config.pop("fusion"), "fusion"),
}


@pytest.mark.parametrize("damage", FUSED_DAMAGES)
def test_damaged_fusion_is_refused_by_name(runs, tmp_path, damage):
    run = shutil.copytree(runs["fused"].folder, tmp_path / "run")
    act, message = FUSED_DAMAGES[damage]
    config = json.loads((run / "config.json").read_text())
    act(config)
    (run / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=message):
        load_run(run)


def test_what_stands_before_a_text_is_one_fact(runs, tokenizer):
    """In training a document stands after the token that ended the one before; no file says anything else."""
    for name in ("config.json", "generation_config.json"):
        found = json.loads((runs["fused"].folder / name).read_text())
        assert found["bos_token_id"] == found["eos_token_id"] == tokenizer.end_id
    opened = AutoTokenizer.from_pretrained(runs["fused"].folder)
    assert opened.bos_token == opened.eos_token == "</s>" and opened("a").input_ids == tokenizer.encode("a")
    model, read_tokenizer = load_run(runs["fused"].folder)
    assert read_tokenizer.start_id == read_tokenizer.end_id == model.generation_config.bos_token_id


def test_a_run_of_version_0_1_opens(runs, tokenizer, tmp_path):
    """Version 0.1 wrote fewer files of code, and a bos token that training never saw."""
    run, config = shutil.copytree(runs["frozen"].folder, tmp_path / "run"), runs["frozen"].model.config
    for name in ("model", "mixing", "together", "fusion", "hf"):
        (run / f"{name}.py").write_text("raise AssertionError('code of the folder is run')")
    for name in ("decoding_step", "substrate"):
        (run / f"{name}.py").unlink()
    substrate = runs["frozen"].model.substrate.config
    ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    (run / "config.json").write_text(json.dumps({
        "architectures": ["GlyphLMForCausalLM"],
        "auto_map": {"AutoConfig": "hf.GlyphLMConfig", "AutoModelForCausalLM": "hf.GlyphLMForCausalLM"},
        "dtype": "float32",
        "model": {"activation": "gelu", "block_size": config.block_size, "d_model": config.d_model, "head_bias": True,
                  "n_head": config.n_head, "n_layer": config.n_layer, "norm_eps": 1e-05, "rope_base": 10000.0},
        "model_type": "glyphlm",
        "substrate": {"fingerprint": "", "kind": "glyph", "lift": "repeat_interleave", "lift_seed": 1,
                      "n_embed": substrate.n_embed, "scale": "l2", "seed": 1, "shuffle_seed": None, "trainable": False,
                      "vocab_size": substrate.vocab_size},
        "tie_word_embeddings": False,
        "tokenizer_fingerprint": tokenizer.fingerprint,
        "transformers_version": "5.23.0",
        **ids,
    }))
    sampling = {"do_sample": True, "max_new_tokens": 100, "temperature": 0.8, "top_k": 50, "top_p": 0.95}
    (run / "generation_config.json").write_text(json.dumps(sampling | ids | {"transformers_version": "5.23.0"}))
    tokenizer.save(run)  # which names <s>
    expected = runs["frozen"].model(some_ids())
    model, read_tokenizer = load_run(run)
    assert torch.equal(model(some_ids()).logits, expected)
    assert (read_tokenizer.start_id, model.generation_config.bos_token_id) == (tokenizer.end_id, tokenizer.end_id)
    assert torch.equal(AutoModelForCausalLM.from_pretrained(run).eval()(some_ids()).logits, expected)
