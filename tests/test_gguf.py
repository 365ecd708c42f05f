"""A GGUF file holds the model and its vocabulary; SentencePiece-BPE, as llama.cpp does it, gives the same ids and tokens."""


import json
import os
import subprocess
from pathlib import Path

import gguf
import numpy as np
import pytest
import tokenizers
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_export_neox import GREEDY, SUBSTRATES, make_run
from tokenizers import models

from glyphlm.base.errors import InputError
from glyphlm.interop.gguf import BYTE_KIND, CONTROL, UNKNOWN, UNUSED, USER_DEFINED, export_gguf, gguf_tokens, spm_ids
from glyphlm.runs.folder import load_run
from glyphlm.tokenizer.layouts import BYTES, LAYOUTS, SPECIALS, bpe_backend, published_backend
from glyphlm.tokenizer.tokenizer import Tokenizer

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


def test_the_file_has_sizes_and_vocabulary(run, tokenizer, tmp_path):
    reader = gguf.GGUFReader(export_gguf(run, tmp_path / "out"))
    reported = {name: field.contents() for name, field in reader.fields.items()}
    sizes = {"context_length": 64, "embedding_length": 32, "block_count": 2, "feed_forward_length": 128,
             "rope.dimension_count": 8, "attention.head_count": 4, "use_parallel_residual": False, "rope.freq_base": 10000.0}
    assert all(reported[f"gptneox.{name}"] == value for name, value in sizes.items())
    assert reported["tokenizer.ggml.model"] == "llama" and not reported["tokenizer.ggml.add_space_prefix"]
    assert reported["tokenizer.ggml.eos_token_id"] == tokenizer.end_id and not reported["tokenizer.ggml.add_bos_token"]
    tokens = reported["tokenizer.ggml.tokens"]
    assert [token for token, ours in zip(tokens, tokenizer.tokens) if token != ours] == []


def test_exporting_again_finds_it_done(run, tmp_path, capsys):
    first = export_gguf(run, tmp_path / "out")
    assert export_gguf(run, tmp_path / "out") == first and "is done already" in capsys.readouterr().err
    with pytest.raises(InputError, match="quantize = 'f32', not 'f16'"):
        export_gguf(run, tmp_path / "out", "f16")


def test_what_the_file_cannot_express_is_reported(tokenizer, tmp_path, capsys):
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
    reported = [json.dumps(TEXTS), json.dumps(ids_BT[0].tolist()), "16"]
    command = [python, "-c", LLAMA, export_gguf(run, tmp_path / "out", quantize), tmp_path / "found.json", *reported]
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["ids"] == [tokenizer.encode(text) for text in TEXTS] and found["texts"] == TEXTS
    error = 0.1 if quantize == "q8_0" else 5e-3  # its cache and its table of GELU hold float16
    torch.testing.assert_close(torch.tensor(found["logits"]), logits_V, atol=error, rtol=0)
    if quantize != "q8_0":  # whose weights are others
        assert found["greedy"] == greedy_BT[0].tolist()


# Overlaps, repetitions and splits of several lengths, in an order that joins long ones late.
NGRAMS = ["aa", "ab", "ba", "aab", "bb", "aaa", "abab", "bab", "baa", "aaaa"]


def saved(tokenizer: Tokenizer, folder: Path) -> tuple[Path, Tokenizer]:
    tokenizer.save(folder)
    return folder, tokenizer


@pytest.fixture(scope="module")
def nested(tmp_path_factory) -> tuple[list, dict, Tokenizer]:
    """The pieces of a vocabulary whose n-grams lie inside each other."""
    characters = [*"ab c\n", "\0", "\u2581"]
    backend = bpe_backend([*SPECIALS, *BYTES, *characters, *NGRAMS], NGRAMS, SPECIALS)
    folder, tokenizer = saved(Tokenizer(backend), tmp_path_factory.mktemp("nested"))
    pieces, cannot = gguf_tokens(folder, tokenizer)
    assert cannot == []
    return pieces, {piece.text: number for number, piece in enumerate(pieces)}, tokenizer


@given(st.text("ab c\n\0\u2581ж🙂<s>", max_size=24))
def test_ids_are_equal_for_every_text(nested, text):
    pieces, ids, tokenizer = nested
    assert spm_ids(text, pieces, ids) == tokenizer.encode(text)


def test_each_kind_of_token_is_reported(nested):
    pieces, ids, tokenizer = nested
    kinds = {token: pieces[number].kind for number, token in enumerate(tokenizer.tokens)}
    assert kinds["<s>"] == kinds["<pad>"] == CONTROL and kinds["<unk>"] == UNKNOWN and kinds["<0x41>"] == BYTE_KIND
    assert kinds[" "] == kinds["\u2581"] == USER_DEFINED


def test_nul_takes_the_name_of_its_byte(nested):
    pieces, ids, tokenizer = nested
    assert ids["<0x00>"] == tokenizer.tokens.index("\0") and pieces[tokenizer.tokens.index("<0x00>")].kind == UNUSED


def test_every_token_keeps_a_text_of_its_own(nested):
    pieces, ids, tokenizer = nested
    assert len(ids) == len(pieces) == tokenizer.vocab_size


def test_a_compact_vocabulary_is_expressed(tokenizer, tokenizer_folder):
    pieces, cannot = gguf_tokens(tokenizer_folder, tokenizer)
    ids = {piece.text: number for number, piece in enumerate(pieces)}
    for text in ("Hello, world!  the end\n", "Привет — 你好 🙂\u2581", ""):
        assert spm_ids(text, pieces, ids) == tokenizer.encode(text)
    assert cannot == []


@pytest.fixture(scope="module")
def published() -> dict[bool, Tokenizer]:
    """The small published layout with a few n-grams, as it is and lossless."""
    layout, ngrams = LAYOUTS["bvv241-2-3"], ["the", "th", "he"]
    return {lossless: Tokenizer(published_backend(ngrams, layout, None, lossless)) for lossless in (False, True)}


@pytest.mark.parametrize("lossless", [False, True])
def test_a_published_layout_gets_bytes_where_it_has_free_slots(published, tmp_path, lossless):
    folder, tokenizer = saved(published[lossless], tmp_path)
    pieces, cannot = gguf_tokens(folder, tokenizer)
    ids = {piece.text: number for number, piece in enumerate(pieces)}
    for text in ("the thing\u2581 \0", "Привет 你好"):
        assert spm_ids(text, pieces, ids) == tokenizer.encode(text)
    assert spm_ids("🙂", pieces, ids) == published[True].encode("🙂")
    assert [line.split(" (")[0] for line in cannot] == ([] if lossless else ["characters without an id"])


def vocabulary(*tokens: str, merges=(), **options) -> Tokenizer:
    """A BPE tokenizer whose merges need not be ours."""
    ids = {token: number for number, token in enumerate([*SPECIALS, *BYTES, *tokens])}
    backend = tokenizers.Tokenizer(models.BPE(ids, list(merges), unk_token="<unk>", **{"byte_fallback": True} | options))
    backend.add_special_tokens(list(SPECIALS))
    return Tokenizer(backend)


REFUSED = {
    "a split is no merge": (vocabulary(*"abc ", "ab", "bc", "abc", merges=[("a", "b"), ("ab", "c")]), "not all splits"),
    "merges in another order": (
        vocabulary(*"abc ", "ab", "bc", "abc", merges=[("a", "b"), ("ab", "c"), ("b", "c"), ("a", "bc")]), "token by token"),
    "a token with a space": (vocabulary(*"a ", "a ", merges=[("a", " ")]), "'a ' holds a space"),
    "no space": (vocabulary(*"ab"), "no token is a space"),
    "no bytes": (vocabulary(*"ab ", byte_fallback=False), "is not one of our layouts"),
    "words": (vocabulary(*"ab ", end_of_word_suffix="_"), "is not one of our layouts"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_other_vocabularies_are_refused(tmp_path, name):
    tokenizer, match = REFUSED[name]
    folder, tokenizer = saved(tokenizer, tmp_path)
    with pytest.raises(InputError, match=match) as error:
        gguf_tokens(folder, tokenizer)
    assert "\n" not in str(error.value) and str(folder) in str(error.value)


def test_a_vocabulary_without_bytes_and_free_slots_is_refused(tmp_path):
    backend = bpe_backend([*SPECIALS, *"ab "], [], SPECIALS)
    folder, tokenizer = saved(Tokenizer(backend), tmp_path)
    with pytest.raises(InputError, match="bytes have no token and no free slot"):
        gguf_tokens(folder, tokenizer)


def test_other_ids_than_the_tokenizers_are_refused(tokenizer, tmp_path):
    """The comparison at export finds what the checks of the file do not know."""
    tokenizer.save(tmp_path)
    data = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))
    groups = {}
    for left, right in data["model"]["merges"]:
        groups.setdefault(left + right, []).append([left, right])
    data["model"]["merges"] = [merge for group in reversed(groups.values()) for merge in group]
    (tmp_path / "tokenizer.json").write_text(json.dumps(data), encoding="utf-8")
    with pytest.raises(InputError, match="would give other ids for"):
        gguf_tokens(tmp_path, tokenizer)
