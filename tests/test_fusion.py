"""Experts as one model: each method by hand, one cache for all, what trains, and what the experts keep."""

import copy
from collections.abc import Sequence

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from glyphlm.modeling.attention import KVCache
from glyphlm.modeling.config import FusionConfig, Method, ModelConfig, SubstrateConfig
from glyphlm.modeling.fusion import OF_PROBABILITIES, Fusion
from glyphlm.modeling.model import GPT, count_parameters
from glyphlm.modeling.stitching import make_fusion
from glyphlm.modeling.substrate import Substrate
from glyphlm.training.loss import Objective

VOCAB = 60
METHODS = list(Method.__args__)
UNTRAINED = [method for method in METHODS if method not in ("gate", "head", "adapter", "stitch")]
WEIGHTS = [0.7, 0.3]


def make_expert(seed: int, **shape: int | bool) -> GPT:
    """A model with random values everywhere."""
    config = ModelConfig(**{"d_model": 32, "n_layer": 2, "n_head": 4, "block_size": 64, "head_bias": True} | shape)
    model = GPT(config, Substrate(SubstrateConfig(VOCAB, 16), config.d_model)).eval()
    generator = torch.Generator().manual_seed(seed)
    for values in model.state_dict().values():
        values.copy_(torch.randn(values.shape, generator=generator) / 3)
    return model


def small_models(experts: Sequence[GPT]) -> list[GPT]:
    """A router of each expert, which goes with it wherever it stands."""
    return [make_expert(expert.config.d_model, d_model=16, n_layer=1, n_head=2) for expert in experts]


def fuse(method: str, experts: Sequence[GPT], **options) -> Fusion:
    if method == "router":
        experts, options = [*experts, *small_models(experts)], options | {"routers": len(experts)}
    fusion = make_fusion(FusionConfig(method, **options), copy.deepcopy(list(experts))).eval()
    fusion.init_weights(1)
    return fusion


@pytest.fixture(scope="module")
def experts() -> list[GPT]:
    """Two that differ in depth, width, context and in whether their head has a bias."""
    return [make_expert(1), make_expert(2, d_model=48, n_layer=3, block_size=40, head_bias=False)]


@pytest.fixture(scope="module")
def ids_BT() -> Tensor:
    return torch.randint(VOCAB, (3, 14), generator=torch.Generator().manual_seed(3))


@pytest.fixture(scope="module")
def logits(experts, ids_BT) -> list[Tensor]:
    with torch.no_grad():
        return [expert(ids_BT) for expert in experts]


@pytest.fixture(scope="module")
def logp(logits) -> Tensor:
    return torch.stack([of_BTV.log_softmax(-1) for of_BTV in logits])


@pytest.fixture
def gated(experts) -> Fusion:
    """A gate that has learned something."""
    return with_gates(fuse("gate", experts))


def with_gates(fusion: Fusion, size: float = 1.0) -> Fusion:
    generator = torch.Generator().manual_seed(4)
    for gate in fusion.gates:
        gate.weight.data.normal_(std=size, generator=generator)
        gate.bias.data.normal_(std=size, generator=generator)
    return fusion


@torch.no_grad()
def step_by_step(fusion: Fusion, ids_BT: Tensor, prompt: int, attended_BT: Tensor | None = None) -> Tensor:
    """Logits of a prompt and then of one token after another, with a cache."""
    cache, found = KVCache(), []
    for start, end in [(0, prompt), *((at, at + 1) for at in range(prompt, ids_BT.shape[1]))]:
        attended = None if attended_BT is None else attended_BT[:, :end]
        positions = None if attended is None else (attended.cumsum(1) - 1).clamp(min=0)[:, start:]
        x_BTF = fusion.hidden(ids_BT[:, start:end], cache=cache, attended_BS=attended, positions_BT=positions)
        found.append(fusion.logits(x_BTF))
    return torch.cat(found, 1)


@pytest.mark.parametrize("method", [method for method in METHODS if method != "stitch"])  # which runs it twice
def test_a_model_fused_with_itself_is_itself(method, experts, ids_BT, logits):
    with torch.no_grad():
        found = fuse(method, [experts[0], experts[0]])(ids_BT)
    expected = logits[0].log_softmax(-1) if method in OF_PROBABILITIES else logits[0]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("method", ["mean_logits", "gate", "head", "adapter"])
def test_before_training_logits_are_the_mean(method, experts, ids_BT, logits):
    fusion = fuse(method, experts)
    torch.testing.assert_close(fusion(ids_BT), (logits[0] + logits[1]) / 2, atol=1e-5, rtol=1e-5)
    assert torch.equal(fusion(ids_BT), fuse("mean_logits", experts)(ids_BT))
    assert fusion.config.block_size == 40 and fusion.vocab_size == VOCAB and len(fusion.blocks) == 5


@torch.no_grad()
@settings(deadline=None)  # on a busy machine
@given(share=st.floats(0, 1))
def test_weighted_logits_by_hand(experts, ids_BT, logits, share):
    found = fuse("weighted_logits", experts, weights=[share, 1 - share])(ids_BT)
    torch.testing.assert_close(found, share * logits[0] + (1 - share) * logits[1], atol=1e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_mean_probs_by_hand(experts, ids_BT, logp, weights):
    first, second = weights or [0.5, 0.5]
    expected = first * logp[0].exp() + second * logp[1].exp()
    torch.testing.assert_close(fuse("mean_probs", experts, weights=weights)(ids_BT).exp(), expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_max_confidence_takes_the_surest_expert_at_each_position(experts, ids_BT, logp):
    found = fuse("max_confidence", experts)(ids_BT)
    surest = logp.amax(-1).argmax(0)
    assert 0 < surest.float().mean() < 1
    for row, position in torch.cartesian_prod(torch.arange(3), torch.arange(14)).tolist():
        torch.testing.assert_close(found[row, position], logp[surest[row, position], row, position], atol=1e-5, rtol=1e-5)


def posterior_by_hand(logp_MTV: Tensor, ids_T: Tensor, prior: Sequence[float], temperature: float) -> Tensor:
    """Probabilities [T, V] of one text, token by token."""
    weights, mixed = torch.tensor(prior), []
    for position, id_ in enumerate(ids_T.tolist()):
        if position:
            weights = weights * logp_MTV[:, position - 1, id_].exp() ** (1 / temperature)
            weights = weights / weights.sum()
        mixed.append((weights[:, None] * logp_MTV[:, position].exp()).sum(0))
    return torch.stack(mixed)


@torch.no_grad()
@pytest.mark.parametrize("temperature", [1.0, 30.0])
def test_posterior_follows_bayes_rule(experts, ids_BT, logp, temperature):
    found = fuse("posterior", experts, weights=WEIGHTS, temperature=temperature)(ids_BT).exp()
    for row, ids_T in enumerate(ids_BT):
        expected = posterior_by_hand(logp[:, row], ids_T, WEIGHTS, temperature)
        torch.testing.assert_close(found[row], expected, atol=1e-5, rtol=1e-5)


def switching_by_hand(logp_MTV: Tensor, ids_T: Tensor, memory: float, reset: float) -> Tensor:
    """Weights [T, M] of one text, as evidence that fades and may begin anew at each token."""
    prior, weights, found = torch.tensor(WEIGHTS), torch.tensor(WEIGHTS), []
    for position, id_ in enumerate(ids_T.tolist()):
        if position:
            faded = prior * (weights / prior) ** torch.tensor(-1 / memory).exp()
            weights = faded * logp_MTV[:, position - 1, id_].exp()
            weights = (1 - reset) * weights / weights.sum() + reset * prior
        found.append(weights)
    return torch.stack(found)


@torch.no_grad()
@pytest.mark.parametrize(("memory", "reset"), [(3.0, 0.0), (1e9, 0.2), (5.0, 0.05)])
def test_posterior_forgets_and_begins_again(experts, ids_BT, logp, memory, reset):
    fusion = fuse("posterior", experts, weights=WEIGHTS, memory=memory, reset=reset)
    found = fusion(ids_BT).exp()
    for row, ids_T in enumerate(ids_BT):
        weights_TM = switching_by_hand(logp[:, row], ids_T, memory, reset)
        expected = (weights_TM.T[..., None] * logp[:, row].exp()).sum(0)
        torch.testing.assert_close(found[row], expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(step_by_step(fusion, ids_BT, prompt=5).exp(), found, atol=1e-4, rtol=1e-4)
    documents_BT = torch.tensor([[0] * 5 + [1] * 9] * 3)
    places_BT = torch.tensor([[*range(5), *range(9)]] * 3)
    parted = fusion.logits(fusion.hidden(ids_BT, documents_BT=documents_BT, positions_BT=places_BT)).exp()
    torch.testing.assert_close(parted[:, 5:], fusion(ids_BT[:, 5:]).exp(), atol=1e-4, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("segment", [None, 6])
def test_small_models_choose_who_reads_a_segment_after_its_first_tokens(segment, experts, ids_BT, logp):
    fusion = fuse("router", experts, weights=WEIGHTS, route_after=3, segment=segment)
    said_MBTV = torch.stack([router(ids_BT).log_softmax(-1) for router in small_models(experts)])
    found, chosen = fusion(ids_BT).exp(), set()
    for row, position in torch.cartesian_prod(torch.arange(3), torch.arange(14)).tolist():
        begin = position // (segment or 14) * (segment or 14)
        read = range(max(begin, 1), min(position, begin + 2) + 1)  # the first token of a text has no probability
        evidence = torch.tensor(WEIGHTS).log()
        for place in read:
            evidence = evidence + said_MBTV[:, row, place - 1, ids_BT[row, place]]
        weights = evidence.softmax(-1)
        if position - begin >= 2:
            weights = F.one_hot(weights.argmax(), 2).float()
            chosen.add(int(weights.argmax()))
        expected = (weights[:, None] * logp[:, row, position].exp()).sum(0)
        torch.testing.assert_close(found[row, position], expected, atol=1e-5, rtol=1e-4)
    assert chosen == {0, 1}
    torch.testing.assert_close(step_by_step(fusion, ids_BT, prompt=2).exp(), found, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_of_a_routed_text_only_the_chosen_expert_reads_on(experts, ids_BT):
    fusion, ran = fuse("router", experts, route_after=3), []
    for expert in fusion.experts:
        expert.blocks[0].register_forward_hook(lambda block, *_: ran.append(block.attention.qkv.in_features))
    step_by_step(fusion, ids_BT[:1], prompt=3)
    assert sorted(ran.count(width) for width in (32, 48)) == [1, 12] and ran.count(16) == 2


@torch.no_grad()
@pytest.mark.parametrize("method", METHODS)
def test_each_document_is_read_by_itself(method, experts, ids_BT):
    fusion = fuse(method, experts, temperature=10.0)
    documents_BT = torch.tensor([[0] * 5 + [1] * 9, [3] * 14, [0] * 13 + [1]])
    places_BT = torch.tensor([[*range(5), *range(9)], [*range(14)], [*range(13), 0]])
    found = fusion.logits(fusion.hidden(ids_BT, documents_BT=documents_BT, positions_BT=places_BT))
    for row, start, end in ((0, 0, 5), (0, 5, 14), (1, 0, 14), (2, 13, 14)):
        torch.testing.assert_close(found[row, start:end], fusion(ids_BT[row : row + 1, start:end])[0], atol=1e-4, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("method", UNTRAINED)
def test_order_does_not_matter(method, experts, ids_BT):
    weights = WEIGHTS if method in ("weighted_logits", "mean_probs", "posterior") else None
    one = fuse(method, experts, weights=weights)(ids_BT)
    other = fuse(method, experts[::-1], weights=weights and weights[::-1])(ids_BT)
    torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_cached_steps_equal_the_whole(method, experts, ids_BT):
    fusion = fuse(method, experts, temperature=10.0)
    with torch.no_grad():
        torch.testing.assert_close(step_by_step(fusion, ids_BT, prompt=5), fusion(ids_BT), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("prompt", [5, 14])
def test_padding_on_the_left_changes_nothing(method, prompt, experts, ids_BT):
    fusion = fuse(method, experts, temperature=10.0)
    if method == "gate":
        fusion = with_gates(fuse(method, experts, top_k=1, route_after=3))
    attended_BT = torch.ones_like(ids_BT)
    attended_BT[1, :4] = 0
    found = step_by_step(fusion, ids_BT, prompt, attended_BT)
    with torch.no_grad():
        torch.testing.assert_close(found[1, 4:], fusion(ids_BT[1:2, 4:])[0], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(found[0], fusion(ids_BT[:1])[0], atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_gate_weighs_each_token_by_the_scores_of_the_experts(gated, experts, ids_BT, logits):
    scores = [gate(expert.hidden(ids_BT)) for gate, expert in zip(gated.gates, experts)]
    weights_BTM = torch.cat(scores, -1).softmax(-1)
    expected = sum(weights_BTM[..., number, None] * of_BTV for number, of_BTV in enumerate(logits))
    torch.testing.assert_close(gated(ids_BT), expected, atol=1e-5, rtol=1e-5)
    assert weights_BTM.std() > 0.1


@torch.no_grad()
def test_sparse_gate_keeps_the_best_expert_of_the_first_tokens(gated, experts, ids_BT, logits):
    sparse = with_gates(fuse("gate", experts, top_k=1, route_after=4))
    found = sparse(ids_BT)
    torch.testing.assert_close(found[:, :4], gated(ids_BT)[:, :4], atol=1e-5, rtol=1e-5)
    scores = torch.cat([gate(expert.hidden(ids_BT)) for gate, expert in zip(gated.gates, experts)], -1)
    best_B = scores[:, :4].mean(1).argmax(-1).tolist()
    assert len(set(best_B)) == 2  # rows of a batch choose for themselves
    for row, best in enumerate(best_B):
        torch.testing.assert_close(found[row, 4:], logits[best][row, 4:], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(step_by_step(sparse, ids_BT, prompt=2), found, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("prompt", [2, 6])
def test_experts_that_are_skipped_do_not_run_nor_their_part_of_the_head(experts, ids_BT, prompt, monkeypatch):
    sparse, ran, read, linear = with_gates(fuse("gate", experts, top_k=1, route_after=4)), [], [], F.linear
    for expert in sparse.experts:
        expert.blocks[0].register_forward_hook(lambda block, *_: ran.append(block.attention.qkv.in_features))
    monkeypatch.setattr(F, "linear", lambda x, weight, *bias: read.append(weight.shape) or linear(x, weight, *bias))
    step_by_step(sparse, ids_BT[:1], prompt)
    passes = [ran.count(width) for width in (32, 48)]
    assert sorted(passes) == [1 + max(0, 4 - prompt), 1 + 14 - prompt]
    assert passes == [read.count((VOCAB, width)) for width in (32, 48)]


@pytest.mark.parametrize("method", [method for method in METHODS if method not in ("router", "stitch")])
def test_heads_without_bias_get_none(method, ids_BT):
    pair = [make_expert(1, head_bias=False)] * 2
    fusion = fuse(method, pair, top_k=1 if method == "gate" else None, route_after=4)
    assert fusion.head.in_features == 64
    with torch.no_grad():
        expected = pair[0](ids_BT).softmax(-1)
        torch.testing.assert_close(fusion(ids_BT).softmax(-1), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(step_by_step(fusion, ids_BT, prompt=2).softmax(-1), expected, atol=1e-4, rtol=1e-4)


def test_in_training_the_sparse_gate_is_soft(experts, gated, ids_BT):
    sparse = with_gates(fuse("gate", experts, top_k=1, route_after=4)).train()
    torch.testing.assert_close(sparse.head(sparse.hidden(ids_BT)), gated(ids_BT), atol=1e-5, rtol=1e-5)


TRAINED = {"gate": {"gates.0.weight", "gates.0.bias", "gates.1.weight", "gates.1.bias"}, "head": {"head.weight"},
           "adapter": {"adapter.0.weight", "adapter.1.weight"}, "stitch": {"map.weight", "map.bias"}}


@pytest.mark.parametrize("method", METHODS)
def test_only_what_the_method_trains_is_not_frozen(method, experts):
    fusion = fuse(method, experts)
    trained = {name for name, values in fusion.named_parameters() if values.requires_grad}
    assert trained == TRAINED.get(method, set())
    assert fusion.frozen_depth == (2 if method == "stitch" else len(fusion.blocks))


@pytest.mark.parametrize("method", TRAINED)
def test_training_lowers_the_loss_and_leaves_the_experts_alone(method, experts, ids_BT):
    fusion = fuse(method, experts).train()
    before = {name: values.clone() for name, values in fusion.state_dict().items()}
    objective, y_BT = Objective(fusion, torch.float32), ids_BT.roll(-1, 1)
    optimizer = torch.optim.AdamW([p for p in fusion.parameters() if p.requires_grad], lr=0.01, weight_decay=0.0)
    losses = []
    for _ in range(12):
        loss = objective(ids_BT, y_BT, y_BT.numel())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    start = method if method == "stitch" else "mean_logits"
    expected = F.cross_entropy(fuse(start, experts)(ids_BT).flatten(0, 1), y_BT.flatten()).detach()
    assert losses[0] == pytest.approx(float(expected), rel=1e-5) and losses[-1] < losses[0] - 0.01
    changed = {name for name, values in fusion.state_dict().items() if not torch.equal(values, before[name])}
    assert changed == TRAINED[method]


def test_start_of_the_adapter_is_the_seeds(experts):
    one, same, other = (fuse("adapter", experts) for _ in range(3))
    other.init_weights(2)
    assert torch.equal(one.adapter[0].weight, same.adapter[0].weight)
    assert not torch.equal(one.adapter[0].weight, other.adapter[0].weight)


def test_experts_that_hold_one_substrate_look_it_up_once(ids_BT):
    first, second = make_expert(1), make_expert(2)
    apart = fuse("mean_logits", [first, second])
    second.substrate = first.substrate
    together = fuse("mean_logits", [first, second])
    assert [len(apart.substrates), len(together.substrates)] == [2, 1]
    assert apart.reads == [0, 1] and together.reads == [0, 0]
    table = first.substrate.table_VE.numel()
    assert count_parameters(apart)["total"] - count_parameters(together)["total"] == table
    with torch.no_grad():
        torch.testing.assert_close(together(ids_BT), (first(ids_BT) + second(ids_BT)) / 2, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("shared, total", [(False, 940_085_248), (True, 805_867_520)])
def test_the_published_fusion_has_its_published_size(shared, total):
    with torch.device("meta"):
        pair = [GPT(ModelConfig(1024, 16, 32, 1024, head_bias=True), Substrate(SubstrateConfig(131072, 1024), 1024))
                for _ in range(2)]
        pair[1].substrate = pair[0].substrate if shared else pair[1].substrate
        assert count_parameters(Fusion(FusionConfig(), pair))["total"] == total


def test_bfloat16_comes_close(experts, ids_BT):
    for method in METHODS:
        fusion = fuse(method, experts, temperature=30.0)
        with torch.no_grad():
            expected = fusion(ids_BT).softmax(-1)
            found = fusion.to(torch.bfloat16)(ids_BT).float().softmax(-1)
        assert (found - expected).abs().mean() < 0.005


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "vote"}, "method 'vote'.*mean_logits"), ({"weights": [0.5, -0.5]}, "weights.*at least 0"),
        ({"weights": [0.0, 0.0]}, "weights.*above"), ({"weights": []}, "weights"), ({"weights": ["a"]}, "weights"),
        ({"top_k": 0, "method": "gate"}, "top_k 0.*at least 1"), ({"top_k": 1}, "top_k 1.*gate"),
        ({"route_after": 0}, "route_after 0.*at least 1"), ({"rank": 0}, "rank 0.*at least 1"),
        ({"temperature": 0.0}, "temperature 0.*above 0"), ({"temperature": float("inf")}, "temperature inf"),
    ],
)
def test_settings_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        FusionConfig(**options)


@pytest.mark.parametrize("options", [{"weights": [1.0]}, {"weights": [0.2] * 5}, {"method": "gate", "top_k": 3}])
def test_settings_of_another_number_of_experts_are_refused(options, experts):
    with pytest.raises(ValueError, match="2 experts"):
        Fusion(FusionConfig(**options), copy.deepcopy(experts))


def test_experts_of_several_vocabularies_are_refused(experts):
    other = GPT(ModelConfig(32, 1, 4), Substrate(SubstrateConfig(VOCAB + 1, 16), 32))
    with pytest.raises(ValueError, match=f"{VOCAB}, {VOCAB + 1}"):
        Fusion(FusionConfig(), [copy.deepcopy(experts[0]), other])
