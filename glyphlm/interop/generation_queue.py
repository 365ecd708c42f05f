"""Answers for many clients from one model: a bounded queue of jobs, and the one thread that generates.

Whatever ends a job early (time limit, client gone, shutdown) ends its generation at the next token.
"""

import asyncio
import queue
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from glyphlm.base.errors import InputError
from glyphlm.base.progress import say
from glyphlm.runs.generate import TextStream, continue_ids
from glyphlm.runs.sampling import Sampling
from glyphlm.tokenizer.tokenizer import Tokenizer


class Refusal(Exception):
    """Why a request gets no answer: an HTTP status, a sentence, and the field at fault."""

    def __init__(self, status: int, message: str, param: str | None = None):
        super().__init__(message)
        self.status, self.param = status, param


class Answer(NamedTuple):
    """The end of an answer."""

    text: str  # what was not sent before
    new_tokens: int
    finish_reason: str  # stop or length


@dataclass(eq=False)
class Job:
    """A queued request. Created in the event loop; only `call` may be used from other threads."""

    ids: list[int]
    sampling: Sampling
    stops: list[str] = field(default_factory=list)
    stream: bool = False
    work: Callable[[], object] | None = None  # what the thread does instead of generating
    deltas: asyncio.Queue[str | None] = field(default_factory=asyncio.Queue)  # of a stream; None ends it
    refusal: Refusal | None = None  # read by the thread at each token

    def __post_init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.done: asyncio.Future[Any] = self.loop.create_future()

    def call(self, act: Callable[..., object], *arguments: object) -> None:
        """Call `act` in the event loop from the worker thread; a closed loop is ignored."""
        with suppress(RuntimeError):
            self.loop.call_soon_threadsafe(act, *arguments)

    def refuse(self, refusal: Refusal) -> None:
        """End the job early, whether it waits or is being answered."""
        self.refusal = self.refusal or refusal
        self.finish(self.refusal)

    def finish(self, outcome: object) -> None:
        """Set the outcome; only the first one counts."""
        if self.done.done():
            return
        if isinstance(outcome, Refusal):
            self.done.set_exception(outcome)
            self.done.exception()  # marked as seen: the client may have gone
        else:
            self.done.set_result(outcome)
        self.deltas.put_nowait(None)


class Worker:
    """The thread that generates, one job after another."""

    def __init__(self, model: Any, tokenizer: Tokenizer, max_waiting: int):
        self._model, self._tokenizer = model, tokenizer
        self._waiting: queue.Queue[Job | None] = queue.Queue(max_waiting)
        self._jobs: set[Job] = set()
        self._thread = threading.Thread(target=self._work, name="generate", daemon=True)
        self._thread.start()

    def submit(self, job: Job) -> None:
        """Queue a job.

        Raises:
            Refusal: the queue is full.
        """
        try:
            self._waiting.put_nowait(job)
        except queue.Full:
            raise Refusal(429, f"{self._waiting.maxsize} requests are waiting; try again later, or start the server with "
                               "a larger --max_waiting") from None
        self._jobs.add(job)
        job.done.add_done_callback(lambda _: self._jobs.discard(job))

    def refuse_all(self, refusal: Refusal) -> None:
        """End all jobs early."""
        for job in list(self._jobs):
            job.refuse(refusal)

    def close(self) -> None:
        """End the thread after the jobs that it has."""
        self._waiting.put(None)
        self._thread.join()

    def _work(self) -> None:
        while (job := self._waiting.get()) is not None:
            outcome = job.refusal or self._outcome(job)
            job.call(job.finish, outcome)

    def _outcome(self, job: Job) -> object:
        try:
            if job.work is not None:
                return job.work()
            watch = _Watch(job, self._tokenizer, lambda text: job.call(job.deltas.put_nowait, text))
            new = continue_ids(self._model, job.ids, job.sampling, watch, self._tokenizer.end_id)
            _, stopped = watch.shown.text(new)
            ended = stopped or new[-1] == self._tokenizer.end_id
            return Answer(watch.shown.rest(new), len(new), "stop" if ended else "length")
        except Exception as error:  # of whatever kind: the next job must get its answer
            say(f"a request failed: {type(error).__name__}: {error}")
            if job.work is not None and isinstance(error, InputError):
                return Refusal(400, str(error))
            return Refusal(500, f"generation failed ({type(error).__name__}: {error})")


class _Watch:
    """Called with the new ids after each token: sends text that can no longer change, and decides when to stop."""

    def __init__(self, job: Job, tokenizer: Tokenizer, send: Callable[[str], object]):
        self._job, self._send, self.shown = job, send, TextStream(tokenizer, job.ids, job.stops)

    def __call__(self, new: list[int]) -> bool:
        """Whether the answer ends with these new ids."""
        if self._job.refusal is not None:
            return True
        if self._job.stream:
            piece, stopped = self.shown.next_piece(new)
            if piece:
                self._send(piece)
            return stopped
        return bool(self._job.stops) and self.shown.text(new)[1]
