"""Threads of this process: how many, and how they wait for each other.

OpenMP threads spin while they wait. That is fastest on an idle machine and collapses where programs share cores: the
quickstart's model trained at 9,800 tokens/s alone and at 333 during a second training; with sleeping threads, at 5,400 and
5,800. So they spin while the cores are free and sleep otherwise. The number of threads does not depend on the load:
rounding depends on it, and load must not change the bits of a run.
"""

import ctypes
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from glyphlm.base.errors import InputError
from glyphlm.base.jobs import usable_cores
from glyphlm.base.progress import say

POLICY = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")  # if the user sets one of these, it is respected
STAT = Path("/proc/stat")
SECONDS = 1.0  # between two measurements of the load
SPARE = 0.3  # cores: less than this, such as a desktop or a shell, is ignored
CALM = 3  # measurements without load before threads spin again
BLOCKTIME = 200  # milliseconds for which threads of LLVM's and Intel's runtimes spin by default


def use_threads(number: int | None) -> None:
    """Compute with `number` threads; None means OMP_NUM_THREADS, or else all usable cores.

    Raises:
        InputError: `number` is less than 1 or more than 1,024.
    """
    if number is not None and not 1 <= number <= 1024:
        raise InputError(f"--threads {number} must be at least 1 and at most 1,024")
    if number is None and "OMP_NUM_THREADS" not in os.environ:
        number = min(torch.get_num_threads(), usable_cores())
    if number is not None:
        torch.set_num_threads(number)


def own_cores() -> set[int]:
    """Numbers of the cores that this process may run on; all cores where the system does not report it (macOS, Windows)."""
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))


class Load:
    """Number of this process's cores that other programs keep busy."""

    def __init__(self) -> None:
        self._before = self._look()

    def others(self) -> float:
        """Average since the last call; without /proc/stat, from the load average of the last minute."""
        if not STAT.is_file():
            return max(0.0, os.getloadavg()[0] - torch.get_num_threads()) if hasattr(os, "getloadavg") else 0.0
        before, self._before = self._before, self._look()
        passed, busy, own = (now - then for now, then in zip(self._before, before))
        return max(0.0, (busy - own) / passed) if passed > 0 else 0.0

    def _look(self) -> tuple[float, float, float]:
        """Wall-clock seconds, busy seconds of our cores, and CPU seconds of this process."""
        named = {f"cpu{number}" for number in own_cores()}
        lines = STAT.read_text().splitlines() if STAT.is_file() else []
        ticks = [[int(word) for word in line.split()[1:9]] for line in lines if line.split(" ", 1)[0] in named]
        working = sum(sum(times) - times[3] - times[4] for times in ticks)  # without idle and iowait
        return time.monotonic(), working / os.sysconf("SC_CLK_TCK") if ticks else 0.0, time.process_time()


class Watch(threading.Thread):
    """Measures the load every SECONDS and switches how OpenMP threads wait."""

    def __init__(self) -> None:
        super().__init__(name="load", daemon=True)
        self._ended, self._load, self._calm, self._wake = threading.Event(), Load(), 0, None

    def run(self) -> None:
        """Measure until `end` is called."""
        while not self._ended.wait(SECONDS):
            self.look(self._load.others())
        if self._wake:
            self._wake()

    def end(self) -> None:
        """Stop measuring; threads spin again as before."""
        self._ended.set()
        self.join()

    def look(self, others: float) -> None:
        """Switch between spinning and sleeping, given the number of cores that `others` keep busy."""
        threads, cores = torch.get_num_threads(), len(own_cores())
        if threads > 1 and others + threads > cores + SPARE:
            self._calm = 0
            if self._wake is None:
                say(f"other programs use {others:.1f} of {cores} cores: the {threads} threads sleep while they wait, until "
                    "the cores are free again (fewer threads: --threads)")
                self._wake = let_threads_sleep()
        elif self._wake:
            self._calm += 1
            if self._calm == CALM:
                self._wake = self._wake()


_watches: list[Watch] = []


@contextmanager
def sharing_cores() -> Iterator[None]:
    """While the block runs, threads sleep instead of spinning whenever other programs use the cores."""
    if _watches or any(name in os.environ for name in POLICY):
        yield
        return
    _watches.append(Watch())
    _watches[0].start()
    try:
        yield
    finally:
        _watches.pop().end()


def let_threads_sleep() -> Callable[[], None]:
    """Make OpenMP threads sleep as soon as they wait; returns a function that undoes it. Unknown runtimes are not changed.

    LLVM's and Intel's runtimes have a call for it. GNU's hardly spins while a process has more threads of OpenMP than cores:
    a second, idle team of threads causes that; it ends with the thread that started it.
    """
    runtime = _openmp()
    if runtime is not None and hasattr(runtime, "kmp_set_blocktime"):
        runtime.kmp_set_blocktime(0)
        return lambda: runtime.kmp_set_blocktime(BLOCKTIME)
    if runtime is None or not hasattr(runtime, "GOMP_parallel"):
        return lambda: None
    begun, ended = threading.Event(), threading.Event()
    nothing = ctypes.cast(ctypes.CDLL(None).labs, ctypes.c_void_p)  # a C function without side effects
    team = max(2, len(own_cores()) - torch.get_num_threads() + 2)

    def hold() -> None:
        runtime.GOMP_parallel(nothing, None, ctypes.c_uint(team), ctypes.c_uint(0))
        begun.set()
        ended.wait()

    threading.Thread(target=hold, name="team", daemon=True).start()
    begun.wait()
    return ended.set


def _openmp() -> ctypes.CDLL | None:
    """The OpenMP runtime that torch uses, or None where none is loaded."""
    for name in ("libgomp*", "libiomp5*", "libomp*"):
        for path in (Path(torch.__file__).parent / "lib").glob(name):
            try:
                return ctypes.CDLL(str(path), mode=getattr(os, "RTLD_NOLOAD", 0))
            except OSError:  # present but not loaded
                continue
    return None
