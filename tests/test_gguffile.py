"""A GGUF file holds the model and its vocabulary; llama.cpp, where there is one, gives the same ids and tokens."""

import json
import os
import subprocess
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from test_exporting import GREEDY, SUBSTRATES, make_run

from glyphlm.base.errors import InputError
from glyphlm.interop.gguf import export_gguf
from glyphlm.runs.folder import load_run

TEXTS = ["Hello, world!", "Привет, мир — ёж", "你好，世界", "👩‍🚀🙂 a\n\tb  c", "\u2581 a\u2581b", "nul\0x", "<s> <0x41>",
         " the  end "]
# Runs a file with llama-cpp-python and writes what it finds.
LLAMA = """
import json, sys
import llama_cpp
import numpy as np
file, out, texts, ids, steps = sys.argv[1], sys.argv[2], *map(json.loads, sys.argv[3:])
model = llama_cpp.Llama(file, n_ctx=128, verbose=False, n_threads=1, logits_all=True)
found = {"ids": [model.tokenize(text.encode(), add_bos=False, special=False) for text in texts]}
found["texts"] = [model.detokenize(some).decode() for some in found["ids"]]
for _ in range(steps + 1):
    model.reset()
    model.eval(ids)
    logits = np.array(model.scores[len(ids) - 1])
    found.setdefault("logits", logits.tolist())
    logits[model.token_eos()] = -np.inf
    ids.append(int(logits.argmax()))
found["greedy"] = ids[:-1]
json.dump(found, open(out, "w"))
"""


@pytest.fixture(scope="module")
def run(tokenizer, tmp_path_factory) -> Path:
    return make_run(tmp_path_factory.mktemp("gguf") / "mine", tokenizer, SUBSTRATES["rule"], activation="gelu_tanh")


@pytest.mark.parametrize(("quantize", "error"), [("f32", 0), ("f16", 1e-3), ("q8_0", 2e-2)])
def test_the_file_holds_the_model(run, tmp_path, quantize, error):
    model = load_run(run)[0].gpt
    file = export_gguf(run, tmp_path / "out", quantize)
    assert file.name == f"mine-{quantize}.gguf"
    reader = gguf.GGUFReader(file)
    found = {tensor.name: gguf.quants.dequantize(tensor.data, tensor.tensor_type) for tensor in reader.tensors}
    with torch.no_grad():
        expected = {
            "token_embd.weight": model.substrate(torch.arange(model.vocab_size)[None])[0],
            "output.weight": model.head.weight,
            "output_norm.bias": model.norm.bias,
            "blk.1.attn_qkv.weight": model.blocks[1].attention.qkv.weight,
            "blk.0.attn_output.weight": model.blocks[0].attention.out.weight,
            "blk.0.ffn_up.weight": model.blocks[0].mlp.up.weight,
            "blk.1.ffn_down.bias": model.blocks[1].mlp.down.bias,
            "blk.1.attn_norm.weight": model.blocks[1].attention_norm.weight,
            "blk.0.ffn_norm.weight": model.blocks[0].mlp_norm.weight,
            "blk.0.attn_qkv.bias": torch.zeros(96),
        }
    assert len(found) == 4 + 12 * model.config.n_layer
    for name, tensor in expected.items():
        np.testing.assert_allclose(found[name], tensor.detach(), atol=error * float(tensor.detach().abs().max()), rtol=0)


def test_the_file_tells_sizes_and_vocabulary(run, tokenizer, tmp_path):
    reader = gguf.GGUFReader(export_gguf(run, tmp_path / "out"))
    told = {name: field.contents() for name, field in reader.fields.items()}
    sizes = {"context_length": 64, "embedding_length": 32, "block_count": 2, "feed_forward_length": 128,
             "rope.dimension_count": 8, "attention.head_count": 4, "use_parallel_residual": False, "rope.freq_base": 10000.0}
    assert all(told[f"gptneox.{name}"] == value for name, value in sizes.items())
    assert told["tokenizer.ggml.model"] == "llama" and not told["tokenizer.ggml.add_space_prefix"]
    assert told["tokenizer.ggml.eos_token_id"] == tokenizer.end_id and not told["tokenizer.ggml.add_bos_token"]
    tokens = told["tokenizer.ggml.tokens"]
    assert [token for token, ours in zip(tokens, tokenizer.tokens) if token != ours] == []


def test_exporting_again_finds_it_done(run, tmp_path, capsys):
    first = export_gguf(run, tmp_path / "out")
    assert export_gguf(run, tmp_path / "out") == first and "is done already" in capsys.readouterr().err
    with pytest.raises(InputError, match="quantize = 'f32', not 'f16'"):
        export_gguf(run, tmp_path / "out", "f16")


def test_what_the_file_cannot_express_is_said(tokenizer, tmp_path, capsys):
    run = make_run(tmp_path / "run", tokenizer, SUBSTRATES["table"], activation="gelu")
    export_gguf(run, tmp_path / "out")
    assert "cannot express exact GELU" in capsys.readouterr().err
    assert json.loads((tmp_path / "out" / "build.json").read_text())["result"]["cannot_express"]


def test_a_head_with_bias_is_refused(tokenizer, tmp_path):
    run = make_run(tmp_path / "run", tokenizer, SUBSTRATES["table"], head_bias=True)
    with pytest.raises(InputError, match="head with bias"):
        export_gguf(run, tmp_path / "out")


@pytest.mark.parametrize("quantize", ["f32", "f16", "q8_0"])
def test_llama_cpp_gives_the_same_ids_and_tokens(run, tokenizer, tmp_path, quantize):
    python = os.environ.get("GLYPHLM_LLAMA")
    if not python:
        pytest.skip("name a Python that has llama-cpp-python in GLYPHLM_LLAMA")
    ids_BT = torch.arange(300, 340)[None]
    model, _ = load_run(run)
    with torch.no_grad():
        logits_V = model(ids_BT).logits[0, -1]
        greedy_BT = model.generate(ids_BT, attention_mask=torch.ones_like(ids_BT), **GREEDY)
    told = [json.dumps(TEXTS), json.dumps(ids_BT[0].tolist()), "16"]
    command = [python, "-c", LLAMA, export_gguf(run, tmp_path / "out", quantize), tmp_path / "found.json", *told]
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["ids"] == [tokenizer.encode(text) for text in TEXTS] and found["texts"] == TEXTS
    error = 0.1 if quantize == "q8_0" else 5e-3  # its cache and its table of GELU hold float16
    torch.testing.assert_close(torch.tensor(found["logits"]), logits_V, atol=error, rtol=0)
    if quantize != "q8_0":  # whose weights are others
        assert found["greedy"] == greedy_BT[0].tolist()
