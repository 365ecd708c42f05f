"""Work divided into parts, done by processes of this machine or by the executors of datatrove (an optional extra).

`prepare` and `tokenizer ngrams` hand their missing parts to `share_out`, or to an `Engine`: datatrove's executors for this
machine, Slurm and Ray. The tasks fill the same folder, so the bytes are identical, and each way continues where the other
stopped. All machines must see the same files under the same names, and have glyphlm and datatrove.
"""

import inspect
import multiprocessing
import os
import shlex
import shutil
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import chdir
from dataclasses import dataclass, field
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from glyphlm.base import progress
from glyphlm.base.errors import InputError
from glyphlm.base.progress import meter, say
from glyphlm.base.records import read_json

EXECUTORS = {"local": "LocalPipelineExecutor", "slurm": "SlurmPipelineExecutor", "ray": "RayPipelineExecutor"}
SET_HERE = {"pipeline", "tasks", "logging_dir", "depends"}  # parameters of the executors that users cannot set
LAUNCHER = "GLYPHLM_LAUNCHER"  # environment variable of the commands of a study: its machine and process id
SECONDS_TO_END = 30.0  # a training saves its state meanwhile
RANKS = "ranks_to_run.json"  # in the logs: the tasks that were submitted to Slurm


# This machine


def usable_cores(root: Path = Path("/")) -> int:
    """CPU cores that this process may use: its CPU affinity, limited by the quota of its control group."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, int(min([cores, *_quotas(root)])))


def _quotas(root: Path) -> Iterator[float]:
    """The CPU quotas, in cores, of the control group of this process and of those around it (Linux, version 1 or 2)."""
    for line in _text(root / "proc/self/cgroup").splitlines():
        controllers, path = line.split(":", 2)[1:]
        if controllers and "cpu" not in controllers.split(","):
            continue
        top = root / "sys/fs/cgroup" / ("cpu" if controllers else "")
        place = top / path.strip("/")
        for folder in (place, *place.parents):
            if not folder.is_relative_to(top):
                break
            names = ("cpu.cfs_quota_us", "cpu.cfs_period_us") if controllers else ("cpu.max",)
            numbers = [number for name in names for number in _text(folder / name).split()]
            if len(numbers) == 2 and numbers[0] not in ("max", "-1"):
                yield int(numbers[0]) / int(numbers[1])


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError:  # no such control group, or not Linux
        return ""


def share_out(
    work: Callable[..., None], parts: Sequence[tuple[Any, ...]], jobs: int, title: str, sizes: Sequence[float]
) -> None:
    """Call `work(*part)` for each of `parts` in `jobs` processes, with a progress bar titled `title` over their `sizes`.

    The worker processes end when this process ends, even if it is killed.

    Raises:
        InputError: what `work` raises, or a process was killed.
    """
    spawn = multiprocessing.get_context("spawn")
    with meter(title, sum(sizes) or None) as bar, ProcessPoolExecutor(jobs, spawn, initializer=_begin_worker) as pool:
        sizes_of = {pool.submit(work, *part): size for part, size in zip(parts, sizes)}
        try:
            for number, done in enumerate(as_completed(sizes_of), start=1):
                done.result()
                bar.advance(sizes_of[done], f"{number} of {len(parts)} done")
        except BrokenProcessPool:
            raise InputError(f"{title}: one of {jobs} processes was killed, perhaps for its memory; run the same command "
                             "with fewer --jobs: finished parts are kept") from None
        finally:
            pool.shutdown(cancel_futures=True)


def _begin_worker() -> None:
    """Workers show no progress bar, and Ctrl-C ends them at once without output."""
    progress.console.quiet = True
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    end_with_parent("multiprocessing")


def end_with_parent(library: str) -> None:
    """End this process as soon as its parent ends, even by SIGKILL; `library` is the one that may have started it."""
    parent = sys.modules[library].parent_process() if library in sys.modules else None
    if parent is not None:
        sentinel = parent.sentinel  # a pipe that the system closes when the parent ends
        threading.Thread(target=lambda: (wait([sentinel]), os._exit(1)), daemon=True).start()


def launcher() -> str:
    """The value of LAUNCHER for the commands that this process starts."""
    return f"{socket.gethostname()} {os.getpid()}"


def end_with_launcher() -> None:
    """Send this process SIGTERM soon after torchrun, or the study that LAUNCHER names, has ended on this machine.

    On Windows processes have no such parents, and nothing is done.
    """
    host, _, number = os.environ.get(LAUNCHER, "").rpartition(" ")
    if sys.platform == "win32":
        return
    if "TORCHELASTIC_RUN_ID" in os.environ:
        parent = os.getppid()
        threading.Thread(target=_end_after, args=(lambda: os.getppid() == parent,), daemon=True).start()
    if host == socket.gethostname() and number.isdigit():
        threading.Thread(target=_end_after, args=(lambda: _is_there(int(number)),), daemon=True).start()


def _is_there(process: int) -> bool:
    try:
        os.kill(process, 0)
        return True
    except OSError:
        return False


def _end_after(is_running: Callable[[], bool]) -> None:
    while is_running():
        time.sleep(1)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(SECONDS_TO_END)
    os._exit(128 + signal.SIGTERM)


# datatrove


class Submitted(Exception):
    """The tasks were queued; a later call joins their parts."""


class Share:
    """One task's share of the parts: every `world_size`-th. (Not a dataclass: the executors would log all of its fields.)"""

    def __init__(self, work: Callable[..., None], parts: Sequence[tuple[Any, ...]]):
        self._work, self._parts, self._place = work, parts, Path.cwd()

    def __call__(self, data: Any, rank: int, world_size: int) -> None:
        end_with_parent("multiprocess")  # which the local executor uses
        with chdir(self._place):  # paths may be relative, and Ray starts its tasks elsewhere
            for part in self._parts[rank::world_size]:
                self._work(*part)

    def __repr__(self) -> str:
        return f"{len(self._parts)} parts"


@dataclass(frozen=True)
class Engine:
    """Processes parts with an executor of datatrove.

    Args:
        name: local, slurm or ray.
        out: The final output; the logs are written next to it.
        tasks: Number of tasks that share the parts (default: one per part).
        options: Arguments of the executor's constructor.

    Raises:
        InputError: datatrove is not installed, an option is unknown or missing, or there are no tasks.
    """

    name: str
    out: Path
    tasks: int | None = None
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.tasks is not None and self.tasks < 1:
            raise InputError(f"tasks {self.tasks} is less than 1; leave --tasks out, and each part is a task")
        takes = inspect.signature(self._executor).parameters
        known = sorted(takes.keys() - SET_HERE)
        for key in self.options.keys() - set(known):
            raise InputError(f"the engine {self.name} has no option {key!r}; it has {', '.join(known)}")
        for key in known:
            if takes[key].default is inspect.Parameter.empty and key not in self.options:
                raise InputError(f"the engine {self.name} needs the option {key!r}; give it in --engine-options")

    def __call__(self, work: Callable[..., None], parts: Sequence[tuple[Any, ...]]) -> None:
        """Call `work(*part)` for each of `parts`; `work` must leave finished parts unchanged.

        Raises:
            Submitted: the parts will be processed later.
            InputError: a task failed, or tasks of an earlier submission may still run.
        """
        refuse_open_tasks(self.out)
        shutil.rmtree(self.logs, ignore_errors=True)
        tasks = min(self.tasks or len(parts), len(parts))
        options = {"tasks": tasks, "logging_dir": str(self.logs)} | self._defaults(tasks) | self.options
        executor = self._executor([Share(work, parts)], **options)
        say(f"{len(parts)} parts in {tasks} tasks, logs in {self.logs}")
        try:
            executor.run()
        except Exception as error:
            reason = str(error) or type(error).__name__
            raise InputError(f"{reason} (engine {self.name}, logs in {self.logs})") from error
        finally:
            if getattr(executor, "job_id", None) is None:  # Slurm accepted no task, so there is nothing to wait for
                (self.logs / RANKS).unlink(missing_ok=True)
        if self.name == "slurm":
            say(f"{tasks} tasks submitted; when they have ended, run the same command again: it joins the parts")
            raise Submitted
        failed = executor.get_incomplete_ranks(skip_completed=True)
        if failed:
            raise InputError(f"{len(failed)} of {tasks} tasks failed, see {self.logs}; run the same command again")

    @property
    def logs(self) -> Path:
        """Folder of the executor's logs; the next run of the engine removes it."""
        return _logs(self.out)

    @property
    def _executor(self) -> Callable[..., Any]:
        try:
            from datatrove import executor
        except ImportError:
            raise InputError(f'the engine {self.name} needs datatrove; pip install "glyphlm[cluster]"') from None
        return getattr(executor, EXECUTORS[self.name])

    def _defaults(self, tasks: int) -> dict[str, Any]:
        """Locally one process per core; on Slurm the commands of this Python environment, unless options name another."""
        if self.name == "local":
            return {"workers": min(tasks, usable_cores())}
        if self.name == "slurm" and not self.options.keys() & {"env_command", "condaenv", "venv_path"}:
            return {"env_command": f"export PATH={shlex.quote(str(Path(sys.executable).parent))}:$PATH"}
        return {}


def _logs(out: Path) -> Path:
    return out.absolute().with_name(f".{out.name}.logs")


def refuse_open_tasks(out: Path) -> None:
    """Refuse while tasks that write parts of `out` are still in a Slurm queue.

    Raises:
        InputError: some are queued, running or failed.
    """
    logs = _logs(out)
    if not (logs / RANKS).exists():
        return
    ranks = read_json(logs / RANKS, list, cure=f"remove {logs} when no task runs")
    left = len(ranks) - len(list(logs.glob("completions/*")))
    if left:
        raise InputError(f"{left} of {len(ranks)} tasks submitted before still run or failed, see {logs}; "
                         "when none runs any more, remove that folder and run the same command again")
