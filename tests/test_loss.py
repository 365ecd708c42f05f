"""The chunked loss over the head equals plain cross-entropy: value and all gradients, whatever the chunks."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from glyphlm import loss
from glyphlm.loss import chunks, head_loss, target_nats

N, D, V = 11, 8, 23


def drawn(*shape: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype).requires_grad_()


def problem(bias: bool) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
    y_N = torch.randint(V, (N,), generator=torch.Generator().manual_seed(4))
    y_N[1] = y_N[0]  # two targets of the same row of the head
    return drawn(N, D, seed=1), drawn(V, D, seed=2), drawn(V, seed=3) if bias else None, y_N


def plain(x_ND: Tensor, weight_VD: Tensor, bias_V: Tensor | None, y_N: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Loss and gradients by autograd in float64."""
    inputs = [None if t is None else t.detach().double().requires_grad_() for t in (x_ND, weight_VD, bias_V)]
    value = F.cross_entropy(F.linear(*inputs), y_N)
    value.backward()
    return value.detach(), [t.grad for t in inputs if t is not None]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("rows", [1, 3, 11, 100])
def test_value_and_gradients_are_those_of_plain_cross_entropy(monkeypatch, rows, bias):
    monkeypatch.setattr(loss, "LOGITS_AT_ONCE", rows * V + 1)
    x_ND, weight_VD, bias_V, y_N = problem(bias)
    value, gradients = plain(x_ND, weight_VD, bias_V, y_N)
    found = head_loss(x_ND, weight_VD, bias_V, y_N)
    (3 * found).backward()  # the gradient from above is passed on
    torch.testing.assert_close(found.double(), value, atol=1e-6, rtol=1e-6)
    for tensor, expected in zip((x_ND, weight_VD, bias_V), gradients):
        torch.testing.assert_close(tensor.grad.double(), 3 * expected, atol=1e-6, rtol=1e-5)


def test_gradients_are_the_slopes_of_the_value():
    x_ND, weight_VD, bias_V, y_N = problem(True)
    head_loss(x_ND, weight_VD, bias_V, y_N).backward()
    for tensor in (x_ND, weight_VD, bias_V):
        at = tuple(size // 2 for size in tensor.shape)
        ends = []
        for step in (1e-2, -1e-2):
            moved = tensor.detach().clone()
            moved[at] += step
            inputs = [moved if t is tensor else t for t in (x_ND, weight_VD, bias_V)]
            ends.append(head_loss(*inputs, y_N).item())
        assert tensor.grad[at].item() == pytest.approx((ends[0] - ends[1]) / 2e-2, rel=1e-2, abs=1e-5)


@pytest.mark.parametrize("frozen", [0, 1, 2])
def test_what_is_frozen_gets_no_gradient_and_the_rest_is_unchanged(frozen):
    *inputs, y_N = problem(True)
    _, gradients = plain(*inputs, y_N)
    inputs[frozen] = inputs[frozen].detach()
    head_loss(*inputs, y_N).backward()
    for number, (tensor, expected) in enumerate(zip(inputs, gradients)):
        if number == frozen:
            assert tensor.grad is None
        else:
            torch.testing.assert_close(tensor.grad.double(), expected, atol=1e-6, rtol=1e-5)


def test_value_without_gradients_is_the_same():
    inputs = problem(True)
    with torch.no_grad():
        assert head_loss(*inputs).item() == head_loss(*[t.detach() for t in inputs]).item()
    assert head_loss(*inputs).item() == pytest.approx(plain(*inputs)[0].item(), rel=1e-6)


def test_bf16_products_give_a_float32_loss_close_to_the_right_one():
    x_ND, weight_VD, bias_V, y_N = problem(True)
    value, gradients = plain(x_ND, weight_VD, bias_V, y_N)
    found = head_loss(x_ND, weight_VD, bias_V, y_N, torch.bfloat16)
    found.backward()
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(value.item(), rel=0.01)
    for tensor, expected in zip((x_ND, weight_VD, bias_V), gradients):
        assert tensor.grad.dtype == torch.float32
        assert (tensor.grad.double() - expected).norm() < 0.02 * expected.norm()


def test_large_logits_stay_finite():
    x_ND, weight_VD, bias_V, y_N = problem(True)
    value = head_loss(1e4 * x_ND, weight_VD, bias_V, y_N)
    value.backward()
    assert value.isfinite() and x_ND.grad.isfinite().all() and weight_VD.grad.isfinite().all()


@pytest.mark.parametrize("rows", [1, 4, 100])
def test_nats_of_each_target_are_those_of_plain_cross_entropy(monkeypatch, rows):
    monkeypatch.setattr(loss, "LOGITS_AT_ONCE", rows * V)
    x_ND, weight_VD, bias_V, y_N = problem(True)
    nats_N = target_nats(partial(F.linear, weight=weight_VD, bias=bias_V), x_ND, y_N, V)
    expected = F.cross_entropy(F.linear(x_ND.double(), weight_VD.double(), bias_V.double()), y_N, reduction="none")
    torch.testing.assert_close(nats_N.double(), expected, atol=1e-5, rtol=1e-5)
    assert not nats_N.requires_grad


def test_chunks_cover_every_position_once_and_hold_few_enough_logits(monkeypatch):
    monkeypatch.setattr(loss, "LOGITS_AT_ONCE", 100)
    for count, vocab_size in [(1, 10), (10, 10), (31, 10), (7, 99), (5, 1000)]:
        found = chunks(count, vocab_size)
        assert [i for at in found for i in range(at.start, at.stop)] == list(range(count))
        assert max(at.stop - at.start for at in found) * vocab_size <= max(100, vocab_size)
