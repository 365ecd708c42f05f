"""Parts made by the executors of datatrove: on this machine, by Slurm or by Ray; an optional extra.

Work that is made part by part (`prepare`, `tokenizer ngrams`) hands the missing parts to an `Engine` in place of its own
processes. The tasks fill the same folder, so the bytes are the same, and either way goes on where the other stopped. All
machines must see the same files under the same names, and have glyphlm and datatrove.
"""

import inspect
import json
import os
import shlex
import shutil
import sys
from collections.abc import Callable, Sequence
from contextlib import chdir
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from glyphlm.base.errors import InputError
from glyphlm.base.progress import say

EXECUTORS = {"local": "LocalPipelineExecutor", "slurm": "SlurmPipelineExecutor", "ray": "RayPipelineExecutor"}
OURS = {"pipeline", "tasks", "logging_dir", "depends"}  # what the constructors take, and users have no say in
RANKS = "ranks_to_run.json"  # in the logs: the tasks that were given to Slurm


class Submitted(Exception):
    """The tasks wait in a queue; there is nothing to join yet."""


class Share:
    """One task's share of the parts: every `world_size`-th. (Of a dataclass the executors would log all fields.)"""

    def __init__(self, work: Callable[..., None], parts: Sequence[tuple[Any, ...]]):
        self._work, self._parts, self._place = work, parts, Path.cwd()

    def __call__(self, data: Any, rank: int, world_size: int) -> None:
        with chdir(self._place):  # paths may be relative, and Ray starts its tasks elsewhere
            for part in self._parts[rank::world_size]:
                self._work(*part)

    def __repr__(self) -> str:
        return f"{len(self._parts)} parts"


@dataclass(frozen=True)
class Engine:
    """Makes parts with an executor of datatrove.

    Args:
        name: local, slurm or ray.
        out: What is made in the end; the logs are beside it.
        tasks: How many tasks share the parts (default: one a part).
        options: Of the executor's constructor.

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
        known = sorted(takes.keys() - OURS)
        for key in self.options.keys() - set(known):
            raise InputError(f"the engine {self.name} has no option {key!r}; it has {', '.join(known)}")
        for key in known:
            if takes[key].default is inspect.Parameter.empty and key not in self.options:
                raise InputError(f"the engine {self.name} needs the option {key!r}; give it in --engine-options")

    def __call__(self, work: Callable[..., None], parts: Sequence[tuple[Any, ...]]) -> None:
        """Do `work(*part)` for each of `parts`, which must bear being asked for what is there already.

        Raises:
            Submitted: the parts will be made later.
            InputError: a task failed, or tasks of an earlier submission may still run.
        """
        self._refuse_open_tasks()
        shutil.rmtree(self.logs, ignore_errors=True)
        tasks = min(self.tasks or len(parts), len(parts))
        options = {"tasks": tasks, "logging_dir": str(self.logs)} | self._defaults(tasks) | self.options
        executor = self._executor([Share(work, parts)], **options)
        say(f"{len(parts)} parts in {tasks} tasks, logs in {self.logs}")
        try:
            executor.run()
        except Exception as error:
            told = str(error) or type(error).__name__
            raise InputError(f"{told} (engine {self.name}, logs in {self.logs})") from error
        finally:
            if getattr(executor, "job_id", None) is None:  # Slurm took nothing, so nothing is to be waited for
                (self.logs / RANKS).unlink(missing_ok=True)
        if self.name == "slurm":
            say(f"{tasks} tasks submitted; when they have ended, run the same command again: it joins the parts")
            raise Submitted
        failed = executor.get_incomplete_ranks(skip_completed=True)
        if failed:
            raise InputError(f"{len(failed)} of {tasks} tasks failed, see {self.logs}; the same command goes on")

    @property
    def logs(self) -> Path:
        """Where the executor writes; the next run of the engine removes it."""
        return self.out.absolute().with_name(f".{self.out.name}.logs")

    @property
    def _executor(self) -> Callable[..., Any]:
        try:
            from datatrove import executor
        except ImportError:
            raise InputError(f'the engine {self.name} needs datatrove; pip install "glyphlm[cluster]"') from None
        return getattr(executor, EXECUTORS[self.name])

    def _defaults(self, tasks: int) -> dict[str, Any]:
        """No more processes than cores here; on Slurm the commands of this environment, unless another is named."""
        if self.name == "local":
            return {"workers": min(tasks, len(os.sched_getaffinity(0)))}
        if self.name == "slurm" and not self.options.keys() & {"env_command", "condaenv", "venv_path"}:
            return {"env_command": f"export PATH={shlex.quote(str(Path(sys.executable).parent))}:$PATH"}
        return {}

    def _refuse_open_tasks(self) -> None:
        """Two tasks that make the same part would spoil it."""
        if not (self.logs / RANKS).exists():
            return
        ranks = json.loads((self.logs / RANKS).read_text(encoding="utf-8"))
        left = len(ranks) - len(list(self.logs.glob("completions/*")))
        if left:
            raise InputError(f"{left} of {len(ranks)} tasks submitted before still run or failed, see {self.logs}; "
                             "when none runs any more, remove that folder, and the same command goes on")
