"""Progress of long work: a live bar on a terminal, else a plain line every PLAIN_SECONDS."""

import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

console = Console(stderr=True, highlight=False, soft_wrap=True, markup=False, emoji=False)  # print file names verbatim
PLAIN_SECONDS = 10.0  # how often a plain line is printed where there is no terminal
DELAY = 1.0  # seconds after which a terminal shows work of unknown length

IS_MAIN = os.environ.get("RANK", "0") == "0"  # under torchrun only rank 0 prints


def say(message: str) -> None:
    """Print one line of progress to stderr; results go to stdout."""
    if IS_MAIN:
        # Characters that the terminal cannot print, and undecodable bytes of file names, are shown as escapes.
        console.print(message.encode(console.encoding, "backslashreplace").decode(console.encoding))


class Meter:
    """Advances one bar; `advance(amount, note)` is cheap enough to call at every step."""

    def __init__(self, title: str | None, total: float | None, bar: Progress | None, done: float = 0):
        self._title, self._total, self._done, self._before, self._bar = title, total, done, done, bar
        if bar:
            self._task = bar.add_task(title or "", total=total, completed=int(done), note="")
        self._printed = self._started = time.monotonic()

    def advance(self, amount: float = 1, note: str = "") -> None:
        """Move by `amount` in the unit of the total; `note` is shown at the end of the line."""
        self._done += amount
        if self._bar:
            self._bar.update(self._task, advance=amount, note=note)
        elif self._title and time.monotonic() - self._printed >= PLAIN_SECONDS:
            self._printed = time.monotonic()
            say(self._plain_line(note))

    def _plain_line(self, note: str) -> str:
        elapsed = time.monotonic() - self._started
        if not self._total:
            return f"{self._title}: {self._done:,.0f}, {elapsed:.0f} s  {note}"
        now = self._done - self._before  # excludes what a stopped run had done
        left = elapsed / now * (self._total - self._done) if now else float("inf")
        return f"{self._title}: {100 * self._done / self._total:.0f}%, {left:.0f} s left  {note}"


@contextmanager
def working(title: str) -> Iterator[None]:
    """Show that work of unknown length goes on: a moving bar after DELAY seconds, else one line after PLAIN_SECONDS."""
    if not IS_MAIN:
        yield
        return
    parts = TextColumn("{task.description}", markup=False), BarColumn(12), TimeElapsedColumn()
    bar = Progress(*parts, console=console, transient=True) if sys.stderr.isatty() else None
    if bar:
        bar.add_task(title, total=None)
    timer = threading.Timer(*((DELAY, bar.start) if bar else (PLAIN_SECONDS, lambda: say(f"{title} .."))))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()  # it may just have fired
        if bar and bar.live.is_started:
            bar.stop()


@contextmanager
def meter(title: str | None, total: float | None = None, *, done: float = 0) -> Iterator[Meter]:
    """A bar titled `title` of `total` units, of which `done` are finished already (a resumed run); no bar without title."""
    if title is None or not IS_MAIN or not sys.stderr.isatty():
        yield Meter(title, total, None, done)
        return
    bar_and_share = (BarColumn(12), "{task.percentage:>3.0f}%")  # short, so that a line fits into 80 columns
    left_and_note = (TimeRemainingColumn(compact=True), "left", TextColumn("{task.fields[note]}", markup=False))
    with Progress(TextColumn("{task.description}", markup=False), *bar_and_share, *left_and_note, console=console) as bar:
        yield Meter(title, total, bar, done)
