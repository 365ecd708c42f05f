"""Coordinate checks: with muP steps move a state as far at any width, with CompleteP at any depth, too; else they do not."""

import math

import pytest
import torch

from glyphlm.base.errors import InputError
from glyphlm.modeling.config import ModelConfig, SubstrateConfig
from glyphlm.modeling.model import GPT
from glyphlm.modeling.substrate import Substrate
from glyphlm.training.loss import Objective
from glyphlm.training.optim import make_optimizer
from glyphlm.training.parametrization import scale_start, scales, scales_of
from glyphlm.training.settings import TrainSettings

X_BT = torch.randint(64, (4, 16), generator=torch.Generator().manual_seed(1))
Y_BT = torch.randint(64, (4, 16), generator=torch.Generator().manual_seed(2))


def make(width: int, depth: int, kind: str) -> tuple[GPT, torch.optim.Optimizer]:
    """A model over frozen bits of heads 16 wide; lr belongs to width 32 and depth 2."""
    model = GPT(ModelConfig(width, depth, width // 16, 16), Substrate(SubstrateConfig(64, 16, "token_bits"), width))
    model.init_weights(1)
    factors = scales(model, kind, width / 32, depth / 2)
    scale_start(model, factors)
    rates = {name: rate for name, (_, rate) in factors.items()}
    return model.train(), make_optimizer(model, "adamw", 0.0, (0.9, 0.95), rates)


def moved(width: int, depth: int, kind: str) -> tuple[float, float]:
    """How far 4 steps move the state before the last norm and the logits, root mean square."""
    model, optimizer = make(width, depth, kind)
    states = []
    model.norm.register_forward_pre_hook(lambda _, given: states.append(given[0].detach().clone()))
    with torch.no_grad():
        before = model(X_BT)
    for _ in range(4):
        for group in optimizer.param_groups:
            group["lr"] = 0.01 * group["scale"]
        Objective(model, torch.float32)(X_BT, Y_BT, Y_BT.numel()).backward()
        optimizer.step()
        optimizer.zero_grad()
    with torch.no_grad():
        after = model(X_BT)
    return float((states[-1] - states[0]).square().mean().sqrt()), float((after - before).square().mean().sqrt())


def slope(values: list[float], doublings: int) -> float:
    """Growth of the logarithm over that of the size."""
    return math.log(values[-1] / values[0]) / math.log(2**doublings)


@pytest.mark.parametrize("kind", ["standard", "mup"])
def test_coordinates_over_width(kind):
    found = [moved(width, 2, kind) for width in (32, 64, 128, 256)]
    state, logits = (slope([one[number] for one in found], 3) for number in (0, 1))
    if kind == "standard":
        assert state > 0.4 and logits > 0.35
    else:
        assert abs(state) < 0.25 and abs(logits) < 0.25


@pytest.mark.parametrize("kind", ["mup", "completep"])
def test_coordinates_over_depth(kind):
    state = slope([moved(32, depth, kind)[0] for depth in (2, 4, 8, 16)], 3)
    assert state > 0.4 if kind == "mup" else abs(state) < 0.25


def test_at_the_base_shape_all_are_the_same():
    start = [make(32, 2, kind)[0].state_dict() for kind in ("standard", "mup", "completep")]
    assert all(torch.equal(values, other[name]) for other in start[1:] for name, values in start[0].items())


def test_weight_decay_of_a_step_is_the_same_at_any_rate():
    model, _ = make(64, 4, "completep")
    rates = {name: rate for name, (_, rate) in scales(model, "completep", 2.0, 2.0).items()}
    groups = make_optimizer(model, "adamw", 0.1, (0.9, 0.95), rates).param_groups
    assert {round(group["scale"] * group["weight_decay"], 9) for group in groups if group["weight_decay"]} == {0.1}
    held = [id(p) for group in groups for p in group["params"]]
    assert sorted(held) == sorted(id(p) for p in model.parameters())


def test_what_the_rules_do_not_speak_of_is_refused():
    with pytest.raises(InputError, match="parametrization mup .*adamw"):
        TrainSettings(steps=1, optimizer="muon", parametrization="mup")
    assert scales_of(make(64, 2, "mup")[0], TrainSettings(steps=1)) == {}
