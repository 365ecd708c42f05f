"""Published checkpoints come in with equal logits, however they are spelled; what does not fit is refused in one line.

The models are random, written under many spellings, and run by a plain implementation that uses nothing of glyphlm.
"""

import json
import math
import os
import pickle
import shutil
import struct
import zipfile
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import safetensors.torch
import torch
from small_models import make_run
from torch import Tensor

from glyphlm.base.errors import InputError
from glyphlm.evaluation.evaluate import evaluate
from glyphlm.interop.export_neox import export_gpt_neox
from glyphlm.interop.import_model import ImportSettings, check, import_checkpoint, readings_text
from glyphlm.modeling.model import GPT, ModelConfig
from glyphlm.modeling.substrate import Substrate, SubstrateConfig
from glyphlm.runs.folder import export_model, load_run
from glyphlm.runs.generate import Sampling, generate

V, D, HEADS, LAYERS, BLOCK = 1024, 40, 4, 3, 32
WIDTH, PLACES = D // HEADS, 10
LIKELY = ImportSettings()
IDS = [5, 900, 17, 17, 300, 1023, 0, 512, 44, 45, 46, 3]


@dataclass
class Plain:
    """A model in the plainest code: heads one by one, pairs of channels as complex numbers, in float64."""

    weights: dict[str, Tensor]
    code_VE: Tensor
    lift: str = "repeat_interleave"
    interleaved: bool = False
    tanh: bool = False
    eps: float = 1e-5

    def __call__(self, ids: list[int]) -> Tensor:
        """logits [T, V]."""
        w = {name: tensor.double() for name, tensor in self.weights.items()}
        times = D // self.code_VE.shape[1]
        x = torch.stack([self.widened(self.code_VE[number].double().tolist(), times) for number in ids])
        for i in range(sum(name.endswith(".up") for name in w)):
            h = self.norm(x, w[f"{i}.n1"], w[f"{i}.n1b"])
            q, k, v = (h @ w[f"{i}.{part}"].T for part in "qkv")
            heads = []
            for part in (slice(head * WIDTH, (head + 1) * WIDTH) for head in range(HEADS)):
                scores = self.turned(q[:, part]) @ self.turned(k[:, part]).T / math.sqrt(WIDTH)
                scores[torch.ones_like(scores).triu(1).bool()] = -math.inf
                heads.append(scores.softmax(-1) @ v[:, part])
            x = x + torch.cat(heads, 1) @ w[f"{i}.o"].T
            h = self.norm(x, w[f"{i}.n2"], w[f"{i}.n2b"]) @ w[f"{i}.up"].T + w[f"{i}.upb"]
            x = x + self.gelu(h) @ w[f"{i}.down"].T + w[f"{i}.downb"]
        logits = self.norm(x, w["norm"], w["normb"]) @ w["head"].T
        return logits + w["headb"] if "headb" in w else logits

    def widened(self, code: list[float], times: int) -> Tensor:
        return torch.tensor(code * times if self.lift == "tile" else [value for value in code for _ in range(times)])

    def norm(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        return centred / torch.sqrt((centred**2).mean(-1, keepdim=True) + self.eps) * weight + bias

    def gelu(self, x: Tensor) -> Tensor:
        if self.tanh:
            return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
        return 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))

    def turned(self, x: Tensor) -> Tensor:
        angles = torch.outer(torch.arange(len(x)).double(), 10000.0 ** (-torch.arange(0, WIDTH, 2).double() / WIDTH))
        a, b = (x[:, ::2], x[:, 1::2]) if self.interleaved else x.chunk(2, 1)
        z = torch.complex(a, b) * torch.polar(torch.ones_like(angles), angles)
        return torch.stack([z.real, z.imag], -1).flatten(1) if self.interleaved else torch.cat([z.real, z.imag], 1)


def plain(seed: int = 1, n_embed: int = D, head_bias: bool = True, layers: int = LAYERS, **how) -> Plain:
    """A random model; no two of its tensors are alike."""
    shapes = {"table": (V, n_embed), "norm": (D,), "normb": (D,), "head": (V, D)} | ({"headb": (V,)} if head_bias else {})
    for i in range(layers):
        shapes |= {f"{i}.{part}": (D, D) for part in "qkvo"} | {f"{i}.{part}": (D,) for part in ("n1", "n1b", "n2", "n2b")}
        shapes |= {f"{i}.up": (4 * D, D), f"{i}.upb": (4 * D,), f"{i}.down": (D, 4 * D), f"{i}.downb": (D,)}
    dice = torch.Generator().manual_seed(seed)
    weights = {name: torch.randn(shape, generator=dice) / (3 if len(shape) > 1 else 2) for name, shape in shapes.items()}
    return Plain(weights, weights.pop("table"), **how)


def depth(model: Plain) -> int:
    """Number of blocks."""
    return sum(name.endswith(".up") for name in model.weights)


def spell(
    model: Plain, block: str, matrices: str, norms: str, mlp: str, embed: str, norm: str, head: str
) -> dict[str, Tensor]:
    """The tensors with q, k, v and o apart; each list of names is split at spaces, {i} is the layer."""
    modules, parts = {"head": head, "norm": norm}, "q k v o n1 n2 up down".split()
    found = {f"{embed}.weight": model.code_VE}
    for i in range(depth(model)):
        names = f"{matrices} {norms} {mlp}".split()
        modules |= {f"{i}.{part}": f"{block.format(i=i)}.{name}" for part, name in zip(parts, names)}
    for part, module in modules.items():
        found[f"{module}.weight"] = model.weights[part]
        if f"{part}b" in model.weights:
            found[f"{module}.bias"] = model.weights[f"{part}b"]
    return found


def fuse_qkv(tensors: dict[str, Tensor], name: str, per_head: bool = False) -> dict[str, Tensor]:
    """q, k and v of each block as one matrix `name`."""
    found = dict(tensors)
    for key in [key for key in tensors if ".q." in key]:
        q, k, v = (found.pop(key.replace(".q.", f".{part}.")) for part in "qkv")
        stacked = torch.stack([part.unflatten(0, (HEADS, WIDTH)) for part in (q, k, v)], 1).flatten(0, 2)
        found[key.replace("q.weight", name)] = stacked if per_head else torch.cat([q, k, v])
    return found


def frequencies(base: float) -> Tensor:
    """Of rotary positions."""
    return base ** (-torch.arange(0, WIDTH, 2).float() / WIDTH)


def bvv(model: Plain) -> dict[str, Tensor]:
    """Sequential MLPs, a mask for all, rotary frequencies."""
    found = spell(model, "transformer_layers.{i}", *(" ".join(f"self_attn.{part}_proj" for part in "qkvo"), "norm1 norm2"),
                  "feed_forward.0 feed_forward.2", "token_embeddings", "layer_norm", "lm_head")
    return found | {"rotary.inv_freq": frequencies(10000.0), "causal_mask": torch.ones(BLOCK, BLOCK).tril()[None, None]}


def gpt2(model: Plain) -> dict[str, Tensor]:
    """q, k, v in one matrix, weights [in, out], a mask in every block."""
    found = spell(model, "transformer.h.{i}", "attn.q attn.k attn.v attn.c_proj", "ln_1 ln_2", "mlp.c_fc mlp.c_proj",
                  "transformer.wte", "transformer.ln_f", "lm_head")
    found = fuse_qkv(found, "c_attn.weight")
    found = {name: tensor.T if ".c_" in name and tensor.dim() == 2 else tensor for name, tensor in found.items()}
    for i in range(depth(model)):
        found[f"transformer.h.{i}.attn.bias"] = torch.ones(1, 1, BLOCK, BLOCK, dtype=torch.bool).tril()
        found[f"transformer.h.{i}.attn.c_attn.bias"] = torch.zeros(3 * D)
    return found


def lecture(model: Plain) -> dict[str, Tensor]:
    """One module a head, each with a mask of its own; a bias of zeros on the output projection."""
    found = spell(model, "blocks.{i}", "sa.query sa.key sa.value sa.proj", "ln1 ln2", "ffwd.net.0 ffwd.net.2",
                  "token_embedding_table", "ln_f", "lm_head")
    for key in [key for key in found if key.endswith(("sa.query.weight", "sa.key.weight", "sa.value.weight"))]:
        for head, rows in enumerate(found.pop(key).chunk(HEADS)):
            found[key.replace(".sa.", f".sa.heads.{head}.")] = rows
    for i in range(depth(model)):
        found[f"blocks.{i}.sa.proj.bias"] = torch.zeros(D)
        found |= {f"blocks.{i}.sa.heads.{head}.tril": torch.ones(BLOCK, BLOCK).tril() for head in range(HEADS)}
    return found


def llama(model: Plain) -> dict[str, Tensor]:
    return spell(model, "model.layers.{i}", " ".join(f"self_attn.{part}_proj" for part in "qkvo"),
                 "input_layernorm post_attention_layernorm", "mlp.up_proj mlp.down_proj", "model.embed_tokens", "model.norm",
                 "lm_head")


def torch_layers(model: Plain) -> dict[str, Tensor]:
    """As nn.MultiheadAttention and torch.compile name things."""
    found = spell(model, "_orig_mod.module.layer_{i}", "attention.q attention.k attention.v attention.out_proj",
                  "sa_norm ff_norm", "ff.linear1 ff.linear2", "_orig_mod.module.embedding", "_orig_mod.module.norm",
                  "_orig_mod.module.output")
    return fuse_qkv(found, "in_proj_weight")


def neox(model: Plain) -> dict[str, Tensor]:
    """q, k, v head by head."""
    found = spell(model, "gpt_neox.layers.{i}", "attention.q attention.k attention.v attention.dense",
                  "input_layernorm post_attention_layernorm", "mlp.dense_h_to_4h mlp.dense_4h_to_h", "gpt_neox.embed_in",
                  "gpt_neox.final_layer_norm", "embed_out")
    return fuse_qkv(found, "query_key_value.weight", per_head=True)


def camel(model: Plain) -> dict[str, Tensor]:
    """Words run together, MLP first; the table in a stage list, as a grown model may keep its blocks."""
    found = spell(model, "stack.block{i}", "attn.toQ attn.toK attn.toV attn.toOut", "preAttn.norm preMlp.norm",
                  "mlp.fc1 mlp.fc2", "frozen.tokenTable", "postNorm", "vocabHead")
    return {f"net.{name}": tensor for name, tensor in found.items()}


SPELLINGS = {function.__name__: function for function in (bvv, gpt2, lecture, llama, torch_layers, neox, camel)}


def write(folder: Path, tensors: dict[str, Tensor], tokenizer_folder: Path, form: str = "safetensors", **config) -> Path:
    """A checkpoint folder; `form` is safetensors, sharded, bin or pt."""
    folder.mkdir(parents=True, exist_ok=True)
    sizes = {"vocab_size": V, "d_model": D, "n_layer": LAYERS, "n_head": HEADS, "block_size": BLOCK, "n_embd": D}
    names = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "auto_map": {"AutoModel": "model.Model"}}
    (folder / "config.json").write_text(json.dumps(sizes | names | {"model_type": "model_x"} | config))
    (folder / "model.py").write_text("raise SystemExit('the code of a checkpoint was run')")
    shutil.copy(tokenizer_folder / "tokenizer.json", folder)
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    if form == "safetensors":
        safetensors.torch.save_file(tensors, folder / "model.safetensors")
    elif form == "sharded":
        names = sorted(tensors)
        parts = {f"model-{n}.safetensors": {name: tensors[name] for name in names[n::3]} for n in range(3)}
        for file, part in parts.items():
            safetensors.torch.save_file(part, folder / file)
        weight_map = {name: file for file, part in parts.items() for name in part}
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    else:
        torch.save(tensors if form == "bin" else {"model": tensors, "step": 3}, folder / f"pytorch_model.{form}")
    return folder


def assert_imports(model: Plain, src: Path, out: Path, settings: ImportSettings = LIKELY):
    import_checkpoint(str(src), out, settings)
    found, _ = load_run(out)
    with torch.no_grad():
        logits = found(torch.tensor([IDS])).logits[0].double()
    torch.testing.assert_close(logits, model(IDS), atol=2e-4, rtol=1e-4)
    return found.gpt


@pytest.mark.parametrize("form", ["safetensors", "sharded", "bin", "pt"])
@pytest.mark.parametrize("spelling", SPELLINGS)
def test_a_model_gives_equal_logits_under_every_spelling(tokenizer_folder, tmp_path, spelling, form):
    model = plain()
    src = write(tmp_path / "src", SPELLINGS[spelling](model), tokenizer_folder, form)
    settings = ImportSettings(fused="per_head" if spelling == "neox" else "stacked")
    assert_imports(model, src, tmp_path / "run", settings)


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("how", [
    {"interleaved": True}, {"tanh": True}, {"eps": 1e-2}, {"lift": "repeat_interleave", "n_embed": 10},
    {"lift": "tile", "n_embed": 8}, {"head_bias": False}, {"head_bias": False, "n_embed": 20, "layers": 1},
], ids=lambda how: "-".join(map(str, how.values())))
def test_settings_that_shapes_do_not_show_are_reported(tokenizer_folder, tmp_path, spelling, how):
    model = plain(**how)
    src = write(tmp_path / "src", SPELLINGS[spelling](model), tokenizer_folder, n_layer=how.get("layers", LAYERS))
    settings = ImportSettings(
        rotation="interleaved" if model.interleaved else "half", activation="gelu_tanh" if model.tanh else "gelu",
        norm_eps=model.eps, lift=model.lift, fused="per_head" if spelling == "neox" else "stacked",
    )
    assert_imports(model, src, tmp_path / "run", settings)


def code_bits(affine_EN: Tensor, offset_E: Tensor, high: bool = False, rows: bool = False, signed: bool = False) -> Tensor:
    """The code of each id, one id at a time."""
    codes = []
    for number in range(V):
        bits = [number >> place & 1 for place in range(PLACES)]
        bits = bits[::-1] if high else bits
        matrix = affine_EN.T.tolist() if rows else affine_EN.tolist()
        code = [(sum(a * b for a, b in zip(line, bits)) + c) % 2 for line, c in zip(matrix, offset_E.tolist())]
        codes.append([2 * bit - 1 for bit in code] if signed else code)
    return torch.tensor(codes).float()


@pytest.mark.parametrize("how", [{}, {"high": True}, {"rows": True}, {"signed": True}], ids=str)
@pytest.mark.parametrize("stored", ["bits", "table", "file", "map"])
def test_codes_of_binary_ids_come_in_with_and_without_a_table(tokenizer_folder, tmp_path, stored, how):
    dice = torch.Generator().manual_seed(3)
    affine_EN, offset_E = (torch.randint(0, 2, shape, generator=dice) for shape in ((PLACES, PLACES), (PLACES,)))
    if stored == "bits":
        affine_EN, offset_E = torch.eye(PLACES, dtype=torch.long), torch.zeros(PLACES, dtype=torch.long)
    code_VE = code_bits(affine_EN, offset_E, **how)
    model = replace(plain(n_embed=PLACES, head_bias=False), code_VE=code_VE, lift="tile")
    tensors = bvv(model)
    settings = ImportSettings(
        bit_order="high" if how.get("high") else "low", affine_side="rows" if how.get("rows") else "columns",
        signed=how.get("signed", False),
    )
    if stored != "table":
        del tensors["token_embeddings.weight"]
    if stored == "map":
        tensors |= {"code.A": affine_EN, "code.b": offset_E}
    if stored == "bits":
        settings = replace(settings, rule="token_bits")
    if stored == "file":
        torch.save(code_VE, tmp_path / "codes.pt")
        settings = replace(settings, codes=str(tmp_path / "codes.pt"))
    src = write(tmp_path / "src", tensors, tokenizer_folder, model_type="model_n_embed_16_binary_n_layer_32", n_embd=PLACES)
    found = assert_imports(model, src, tmp_path / "run", settings)
    has_table = stored in ("table", "file") or "signed" in how
    assert found.substrate.config.kind == ("given" if has_table else "affine_bits")
    assert found.substrate.config.lift == "tile"


EXPERTS = {
    "list": ("experts.0.", "experts.1."),
    "letters": ("model_a.", "model_b."),
    "languages": ("moe.expert_ru.", "moe.expert_zh."),
}


@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("prefixes", EXPERTS)
def test_experts_are_distinguished_under_any_prefix(tokenizer_folder, tmp_path, prefixes, layers):
    models = [plain(seed, layers=layers) for seed in (1, 2)]
    tensors = {}
    for prefix, model in zip(EXPERTS[prefixes], models):
        tensors |= {f"{prefix}{name}": tensor for name, tensor in llama(model).items()}
    assert_experts(write(tmp_path / "src", tensors, tokenizer_folder, n_layer=layers), models)


def test_experts_whose_parts_stand_in_lists_are_distinguished_and_may_share_a_table(tokenizer_folder, tmp_path):
    models = [plain(seed) for seed in (1, 2)]
    models[1].code_VE = models[0].code_VE
    tensors = {"shared_embedding.weight": models[0].code_VE}
    for number, model in enumerate(models):
        own = spell(model, f"blocks.{number}." "{i}", "attn.q attn.k attn.v attn.o", "ln_1 ln_2", "mlp.0 mlp.2", "gone",
                    f"norms.{number}", f"heads.{number}")
        tensors |= {name: tensor for name, tensor in own.items() if name != "gone.weight"}
    assert_experts(write(tmp_path / "src", tensors, tokenizer_folder), models)


def assert_experts(src: Path, models: list[Plain]) -> None:
    """Each expert is a run of its own, and the whole the mean of their logits."""
    out = src.parent / f"{src.name}-out"
    import_checkpoint(str(src), out, ImportSettings())
    runs = {out: lambda ids: sum(model(ids) for model in models) / len(models)}
    runs |= {out.with_name(f"{out.name}-expert-{number}"): model for number, model in enumerate(models)}
    for run, expected in runs.items():
        with torch.no_grad():
            logits = load_run(run)[0](torch.tensor([IDS])).logits[0].double()
        torch.testing.assert_close(logits, expected(IDS), atol=2e-4, rtol=1e-4)


def test_blocks_in_stages_are_one_stack(tokenizer_folder, tmp_path):
    model = plain(layers=4)
    tensors = llama(model)
    staged = {name.replace(f"layers.{i}.", f"stages.{i // 2}.layers.{i % 2}."): tensor
              for i in range(4) for name, tensor in tensors.items() if f"layers.{i}." in name}
    rest = {name: tensor for name, tensor in tensors.items() if "layers." not in name}
    assert_imports(model, write(tmp_path / "src", staged | rest, tokenizer_folder, n_layer=4), tmp_path / "run")


def test_block_10_stands_behind_block_9(tokenizer_folder, tmp_path):
    model = plain(layers=11)
    assert_imports(model, write(tmp_path / "src", camel(model), tokenizer_folder, n_layer=11), tmp_path / "run")


@pytest.fixture(scope="module")
def imported(tokenizer_folder, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("imported")
    model = plain(n_embed=20)
    src = write(folder / "src", bvv(model), tokenizer_folder)
    import_checkpoint(str(src), folder / "run", LIKELY, "glyphlm import")
    return folder / "run"


def test_an_imported_run_is_a_run(imported, text):
    summary = json.loads((imported / "summary.json").read_text())
    assert summary["imported"]["sha256"].keys() == {"config.json", "model.safetensors"}
    assert summary["substrate"]["kind"] == "given" and not summary["substrate"]["trainable"]
    assert generate(imported, ["Hello"], Sampling(max_new_tokens=3))[0].startswith("Hello")
    assert evaluate([str(imported)], [f"bpb={text}"])
    assert "imported by GlyphLM" in (imported / "README.md").read_text(encoding="utf-8")
    needed = {"settings.yaml", "tokenizer.json", "tokenizer_config.json", "hf.py", "model.py"}
    assert needed <= {path.name for path in imported.iterdir()}


def test_transformers_reads_the_tokenizer_as_it_is(imported, tokenizer):
    from transformers import AutoTokenizer

    sample = "Hello, мир 你好 -- the text"
    found = AutoTokenizer.from_pretrained(imported)
    assert found(sample)["input_ids"] == tokenizer.encode(sample)
    assert (found.pad_token, found.bos_token, found.eos_token) == ("<pad>", "</s>", "</s>")


@pytest.mark.parametrize("names", [{"eos_token": "</s>"}, {"eos_token": None, "eos_token_id": 2}], ids=["name", "number"])
def test_special_tokens_not_named_by_the_tokenizer_are_those_of_the_model(tokenizer_folder, tokenizer, tmp_path, names):
    src = write(tmp_path / "src", llama(plain()), tokenizer_folder, **names)
    (src / "tokenizer_config.json").write_text("{}")
    import_checkpoint(str(src), tmp_path / "run", LIKELY)
    _, found = load_run(tmp_path / "run")
    assert found.end_id == found.start_id == tokenizer.end_id


def test_what_was_assumed_is_reported_once(tokenizer_folder, tmp_path, capsys):
    tensors = gpt2(plain(head_bias=False))
    for name in [name for name in tensors if name.endswith("ln_1.bias")]:
        del tensors[name]
    import_checkpoint(str(write(tmp_path / "src", tensors, tokenizer_folder)), tmp_path / "run", LIKELY)
    lines = capsys.readouterr().err.splitlines()
    reported = [line.split(": ", 2)[1:] for line in lines if "transformer.h.0" in line]
    assert [what for what, _ in reported] == [
        "left out, as the model computes them", "biases of attention that are all 0, left out",
        "taken for LayerNorms with bias 0, not for RMSNorms",
    ]
    assert [names.count("transformer.h.") for _, names in reported] == [3, 3, 3]
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["imported"]["notes"]


def test_a_wrong_n_embed_in_the_config_is_reported(tokenizer_folder, tmp_path, capsys):
    src = write(tmp_path / "src", llama(plain(n_embed=20)), tokenizer_folder, n_embd=D)
    assert_imports(plain(n_embed=20), src, tmp_path / "run")
    assert "n_embed 40; the width of the table, 20" in capsys.readouterr().err


def test_importing_again_finds_it_done_and_something_else_is_refused(tokenizer_folder, tmp_path, capsys):
    src = write(tmp_path / "src", llama(plain()), tokenizer_folder)
    first = import_checkpoint(str(src), tmp_path / "run", ImportSettings())
    assert import_checkpoint(str(src), tmp_path / "run", ImportSettings()) == first
    assert "is done already" in capsys.readouterr().err
    with pytest.raises(InputError, match="rotation = 'half', not 'interleaved'"):
        import_checkpoint(str(src), tmp_path / "run", ImportSettings(rotation="interleaved"))


def test_a_trainable_table_is_a_parameter(tokenizer_folder, tmp_path):
    src = write(tmp_path / "src", llama(plain()), tokenizer_folder)
    import_checkpoint(str(src), tmp_path / "run", ImportSettings(trainable=True))
    assert "substrate.table_VE" in dict(load_run(tmp_path / "run")[0].gpt.named_parameters())


def test_check_finds_the_reading_that_was_trained(tokenizer_folder, tokenizer, tmp_path):
    """A model that has learned a sentence by heart under one reading loses it under the others."""
    text = "Hello world, this is a sentence"
    ids = tokenizer.encode(text)
    model = plain(n_embed=20, interleaved=True, lift="tile", tanh=True)
    for tensor in model.weights.values():
        tensor.requires_grad_()
    optimizer = torch.optim.Adam(model.weights.values(), 1e-2)
    for _ in range(25):
        loss = torch.nn.functional.cross_entropy(model(ids)[:-1], torch.tensor(ids[1:]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.weights = {name: tensor.detach() for name, tensor in model.weights.items()}
    rows = check(str(write(tmp_path / "src", torch_layers(model), tokenizer_folder)), text, ImportSettings())
    assert len(rows) == 2**5 and rows[0].keys() == {"loss", "rotation", "activation", "norm_eps", "fused", "lift"}
    best = {key: rows[0][key] for key in ("rotation", "fused", "lift", "activation")}
    assert best == {"rotation": "interleaved", "fused": "stacked", "lift": "tile", "activation": "gelu_tanh"}
    assert readings_text(rows).splitlines()[1].split()[0] == f"{rows[0]['loss']:.4f}"


def test_check_needs_a_sentence(tokenizer_folder, tmp_path):
    with pytest.raises(InputError, match="--check '' is 0 tokens long"):
        check(str(write(tmp_path / "src", llama(plain()), tokenizer_folder)), "", ImportSettings())


def refused(src: Path, match: str, settings: ImportSettings = LIKELY) -> None:
    with pytest.raises(InputError, match=match) as error:
        import_checkpoint(str(src), src.parent / "out", settings)
    assert "\n" not in str(error.value)
    assert not (src.parent / "out").exists()


def renumber(tensors: dict[str, Tensor], was: str, now: str) -> None:
    for name in [name for name in tensors if was in name]:
        tensors[name.replace(was, now)] = tensors.pop(name)


ATTENTION = "model.layers.0.self_attn"
CHANGES = {
    "left over": (lambda t: t.update({"model.adapter.weight": torch.ones(3, 3)}), "left over are model.adapter.weight"),
    "left in block": (lambda t: t.update({"model.layers.1.gate.weight": torch.ones(7)}), "layers.1: left over are .*gate"),
    "learned positions": (lambda t: t.update({"wpe.weight": torch.ones(BLOCK, D)}), "left over are wpe.weight"),
    "no head": (lambda t: t.pop("lm_head.weight") is t.pop("lm_head.bias"), "no tensor .*output head"),
    "no query": (lambda t: t.pop(f"{ATTENTION}.q_proj.weight"), "not clear which are q, k, v"),
    "no norm": (lambda t: t.pop("model.layers.2.input_layernorm.weight"), "layers.2"),
    "no final norm": (lambda t: t.pop("model.norm.weight") is t.pop("model.norm.bias"), "one final norm"),
    "no layer": (lambda t: [t.pop(name) for name in list(t) if "layers.1." in name], "2 numbered blocks .* n_layer is 3"),
    "a gap": (lambda t: renumber(t, "layers.2.", "layers.3."), "block model.layers.1 is followed by model.layers.3"),
    "no table": (lambda t: t.pop("model.embed_tokens.weight"), "stores no table"),
    "two tables": (lambda t: t.update({"raw_codes.weight": torch.ones(V, 10)}), "2 tables"),
    "table and map": (lambda t: t.update({"code.A": torch.eye(PLACES), "code.b": torch.ones(PLACES)}), "also .* affine map"),
    "NaN": (lambda t: t["model.norm.weight"].fill_(math.nan), "norm.weight holds NaN or infinity"),
    "infinite codes": (lambda t: t["model.embed_tokens.weight"].fill_(math.inf), "the substrate holds NaN"),
    "attention bias": (lambda t: t.update({f"{ATTENTION}.o_proj.bias": torch.ones(D)}), "biases that are not 0 .*o_proj"),
    "other width": (lambda t: t.update({f"{ATTENTION}.q_proj.weight": torch.ones(D + 1, D)}), "not clear which are q"),
    "other norm": (lambda t: t.update({"model.norm.weight": torch.ones(D + 1)}), "one final norm"),
    "other head bias": (lambda t: t.update({"lm_head.bias": torch.ones(V + 1)}), "another shape than config.json"),
    "other frequencies": (lambda t: t.update({"rope.inv_freq": frequencies(500.0)}), "give --rope-base 500"),
    "same words": (lambda t: t.update({"model_norm.weight": torch.ones(D)}), "cannot be distinguished"),
    "integers": (lambda t: t.update({"model.norm.weight": torch.ones(D).int()}), "norm.weight is stored as torch.int32"),
    "three norms": (lambda t: t.update({"model.layers.0.other_norm.weight": torch.ones(D)}), "not clear which is the norm"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_does_not_fit_is_refused_by_name(tokenizer_folder, tmp_path, change):
    act, match = CHANGES[change]
    tensors = llama(plain())
    act(tensors)
    refused(write(tmp_path / "src", tensors, tokenizer_folder), match)


@pytest.mark.parametrize(("config", "match"), [
    ({"d_model": 20}, "no tensor"),
    ({"n_layer": 4}, "3 numbered blocks .* n_layer is 4"),
    ({"n_layer": 10**9}, "n_layer is 1000000000"),
    ({"n_head": 7}, "7 heads of even width"),
    ({"vocab_size": 2048}, "has 1,024 ids, the model 2,048"),
    ({"block_size": None}, "gives None as block_size"),
    ({"n_head": "4"}, "gives '4' as n_head"),
    ({"n_head": True}, "gives True as n_head"),
    ({"n_head": 10**9}, "n_head 1000000000 must be at most"),
    ({"d_model": 10**18}, "as d_model .*at most"),
    ({"block_size": -1}, "gives -1 as block_size .*at least 1"),
])
def test_sizes_that_do_not_fit_are_refused(tokenizer_folder, tmp_path, config, match):
    refused(write(tmp_path / "src", llama(plain()), tokenizer_folder, **config), match)


class Bomb:
    def __reduce__(self):
        return os.system, ("touch exploded",)


def write_index(folder: Path, content: str) -> None:
    (folder / "model.safetensors").rename(folder.parent / "outside.safetensors")
    (folder / "model.safetensors.index.json").write_text(content)


def damage_index(folder: Path, name: str) -> None:
    write_index(folder, json.dumps({"weight_map": {"a": name}}))


def header(folder: Path, content: bytes, size: int | None = None) -> None:
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(content) if size is None else size) + content)


def stretched(folder: Path) -> None:
    """A tensor of one value that claims to be a whole table."""
    (folder / "model.safetensors").unlink()
    torch.save({"embed.weight": torch.ones(1).expand(10**6, 10**6)}, folder / "pytorch_model.bin")


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def bomb(folder: Path, name: str) -> None:
    (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(pickle.dumps({"a": Bomb()}))


def zipped_bomb(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({"a": Bomb()}, folder / "pytorch_model.bin")


def packed(folder: Path) -> None:
    """A zip file whose parts are deflated."""
    tensors = safetensors.torch.load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(tensors, folder / "a.pt")
    with zipfile.ZipFile(folder / "a.pt") as stored, zipfile.ZipFile(folder / "b.pt", "w", zipfile.ZIP_DEFLATED) as deflated:
        for name in stored.namelist():
            deflated.writestr(name, stored.read(name))
    (folder / "a.pt").unlink()


def in_itself(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    found: dict = {}
    found["model"] = found
    torch.save(found, folder / "pytorch_model.bin")


ENTRY = b'{"a":{"dtype":"F32","shape":[%s],"data_offsets":[0,%s]}}'
ATTACKS = {
    "half a file": (lambda f: cut(f / "model.safetensors"), "cannot be read"),
    "empty file": (lambda f: (f / "model.safetensors").write_bytes(b""), "cannot be read"),
    "endless header": (lambda f: header(f, b"{}", 1 << 62), "cannot be read"),
    "endless shape": (lambda f: header(f, ENTRY % (b"99999999999,99999999999", b"4") + b"\0" * 4), "cannot be read"),
    "more than the file": (lambda f: header(f, ENTRY % (b"1000000000", b"4000000000")), "cannot be read"),
    "nested header": (lambda f: header(f, b'{"a":' * 10**5), "cannot be read"),
    "../ in an index": (lambda f: damage_index(f, "../outside.safetensors"), "names '../outside.safetensors'"),
    "/ in an index": (lambda f: damage_index(f, str(f.parent / "outside.safetensors")), "which is not a file of weights"),
    "missing shard": (lambda f: damage_index(f, "model-2.safetensors"), "names 'model-2.safetensors'"),
    "index of a list": (lambda f: write_index(f, "[1]"), "a list, not an object"),
    "empty index": (lambda f: write_index(f, "{}"), "names no files"),
    "deep index": (lambda f: write_index(f, "[" * 10**5), "is damaged"),
    "pickle": (lambda f: bomb(f, "pytorch_model.bin"), "no code in it was run"),
    "pickle in .pt": (lambda f: bomb(f, "weights.pt"), "no code in it was run"),
    "pickle in a zip": (zipped_bomb, "no code in it was run"),
    "half a .bin": (lambda f: (zipped_bomb(f), cut(f / "pytorch_model.bin")), "no code in it was run"),
    "a mapping in itself": (in_itself, "not a dense tensor"),
    "packed zip": (packed, "is compressed"),
    "stretched tensor": (stretched, "more than the file holds"),
    "two files": (lambda f: [shutil.move(f / "model.safetensors", f / "a.bin"), shutil.copy(f / "a.bin", f / "b.bin")],
                  "--weights FILE"),
    "no config": (lambda f: (f / "config.json").unlink(), "config.json does not exist"),
    "no tokenizer": (lambda f: (f / "tokenizer.json").unlink(), "--tokenizer DIR"),
    "half a tokenizer": (lambda f: cut(f / "tokenizer.json"), "is not a tokenizer"),
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_damaged_and_hostile_folders_are_refused_and_nothing_runs(tokenizer_folder, tmp_path, monkeypatch, attack):
    monkeypatch.chdir(tmp_path)
    src = write(tmp_path / "src", llama(plain()), tokenizer_folder)
    act, match = ATTACKS[attack]
    act(src)
    refused(src, match)
    assert not (tmp_path / "exploded").exists()


def test_a_source_that_does_not_exist_is_refused(tmp_path):
    with pytest.raises(InputError, match="neither a folder nor a name of the Hub"):
        import_checkpoint("no/such/thing", tmp_path / "out", ImportSettings())


def test_what_we_export_comes_in_again_and_its_order_of_rows_is_never_guessed(tmp_path, tokenizer):
    model = GPT(ModelConfig(32, 2, 2, 16), Substrate(SubstrateConfig(tokenizer.vocab_size, 32, "learned"), 32)).eval()
    for values in model.state_dict().values():
        values.copy_(torch.randn(values.shape, generator=torch.Generator().manual_seed(values.numel())) / 5)
    export_model(model, tokenizer, tmp_path / "run")
    export_gpt_neox(tmp_path / "run", tmp_path / "neox")
    with pytest.raises(InputError, match="per_head.* for fused, not stacked"):
        import_checkpoint(str(tmp_path / "neox"), tmp_path / "again", ImportSettings(fused="stacked"))
    import_checkpoint(str(tmp_path / "neox"), tmp_path / "again", ImportSettings())
    import_checkpoint(str(tmp_path / "neox"), tmp_path / "again", ImportSettings())
    ids_BT = torch.arange(16)[None]
    torch.testing.assert_close(load_run(tmp_path / "again")[0](ids_BT).logits, model(ids_BT), atol=1e-5, rtol=1e-4)


def test_a_run_of_ours_is_copied_without_its_checkpoints(tokenizer, tmp_path):
    run = make_run(tmp_path / "run", tokenizer)
    (run / "state").mkdir()
    import_checkpoint(str(run), tmp_path / "again", ImportSettings())
    assert not (tmp_path / "again" / "state").exists()
    ids_BT = torch.tensor([IDS])
    assert torch.equal(load_run(tmp_path / "again")[0](ids_BT).logits, load_run(run)[0](ids_BT).logits)


@pytest.mark.parametrize(("key", "value", "said"), [
    ("use_parallel_residual", True, "sequential"), ("rotary_pct", 0.25, "0.25"), ("hidden_act", "relu", "relu"),
])  # fmt: skip
def test_a_gpt_neox_that_our_blocks_do_not_compute_is_refused(tmp_path, key, value, said):
    config = {"model_type": "gpt_neox", "use_parallel_residual": False, "rotary_pct": 1.0, "hidden_act": "gelu"}
    (tmp_path / "config.json").write_text(json.dumps(config | {key: value}))
    with pytest.raises(InputError, match=said):
        import_checkpoint(str(tmp_path), tmp_path / "out", ImportSettings())
