"""Operations and parameters by part: counted again by torch, and on the published shapes."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from glyphlm.modeling.config import HeadConfig
from glyphlm.modeling.fusion import Fusion, FusionConfig
from glyphlm.modeling.model import GPT, ModelConfig, count_parameters
from glyphlm.modeling.stitching import make_fusion
from glyphlm.modeling.substrate import Substrate, SubstrateConfig
from glyphlm.training.flops import flops_per_token, parameters_by_part, parameters_in_copies
from glyphlm.training.loss import head_loss, training_loss

V, T = 96, 8
SUBSTRATES = {
    "frozen table": SubstrateConfig(V, 16),
    "trained table": SubstrateConfig(V, 16, "learned", trainable=True),
    "rule": SubstrateConfig(V, 16, "token_bits"),
    "affine rule": SubstrateConfig(V, 16, "affine_bits"),
    "frozen table, orthogonal lift": SubstrateConfig(V, 12, lift="orthogonal"),
    "trained table, orthogonal lift": SubstrateConfig(V, 12, "learned", lift="orthogonal", trainable=True),
}
FROZEN = {
    "nothing": (),
    "the lower block": ("blocks.0.",),
    "all blocks": ("blocks.",),
    "the upper block": ("blocks.1.",),
    "matrices of the lower block": ("blocks.0.attention.qkv", "blocks.0.attention.out", "blocks.0.mlp"),
    "the head": ("head",),
}


def small(substrate: SubstrateConfig, frozen: tuple[str, ...] = ()) -> GPT:
    model = GPT(ModelConfig(d_model=32, n_layer=2, n_head=2, block_size=T), Substrate(substrate, 32))
    for name, values in model.named_parameters():
        values.requires_grad_(not name.startswith(frozen or ("none",)))
    return model


def fuse(substrate: SubstrateConfig, method: str = "head", shared: bool = True) -> Fusion:
    """Three experts that look at one substrate, or each at its own."""
    experts = [small(substrate) for _ in range(3)]
    for expert in experts if shared else []:
        expert.substrate = experts[0].substrate
    return make_fusion(FusionConfig(method, rank=4), experts).train()


def counted(model: GPT | Fusion, train: bool) -> FlopCounterMode:
    """What torch counts on three sequences, attention in plain matrix products."""
    ids_BT = torch.randint(V, (3, T))
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.set_grad_enabled(train):
        if train:
            head_loss(model.hidden(ids_BT).flatten(0, 1), model.head.weight, None, ids_BT.flatten()).backward()
        else:
            model(ids_BT)
    return counter


@pytest.mark.parametrize("frozen", FROZEN)
@pytest.mark.parametrize("kind", SUBSTRATES)
def test_training_costs_what_torch_counts(kind, frozen):
    model = small(SUBSTRATES[kind], FROZEN[frozen])
    flops = flops_per_token(model, causal=False)
    assert sum(part.total for part in flops.values()) * 3 * T == counted(model, train=True).get_total_flops()


@pytest.mark.parametrize("kind", ["frozen table", "trained table", "rule"])
@pytest.mark.parametrize("head", [HeadConfig("tied"), HeadConfig("code", width=24), HeadConfig("code", 3, 24)], ids=str)
def test_training_with_another_head_costs_what_torch_counts(kind, head):
    model = GPT(ModelConfig(d_model=32, n_layer=2, n_head=2, block_size=T, head=head), Substrate(SUBSTRATES[kind], 32))
    flops, ids_BT = flops_per_token(model, causal=False), torch.randint(V, (3, T))
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        training_loss(model, model.hidden(ids_BT).flatten(0, 1), ids_BT.flatten(), torch.float32, 3 * T).backward()
    assert sum(part.total for part in flops.values()) * 3 * T == counter.get_total_flops()
    assert sum(sum(counts.values()) for counts in parameters_by_part(model).values()) == count_parameters(model)["total"]


@pytest.mark.parametrize("method", ["head", "gate", "adapter"])
@pytest.mark.parametrize("kind", SUBSTRATES)
def test_training_on_frozen_experts_costs_what_torch_counts(kind, method):
    model = fuse(SUBSTRATES[kind], method)
    flops = flops_per_token(model, causal=False)
    assert sum(part.total for part in flops.values()) * 3 * T == counted(model, train=True).get_total_flops()
    assert flops["frozen"].forward > 0 == flops["frozen"].backward
    assert all(flops[part].total == 0 for part in ("attention", "scores", "mlp"))


def test_whole_copies_of_experts_have_the_substrate_as_often_as_it_is_read():
    table = SUBSTRATES["frozen table"]
    single = count_parameters(small(table))["total"]
    for shared in (True, False):
        model = fuse(table, shared=shared)
        assert parameters_in_copies(model) == 3 * single
        assert count_parameters(model)["total"] == 3 * single - 2 * shared * V * 16


def test_each_part_costs_forward_what_torch_counts():
    model = small(SUBSTRATES["affine rule"])
    counts = counted(model, train=False).get_flop_counts()
    counts = {name.removeprefix("GPT."): sum(found.values()) for name, found in counts.items()}
    flops = {part: found.forward * 3 * T for part, found in flops_per_token(model, causal=False).items()}
    blocks = [{part: counts.get(f"blocks.{n}.{part}") for part in ("attention", "mlp")} for n in (0, 1)]
    assert flops["attention"] + flops["scores"] == sum(block["attention"] for block in blocks)
    assert flops["mlp"] == sum(block["mlp"] for block in blocks)
    assert (flops["head"], flops["substrate"]) == (counts["head"], counts["substrate"])


def test_causal_scores_are_half_of_all_and_a_second_forward_pass_is_that_of_the_blocks():
    model = small(SUBSTRATES["rule"])
    causal, full = flops_per_token(model), flops_per_token(model, causal=False)
    assert 2 * causal["scores"].total == full["scores"].total == 3 * 2 * 4 * T * 32
    again = flops_per_token(model, recompute=True)["recompute"]
    assert again.forward == 0 and again.backward == 2 * (24 * 32**2 + 2 * T * 32)


def test_below_the_lowest_trained_value_nothing_is_paid_backward():
    flops = flops_per_token(small(SUBSTRATES["rule"], ("blocks.",)))
    assert flops["attention"].backward == flops["mlp"].backward == flops["scores"].backward == 0
    assert flops["head"].backward == 2 * flops["head"].forward == 4 * V * 32


@pytest.mark.parametrize("kind", SUBSTRATES)
def test_parts_add_up_to_all_parameters(kind):
    model = small(SUBSTRATES[kind], ("blocks.0.",))
    counts, parts = count_parameters(model), parameters_by_part(model)
    assert sum(part["trained"] for part in parts.values()) == counts["trained"]
    assert sum(part["frozen"] for part in parts.values()) == counts["frozen"]
    assert parts["head"] == {"trained": V * 32, "frozen": 0}
    assert parts["norms"] == {"trained": 3 * 64, "frozen": 2 * 64}
