"""Schedules at points computed by hand, and what the optimizer holds."""

import itertools

import pytest
import torch

from glyphlm.base.errors import InputError
from glyphlm.modeling.model import GPT, ModelConfig
from glyphlm.modeling.substrate import Substrate, SubstrateConfig
from glyphlm.training.optim import make_adamw, make_optimizer
from glyphlm.training.settings import TrainSettings, schedule_of

PEAK = 0.4


def rates(kind: str, steps: int = 100, warmup: float = 0.1, floor: float = 0.25) -> list[float]:
    schedule = schedule_of(TrainSettings(steps, schedule=kind, warmup=warmup, lr=PEAK, lr_floor=floor))
    return [schedule(step) for step in range(steps + 1)]


def is_falling(values: list[float]) -> bool:
    return all(a > b for a, b in itertools.pairwise(values))


@pytest.mark.parametrize("kind", ["cosine", "wsd", "constant"])
def test_warmup_rises_in_a_straight_line_to_the_peak(kind):
    assert rates(kind)[:11] == pytest.approx([0.04, 0.08, 0.12, 0.16, 0.2, 0.24, 0.28, 0.32, 0.36, 0.4, 0.4])


def test_cosine_falls_from_the_peak_to_the_floor():
    found = rates("cosine")
    assert [found[10], found[40], found[55], found[70], found[100]] == pytest.approx([0.4, 0.325, 0.25, 0.175, 0.1])
    assert is_falling(found[10:]) and max(found) == PEAK


def test_warmup_stable_decay_is_flat_and_falls_in_its_last_fifth():
    found = rates("wsd")
    assert set(found[10:81]) == {PEAK}
    assert [found[81], found[90], found[100]] == pytest.approx([0.385, 0.25, 0.1])
    assert is_falling(found[80:])


def test_constant_stays_at_the_peak():
    assert rates("constant")[10:] == pytest.approx([PEAK] * 91)


@pytest.mark.parametrize("kind", ["cosine", "wsd", "constant"])
def test_runs_of_few_steps_and_without_warmup_have_a_rate_at_every_step(kind):
    for steps, warmup in [(1, 0.0), (1, 0.05), (2, 1.0), (3, 0.5)]:
        assert all(0 < rate <= PEAK for rate in rates(kind, steps, warmup)[:-1])
    assert rates(kind, warmup=0.0)[0] == pytest.approx(PEAK)


def grouped(trainable: bool) -> tuple[GPT, torch.optim.AdamW]:
    model = GPT(ModelConfig(8, 1, 2, 8, head_bias=True), Substrate(SubstrateConfig(12, 8, "glyph", trainable=trainable), 8))
    return model, make_adamw(model.parameters(), 0.3, (0.8, 0.9))


def test_matrices_decay_and_vectors_do_not():
    model, optimizer = grouped(trainable=True)
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert decay == {id(p): 0.3 if p.dim() == 2 else 0.0 for p in model.parameters()}
    assert all(group["betas"] == (0.8, 0.9) for group in optimizer.param_groups)


def test_frozen_values_are_in_no_group():
    model, optimizer = grouped(trainable=False)
    model.head.weight.requires_grad_(False)
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    again = {id(p) for group in make_adamw(model.parameters(), 0.3, (0.8, 0.9)).param_groups for p in group["params"]}
    assert id(model.substrate.table_VE) not in held
    assert held - again == {id(model.head.weight)}


def test_a_step_moves_matrices_and_vectors_as_adamw_does():
    model, optimizer = grouped(trainable=True)
    model.init_weights(1)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    model(torch.arange(6)[None]).logsumexp(-1).sum().backward()
    for group in optimizer.param_groups:
        group["lr"] = 0.01
    optimizer.step()
    for name, p in model.named_parameters():
        decayed = before[name] * (1 - 0.01 * 0.3) if p.dim() == 2 else before[name]
        first = 0.01 * p.grad / (p.grad.abs() + 1e-8)  # the first step of Adam goes by the sign of the gradient
        torch.testing.assert_close(p.detach(), decayed - first, atol=1e-6, rtol=1e-5)


def test_muon_moves_the_matrices_of_the_blocks_and_adamw_the_rest():
    torch.manual_seed(0)
    model, copied = (GPT(ModelConfig(8, 2, 2, 8), Substrate(SubstrateConfig(12, 8, trainable=True), 8)) for _ in range(2))
    model.init_weights(1)
    copied.load_state_dict(model.state_dict())
    hidden = [name for name, p in model.named_parameters() if name.startswith("blocks.") and p.dim() == 2]
    alone = torch.optim.Muon([copied.get_parameter(name) for name in hidden], lr=0.02, weight_decay=0.1,
                             adjust_lr_fn="match_rms_adamw")
    rest = make_adamw([p for name, p in copied.named_parameters() if name not in hidden], 0.1, (0.9, 0.95))
    joined = make_optimizer(model, "muon", 0.1, (0.9, 0.95))
    for group in [*joined.param_groups, *rest.param_groups]:
        group["lr"] = 0.02
    for _ in range(3):
        for p, other in zip(model.parameters(), copied.parameters(), strict=True):
            p.grad = other.grad = torch.randn(p.shape)
        for optimizer in (joined, alone, rest):
            optimizer.step()
    assert len(hidden) == 8 and all("momentum_buffer" in joined.state[model.get_parameter(name)] for name in hidden)
    for name, p in model.named_parameters():  # torch's products are bfloat16; updates of Muon are about 0.2 * 0.02
        torch.testing.assert_close(p, copied.get_parameter(name), rtol=0, atol=4e-4 if name in hidden else 0)


def test_an_update_of_muon_is_nearly_orthogonal_and_as_large_as_one_of_adamw():
    torch.manual_seed(0)
    blocks = torch.nn.ModuleDict({"blocks": torch.nn.Linear(96, 32, bias=False)})
    matrix = blocks.get_parameter("blocks.weight")
    optimizer, before = make_optimizer(blocks, "muon", 0.0, (0.9, 0.95)), matrix.detach().clone()
    optimizer.param_groups[0]["lr"], matrix.grad = 0.01, torch.randn(32, 96)
    optimizer.step()
    update = (before - matrix.detach()) / 0.01
    singular = torch.linalg.svdvals(update / (0.2 * 96**0.5))
    assert 0.5 < singular.min() and singular.max() < 1.3
    assert update.square().mean().sqrt() == pytest.approx(0.2, abs=0.05)


def test_muon_needs_whole_matrices():
    with pytest.raises(InputError, match="optimizer muon .*fsdp2.*choose ddp"):
        TrainSettings(steps=1, optimizer="muon", parallel="fsdp2")
