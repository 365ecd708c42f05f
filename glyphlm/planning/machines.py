"""Machines to train on: GPUs by name, from their data sheets, or this machine."""

from dataclasses import dataclass, replace

import torch

from glyphlm.base.devices import GPUS, device_memory, gpu_of_name, known_rate, matrix_rate, resolve_device, resolve_precision
from glyphlm.base.errors import InputError
from glyphlm.modeling.fusion import Fusion
from glyphlm.modeling.model import GPT, count_parameters
from glyphlm.planning.memory import Load
from glyphlm.training.optim import Muon, hidden_matrices
from glyphlm.training.settings import TrainSettings

ASSUMED = 4e10  # operations a second of a core where nothing was measured; in float32 AVX2 reaches 5e10 to 9e10 at 3 GHz

# A model of GPU time, fitted to steps of 16,384 to 32,768 tokens on one H200 (torch 2.11, bf16; 470M, 335M and 34M
# parameters, eager and with compiled blocks; benchmarks/training.py), within 20%. It is the sum of matrix products, memory
# traffic and waiting, or the time in which the host launches kernels if that is longer. Communication is not counted.
PRODUCTS = 0.8  # share of the data sheet's rate that wide products reach (796 of 989 TFLOP/s)
NARROW = 128  # products of width d reach d / (d + NARROW) of that
LOGIT_BYTES = 97  # read and written for each logit: 30.9 ms of loss at V 65,536, d 1024, 16,384 tokens
STREAM_BYTES = {False: 590, True: 153}  # for each value of the residual stream in each block, both passes; True is compiled
UPDATE_BYTES = 46  # for each trained value, once a step: AdamW, clipping, gradients set to zero
WAIT = 4e-3  # seconds of a step in which the GPU has nothing to do
LAUNCH, KERNELS, OUTSIDE = 7e-6, {False: 100, True: 40}, 100  # seconds a kernel; kernels a block, and around the blocks


@dataclass(frozen=True)
class Machine:
    """`count` devices with `memory` bytes and `rate` operations a second (of matrix products) each.

    Args:
        here: It is this machine.
        measured: Its rate was measured now, or before on this machine; else it is assumed, or that of the data sheet.
        bandwidth: Bytes a second of the memory of a GPU, from the data sheet; 0 where it is not known.
    """

    name: str
    count: int
    memory: int
    rate: float
    here: bool
    measured: bool
    bandwidth: float = 0.0


@dataclass(frozen=True)
class Pace:
    """Seconds of an optimizer step (of which `update` for clipping and the optimizer), and how they were obtained."""

    step: float
    update: float
    how: str


def choose_machine(
    train: TrainSettings, d_model: int, gpu: str | None, gpus: int, measure: bool = True
) -> tuple[Machine, TrainSettings]:
    """`gpus` GPUs of the kind named, or else this machine; and how to train there, with device and precision decided.

    Args:
        measure: False times nothing on this machine.

    Raises:
        InputError: the kind is not known or missing, or this machine lacks the device.
    """
    if gpu is None and gpus > 1:
        raise InputError(f"--gpus {gpus} of which kind? Give --gpu, one of {', '.join(GPUS)}")
    if gpu is None:
        return _this_machine(train, d_model, measure)
    if gpu not in GPUS:
        raise InputError(f"--gpu {gpu} is not known; it can be {', '.join(GPUS)}")
    sheet, precision = GPUS[gpu], "fp32" if train.precision == "fp32" else "bf16"
    machine = Machine(gpu, gpus, sheet.memory * 10**9, sheet.rate(precision), False, False, sheet.bandwidth * 1e12)
    return machine, replace(train, device="cuda", precision=precision)


def _this_machine(train: TrainSettings, d_model: int, measure: bool) -> tuple[Machine, TrainSettings]:
    device = resolve_device(train.device)
    precision = resolve_precision(train.precision, device, measure)
    rate = (matrix_rate if measure else known_rate)(d_model, precision, device)
    sheet = gpu_of_name(torch.cuda.get_device_name(device)) if device.startswith("cuda") else None
    machine = Machine(
        device, 1, device_memory(device), rate or ASSUMED * torch.get_num_threads(), True, rate is not None,
        sheet.bandwidth * 1e12 if sheet else 0.0,
    )  # fmt: skip
    return machine, replace(train, device=device, precision=precision)


def seconds_on_gpu(model: GPT | Fusion, load: Load, flops: int, machine: Machine, compiled: bool) -> tuple[float, float]:
    """Seconds of an optimizer step on each of the machine's GPUs, and of its update alone.

    Args:
        flops: Operations of a token, both passes.
        compiled: Whether blocks are compiled.
    """
    tokens, width = load.rows * model.config.block_size, model.substrate.d_model
    trained = count_parameters(model)["trained"] // (load.gpus if load.sharded else 1)
    blocks = len(model.blocks) - model.frozen_depth * 2 / 3  # a frozen one takes a third
    products = flops * tokens / (machine.rate * PRODUCTS * width / (width + NARROW))
    traffic = tokens * (STREAM_BYTES[compiled] * width * blocks + LOGIT_BYTES * model.vocab_size) / machine.bandwidth
    launches = LAUNCH * (KERNELS[compiled] * blocks + OUTSIDE)
    orthogonal = _muon_flops(model) / (machine.rate * PRODUCTS) if load.muon else 0.0
    update = UPDATE_BYTES * trained / machine.bandwidth + orthogonal
    return load.passes * max(products + traffic, launches) + update + WAIT, update


def _muon_flops(model: GPT | Fusion) -> int:
    """Operations of Muon's products in one step."""
    shapes = (sorted(p.shape) for p in hidden_matrices(model).values())
    return sum(Muon.STEPS * (4 * few * few * many + 2 * few**3) for few, many in shapes)
