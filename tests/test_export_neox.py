"""An export opens in plain transformers, without glyphlm, and says and computes the same."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GPTNeoXForCausalLM

from glyphlm.base.errors import InputError
from glyphlm.interop.export_neox import export_gpt_neox
from glyphlm.modeling.model import GPT, ModelConfig
from glyphlm.modeling.substrate import Substrate, SubstrateConfig
from glyphlm.runs.folder import export_model, load_run

SUBSTRATES = {
    "table": {"kind": "glyph", "n_embed": 16},
    "tiled": {"kind": "random_bits", "n_embed": 16, "lift": "tile"},
    "trainable": {"kind": "learned", "n_embed": 32, "trainable": True},
    "rule": {"kind": "affine_bits", "n_embed": 16, "shuffle_seed": 3, "lift": "orthogonal"},
}
TEXTS = ["Hello, world!", "Привет, мир — ёж", "你好，世界", "👩‍🚀🙂 a\n\tb  c", ""]
GREEDY = {"do_sample": False, "temperature": None, "top_k": None, "top_p": None, "max_new_tokens": 16, "min_new_tokens": 16}


def make_run(folder: Path, tokenizer, substrate: dict, seed: int = 1, **shape) -> Path:
    """A run of random weights."""
    config = SubstrateConfig(tokenizer.vocab_size, **substrate)
    model = GPT(ModelConfig(**{"d_model": 32, "n_layer": 2, "n_head": 4, "block_size": 64} | shape), Substrate(config, 32))
    dice = torch.Generator().manual_seed(seed)
    for tensor in model.state_dict().values():
        random = torch.randn(tensor.shape, generator=dice)
        tensor.copy_(random / 3 if tensor.is_floating_point() else random > 0)
    if config.shuffle_seed is not None:
        model.substrate.shuffled_V.copy_(torch.randperm(config.vocab_size, generator=dice))
    export_model(model, tokenizer, folder)
    return folder


@pytest.fixture(scope="module")
def exports(tokenizer, tmp_path_factory) -> dict[str, tuple[Path, SimpleNamespace]]:
    """The run, and what transformers find in its export, for each substrate."""
    folder, runs = tmp_path_factory.mktemp("exports"), {}
    for number, (name, substrate) in enumerate(SUBSTRATES.items()):
        shape = {"activation": "gelu_tanh", "rope_base": 500.0, "norm_eps": 1e-3} if name == "tiled" else {}
        runs[name] = make_run(folder / name, tokenizer, substrate, number, **shape)
    exported = {name: export_gpt_neox(run, folder / f"{name}-neox") for name, run in runs.items()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "glyphlm", None)  # nothing more of it can be imported
        found = {}
        for name, path in exported.items():
            model, report = AutoModelForCausalLM.from_pretrained(path, output_loading_info=True)
            found[name] = SimpleNamespace(model=model.eval(), report=report, tokenizer=AutoTokenizer.from_pretrained(path))
    return {name: (run, found[name]) for name, run in runs.items()}


@pytest.mark.parametrize("name", SUBSTRATES)
def test_logits_and_greedy_tokens_are_those_of_the_plain_class(exports, name):
    run, found = exports[name]
    model, _ = load_run(run)
    ids_BT = torch.arange(40)[None] * 17
    with torch.no_grad():
        torch.testing.assert_close(found.model(ids_BT).logits, model(ids_BT).logits, atol=1e-4, rtol=1e-4)
        ours_BT, theirs_BT = (one.generate(ids_BT, attention_mask=torch.ones_like(ids_BT), **GREEDY)
                              for one in (model, found.model))
    assert torch.equal(ours_BT, theirs_BT)
    assert type(found.model) is GPTNeoXForCausalLM and not any(found.report.values())


@pytest.mark.parametrize("name", SUBSTRATES)
def test_the_tokenizer_is_the_same_without_glyphlm(exports, tokenizer, name):
    plain = exports[name][1].tokenizer
    assert type(plain).__module__.startswith("transformers.")
    ids = [plain(text)["input_ids"] for text in TEXTS]
    assert ids == [tokenizer.encode(text) for text in TEXTS] and [*map(plain.decode, ids)] == TEXTS
    specials = [plain.pad_token_id, plain.bos_token_id, plain.eos_token_id]
    assert specials == [tokenizer.pad_id, tokenizer.end_id, tokenizer.end_id]  # as in training


def test_the_folder_holds_no_code_and_the_rotary_settings_of_older_readers(exports):
    run, _ = exports["tiled"]
    out = run.with_name("tiled-neox")
    config = json.loads((out / "config.json").read_text())
    assert "auto_map" not in config and not list(out.glob("*.py"))
    assert (config["rotary_pct"], config["rotary_emb_base"], config["use_parallel_residual"]) == (1.0, 500.0, False)
    assert config["hidden_act"] == "gelu_pytorch_tanh"


def test_the_card_is_copied_and_asks_for_no_remote_code(tokenizer, tmp_path):
    run = make_run(tmp_path / "run", tokenizer, SUBSTRATES["table"])
    (run / "results.jsonl").write_text('{"task": "arc", "metric": "accuracy", "value": 0.5}\n')
    (run / "summary.json").write_text(json.dumps({
        "name": "mine", "command": "glyphlm train", "tokens": 5, "bits_per_byte": {"validation": None},
        "substrate": {"kind": "glyph", "trainable": False, "n_embed": 16, "fingerprint": "f00d"},
        "tokenizer": {"fingerprint": "beef"}, "parameters": {"trained": 1, "frozen": 2},
    }))
    text = (export_gpt_neox(run, tmp_path / "out") / "README.md").read_text(encoding="utf-8")
    assert "| arc | accuracy | 0.5 |" in text and "trust_remote_code" not in text


def test_exporting_again_finds_it_done_and_another_run_is_refused(exports, tokenizer, tmp_path, capsys):
    run, _ = exports["table"]
    export_gpt_neox(run, run.with_name("table-neox"))
    assert "is done already" in capsys.readouterr().err
    with pytest.raises(InputError, match="already holds other work"):
        export_gpt_neox(make_run(tmp_path / "other", tokenizer, SUBSTRATES["table"], 9), run.with_name("table-neox"))


def with_head_bias(folder: Path, tokenizer, change) -> Path:
    """A run whose head bias is what `change` makes of the model."""
    run = make_run(folder, tokenizer, SUBSTRATES["table"], head_bias=True)
    model, _ = load_run(run)
    with torch.no_grad():
        model.gpt.head.bias.copy_(change(model.gpt))
    export_model(model.gpt, tokenizer, run)
    return run


def test_a_head_bias_that_no_other_weight_can_carry_is_refused(tokenizer, tmp_path):
    run = with_head_bias(tmp_path / "run", tokenizer, lambda model: torch.randn(len(model.head.bias)))
    for fold in (False, True):
        with pytest.raises(InputError, match=r"head with bias.*cannot be folded .*would be lost"):
            export_gpt_neox(run, tmp_path / "out", fold)
    assert not (tmp_path / "out").exists()


def test_a_head_bias_that_the_norm_can_carry_is_folded_when_asked(tokenizer, tmp_path):
    run = with_head_bias(tmp_path / "run", tokenizer, lambda model: model.head.weight @ torch.randn(32))
    with pytest.raises(InputError, match="add --fold-head-bias"):
        export_gpt_neox(run, tmp_path / "out")
    assert_same_logits(run, export_gpt_neox(run, tmp_path / "out", fold_head_bias=True))


def test_a_head_bias_of_zeros_is_left_out(tokenizer, tmp_path):
    run = with_head_bias(tmp_path / "run", tokenizer, lambda model: torch.zeros_like(model.head.bias))
    assert_same_logits(run, export_gpt_neox(run, tmp_path / "out"))


def assert_same_logits(run: Path, out: Path) -> None:
    from transformers import AutoModelForCausalLM

    ids_BT = torch.arange(40)[None] * 17
    models = load_run(run)[0], AutoModelForCausalLM.from_pretrained(out)
    with torch.no_grad():
        expected, found = (model.eval()(ids_BT).logits for model in models)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_a_folder_without_weights_is_refused(tmp_path):
    with pytest.raises(InputError, match="holds no model.safetensors"):
        export_gpt_neox(tmp_path, tmp_path / "out")
