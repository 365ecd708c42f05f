"""What this machine can do: its devices, how fast they multiply matrices, and which precision is fast on them.

Probes of a CPU take a fraction of a second and are kept in the user's cache folder, under the processor's name, the version
of torch and the number of threads.
"""

import os
import platform
import re
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import torch

from glyphlm.base.errors import InputError
from glyphlm.base.outputs import write_atomic
from glyphlm.base.progress import say
from glyphlm.base.records import read_json, to_json
from glyphlm.base.threads import SPARE, Load

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
GAIN = 1.3  # `auto` chooses bf16 where it is at least this many times as fast as float32
SIDE = 512  # side of the square matrices that are timed on a CPU
SIDES_ON_GPU = (4096, 8192)  # the second saturates every current card; slow cards are timed with the first only
WIDEST = 1024  # largest width that is timed on a CPU
RATE = "rate of {} at width {}"  # its key in the cache of measurements
AT_ONCE = 10  # products between two CUDA events, so that launches overlap with execution
SECONDS = 0.1  # time limit for measuring one kind of product
_found: dict[str, float] = {}  # measured by this process


@dataclass(frozen=True)
class Gpu:
    """Memory in GB, its TB/s, and dense TFLOP/s, from the data sheets of NVIDIA (SXM where it exists), without TF32."""

    memory: int
    bandwidth: float
    bf16: float
    fp32: float

    def rate(self, precision: str) -> float:
        """Floating-point operations per second of matrix products in this precision."""
        return 1e12 * (self.bf16 if precision == "bf16" else self.fp32)


GPUS = {
    "b200": Gpu(180, 8.0, 2250, 75),
    "h200": Gpu(141, 4.8, 989, 67),
    "h100": Gpu(80, 3.35, 989, 67),
    "a100": Gpu(80, 2.04, 312, 19.5),
    "l40s": Gpu(48, 0.864, 362, 91.6),
    "l4": Gpu(24, 0.3, 121, 30.3),
    "rtx4090": Gpu(24, 1.008, 165, 82.6),
    "rtx3090": Gpu(24, 0.936, 71, 35.6),
}
OTHER_SHEETS = {"pcie", "nvl", "laptop", "mig", "d", "ti", "super", "max", "q"}  # words that mark a different card


def gpu_of_name(name: str) -> Gpu | None:
    """The data sheet of a GPU as torch names it, such as "NVIDIA H100 80GB HBM3"; None where no data sheet matches."""
    words = re.split(r"[\s-]+", name.lower().replace("rtx ", "rtx"))
    return None if OTHER_SHEETS & {*words} else next((GPUS[word] for word in words if word in GPUS), None)


def resolve_device(device: str) -> str:
    """`auto` is the first CUDA GPU, else the CPU; any other device, such as mps, is used when it is named.

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


def can_compile(device: str) -> bool:
    """Whether torch.compile can make kernels for `device`: a GPU, Triton, and the C compiler that Triton needs."""
    has_parts = find_spec("triton") is not None and any(map(shutil.which, (os.environ.get("CC", "cc"), "gcc", "clang")))
    return device.startswith("cuda") and has_parts


def resolve_compile(compile_blocks: bool | str, device: str) -> bool:
    """`auto` compiles where `can_compile` is true; on CPU compiling takes longer than it saves in a run of minutes."""
    return can_compile(device) if compile_blocks == "auto" else bool(compile_blocks)


def local_device(device: str) -> str:
    """The device of this process: with torchrun each has a GPU of its own."""
    return f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if device == "cuda" else device


def device_memory(device: str) -> int:
    """Bytes of memory of a device.

    Raises:
        InputError: the system does not report it; --gpu plans for a GPU by name.
    """
    if device.startswith("cuda"):
        return torch.cuda.get_device_properties(device).total_memory
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # Windows has no sysconf
        raise InputError(f"the memory of {device} is not known on this system; plan for a GPU by name: --gpu h100") from None


def resolve_precision(precision: str, device: str, measure: bool = True) -> str:
    """`auto` is bf16 where it multiplies matrices at least GAIN times as fast as float32; a slower choice is reported.

    Args:
        measure: False uses earlier measurements of this machine only; a CPU without one gets fp32.
    """
    if precision == "fp32":
        return precision
    gain = bf16_gain(device, measure)
    if precision == "auto":
        return "bf16" if gain > GAIN else "fp32"
    if gain < 1:
        _warn(device, gain)
    return precision


@cache
def _warn(device: str, gain: float) -> None:
    """Warn once per process that bf16 is slower than fp32."""
    say(f"precision bf16 is {1 / gain:.2g} times slower than fp32 on this {device}, which has no instructions for it; "
        "--train.precision fp32 or auto is faster")


def bf16_gain(device: str, measure: bool = True) -> float:
    """Speed of bfloat16 matrix products relative to float32; 1 where it is neither known nor measured."""
    if device.startswith("cuda"):
        rates = [peak_rate(precision, device) or 1.0 for precision in ("bf16", "fp32")]
        return rates[0] / rates[1]
    if not measure:
        return _known("gain of bf16", device) or 1.0
    return _probed("gain of bf16", device, lambda: _seconds("fp32", device, SIDE) / _seconds("bf16", device, SIDE))


def peak_rate(precision: str, device: str) -> float | None:
    """Operations per second of large matrix products, to compute the utilisation (MFU) of training; None on a CPU.

    On a GPU it comes from the data sheet or a measurement. A CPU has no single peak: its rate depends on the matrix shape,
    the number of threads, the temperature and other load.
    """
    if not device.startswith("cuda"):
        return None
    sheet = gpu_of_name(torch.cuda.get_device_name(device))
    return sheet.rate(precision) if sheet else _measured_on_gpu(precision, device)


@cache
def _measured_on_gpu(precision: str, device: str) -> float:
    side, larger = SIDES_ON_GPU
    seconds = min(_event_seconds(precision, device, side) for _ in range(3))
    if seconds < 2e-3:  # too short compared with the launch overhead
        side, seconds = larger, min(_event_seconds(precision, device, larger) for _ in range(3))
    return 2 * side**3 / seconds


def _event_seconds(precision: str, device: str, side: int) -> float:
    """Seconds of a product of square matrices, measured with CUDA events."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    with torch.cuda.device(device):
        a = torch.randn(side, side, device=device, dtype=DTYPES[precision])
        out = a @ a
        begin.record()
        for _ in range(AT_ONCE):
            torch.mm(a, a, out=out)
        end.record()
        end.synchronize()
    return begin.elapsed_time(end) / 1000 / AT_ONCE


def matrix_rate(d_model: int, precision: str, device: str) -> float:
    """Operations per second of the products of an MLP of this width: the peak rate of a GPU, a measured rate on a CPU."""
    width = min(d_model, WIDEST)
    return peak_rate(precision, device) or _probed(
        RATE.format(precision, width), device, lambda: _mlp_rate(width, precision, device)
    )


def known_rate(d_model: int, precision: str, device: str) -> float | None:
    """As `matrix_rate`, from earlier measurements only; None where this machine has none."""
    return peak_rate(precision, device) or _known(RATE.format(precision, min(d_model, WIDEST)), device)


def _mlp_rate(width: int, precision: str, device: str) -> float:
    """The rate of [N, D] @ [D, 4 D]; N is raised until a product takes a hundredth of a second."""
    rows = 64
    while (seconds := _seconds(precision, device, rows, width, 4 * width)) < 0.01 and rows < 4096:
        rows *= 4
    return 8 * rows * width**2 / seconds


def _seconds(precision: str, device: str, rows: int, inner: int = SIDE, columns: int = SIDE) -> float:
    """Shortest time of [rows, inner] @ [inner, columns], repeated for up to SECONDS (at least once)."""
    a, b = (torch.ones(shape, device=device, dtype=DTYPES[precision]) for shape in ((rows, inner), (inner, columns)))
    start, times = time.perf_counter(), []
    while not times or (len(times) < 10 and time.perf_counter() - start < SECONDS):
        begin = time.perf_counter()
        float((a @ b)[0, 0])  # reading a value synchronizes with the device
        times.append(time.perf_counter() - begin)
    return min(times)


def _probed(name: str, device: str, probe: Callable[[], float]) -> float:
    """The result of `probe`, cached per machine; a result measured under other load is not written to the cache file."""
    if found := _known(name, device):
        return found
    load, file = Load(), probes_file()
    _found[_key(name, device)] = found = probe()
    if load.others() < SPARE:
        with suppress(OSError):  # where the home folder cannot be written it is measured again each time
            file.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(file, to_json(_stored() | {_key(name, device): found}))
    return found


def probes_file() -> Path:
    """Cache file: in the folder GLYPHLM_CACHE, else in the user's cache folder."""
    home = os.environ.get("GLYPHLM_CACHE") or os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(home) / "glyphlm" / "probes.json"


def _known(name: str, device: str) -> float | None:
    return _found.get(_key(name, device)) or _stored().get(_key(name, device))


def _stored() -> dict[str, float]:
    """The measurements in the cache file; a damaged file counts as empty and is rewritten."""
    try:
        rows = read_json(probes_file())
    except InputError:
        return {}
    return {key: value for key, value in rows.items() if isinstance(value, float) and value > 0}


def _key(name: str, device: str) -> str:
    return f"{_processor()}, {torch.get_num_threads()} threads, torch {torch.__version__}, {device}: {name}"


@cache
def _processor() -> str:
    """Model name of the CPU."""
    info = Path("/proc/cpuinfo")
    found = re.search(r"^model name\s*:\s*(.+)$", info.read_text(), re.M) if info.is_file() else None
    return found[1] if found else platform.processor() or platform.machine()
