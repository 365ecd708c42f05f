"""The model: published sizes, causality, caches, padding, initial values, and a plain reference implementation."""

import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from glyphlm.modeling.attention import KVCache, document_spans, in_halves
from glyphlm.modeling.model import GPT, ModelConfig, count_parameters
from glyphlm.modeling.substrate import Substrate, SubstrateConfig, scale_rows

V = 96
SMALL = {"d_model": 32, "n_layer": 2, "n_head": 4, "block_size": 64, "head_bias": True}


def small_model(substrate: SubstrateConfig | None = None, seed: int = 0, **changes) -> GPT:
    """A small model, every tensor of it random, so that no norm or bias is idle."""
    config = ModelConfig(**SMALL | changes)
    model = GPT(config, Substrate(substrate or SubstrateConfig(V, 32, "learned", trainable=True), config.d_model))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            draw = torch.randn(tensor.shape, generator=generator)
            tensor.copy_(1 + 0.2 * draw if name.endswith("norm.weight") else 0.2 * draw)
    return model.eval()


def some_ids(*shape: int) -> Tensor:
    return torch.randint(V, shape, generator=torch.Generator().manual_seed(1))


class CacheOfRows:
    """A cache of frozen activations that is empty and asks for row after row, the last first."""

    def __call__(self, ids_BT, compute):
        rows = [compute(torch.tensor([row])) for row in reversed(range(len(ids_BT)))]
        return torch.cat(rows[::-1])


def total(vocab_size: int, n_embed: int, kind: str = "glyph", **model) -> int:
    with torch.device("meta"):
        config = ModelConfig(**{"head_bias": True} | model)
        return count_parameters(GPT(config, Substrate(SubstrateConfig(vocab_size, n_embed, kind), config.d_model)))["total"]


@pytest.mark.parametrize(
    ("n_layer", "expected"),
    [(1, 1_275_244_544), (2, 1_476_608_000), (3, 1_677_971_456), (4, 1_879_334_912), (5, 2_080_698_368), (6, 2_282_061_824)],
)
def test_growing_model_has_the_published_size(n_layer, expected):
    assert total(131_072, 4096, d_model=4096, n_layer=n_layer, n_head=32) == expected


@pytest.mark.parametrize(
    ("vocab_size", "n_embed", "kind", "n_layer", "expected"),
    [
        (131_072, 1024, "glyph", 16, 470_042_624),
        (65_536, 1024, "glyph", 16, 335_759_360),
        (65_536, 256, "glyph", 16, 285_427_712),
        (65_536, 64, "glyph", 16, 272_844_800),
        (65_536, 16, "glyph", 16, 269_699_072),
        (65_536, 1024, "learned", 9, 247_614_464),
        (65_536, 16, "glyph", 9, 181_554_176),
        (65_536, 1024, "learned", 32, 537_233_408),
        (65_536, 16, "glyph", 32, 471_173_120),
        (65_536, 16, "token_bits", 32, 470_124_544),
        (65_536, 16, "affine_bits", 32, 470_124_544),
    ],
)
def test_model_of_width_1024_has_the_published_size(vocab_size, n_embed, kind, n_layer, expected):
    assert total(vocab_size, n_embed, kind, d_model=1024, n_layer=n_layer, n_head=32) == expected


def test_counts_distinguish_trained_from_frozen():
    frozen = count_parameters(small_model(SubstrateConfig(V, 16, "glyph")))
    trained = count_parameters(small_model(SubstrateConfig(V, 16, "glyph", trainable=True)))
    rule = count_parameters(small_model(SubstrateConfig(V, 16, "token_bits")))
    assert frozen["frozen"] == V * 16 and trained["frozen"] == rule["frozen"] == 0
    assert frozen["trained"] == rule["trained"] == trained["trained"] - V * 16
    assert frozen["total"] == trained["total"] == rule["total"] + V * 16


@pytest.mark.parametrize("position", [0, 5, 11])
def test_no_position_sees_what_follows_it(position):
    model = small_model()
    ids_T = torch.randperm(V)[:12]
    (model(ids_T[None])[0, position] * torch.randn(V)).sum().backward()
    seen_T = model.substrate.table_VE.grad[ids_T].abs().sum(1) > 0
    assert seen_T.tolist() == [True] * (position + 1) + [False] * (11 - position)


@pytest.mark.parametrize("length", [2, 256, 301])
def test_attentionin_halves_is_causal_attention(length):
    values, weights_BHTK, found = torch.randn(3, 1, 2, length, 8), torch.randn(1, 2, length, 8), []
    for attend in (in_halves, partial(F.scaled_dot_product_attention, is_causal=True)):
        given = values.clone().requires_grad_()
        x_BHTK = attend(*given)
        (x_BHTK * weights_BHTK).sum().backward()
        found.append((x_BHTK.detach(), given.grad))
    torch.testing.assert_close(*found, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("frozen", [0, 1])
def test_documents_computed_alone_are_as_under_a_mask(frozen, monkeypatch):
    """Where that is faster on a CPU; rows of a cache of frozen blocks are computed apart from their batch."""
    documents_BT, ids_BT, found = (torch.rand(3, 40) < 0.1).cumsum(1), some_ids(3, 40), []
    for cost in (0, 1 << 40):
        monkeypatch.setattr("glyphlm.modeling.attention.CALL", cost)
        model = small_model(SubstrateConfig(V, 32)).train()
        for block in model.blocks[:frozen]:
            block.requires_grad_(False)
        model.frozen_cache = CacheOfRows()
        x_BTD = model.hidden(ids_BT, documents_BT=documents_BT)
        (x_BTD * torch.arange(32)).sum().backward()
        found.append([x_BTD.detach(), model.blocks[1].attention.qkv.weight.grad])
    torch.testing.assert_close(*found, atol=2e-4, rtol=2e-4)


@pytest.mark.parametrize("documents", [[0, 0, 1, 0], [2, 1, 1, 1]])
def test_a_document_in_several_pieces_needs_the_mask(documents, monkeypatch):
    monkeypatch.setattr("glyphlm.modeling.attention.CALL", 0)
    assert document_spans(torch.tensor([documents]), 8) is None
    assert document_spans(torch.tensor([[0, 0, 1, 3], [5, 6, 6, 6]]), 8) == [[2, 1, 1], [1, 3]]


@pytest.mark.parametrize("chunk", [1, 3, 8, 20])
def test_cache_changes_nothing(chunk):
    model, ids_BT, cache = small_model(), some_ids(2, 20), KVCache()
    with torch.no_grad():
        parts = [model.hidden(part, cache=cache) for part in ids_BT.split(chunk, dim=1)]
        assert cache.get_seq_length() == 20
        torch.testing.assert_close(torch.cat(parts, 1), model.hidden(ids_BT), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("given_positions", [False, True])
def test_left_padding_changes_nothing(given_positions):
    model, ids_BT = small_model(), some_ids(1, 9)
    padded_BT = torch.cat([torch.full((1, 4), 7), ids_BT], 1)
    attended_BS = torch.tensor([[0] * 4 + [1] * 9])
    positions_BT = (attended_BS.cumsum(1) - 1).clamp(min=0) if given_positions else None
    with torch.no_grad():
        x_BTD = model.hidden(padded_BT, attended_BS=attended_BS, positions_BT=positions_BT)
        torch.testing.assert_close(x_BTD[:, 4:], model.hidden(ids_BT), atol=1e-5, rtol=1e-5)
    assert x_BTD.isfinite().all()


def test_padding_and_cache_together_change_nothing():
    model, ids_BT, cache = small_model(), some_ids(2, 9), KVCache()
    padded_BT = torch.cat([torch.full((2, 3), 7), ids_BT], 1)
    attended_BS = torch.tensor([[0] * 3 + [1] * 9] * 2)
    with torch.no_grad():
        for end in (5, 6, 12):
            start = cache.get_seq_length()
            x_BTD = model.hidden(padded_BT[:, start:end], cache=cache, attended_BS=attended_BS[:, :end])
        torch.testing.assert_close(x_BTD, model.hidden(ids_BT)[:, -6:], atol=1e-5, rtol=1e-5)


def test_row_of_padding_alone_is_finite():
    with torch.no_grad():
        x_BTD = small_model().hidden(some_ids(2, 6), attended_BS=torch.tensor([[0] * 6, [1] * 6]))
    assert x_BTD.isfinite().all()


def plain_logits(weights: dict[str, Tensor], config: ModelConfig, codes_TD: Tensor) -> Tensor:
    """The forward pass of one sequence once more, position by position and head by head."""
    width = config.d_model // config.n_head

    def norm(x_D: Tensor, name: str) -> Tensor:
        centred = x_D - x_D.mean()
        return centred / torch.sqrt((centred**2).mean() + 1e-5) * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    def turned(x_K: Tensor, place: int) -> Tensor:
        out = torch.empty_like(x_K)
        for i in range(width // 2):
            angle = place * 10000.0 ** (-2 * i / width)
            a, b = x_K[i], x_K[i + width // 2]
            out[i] = a * math.cos(angle) - b * math.sin(angle)
            out[i + width // 2] = b * math.cos(angle) + a * math.sin(angle)
        return out

    stream = list(codes_TD)
    for layer in range(config.n_layer):
        block = f"blocks.{layer}"
        projected = [weights[f"{block}.attention.qkv.weight"] @ norm(x, f"{block}.attention_norm") for x in stream]
        after = []
        for t, x in enumerate(stream):
            heads = []
            for head in range(config.n_head):
                q, k, v = ([p[part * config.d_model + head * width :][:width] for p in projected] for part in range(3))
                scores = [turned(q[t], t) @ turned(k[s], s) / math.sqrt(width) for s in range(t + 1)]
                exps = torch.stack(scores).exp()
                heads.append(sum(e / exps.sum() * v[s] for s, e in enumerate(exps)))
            after.append(x + weights[f"{block}.attention.out.weight"] @ torch.cat(heads))
        stream = []
        for x in after:
            up = weights[f"{block}.mlp.up.weight"] @ norm(x, f"{block}.mlp_norm") + weights[f"{block}.mlp.up.bias"]
            gelu = up * 0.5 * (1 + torch.erf(up / math.sqrt(2)))
            stream.append(x + weights[f"{block}.mlp.down.weight"] @ gelu + weights[f"{block}.mlp.down.bias"])
    return torch.stack([weights["head.weight"] @ norm(x, "norm") + weights["head.bias"] for x in stream])


def plain_lift(weights: dict[str, Tensor], lift: str, number: int, d: int) -> float:
    """Value `d` of the lifted code of one id."""
    code_E = weights["substrate.table_VE"][number]
    if lift == "orthogonal":
        return sum(code_E[e] * weights["substrate.lift_ED"][e, d] for e in range(8)) * 2
    return code_E[d // 4 if lift == "repeat_interleave" else d % 8]


@pytest.mark.parametrize("lift", ["repeat_interleave", "tile", "orthogonal"])
def test_forward_pass_equals_a_plain_reference(lift):
    model, ids_T = small_model(SubstrateConfig(V, 8, "glyph", lift=lift)), some_ids(7)
    weights = {name: tensor.double() for name, tensor in model.state_dict().items()}
    codes = [[plain_lift(weights, lift, number, d) for d in range(32)] for number in ids_T]
    with torch.no_grad():
        expected = plain_logits(weights, model.config, torch.tensor(codes, dtype=torch.double))
        torch.testing.assert_close(model(ids_T[None])[0].double(), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("scale", "norm"), [("l2", 1.0), ("unit_rms", math.sqrt(8)), ("none", None)])
def test_token_bits_are_the_binary_digits_of_the_id(scale, norm):
    substrate = Substrate(SubstrateConfig(200, 8, "token_bits", scale=scale), 8)
    for number in (1, 2, 77, 199):
        digits = torch.tensor([float(d) for d in reversed(f"{number:08b}")])
        expected = digits if norm is None else digits / digits.sum().sqrt() * norm
        torch.testing.assert_close(substrate(torch.tensor([[number]]))[0, 0], expected)
    assert substrate(torch.tensor([[0]])).abs().sum() == 0 and not substrate.state_dict()


def test_bits_beyond_the_places_of_the_vocabulary_are_zero():
    code = Substrate(SubstrateConfig(200, 100, "token_bits", scale="none"), 100)(torch.tensor([[199]]))[0, 0]
    assert code[:8].tolist() == [1, 1, 1, 0, 0, 0, 1, 1] and not code[8:].any()


@pytest.mark.parametrize("shuffled", [False, True])
def test_affine_bits_are_the_map_of_the_digits_modulo_2(shuffled):
    module = Substrate(SubstrateConfig(200, 9, "affine_bits", scale="none", shuffle_seed=1 if shuffled else None), 9)
    generator = torch.Generator().manual_seed(1)
    affine_NE, offset_E = (torch.randint(0, 2, shape, generator=generator).byte() for shape in ((8, 9), (9,)))
    order_V = torch.randperm(200, generator=generator).int()
    module.load_state_dict({"affine_NE": affine_NE, "offset_E": offset_E} | ({"shuffled_V": order_V} if shuffled else {}))
    for number in (0, 1, 77, 199):
        digits = int(order_V[number]) if shuffled else number
        sums = [sum((digits >> n & 1) * int(affine_NE[n, e]) for n in range(8)) + int(offset_E[e]) for e in range(9)]
        assert module(torch.tensor([[number]]))[0, 0].tolist() == [total % 2 for total in sums]


@pytest.mark.parametrize("config", [
    SubstrateConfig(V, 8, "affine_bits", shuffle_seed=1, lift="orthogonal"), SubstrateConfig(V, 8, "affine_bits"),
    SubstrateConfig(V, 8, "glyph", lift="orthogonal"), SubstrateConfig(V, 8, "token_bits"),
], ids=lambda config: f"{config.kind} {config.lift}")  # fmt: skip
def test_codes_are_exact_under_autocast_and_in_bfloat16(config):
    module, ids_BT = Substrate(config, 32), torch.arange(V)[None]
    for tensor in module.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(torch.randn(tensor.shape, generator=torch.Generator().manual_seed(1)).bfloat16())
    if config.kind == "affine_bits":
        module.affine_NE.fill_(1)
    expected = module(ids_BT)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(module(ids_BT), expected) and module(ids_BT).dtype == torch.float32
    codes = module.codes(ids_BT)
    assert torch.equal(module.bfloat16().codes(ids_BT).float(), codes)


def test_a_rule_holds_integers_that_no_cast_changes():
    module = Substrate(SubstrateConfig(V, 8, "affine_bits", shuffle_seed=1), 8)
    dtypes = {name: tensor.dtype for name, tensor in module.bfloat16().state_dict().items()}
    assert dtypes == {"shuffled_V": torch.int32, "affine_NE": torch.uint8, "offset_E": torch.uint8}
    assert not list(module.parameters())


def test_scaled_rows_have_the_norm_and_the_direction_asked_for():
    code_VE = torch.tensor([[3.0, 4.0], [0.0, 0.0]])
    torch.testing.assert_close(scale_rows(code_VE, "l2"), torch.tensor([[0.6, 0.8], [0.0, 0.0]]))
    assert scale_rows(code_VE, "unit_rms").norm(dim=1).tolist() == pytest.approx([math.sqrt(2), 0])
    assert scale_rows(code_VE, "none") is code_VE


def test_tanh_gelu_is_another_function():
    exact, tanh = small_model(), small_model(activation="gelu_tanh")
    tanh.load_state_dict(exact.state_dict())
    with torch.no_grad():
        x_BTD = torch.randn(1, 3, 32)
        expected = F.gelu(tanh.blocks[0].mlp.up(x_BTD), approximate="tanh")
        torch.testing.assert_close(tanh.blocks[0].mlp(x_BTD), tanh.blocks[0].mlp.down(expected))
        assert not torch.equal(exact(some_ids(1, 5)), tanh(some_ids(1, 5)))


def test_initial_values_of_common_tensors_do_not_depend_on_the_substrate():
    kinds = [(16, "glyph", False), (32, "learned", True), (8, "token_bits", False)]
    models = [small_model(SubstrateConfig(V, width, kind, trainable=trained), seed=seed)
              for seed, (width, kind, trained) in enumerate(kinds)]
    for model in models:
        model.init_weights(3)
    states = [{k: v for k, v in model.state_dict().items() if not k.startswith("substrate.")} for model in models]
    assert states[0].keys() == states[1].keys() == states[2].keys()
    for name, tensor in states[0].items():
        assert torch.equal(tensor, states[1][name]) and torch.equal(tensor, states[2][name]), name


def test_initial_values_depend_on_the_seed_and_the_name():
    model, other = small_model(), small_model()
    model.init_weights(3)
    other.init_weights(4)
    assert not torch.equal(model.head.weight, other.head.weight)
    assert not torch.equal(model.blocks[0].attention.qkv.weight, model.blocks[1].attention.qkv.weight)


def test_initial_values_have_the_scale_of_gpt2_and_leave_the_table_alone():
    model = small_model(d_model=128)
    table_VE = model.substrate.table_VE.clone()
    model.init_weights(3)
    assert torch.equal(model.substrate.table_VE, table_VE)
    assert model.head.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert model.blocks[0].mlp.up.weight.std().item() == pytest.approx(0.02, rel=0.05)
    for into_stream in (model.blocks[1].mlp.down, model.blocks[1].attention.out):
        assert into_stream.weight.std().item() == pytest.approx(0.01, rel=0.05)
    assert all((p == (1 if n.endswith("norm.weight") else 0)).all() for n, p in model.named_parameters() if p.dim() < 2)


def test_frozen_table_gets_no_gradient_and_is_stored_like_a_trainable_one():
    frozen, trainable = (small_model(SubstrateConfig(V, 16, "glyph", trainable=trained)) for trained in (False, True))
    for model in (frozen, trainable):
        model(some_ids(1, 5)).sum().backward()
    assert frozen.state_dict().keys() == trainable.state_dict().keys() >= {"substrate.table_VE"}
    assert frozen.substrate.table_VE.grad is None and not frozen.substrate.table_VE.requires_grad
    assert trainable.substrate.table_VE.grad.abs().sum() > 0
    assert "substrate.table_VE" not in dict(frozen.named_parameters())


def test_heads_that_do_not_fit_are_refused_with_ones_that_do():
    with pytest.raises(ValueError, match="d_model 48 does not split into 5 heads.*n_head can be 1, 2, 3, 4, 6, 8, 12, 24$"):
        ModelConfig(d_model=48, n_head=5)
    with pytest.raises(ValueError, match="16 heads of even width"):
        ModelConfig(d_model=48, n_head=16)
    with pytest.raises(ValueError, match="n_layer -1 .*at least 0"):
        ModelConfig(n_layer=-1)


def test_code_that_does_not_divide_the_model_is_refused():
    with pytest.raises(ValueError, match="n_embed 12 does not divide d_model 32.*multiple of 12, or lift orthogonal"):
        Substrate(SubstrateConfig(V, 12), 32)
    with pytest.raises(ValueError, match="n_embed 33 is more than d_model 32"):
        Substrate(SubstrateConfig(V, 33, lift="orthogonal"), 32)
    with pytest.raises(ValueError, match="n_embed 16 is not d_model 32"):
        Substrate(SubstrateConfig(V, 16, lift="none"), 32)


@pytest.mark.parametrize(
    ("field", "value", "limit"),
    [
        ("activation", "x", "gelu, gelu_tanh"), ("n_layer", -1, "at least 0"), ("n_layer", 2.0, "int"),
        ("n_head", True, "int"),
        ("d_model", "32", "int"), ("block_size", -1, "at least 1"), ("rope_base", float("nan"), "float"),
        ("rope_base", 0.0, "at least 1"), ("norm_eps", -1e-5, "at least 0"), ("norm_eps", None, "float"),
        ("head_bias", 1, "bool"),
    ],
)
def test_a_shape_out_of_range_is_refused(field, value, limit):
    with pytest.raises(ValueError, match=f"{field} .*{limit}"):
        ModelConfig(**{field: value})


@pytest.mark.parametrize(
    ("field", "value", "limit"),
    [
        ("kind", "pictures", "glyph, token_bits"), ("scale", "l1", "l2, unit_rms, none"), ("lift", 5, "tile, orthogonal"),
        ("lift", ["tile"], "tile"), ("vocab_size", 0, "at least 1"), ("n_embed", 8.0, "int"), ("trainable", "no", "bool"),
        ("seed", "1", "int"), ("shuffle_seed", 1.5, "int, NoneType"), ("fingerprint", None, "str"),
    ],
)
def test_a_substrate_out_of_range_is_refused(field, value, limit):
    with pytest.raises(ValueError, match=f"{field} .*{limit}"):
        SubstrateConfig(**{"vocab_size": 10, "n_embed": 8, field: value})


def test_bits_without_room_are_refused():
    with pytest.raises(ValueError, match="n_embed 7.*at least 8"):
        Substrate(SubstrateConfig(200, 7, "token_bits"), 7)
