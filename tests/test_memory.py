"""Memory by part, next to every tensor that a training step really holds."""

import weakref
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from glyphlm.modeling.config import HeadConfig
from glyphlm.modeling.fusion import Fusion, FusionConfig
from glyphlm.modeling.model import GPT, ModelConfig
from glyphlm.modeling.stitching import make_fusion
from glyphlm.modeling.substrate import Substrate, SubstrateConfig
from glyphlm.planning.memory import Load, activation_bytes, largest_rows, load_of, memory_by_part, peak_bytes, traffic_bytes
from glyphlm.training.loss import Objective
from glyphlm.training.optim import make_optimizer
from glyphlm.training.settings import TrainSettings

T = 64


class Held(TorchDispatchMode):
    """Adds up the bytes of all tensors that live, and remembers the most."""

    def __init__(self, tensors: list[Tensor]):
        super().__init__()
        self._sizes, self.now, self.most = {}, 0, 0
        for tensor in tensors:
            self._add(tensor)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self._add(leaf)
        return out

    def _add(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage._cdata not in self._sizes:
            self._sizes[storage._cdata] = storage.nbytes()
            weakref.finalize(storage, self._drop, storage._cdata)
            self.now += storage.nbytes()
            self.most = max(self.most, self.now)

    def _drop(self, key: int) -> None:
        self.now -= self._sizes.pop(key)


def make(
    vocab_size: int = 256, d_model: int = 64, n_layer: int = 3, trainable: bool = False, width: int = 32, **head: Any
) -> GPT:
    substrate = SubstrateConfig(vocab_size, width, "learned", trainable=trainable)
    config = ModelConfig(
        d_model=d_model, n_layer=n_layer, n_head=2, block_size=T, head_bias=True, head=HeadConfig(**head)
    )
    return GPT(config, Substrate(substrate, d_model))


def fuse(method: str, experts: int = 2, **sizes) -> Fusion:
    """A fused model as it is trained: its experts look at one frozen table."""
    models = [make(**sizes) for _ in range(experts)]
    for model in models:
        model.substrate = models[0].substrate
    fusion = make_fusion(FusionConfig(method, rank=4), models).train()
    fusion.init_weights(1)
    return fusion


def held(model: GPT | Fusion, load: Load) -> int:
    """The most bytes that the second training step holds at one time."""
    model.recompute = load.recompute
    objective = Objective(model, torch.bfloat16 if load.bf16 else torch.float32, 1 if load.documents else None)
    optimizer = make_optimizer(model, "muon" if load.muon else "adamw", 0.1, (0.9, 0.95))
    ids_BT = torch.randint(model.vocab_size, (load.rows * load.passes, T))

    def step() -> None:
        for rows_BT in ids_BT.split(load.rows):
            objective(rows_BT, rows_BT, ids_BT.numel()).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    step()
    moments = [values for state in optimizer.state.values() for values in state.values()]
    with Held([*model.parameters(), *model.buffers(), *moments]) as found:
        step()
    return found.most


@pytest.mark.parametrize("bf16", [False, True])
def test_attention_in_halves_on_a_cpu_keeps_its_result_twice(bf16, monkeypatch):
    model, load = make(vocab_size=64, d_model=128, n_layer=6), Load(16, bf16=bf16)
    whole = held(model, load)
    for module in ("glyphlm.modeling.attention", "glyphlm.planning.memory"):
        monkeypatch.setattr(f"{module}.HALVED", range(T, T + 1))
    more = activation_bytes(model, replace(load, heap=True)) - activation_bytes(model, load)
    assert more == 16 * T * 128 * load.width * 6
    assert held(model, load) - whole == pytest.approx(more, rel=0.05)


SIZES = [
    ({}, Load(16)),
    ({"n_layer": 1, "trainable": True}, Load(16)),
    ({"vocab_size": 4096, "trainable": True}, Load(8)),
    ({"vocab_size": 64, "d_model": 256, "n_layer": 5}, Load(1)),
    ({}, Load(16, documents=True)),
    ({"d_model": 128, "n_layer": 6}, Load(8, muon=True)),
]


@pytest.mark.parametrize(
    ("sizes", "load"),
    [(sizes, replace(load, **way)) for sizes, load in SIZES for way in ({}, {"passes": 2}, {"bf16": True})]
    + [({}, Load(16, passes=2, bf16=True))],
)
def test_peak_is_what_a_step_holds(sizes, load):
    model = make(**sizes)
    assert peak_bytes(model, load) == pytest.approx(held(model, load), rel=0.05)


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("sizes", [
    {"kind": "tied", "vocab_size": 4096},
    {"kind": "tied", "vocab_size": 4096, "trainable": True},
    {"kind": "code", "vocab_size": 4096, "n_layer": 1},
    {"kind": "code", "vocab_size": 4096, "digits": 3, "n_layer": 1},
])  # fmt: skip
def test_peak_is_what_a_step_with_another_head_holds(sizes, bf16):
    model, load = make(**sizes), Load(8, bf16=bf16)
    assert peak_bytes(model, load) == pytest.approx(held(model, load), rel=0.1)


@pytest.mark.parametrize("bf16", [False, True])
def test_peak_is_what_a_step_holds_where_blocks_are_recomputed(bf16):
    model, load = make(n_layer=6), Load(16, bf16=bf16, recompute=True)
    assert peak_bytes(model, load) == pytest.approx(held(model, load), rel=0.1)
    assert peak_bytes(model, load) < 0.6 * peak_bytes(model, replace(load, recompute=False))


@pytest.mark.parametrize("bf16", [False, True])
def test_peak_is_what_a_step_holds_where_logits_come_in_chunks(bf16, monkeypatch):
    monkeypatch.setattr("glyphlm.training.loss.LOGITS_AT_ONCE", 1 << 18)
    model, load = make(vocab_size=1024), Load(16, bf16=bf16)
    assert peak_bytes(model, load) == pytest.approx(held(model, load), rel=0.05)


def test_frozen_blocks_keep_nothing_for_a_backward_pass():
    model, load = make(n_layer=4), Load(16)
    for block in model.blocks[:3]:
        block.requires_grad_(False)
    assert peak_bytes(model, load) == pytest.approx(held(model, load), rel=0.1)
    parts, one = memory_by_part(model, load), memory_by_part(make(n_layer=1), load)
    assert parts["activations"] == one["activations"] and parts["moments of AdamW"] == one["moments of AdamW"]


def test_weights_moments_and_frozen_values_are_counted_exactly():
    frozen, trained = (memory_by_part(make(trainable=on), Load(4)) for on in (False, True))
    table = 4 * 256 * 32
    assert (frozen["frozen"], trained["frozen"]) == (table, 0)
    for part, share in (("weights", 1), ("gradients", 1), ("moments of AdamW", 2)):
        assert trained[part] - frozen[part] == share * table


@pytest.mark.parametrize("method", ["head", "gate", "adapter"])
@pytest.mark.parametrize(("sizes", "load"), [
    ({}, Load(16)),  # the blocks that run are the most
    ({}, Load(16, bf16=True)),
    ({"vocab_size": 4096}, Load(8)),  # the head is
    ({"experts": 3}, Load(16, passes=2)),
    ({"n_layer": 1}, Load(4, bf16=True, documents=True)),
])  # fmt: skip
def test_peak_is_what_training_on_frozen_experts_holds(method, sizes, load):
    model = fuse(method, **sizes)
    assert peak_bytes(model, load) == pytest.approx(held(model, load), rel=0.1)


def test_a_head_that_is_frozen_has_no_gradient():
    model, load = make(vocab_size=4096), Load(8)
    whole = held(model, load)
    model.head.requires_grad_(False)
    assert peak_bytes(model, load) == pytest.approx(held(model, load), rel=0.1)
    assert peak_bytes(model, load) < 0.9 * whole


@pytest.mark.parametrize("limit", [10_000_000, 40_000_000, 123_456_789])
def test_the_largest_micro_batch_fits_and_the_next_does_not(limit):
    model = make()
    rows = largest_rows(model, Load(4), limit)
    assert peak_bytes(model, Load(rows)) <= limit < peak_bytes(model, Load(rows + 1))


def test_nothing_fits_where_the_weights_alone_do_not():
    assert largest_rows(make(), Load(4), 100_000) == 0


def test_devices_of_fsdp2_hold_their_share_of_what_trains_and_all_that_is_frozen():
    model = make()
    alone, shared = (memory_by_part(model, Load(4, gpus=gpus, parallel="fsdp2")) for gpus in (1, 4))
    assert shared["weights"] * 4 == alone["weights"] and shared["gradients"] * 4 == alone["gradients"]
    assert shared["moments of AdamW"] * 4 == alone["moments of AdamW"]
    assert shared["frozen"] == alone["frozen"] and shared["weights gathered"] > 0 == alone["weights gathered"]


def test_muon_keeps_one_moment_of_a_block_s_matrices_and_adamw_two_of_the_rest():
    model = make()
    adamw, muon = (memory_by_part(model, Load(4, muon=on)) for on in (False, True))
    matrices = 4 * sum(p.numel() for p in model.blocks.parameters() if p.dim() == 2)
    assert muon["moment of Muon"] == matrices and muon["moments of AdamW"] == adamw["moments of AdamW"] - 2 * matrices
    assert peak_bytes(model, Load(4)) - peak_bytes(model, Load(4, muon=True)) == matrices


def test_devices_of_fsdp2_share_what_is_frozen_but_the_codes_and_gather_it_for_the_forward_pass():
    model, table = fuse("head"), 4 * 256 * 32
    alone, shared = (Load(4, passes=2, gpus=gpus, parallel="fsdp2") for gpus in (1, 4))
    frozen = memory_by_part(model, alone)["frozen"] - table
    assert memory_by_part(model, shared)["frozen"] == frozen // 4 + table
    head = 4 * model.head.weight.numel()
    assert traffic_bytes(model, shared) == (5 * head + 2 * frozen) * 3 // 4


def test_traffic_is_that_of_what_trains():
    frozen, trained = make(), make(trainable=True)
    load, size = Load(4, gpus=4), 4 * sum(values.numel() for values in frozen.parameters())
    assert traffic_bytes(frozen, Load(4)) == 0
    assert traffic_bytes(frozen, load) == 2 * size * 3 // 4
    assert traffic_bytes(trained, load) - traffic_bytes(frozen, load) == 2 * 4 * 256 * 32 * 3 // 4
    assert traffic_bytes(frozen, replace(load, parallel="fsdp2", passes=2)) == 5 * size * 3 // 4


def test_devices_share_the_sequences_of_a_step():
    settings = TrainSettings(steps=1, batch_tokens=64 * T, micro_batch_tokens=8 * T, precision="bf16", parallel="fsdp2")
    assert load_of(settings, T, 64) == Load(8, 8, bf16=True, parallel="fsdp2")
    assert load_of(settings, T, 64, gpus=4) == Load(8, 2, bf16=True, gpus=4, parallel="fsdp2")
    assert load_of(settings, T, 64, gpus=16) == Load(4, 1, bf16=True, gpus=16, parallel="fsdp2")
