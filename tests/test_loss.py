"""The loss over the head equals plain cross-entropy: value and all gradients, whatever the chunks and who computes it."""

import os
import subprocess
import sys
from functools import partial
from importlib.util import find_spec
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from glyphlm.data.batches import IGNORED
from glyphlm.modeling.heads import target_nats_of
from glyphlm.modeling.model import GPT, ModelConfig
from glyphlm.modeling.substrate import Substrate, SubstrateConfig
from glyphlm.training import loss
from glyphlm.training.loss import Objective, chunks, has_liger, head_loss, rows_at_once, target_nats

N, D, V = 11, 8, 23
IDS, END = 40, 0  # of the model below
LIGER = "liger_kernel.ops.fused_linear_cross_entropy"
# The library itself: on a GPU, and without one in Triton's interpreter, which must be asked for before triton is loaded.
WITH_LIBRARY = """
import torch
from glyphlm.training import loss

device, N, D, V = "cuda" if torch.cuda.is_available() else "cpu", 37, 16, 101
torch.manual_seed(1)
x, weight = (torch.randn(*s, device=device, requires_grad=True) for s in ((N, D), (V, D)))
y = torch.randint(V, (N,), device=device)
def found(liger, dtype):
    loss.has_liger, loss.LOGITS_AT_ONCE, loss.LOGITS_ON_GPU = lambda _: liger, 3 * N * D, 3 * N * D
    value = loss.head_loss(x, weight, None, y, dtype)
    return [value.detach(), *torch.autograd.grad(value, [x, weight])]
for dtype, near in ((torch.float32, 1e-6), (torch.bfloat16, 1e-2)):
    for one, other in zip(found(True, dtype), found(False, dtype), strict=True):
        assert one.dtype == torch.float32 and (one - other).norm() < near * other.norm(), (dtype, one, other)
print("compared")
"""


def stand_in(_input, weight, target, *, reduction, accum_dtype, chunk_mem_const):
    """What the library does, by its contract: gradients in the types of the inputs, where these ask for them."""
    assert reduction == "sum" and accum_dtype == torch.float32 and chunk_mem_const >= 1 and not torch.is_grad_enabled()
    inputs = [t.detach().clone().requires_grad_() for t in (_input, weight)]
    with torch.enable_grad():
        nats = F.cross_entropy(F.linear(*inputs).float(), target, reduction="sum")
    if _input.requires_grad:
        nats.backward()
    return nats.detach(), None, None, None, inputs[0].grad, inputs[1].grad if weight.requires_grad else None, None


@pytest.fixture(params=["torch", "fused", "liger"])
def ways(request, monkeypatch):
    """All that compute the loss: in turn, by what a GPU's kernel is compiled from, by the library."""
    if request.param == "fused":
        monkeypatch.setattr(loss, "can_compile", lambda device: True)
        monkeypatch.setattr(loss, "_fused_softmax", lambda: loss._softmax_to_fuse)
    if request.param == "liger":
        monkeypatch.setitem(sys.modules, LIGER, SimpleNamespace(fused_linear_cross_entropy_forward=stand_in))
        monkeypatch.setattr(loss, "has_liger", lambda device: True)


all_ways = pytest.mark.usefixtures("ways")


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


@all_ways
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


@all_ways
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


@all_ways
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


@all_ways
def test_value_without_gradients_is_the_same():
    inputs = problem(True)
    with torch.no_grad():
        assert head_loss(*inputs).item() == head_loss(*[t.detach() for t in inputs]).item()
    assert head_loss(*inputs).item() == pytest.approx(plain(*inputs)[0].item(), rel=1e-6)


@all_ways
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


@all_ways
def test_large_logits_stay_finite():
    x_ND, weight_VD, bias_V, y_N = problem(True)
    value = head_loss(1e4 * x_ND, weight_VD, bias_V, y_N)
    value.backward()
    assert value.isfinite() and x_ND.grad.isfinite().all() and weight_VD.grad.isfinite().all()


@all_ways
def test_no_target_at_all_costs_nothing():
    x_ND, weight_VD, bias_V, y_N = problem(True)
    value = head_loss(x_ND[:0], weight_VD, bias_V, y_N[:0], targets=5)
    value.backward()
    assert value.item() == 0 and not weight_VD.grad.any() and not bias_V.grad.any()


def test_liger_is_for_gpus_and_only_where_it_is_installed(monkeypatch):
    for installed in (False, True):
        monkeypatch.setattr(loss, "find_spec", {"liger_kernel": "its place" if installed else None}.__getitem__)
        assert not has_liger(torch.device("cpu"))
        assert has_liger(torch.device("cuda")) == has_liger(torch.device("cuda:1")) == installed


def test_liger_is_given_low_products_and_the_size_of_chunks_and_its_numbers_are_used(monkeypatch):
    given = {}

    def noted(_input, weight, target, **options):
        given.update(options, x=_input, weight=weight, y=target)
        return torch.tensor(8.0), None, None, None, torch.ones_like(_input), torch.ones_like(weight), None

    monkeypatch.setitem(sys.modules, LIGER, SimpleNamespace(fused_linear_cross_entropy_forward=noted))
    monkeypatch.setattr(loss, "has_liger", lambda device: device.type == "cpu")
    monkeypatch.setattr(loss, "LOGITS_ON_GPU", 5 * N * D + 1)
    x_ND, weight_VD, bias_V, y_N = problem(True)
    value = head_loss(x_ND, weight_VD, None, y_N, torch.bfloat16, targets=16)
    value.backward()
    assert value.item() == 0.5 and value.dtype == torch.float32
    assert given["x"].dtype == given["weight"].dtype == torch.bfloat16
    assert given["x"].requires_grad and given["weight"].requires_grad and given["y"] is y_N
    assert (given["reduction"], given["accum_dtype"], given["chunk_mem_const"]) == ("sum", torch.float32, 5)
    assert x_ND.grad.unique().tolist() == weight_VD.grad.unique().tolist() == [1 / 16]
    given.clear()
    head_loss(x_ND, weight_VD, bias_V, y_N)
    assert not given  # a bias makes it slower than torch


@pytest.mark.skipif(find_spec("liger_kernel") is None, reason="liger-kernel is not installed: pip install glyphlm[cuda]")
def test_the_library_itself_gives_the_numbers_of_the_plain_loop():
    environment = os.environ | {"TRITON_INTERPRET": str(int(not torch.cuda.is_available()))}
    done = subprocess.run([sys.executable, "-c", WITH_LIBRARY], env=environment, capture_output=True, text=True)
    assert done.stdout == "compared\n", done.stderr


@pytest.mark.parametrize("rows", [1, 4, 100])
def test_nats_of_each_target_are_those_of_plain_cross_entropy(monkeypatch, rows):
    monkeypatch.setattr(loss, "LOGITS_AT_ONCE", rows * V)
    x_ND, weight_VD, bias_V, y_N = problem(True)
    head = partial(F.linear, weight=weight_VD, bias=bias_V)
    model = SimpleNamespace(vocab_size=V, nats=partial(target_nats_of, head))
    nats_N = target_nats(model, x_ND, y_N)
    expected = F.cross_entropy(F.linear(x_ND.double(), weight_VD.double(), bias_V.double()), y_N, reduction="none")
    torch.testing.assert_close(nats_N.double(), expected, atol=1e-5, rtol=1e-5)
    assert not nats_N.requires_grad


def test_chunks_cover_every_position_once_and_hold_few_enough_logits(monkeypatch):
    monkeypatch.setattr(loss, "LOGITS_AT_ONCE", 100)
    for count, vocab_size in [(1, 10), (10, 10), (31, 10), (7, 99), (5, 1000)]:
        found = chunks(count, rows_at_once(vocab_size, torch.device("cpu")))
        assert [i for at in found for i in range(at.start, at.stop)] == list(range(count))
        assert max(at.stop - at.start for at in found) * vocab_size <= max(100, vocab_size)


@pytest.mark.parametrize(("vocab_size", "in_float32", "in_bfloat16"), [
    (2048, 2048, 16384), (8192, 512, 4096), (65536, 512, 512), (131072, 256, 256), (1 << 20, 32, 32),
])  # fmt: skip
def test_rows_at_once_fit_the_cache_where_that_is_enough_of_them(vocab_size, in_float32, in_bfloat16):
    cpu = torch.device("cpu")
    assert [rows_at_once(vocab_size, cpu, dtype) for dtype in (torch.float32, torch.bfloat16)] == [in_float32, in_bfloat16]


def test_the_loss_can_be_differentiated_once_as_its_gradients_are_scaled_in_place():
    x_ND, weight_VD, bias_V, y_N = problem(True)
    value = head_loss(x_ND, weight_VD, bias_V, y_N)
    value.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="can be differentiated once"):
        value.backward()


# The loss as a module: summed over its targets, blind to ignored ones and, where asked, to other documents.


@pytest.fixture(scope="module")
def gpt():
    substrate = Substrate(SubstrateConfig(IDS, 32, "learned", trainable=True), 32)
    torch.nn.init.normal_(substrate.table_VE, generator=torch.Generator().manual_seed(3))
    model = GPT(ModelConfig(32, 2, 2, 256), substrate)
    model.init_weights(1)
    return model


def some_ids(*shape):
    return torch.randint(1, IDS, shape, generator=torch.Generator().manual_seed(1))


def test_the_loss_is_the_mean_over_the_targets_that_are_named(gpt):
    x_BT, y_BT = some_ids(2, 9), some_ids(2, 9).flip(1)
    loss = Objective(gpt, torch.float32)(x_BT, y_BT, 100)
    expected = F.cross_entropy(gpt(x_BT).flatten(0, 1), y_BT.flatten(), reduction="sum") / 100
    torch.testing.assert_close(loss, expected)


def test_ignored_targets_take_no_part(gpt):
    x_BT, y_BT = some_ids(2, 9), some_ids(2, 9).flip(1)
    y_BT[:, ::2] = IGNORED
    objective = Objective(gpt, torch.float32)
    expected = F.cross_entropy(gpt(x_BT).flatten(0, 1), y_BT.flatten(), ignore_index=IGNORED)
    torch.testing.assert_close(objective(x_BT, y_BT, int((y_BT != IGNORED).sum())), expected)
    assert len(objective(x_BT, y_BT)) == int((y_BT != IGNORED).sum())


def test_a_batch_without_targets_costs_nothing_and_changes_nothing(gpt):
    x_BT = some_ids(2, 9)
    loss = Objective(gpt, torch.float32)(x_BT, torch.full_like(x_BT, IGNORED), 1)
    loss.backward()
    assert float(loss.detach()) == 0 and all(p.grad is None or not p.grad.any() for p in gpt.parameters())
    gpt.zero_grad(set_to_none=True)


def test_with_document_masks_a_document_is_scored_as_if_it_were_alone(gpt):
    first, second = some_ids(1, 5), some_ids(1, 7).flip(1)
    end = torch.full((1, 1), END)
    x_BT = torch.cat([first, end, second], 1)
    y_BT = torch.cat([x_BT[:, 1:], end], 1)
    alone, masked, open_ = (
        Objective(gpt, torch.float32)(x_BT[:, 5:], y_BT[:, 5:]),
        Objective(gpt, torch.float32, END)(x_BT, y_BT)[5:],
        Objective(gpt, torch.float32)(x_BT, y_BT)[5:],
    )
    torch.testing.assert_close(masked, alone)  # rotary positions are relative: where it stands does not matter
    assert not torch.allclose(open_, alone)


def test_padding_and_documents_mask_together(gpt):
    ids_BT = some_ids(1, 6)
    documents_BT, attended_BS = torch.tensor([[0, 0, 0, 1, 1, 1]]), torch.tensor([[0, 1, 1, 1, 1, 1]])
    x_BTD = gpt.hidden(ids_BT, documents_BT=documents_BT, attended_BS=attended_BS)
    torch.testing.assert_close(x_BTD[:, 3:], gpt.hidden(ids_BT[:, 3:]))
