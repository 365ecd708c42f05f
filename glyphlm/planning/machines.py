"""What a model can be trained on: GPUs by name, from their data sheets, or this machine, as it is found."""

from dataclasses import dataclass, replace

import torch

from glyphlm.base.devices import GPUS, device_memory, known_rate, matrix_rate, resolve_device, resolve_precision
from glyphlm.base.errors import InputError
from glyphlm.training.settings import TrainSettings

ASSUMED = 4e10  # operations a second of a core where nothing was measured; in float32 AVX2 reaches 5e10 to 9e10 at 3 GHz


@dataclass(frozen=True)
class Machine:
    """`count` devices with `memory` bytes and `rate` operations a second (of matrix products) each.

    Args:
        here: It is this machine.
        measured: Its rate was measured now, or before on this machine; else it is assumed, or that of the data sheet.
    """

    name: str
    count: int
    memory: int
    rate: float
    here: bool
    measured: bool


@dataclass(frozen=True)
class Pace:
    """Seconds of an optimizer step (of which `update` are AdamW's and clipping), and how they were found."""

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
    machine = Machine(gpu, gpus, sheet.memory * 10**9, sheet.rate(precision), here=False, measured=False)
    return machine, replace(train, device="cuda", precision=precision)


def _this_machine(train: TrainSettings, d_model: int, measure: bool) -> tuple[Machine, TrainSettings]:
    device = resolve_device(train.device)
    precision = resolve_precision(train.precision, device, measure)
    rate = (matrix_rate if measure else known_rate)(d_model, precision, device)
    machine = Machine(device, 1, device_memory(device), rate or ASSUMED * torch.get_num_threads(), True, rate is not None)
    return machine, replace(train, device=device, precision=precision)
