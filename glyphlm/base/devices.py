"""What this machine can do: its devices, and which precision is fast on them."""

import os
import shutil
import time
from importlib.util import find_spec

import torch

from glyphlm.base.errors import InputError

PROBE = 256  # tokens of the matrix product that is timed


def resolve_device(device: str) -> str:
    """`auto` is the first GPU, or the CPU.

    Raises:
        InputError: torch does not know the device or this machine lacks it.
    """
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"device {device!r} cannot be used ({str(error).splitlines()[0]}); try auto or cpu") from None
    return device


def resolve_precision(precision: str, device: str) -> str:
    """`auto` is bf16 where it multiplies matrices at least 1.3 times as fast as fp32 here, measured now."""
    if precision != "auto":
        return precision
    return "bf16" if _matmul_seconds(torch.float32, device) > 1.3 * _matmul_seconds(torch.bfloat16, device) else "fp32"


def _matmul_seconds(dtype: torch.dtype, device: str) -> float:
    a = torch.ones(512, 512, device=device, dtype=dtype)
    times = []
    for _ in range(5):
        begin = time.perf_counter()
        float((a @ a)[0, 0])  # reading a value waits for the device
        times.append(time.perf_counter() - begin)
    return min(times)


def can_compile(device: str) -> bool:
    """Whether torch.compile can make kernels for `device`: a GPU, Triton, and the C compiler that Triton needs."""
    has_parts = find_spec("triton") is not None and any(map(shutil.which, (os.environ.get("CC", "cc"), "gcc", "clang")))
    return device.startswith("cuda") and has_parts


def resolve_compile(compile_blocks: bool | str, device: str) -> bool:
    """`auto` compiles where `can_compile` says so; on CPU compiling takes longer than it saves in a run of minutes."""
    return can_compile(device) if compile_blocks == "auto" else bool(compile_blocks)


def local_device(device: str) -> str:
    """The device of this process: with torchrun each has a GPU of its own."""
    return f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if device == "cuda" else device


def matrix_rate(d_model: int, precision: str, device: str) -> float:
    """Operations a second of products [256, D] @ [D, 4 D], the shape of an MLP, measured now; the best of five."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    x_ND = torch.ones(PROBE, d_model, device=device, dtype=dtype)
    weight_DF = torch.ones(d_model, 4 * d_model, device=device, dtype=dtype)
    times = []
    for _ in range(5):
        begin = time.perf_counter()
        float((x_ND @ weight_DF)[0, 0])  # reading a value waits for the device
        times.append(time.perf_counter() - begin)
    return 2 * PROBE * weight_DF.numel() / min(times)
