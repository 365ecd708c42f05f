"""Work that is made part by part, shared out to processes of this machine."""

import multiprocessing
import signal
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from glyphlm.base import progress
from glyphlm.base.errors import InputError
from glyphlm.base.progress import meter


def share_out(
    work: Callable[..., None], parts: Sequence[tuple[Any, ...]], jobs: int, title: str, sizes: Sequence[float]
) -> None:
    """Do `work(*part)` for each of `parts` in `jobs` processes, under a bar titled `title` over their `sizes`.

    Raises:
        InputError: what `work` raises, or a process was killed.
    """
    spawn = multiprocessing.get_context("spawn")
    with meter(title, sum(sizes) or None) as bar, ProcessPoolExecutor(jobs, spawn, initializer=_be_quiet) as pool:
        sizes_of = {pool.submit(work, *part): size for part, size in zip(parts, sizes)}
        try:
            for number, done in enumerate(as_completed(sizes_of), start=1):
                done.result()
                bar.advance(sizes_of[done], f"{number} of {len(parts)} done")
        except BrokenProcessPool:
            raise InputError(f"{title}: one of {jobs} processes was killed, perhaps for its memory; run the same command "
                             "with fewer --jobs: what is done is kept") from None
        finally:
            pool.shutdown(cancel_futures=True)


def _be_quiet() -> None:
    """One bar is shown, the parent's; Ctrl-C ends a process at once and without words."""
    progress.console.quiet = True
    signal.signal(signal.SIGINT, signal.SIG_DFL)
