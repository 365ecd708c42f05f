"""What a model can be trained on: GPUs by name, from their data sheets, or this machine, as it is found."""

import os
from dataclasses import dataclass, replace

import torch

from glyphlm.base.devices import matrix_rate, resolve_device, resolve_precision
from glyphlm.base.errors import InputError
from glyphlm.training.settings import TrainSettings


@dataclass(frozen=True)
class Gpu:
    """Memory in GB and dense TFLOP/s, from the data sheets of NVIDIA (SXM where there is one); float32 without TF32."""

    memory: int
    bf16: float
    fp32: float


GPUS = {
    "b200": Gpu(180, 2250, 75),
    "h200": Gpu(141, 989, 67),
    "h100": Gpu(80, 989, 67),
    "a100": Gpu(80, 312, 19.5),
    "l40s": Gpu(48, 362, 91.6),
    "l4": Gpu(24, 121, 30.3),
    "rtx4090": Gpu(24, 165, 82.6),
    "rtx3090": Gpu(24, 71, 35.6),
}


@dataclass(frozen=True)
class Machine:
    """`count` devices with `memory` bytes and `rate` operations a second (of matrix products) each.

    `here` says that it is this machine, whose rate was measured.
    """

    name: str
    count: int
    memory: int
    rate: float
    here: bool


@dataclass(frozen=True)
class Pace:
    """Seconds of an optimizer step (of which `update` are AdamW's and clipping), and how they were found."""

    step: float
    update: float
    how: str


def choose_machine(train: TrainSettings, d_model: int, gpu: str | None, gpus: int) -> tuple[Machine, TrainSettings]:
    """`gpus` GPUs of the kind named, or else this machine; and how to train there, with device and precision decided.

    Raises:
        InputError: the kind is not known or missing, or this machine lacks the device.
    """
    if gpu is None and gpus > 1:
        raise InputError(f"--gpus {gpus} of which kind? Give --gpu, one of {', '.join(GPUS)}")
    if gpu is None:
        return _this_machine(train, d_model)
    if gpu not in GPUS:
        raise InputError(f"--gpu {gpu} is not known; it can be {', '.join(GPUS)}")
    sheet, precision = GPUS[gpu], "fp32" if train.precision == "fp32" else "bf16"
    rate = 1e12 * (sheet.bf16 if precision == "bf16" else sheet.fp32)
    return Machine(gpu, gpus, sheet.memory * 10**9, rate, here=False), replace(train, device="cuda", precision=precision)


def _this_machine(train: TrainSettings, d_model: int) -> tuple[Machine, TrainSettings]:
    device = resolve_device(train.device)
    precision = resolve_precision(train.precision, device)
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if device != "cpu":
        memory = torch.cuda.get_device_properties(device).total_memory
    machine = Machine(device, 1, memory, matrix_rate(d_model, precision, device), here=True)
    return machine, replace(train, device=device, precision=precision)
