"""Growing by blocks: what starts how, what trains, what stays as it was, and adapters on what is frozen."""

import copy
import re
from dataclasses import replace

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from glyphlm.base.errors import InputError
from glyphlm.composition.growth import carried, check_growth, grow, places_of_old
from glyphlm.composition.settings import GrowthSettings, LoraSettings
from glyphlm.modeling.config import ModelConfig, SubstrateConfig
from glyphlm.modeling.model import GPT
from glyphlm.modeling.substrate import Substrate
from glyphlm.runs.adapters import adapted, merge_adapters
from glyphlm.training.flops import flops_per_token
from glyphlm.training.loss import Objective
from glyphlm.training.optim import make_adamw, take_moments

V, T = 96, 8
CONFIG = ModelConfig(d_model=32, n_layer=2, n_head=2, block_size=T, head_bias=True)
X_BT = torch.randint(V, (3, T), generator=torch.Generator().manual_seed(0))
Y_BT = torch.randint(V, (3, T), generator=torch.Generator().manual_seed(1))


def base(trainable: bool = False) -> GPT:
    model = GPT(CONFIG, Substrate(SubstrateConfig(V, 16, "learned", trainable=trainable, fingerprint="before"), 32))
    model.init_weights(1)
    for values in (*model.parameters(), model.substrate.table_VE.data):
        values.data += torch.randn(values.shape, generator=torch.Generator().manual_seed(values.numel())) / 10
    return model


def grown(depth: int = 4, model: GPT | None = None, lora: LoraSettings | None = None, **settings) -> GPT:
    given = GrowthSettings(lora=lora or LoraSettings(), **settings)
    return grow(model or base(), replace(CONFIG, n_layer=depth), given, seed=2, tokenizer_fingerprint="tok")


def trained_names(model: GPT) -> set[str]:
    return {name for name, values in model.named_parameters() if values.requires_grad}


def train_a_little(model: GPT) -> None:
    optimizer, objective = make_adamw(model.parameters(), 0.1, (0.9, 0.95)), Objective(model, torch.float32)
    optimizer.param_groups[0]["lr"] = optimizer.param_groups[1]["lr"] = 0.01
    for _ in range(3):
        objective(X_BT, Y_BT, targets=Y_BT.numel()).backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("place", ["top", "interleaved"])
def test_a_zero_start_changes_no_logit_and_learns(place):
    model = grown(start="zero", place=place)
    assert torch.equal(model(X_BT), base()(X_BT))
    train_a_little(model)
    assert not torch.equal(model(X_BT), base()(X_BT))


def test_a_random_start_changes_the_logits():
    assert not torch.allclose(grown(start="random")(X_BT), base()(X_BT), atol=1e-3)


@pytest.mark.parametrize(("start", "sources"), [("copy", [1, 1, 1]), ("stack", [0, 1, 0])])
def test_new_blocks_are_copies(start, sources):
    model, old = grown(5, start=start), base()
    for block, source in zip(model.blocks[2:], sources):
        for name, values in block.state_dict().items():
            assert torch.equal(values, old.blocks[source].state_dict()[name])


def test_new_random_blocks_begin_as_in_a_model_that_is_trained_at_once():
    model, monolithic = grown(), GPT(replace(CONFIG, n_layer=4), Substrate(SubstrateConfig(V, 16, "learned"), 32))
    monolithic.init_weights(2)
    for block, other in zip(model.blocks[2:], monolithic.blocks[2:]):
        assert all(torch.equal(values, other.state_dict()[name]) for name, values in block.state_dict().items())


@pytest.mark.parametrize(
    ("before", "after", "places"), [(4, 6, [0, 1, 3, 4]), (3, 6, [0, 2, 4]), (2, 2, [0, 1]), (3, 4, [0, 1, 2])]
)
def test_interleaved_blocks_are_spread(before, after, places):
    assert places_of_old(before, after, "interleaved") == places
    assert places_of_old(before, after, "top") == list(range(before))


def test_every_block_caches_its_own_keys():
    assert [block.attention.layer for block in grown(place="interleaved").blocks] == [0, 1, 2, 3]


@pytest.mark.parametrize("head", ["full", "low_rank", "frozen"])
@pytest.mark.parametrize("norm", [True, False])
def test_only_the_parts_in_the_settings_are_trained(head, norm):
    model = grown(head=head, norm=norm)
    parts = {name.split(".")[0] for name in trained_names(model)}
    assert parts == {"blocks"} | ({"head"} if head != "frozen" else set()) | ({"norm"} if norm else set())
    assert not any(name.startswith(("blocks.0.", "blocks.1.")) for name in trained_names(model))
    assert all("lora_" in name for name in trained_names(model) if name.startswith("head") and head == "low_rank")


@pytest.mark.parametrize("settings", [{}, {"head": "low_rank"}, {"lora": LoraSettings(rank=2)}, {"place": "interleaved"}])
def test_bytes_of_what_is_frozen_stay_and_it_has_neither_gradient_nor_moments(settings):
    model = grown(**settings)
    before = {name: values.clone() for name, values in model.state_dict().items()}
    optimizer, trained = make_adamw(model.parameters(), 0.1, (0.9, 0.95)), trained_names(model)
    Objective(model, torch.float32)(X_BT, Y_BT, targets=Y_BT.numel()).backward()
    assert {name for name, values in model.named_parameters() if values.grad is not None} == trained
    for group in optimizer.param_groups:
        group["lr"] = 0.01
    optimizer.step()
    changed = {name for name, values in model.state_dict().items() if not torch.equal(values, before[name])}
    # The first step moves no lora_A: its gradient is zero while lora_B is.
    assert {name for name in trained if "lora_A" not in name} <= changed <= trained
    assert set(optimizer.state) == {values for values in model.parameters() if values.requires_grad}


def test_the_frozen_blocks_run_without_autograd():
    model, kept = grown(), []
    with torch.autograd.graph.saved_tensors_hooks(lambda values: kept.append(values.shape) or values, lambda values: values):
        for block in model.blocks[:2]:
            block.register_forward_hook(lambda block, given, result: kept.append(result.requires_grad))
        model.hidden(X_BT)
    assert kept[:2] == [False, False] and model.frozen_depth == 2


def test_blocks_all_trains_everything_but_a_frozen_substrate():
    model = grown(blocks="all", start="stack")
    assert trained_names(model) == {name for name, _ in model.named_parameters()}
    assert grown(blocks="all", model=base(trainable=True)).substrate.table_VE.requires_grad


def test_a_trained_table_is_frozen_by_growth_under_a_fingerprint_of_its_values():
    old = base(trainable=True)
    model = grown(model=old)
    assert not model.substrate.config.trainable and not model.substrate.table_VE.requires_grad
    assert torch.equal(model.substrate.table_VE, old.substrate.table_VE)
    old.substrate.table_VE.data += 1
    other = grown(model=old).substrate.config.fingerprint
    assert len({"before", model.substrate.config.fingerprint, other}) == 3


@pytest.mark.parametrize("head", ["full", "low_rank"])
def test_merged_adapters_give_the_logits_of_separate_ones(head):
    model = grown(head=head, lora=LoraSettings(rank=3, targets=["attention.qkv", "attention.out", "mlp.up", "mlp.down"]))
    assert len(adapted(model)) == 2 * 4 + (head == "low_rank")
    assert torch.allclose(model(X_BT), grown()(X_BT), atol=1e-6)  # an adapter begins as no change
    train_a_little(model)
    before = model(X_BT)
    merge_adapters(model)
    assert not adapted(model) and model.state_dict().keys() == grown().state_dict().keys()
    torch.testing.assert_close(model(X_BT), before, atol=2e-6, rtol=1e-5)


def test_the_loss_sees_a_low_rank_head():
    model = grown(head="low_rank")
    train_a_little(model)
    expected = torch.nn.functional.cross_entropy(model(X_BT).flatten(0, 1), Y_BT.flatten())
    torch.testing.assert_close(Objective(model, torch.float32)(X_BT, Y_BT, targets=Y_BT.numel()), expected)
    assert not torch.allclose(model.head(model.hidden(X_BT)), model.head.base_layer(model.hidden(X_BT)))


def test_adapters_wait_for_the_depth_that_the_settings_name():
    assert not adapted(grown(4, lora=LoraSettings(rank=2, from_depth=5)))
    assert adapted(grown(5, lora=LoraSettings(rank=2, from_depth=5)))


@pytest.mark.parametrize(
    "settings",
    [{}, {"head": "frozen"}, {"place": "interleaved"}, {"blocks": "all"},
     {"lora": LoraSettings(rank=2, targets=["mlp.up"])}, {"lora": LoraSettings(rank=2)}],
)  # fmt: skip
def test_a_grown_model_costs_what_torch_counts(settings):
    model = grown(**settings)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        Objective(model, torch.float32)(X_BT, Y_BT, targets=Y_BT.numel()).backward()
    flops = flops_per_token(model, causal=False)
    assert sum(part.total for part in flops.values()) * X_BT.numel() == counter.get_total_flops()
    assert flops["frozen"].backward == 0
    assert (flops["frozen"].forward > 0) == (model.frozen_depth > 0)


@pytest.mark.parametrize(
    ("config", "settings", "message"),
    [
        ({"d_model": 64}, {}, "the base has d_model 32, the recipe 64"),
        ({"block_size": 16}, {}, "the base has block_size 8, the recipe 16"),
        ({"n_layer": 1}, {}, "the base has 2 blocks, the recipe 1"),
        ({}, {"blocks": "all", "lora": LoraSettings(rank=2)}, "adapters of rank 2 on them have no use"),
        ({}, {"start": "stack", "place": "interleaved"}, "place interleaved does not fit"),
        ({"n_layer": 2}, {"head": "frozen", "norm": False}, "nothing would train"),
    ],
)
def test_what_cannot_be_grown_is_refused(config, settings, message):
    with pytest.raises(InputError, match=message):
        grow(base(), replace(CONFIG, **{"n_layer": 4} | config), GrowthSettings(**settings), 2, "tok")


@pytest.mark.parametrize(
    ("kind", "wrong", "limit"),
    [
        (LoraSettings, {"targets": ["attention.q"]}, "attention.qkv"), (LoraSettings, {"targets": []}, "at least one"),
        (LoraSettings, {"rank": -1}, "at least 0"), (LoraSettings, {"alpha": float("nan")}, "above 0"),
        (LoraSettings, {"from_depth": 0}, "at least 1"), (GrowthSettings, {"head_rank": 0}, "at least 1"),
        (GrowthSettings, {"cache_gb": -1.0}, "above 0"), (GrowthSettings, {"start": "cold"}, "random, zero"),
        (GrowthSettings, {"place": "below"}, "top, interleaved"), (GrowthSettings, {"head": "half"}, "full, low_rank"),
    ],
)
def test_settings_out_of_range_are_refused(kind, wrong, limit):
    (name, value), = wrong.items()
    shown = value[0] if name == "targets" and value else value
    with pytest.raises(InputError, match=re.escape(f"{name} {shown!r}") + f".*{limit}"):
        kind(**wrong)


@pytest.mark.parametrize(("start", "place", "sources"), [
    ("random", "top", {0: 0, 1: 1}), ("zero", "interleaved", {0: 0, 2: 1}), ("copy", "top", {0: 0, 1: 1, 2: 1, 3: 1}),
    ("stack", "top", {0: 0, 1: 1, 2: 0, 3: 1}), ("copy", "interleaved", {0: 0, 1: 0, 2: 1, 3: 1})])  # fmt: skip
def test_moments_go_where_the_values_go(start, place, sources):
    moments = {f"blocks.{n}.mlp.up.weight/exp_avg": torch.tensor(float(n)) for n in (0, 1)}
    moments["head.weight/step"] = torch.ones(())
    found = carried(moments, 2, 4, GrowthSettings(start=start, place=place))
    assert {int(name.split(".")[1]): int(value) for name, value in found.items() if name.startswith("blocks.")} == sources
    assert float(found["head.weight/step"]) == 1
    model, old = grown(4, start=start, place=place), base()
    for number, source in sources.items():
        assert torch.equal(model.blocks[number].mlp.up.weight, old.blocks[source].mlp.up.weight)


def test_an_optimizer_with_carried_moments_continues_as_it_would_have():
    model = base()
    optimizer, objective = make_adamw(model.parameters(), 0.1, (0.9, 0.95)), Objective(model, torch.float32)

    def step(optimizer, objective):
        for group in optimizer.param_groups:
            group["lr"] = 0.01
        objective(X_BT, Y_BT, targets=Y_BT.numel()).backward()
        optimizer.step()
        optimizer.zero_grad()

    for _ in range(3):
        step(optimizer, objective)
    other = grown(2, copy.deepcopy(model), blocks="all")
    moments = {f"{name}/{key}": value for name, p in model.named_parameters() for key, value in optimizer.state[p].items()}
    carried_over = make_adamw(other.parameters(), 0.1, (0.9, 0.95))
    take_moments(carried_over, other, carried(moments, 2, 2, GrowthSettings(blocks="all")))
    step(optimizer, objective)
    step(carried_over, Objective(other, torch.float32))
    assert all(torch.equal(p, other.get_parameter(name)) for name, p in model.named_parameters())


def test_blocks_cannot_be_copied_where_there_are_none():
    with pytest.raises(InputError, match="no blocks, of which start copy"):
        check_growth(replace(CONFIG, n_layer=0), CONFIG, GrowthSettings(start="copy"))
