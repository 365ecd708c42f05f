"""Heads of kinds tied and code: normalised, equal to plain computations in value and gradient, searched exactly."""

import copy
import itertools
import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from glyphlm.composition.growth import GrowthSettings, grow
from glyphlm.modeling.attention import KVCache
from glyphlm.modeling.config import HeadConfig
from glyphlm.modeling.fusion import Fusion, FusionConfig
from glyphlm.modeling.heads import CodeHead, TiedHead, target_nats_of
from glyphlm.modeling.hf import GlyphLMConfig, GlyphLMForCausalLM
from glyphlm.modeling.model import GPT, ModelConfig, count_parameters
from glyphlm.modeling.substrate import Substrate, SubstrateConfig
from glyphlm.runs.folder import config_fields
from glyphlm.substrate.numbering import number_ids
from glyphlm.training.loss import Objective, target_nats

V, D = 103, 16  # a prime: the last digits lead out of the vocabulary
HEADS = {
    "tied": HeadConfig("tied"),
    "two digits": HeadConfig("code", width=24),
    "three digits": HeadConfig("code", digits=3, width=24),
    "clusters": HeadConfig("code", width=24, order="clusters"),
    "frequency": HeadConfig("code", width=24, order="frequency"),
    "shuffled": HeadConfig("code", width=24, order="shuffled", seed=3),
    "seven digits": HeadConfig("code", digits=7, width=24),
    "shortlist": HeadConfig("code", width=24, order="frequency", shortlist=20),
    "shortlist, clusters": HeadConfig("code", digits=3, width=24, order="clusters", shortlist=3),
}
CODES = [name for name in HEADS if name != "tied"]
SUBSTRATES = {
    "table": SubstrateConfig(V, 8),
    "unit rms": SubstrateConfig(V, 8, scale="unit_rms"),
    "trained": SubstrateConfig(V, 8, "learned", trainable=True),
    "rule": SubstrateConfig(V, 8, "token_bits"),
}


def make(head: HeadConfig, substrate: str = "table", bias: bool = False, seed: int = 1, vocab: int = V, **shape) -> GPT:
    """A model of random values, the numbers of its ids filled in."""
    table = Substrate(SubstrateConfig(**vars(SUBSTRATES[substrate]) | {"vocab_size": vocab}), D)
    sizes = {"d_model": D, "n_layer": 2, "n_head": 2, "block_size": 32} | shape
    model = GPT(ModelConfig(**sizes, head_bias=bias, head=head), table).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for values in [v for v in model.state_dict().values() if v.is_floating_point()]:
            values.copy_(torch.randn(values.shape, generator=generator) / 2)
    if isinstance(model.head, CodeHead):
        number_ids(model.head, model.substrate, torch.randint(100, (vocab,), generator=generator))
    return model


def states(rows: int = 9, seed: int = 2) -> Tensor:
    return torch.randn(rows, D, generator=torch.Generator().manual_seed(seed))


def some_ids(rows: int = 2, length: int = 12, vocab: int = V) -> Tensor:
    return torch.randint(vocab, (rows, length), generator=torch.Generator().manual_seed(3))


def plain_probability(head: CodeHead, x_D: Tensor, number: int) -> float:
    """p(id) of the id with this number, digit by digit, in loops over the digits that are possible."""
    short = head.config.shortlist
    if number < short:
        digits = [number]
    else:
        number -= short
        digits = [number // head.base**place % head.base for place in reversed(range(head.config.digits))]
    p, ids = 1.0, head.vocab_size - short
    for level, digit in enumerate(digits):
        if not level:
            logits_Z = head.outputs[0](x_D)
            first = [z for z in range(head.base) if z * head.base ** (head.config.digits - 1) < ids]
            likely_Z = logits_Z[[*range(short), *(short + z for z in first)]].softmax(-1)
            p *= float(likely_Z[digit if len(digits) == 1 else short + digit])
            continue
        rows = [head.earlier[level - 1].weight[digits[level - 1 - place] + place * head.base] for place in range(level)]
        gain_W, shift_W = sum(rows).chunk(2)
        logits_Z = head.outputs[level](F.gelu(head.inputs[level - 1](x_D) * (1 + gain_W) + shift_W))
        if len(head.biases):
            prefix = sum(d * head.base**place for place, d in enumerate(reversed(digits[:level])))
            logits_Z = logits_Z + head.biases[level - 1][prefix]
        below = head.base ** (head.config.digits - level - 1)
        before = sum(d * head.base ** (level - place) for place, d in enumerate(digits[:level]))
        possible = [z for z in range(head.base) if (before + z) * below < ids]
        p *= float(logits_Z[possible].softmax(-1)[digit])
    return p


@pytest.mark.parametrize("vocab", [103, 100, 128, 5, 2])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("name", CODES)
def test_probabilities_of_all_ids_sum_to_one(name, bias, vocab):
    config = replace(HEADS[name], shortlist=min(HEADS[name].shortlist, vocab - 1))
    head = make(config, bias=bias, vocab=vocab).head
    logp_NV = head(states())
    assert logp_NV.shape == (9, vocab) and logp_NV.isfinite().all()
    torch.testing.assert_close(logp_NV.exp().sum(-1), torch.ones(9), atol=1e-5, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("name", CODES)
def test_each_id_has_the_product_of_the_probabilities_of_its_digits(name, bias):
    head = make(HEADS[name], bias=bias).head
    places_V, logp_NV = head.places(torch.arange(V)), head(states(2))
    assert places_V.sort().values.tolist() == list(range(V))
    for row, number in itertools.product(range(2), range(V)):
        found = float(logp_NV[row, number].exp())
        assert found == pytest.approx(plain_probability(head, states(2)[row], int(places_V[number])), rel=1e-4)


@pytest.mark.parametrize("substrate", SUBSTRATES)
@pytest.mark.parametrize("bias", [False, True])
def test_a_tied_head_is_the_matrix_that_its_codes_make(substrate, bias):
    model = make(HEADS["tied"], substrate, bias)
    codes_VE = model.substrate.codes(torch.arange(V))
    weight_VD = codes_VE @ model.head.project.weight * (8**-0.5 if substrate == "unit rms" else 1)
    torch.testing.assert_close(model.head(states()), F.linear(states(), weight_VD, model.head.bias))
    assert "head.project.weight" in model.state_dict() and model.head.project.weight.shape == (8, D)
    assert not any("head" in name and "table" in name for name in model.state_dict())


@pytest.mark.parametrize("substrate", ["table", "trained", "rule"])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("name", HEADS)
def test_loss_and_gradients_are_those_of_the_plain_computation(name, bias, substrate, monkeypatch):
    monkeypatch.setattr("glyphlm.training.loss.LOGITS_AT_ONCE", 5 * V)  # in several chunks
    model, ids_BT, y_BT = make(HEADS[name], substrate, bias), some_ids(), some_ids().roll(-1, 1)
    trained = [values for values in model.parameters() if values.requires_grad]
    loss = Objective(model, torch.float32)(ids_BT, y_BT, y_BT.numel())
    found = torch.autograd.grad(loss, trained)
    plain = F.cross_entropy(model(ids_BT).flatten(0, 1), y_BT.flatten())
    torch.testing.assert_close(loss, plain)
    for one, other in zip(found, torch.autograd.grad(plain, trained), strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)
    nats_N = Objective(model, torch.float32)(ids_BT, y_BT)
    torch.testing.assert_close(nats_N.mean(), plain)


@pytest.mark.parametrize("name", HEADS)
def test_loss_in_bfloat16_is_near_that_in_float32(name):
    model, ids_BT = make(HEADS[name]), some_ids()
    one, other = (Objective(model, dtype)(ids_BT, ids_BT, ids_BT.numel()) for dtype in (torch.float32, torch.bfloat16))
    assert other.dtype == torch.float32
    torch.testing.assert_close(one, other, atol=0.05, rtol=0.05)


@pytest.mark.parametrize("count", [1, 2, 7, 50, V, 2 * V])
@pytest.mark.parametrize("name", CODES)
def test_the_search_finds_the_likeliest_ids_and_their_probabilities(name, count):
    head = make(HEADS[name], bias=True).head
    with torch.no_grad():
        full_NV, found_NV = head(states()), head.best(states(), count)
    kept = min(count, V)
    assert (found_NV.isfinite().sum(-1) == kept).all()
    torch.testing.assert_close(found_NV.topk(kept).values, full_NV.topk(kept).values)
    torch.testing.assert_close(found_NV[found_NV.isfinite()], full_NV[found_NV.isfinite()])


def test_the_search_opens_few_prefixes_of_a_sharp_distribution(monkeypatch):
    head, opened, logits = make(HEADS["two digits"]).head, [], CodeHead._logits
    monkeypatch.setattr(CodeHead, "_logits", lambda self, level, *rest: opened.append(level) or logits(self, level, *rest))
    with torch.no_grad():
        head.outputs[0].weight *= 30
        head.best(states(1), 1)
    assert opened == [1]


@pytest.mark.parametrize("name", CODES)
def test_generation_draws_from_the_full_distribution(name):
    """With a cache and without, batched, with a cache of fixed length, and by the search: the same ids."""
    model = GlyphLMForCausalLM(GlyphLMConfig(**config_fields(make(HEADS[name])))).eval()
    model.gpt.load_state_dict(make(HEADS[name]).state_dict())
    ids_BT = some_ids(3, 5)

    def drawn(**options) -> list[list[int]]:
        torch.manual_seed(5)
        how = {"do_sample": True, "top_k": 6, "top_p": 0.9, "temperature": 0.8, "max_new_tokens": 9, "pad_token_id": 0}
        with torch.no_grad():
            return model.generate(ids_BT, attention_mask=torch.ones_like(ids_BT), **how | options).tolist()

    expected = drawn(use_cache=False)
    assert all(drawn(**how) == expected for how in ({}, {"cache_implementation": "static"}, {"likeliest": 6}))
    greedy = {"do_sample": False, "top_k": None, "top_p": None, "temperature": None}
    assert drawn(**greedy) == drawn(**greedy, likeliest=1)


def test_the_search_is_for_heads_that_can_search():
    model = GlyphLMForCausalLM(GlyphLMConfig(**config_fields(make(HEADS["tied"])))).eval()
    with pytest.raises(ValueError, match="likeliest 4 is for a head of kind code"):
        model(some_ids(), likeliest=4)


@pytest.mark.parametrize("name", HEADS)
def test_logits_with_a_cache_are_those_without(name):
    model, ids_BT, cache = make(HEADS[name]), some_ids(), KVCache()
    with torch.no_grad():
        parts = [model.logits(model.hidden(part_BT, cache=cache)) for part_BT in ids_BT.split([5, 1, 6], 1)]
        torch.testing.assert_close(torch.cat(parts, 1), model(ids_BT), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("method", ["mean_logits", "weighted_logits", "mean_probs", "max_confidence", "posterior", "gate",
                                    "head", "adapter"])  # fmt: skip
@pytest.mark.parametrize("names", [("two digits", "clusters"), ("tied", "tied"), ("tied", "shuffled"),
                                   ("full", "three digits")])  # fmt: skip
def test_experts_are_mixed_by_their_distributions(names, method):
    heads = HEADS | {"full": HeadConfig()}
    experts = [make(heads[name], seed=seed) for seed, name in enumerate(names)]
    ids_BT, weights = some_ids(), [0.7, 0.3] if method in ("weighted_logits", "mean_probs") else None
    with torch.no_grad():
        logits = torch.stack([expert(ids_BT) for expert in experts])
        fusion = Fusion(FusionConfig(method, weights, rank=2), copy.deepcopy(experts)).eval()
        fusion.init_weights(1)
        found_BTV, shares = fusion(ids_BT), torch.tensor(weights or [0.5, 0.5])
        nats_N = target_nats(fusion, fusion.hidden(ids_BT).flatten(0, 1), ids_BT.flatten())
    if method == "mean_probs":
        expected = (logits.softmax(-1) * shares[:, None, None, None]).sum(0).log()
    elif method == "max_confidence":
        p = logits.softmax(-1)
        expected = torch.where(p[0].amax(-1, keepdim=True) >= p[1].amax(-1, keepdim=True), p[0], p[1]).log()
    elif method == "posterior":
        expected = found_BTV
        torch.testing.assert_close(found_BTV[:, 0].exp(), logits.softmax(-1).mean(0)[:, 0])  # nothing read, nothing known
    else:
        expected = (logits * shares[:, None, None, None]).sum(0)
    torch.testing.assert_close(found_BTV.log_softmax(-1), expected.log_softmax(-1), atol=1e-5, rtol=1e-5)
    plain_N = F.cross_entropy(found_BTV.flatten(0, 1), ids_BT.flatten(), reduction="none")
    torch.testing.assert_close(nats_N, plain_N, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("method", ["gate", "head", "adapter"])
def test_training_a_fusion_of_such_heads_has_the_gradients_of_the_plain_loss(method):
    fusion = Fusion(FusionConfig(method, rank=2), [make(HEADS["two digits"]), make(HEADS["tied"], seed=2)]).train()
    fusion.init_weights(1)
    trained, ids_BT = [values for values in fusion.parameters() if values.requires_grad], some_ids()
    assert trained
    loss = Objective(fusion, torch.float32)(ids_BT, ids_BT, ids_BT.numel())
    plain = F.cross_entropy(fusion(ids_BT).flatten(0, 1), ids_BT.flatten())
    torch.testing.assert_close(loss, plain)
    for one, other in zip(*(torch.autograd.grad(value, trained) for value in (loss, plain)), strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


def test_a_tied_head_in_a_fusion_reads_the_codes_that_the_fusion_holds():
    experts = [make(HEADS["tied"]), make(HEADS["tied"], seed=1)]
    experts[1].substrate = experts[0].substrate
    fusion = Fusion(FusionConfig(), experts)
    assert [head.substrate for head in fusion.head] == [fusion.substrates[0]] * 2
    assert count_parameters(fusion)["total"] == sum(v.numel() for v in fusion.state_dict().values())


@pytest.mark.parametrize("rest", ["full", "low_rank", "frozen"])
@pytest.mark.parametrize("name", HEADS)
def test_growth_by_blocks_that_add_nothing_keeps_the_distribution(name, rest):
    base = make(HEADS[name])
    grown = grow(base, ModelConfig(**vars(base.config) | {"n_layer": 3}), GrowthSettings(start="zero", head=rest), 1, "")
    with torch.no_grad():
        torch.testing.assert_close(grown.eval()(some_ids()), base(some_ids()))
    trains = {key for key, values in grown.named_parameters() if values.requires_grad and key.startswith("head")}
    assert bool(trains) == (rest != "frozen") and all(("lora" in key) == (rest == "low_rank") for key in trains)


def test_ids_are_numbered_by_how_often_they_occur_and_clusters_hold_similar_codes():
    counts_V = torch.randint(1000, (64,), generator=torch.Generator().manual_seed(1))
    substrate = Substrate(SubstrateConfig(64, 4), 4)
    alike_V = torch.arange(64) % 8  # eight kinds of codes
    substrate.table_VE.copy_(torch.randn(8, 4, generator=torch.Generator().manual_seed(2))[alike_V])
    by_count, by_code = CodeHead(HeadConfig("code", order="frequency"), 4, 64, False), CodeHead(
        HeadConfig("code", order="clusters"), 4, 64, False)
    for head in (by_count, by_code):
        number_ids(head, substrate, counts_V)
    assert counts_V[by_count.place_V.argsort()].tolist() == counts_V.sort(descending=True).values.tolist()
    ids_ZZ = by_code.place_V.argsort().view(8, 8)
    assert all(len(set(alike_V[ids].tolist())) == 1 for ids in ids_ZZ)
    assert all(counts_V[ids].diff().le(0).all() for ids in ids_ZZ)


@pytest.mark.parametrize("digits", [2, 3])
def test_parameters_grow_with_a_root_of_the_vocabulary(digits):
    sizes = []
    for vocab in (4096, 4 * 4096):
        model = nn.ModuleList([CodeHead(HeadConfig("code", digits, 64), 32, vocab, False)])
        sizes.append(count_parameters(model)["total"])
    assert sizes[1] < sizes[0] * 4 ** (1 / digits) * 1.05


@pytest.mark.parametrize(("options", "message"), [
    ({"kind": "half"}, "kind 'half' must be one of full, tied, code"),
    ({"kind": "code", "digits": 1}, "digits 1 must be at least 2"),
    ({"kind": "code", "width": 0}, "width 0 must be at least 1"),
    ({"digits": 3}, "head.digits 3 applies only to kind code"),
    ({"shortlist": 5}, "head.shortlist 5 applies only to kind code"),
    ({"kind": "tied", "order": "clusters"}, "head.order clusters applies only to kind code"),
    ({"kind": "code", "seed": 2}, "head.seed 2 applies only to order shuffled"),
])  # fmt: skip
def test_settings_out_of_range_or_without_effect_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        HeadConfig(**options)


def test_config_json_of_a_full_head_is_what_it_was():
    assert "head" not in config_fields(make(HeadConfig()))["model"]
    found = GlyphLMConfig(**config_fields(make(HEADS["three digits"])))
    assert found.shapes()[0][0].head == HEADS["three digits"]
    with pytest.raises(ValueError, match="unknown keys of HeadConfig: legs"):
        GlyphLMConfig(model={"head": {"legs": 4}}, substrate={"vocab_size": 4, "n_embed": 4})


@pytest.mark.parametrize("name", HEADS)
def test_the_same_seed_starts_the_same_weights_near_a_uniform_guess(name):
    one, other = make(HEADS[name]), make(HEADS[name], seed=9)
    for model in (one, other):
        model.init_weights(4)
    heads = [{key: values for key, values in model.head.state_dict().items() if key != "place_V"} for model in (one, other)]
    assert all(torch.equal(values, heads[1][key]) for key, values in heads[0].items())
    with torch.no_grad():
        nats = target_nats_of(one.head, F.layer_norm(states(200), (D,)), torch.arange(200) % V).mean()
    assert float(nats) == pytest.approx(math.log(V), abs=0.6)  # a shortlist is likelier than the rest


def test_a_tied_head_follows_its_model_when_it_is_copied():
    model = make(HEADS["tied"])
    twin = copy.deepcopy(model)
    assert isinstance(twin.head, TiedHead) and twin.head.substrate is twin.substrate is not model.substrate
