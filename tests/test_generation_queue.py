"""One thread answers all jobs in order; what ends a job early ends its generation, and the next one is answered."""

import asyncio
import threading

import pytest

from glyphlm.interop import generation_queue
from glyphlm.interop.generation_queue import Job, Refusal, Worker
from glyphlm.runs.generate import Sampling

SHORT = Sampling(max_new_tokens=3, seed=1)


class Generation:
    """Stands in for continue_ids: writes the letters of abc..., each when `going` is set."""

    def __init__(self, monkeypatch):
        self.going, self.begun, self.written = threading.Event(), threading.Event(), []
        monkeypatch.setattr(generation_queue, "continue_ids", self)

    def __call__(self, model, ids, sampling, stop, end_id):
        new: list[int] = []
        self.begun.set()
        for number in range(sampling.max_new_tokens):
            assert self.going.wait(30)
            new.append(ord("a") + number)
            self.written.append(len(new))
            if stop(new):
                break
        return new


class Letters:
    """A tokenizer of letters."""

    end_id = ord("e")
    tokens = [chr(number) for number in range(128)]

    def decode(self, ids):
        return "".join(map(chr, ids))


@pytest.fixture
def generation(monkeypatch) -> Generation:
    return Generation(monkeypatch)


def run(work, max_waiting: int = 2):
    """`work(worker)` inside an event loop."""
    async def inside():
        worker = Worker(None, Letters(), max_waiting)
        try:
            return await asyncio.wait_for(work(worker), 60)
        finally:
            await asyncio.to_thread(worker.close)

    return asyncio.run(inside())


def test_jobs_are_answered_and_a_full_queue_refuses(generation):
    async def work(worker: Worker):
        jobs = [Job([65], SHORT)]
        worker.submit(jobs[0])
        await asyncio.to_thread(generation.begun.wait, 30)
        for _ in range(2):
            jobs.append(Job([65], SHORT))
            worker.submit(jobs[-1])
        with pytest.raises(Refusal, match="2 requests are waiting.*--max_waiting") as refusal:
            worker.submit(Job([65], SHORT))
        assert refusal.value.status == 429
        generation.going.set()
        return [await job.done for job in jobs]

    assert run(work) == [("abc", 3, "length")] * 3


@pytest.mark.parametrize(("stops", "expected"), [
    ([], ("abcde", 5, "stop")), (["cd"], ("ab", 4, "stop")), (["bcx", "d"], ("abc", 4, "stop")),
])
def test_an_answer_ends_at_the_end_of_the_text_or_before_a_stop_text(generation, stops, expected):
    async def work(worker: Worker):
        generation.going.set()
        plain, streamed = (Job([65], Sampling(max_new_tokens=5), stops, stream) for stream in (False, True))
        worker.submit(plain)
        worker.submit(streamed)
        parts = []
        while (part := await streamed.deltas.get()) is not None:
            parts.append(part)
        rest = await streamed.done
        assert ("".join(parts) + rest.text, *rest[1:]) == expected
        return await plain.done

    assert run(work) == expected


def test_a_refused_job_ends_at_the_next_token_and_the_next_one_is_answered(generation):
    async def work(worker: Worker):
        jobs = [Job([65], Sampling(max_new_tokens=1000)), Job([65], Sampling(max_new_tokens=1000)), Job([65], SHORT)]
        worker.submit(jobs[0])
        await asyncio.to_thread(generation.begun.wait, 30)
        worker.submit(jobs[1])
        worker.refuse_all(Refusal(503, "closing"))
        worker.submit(jobs[2])
        generation.going.set()
        for job in jobs[:2]:
            with pytest.raises(Refusal, match="closing"):
                await job.done
        return await jobs[2].done

    assert run(work) == ("abc", 3, "length")
    assert generation.written == [1, 1, 2, 3]


def test_a_failure_is_the_answer_of_its_request_alone(generation, monkeypatch, capsys):
    async def work(worker: Worker):
        generation.going.set()
        failing, sound = Job([65], SHORT), Job([66], SHORT)
        kept = Letters.decode
        monkeypatch.setattr(Letters, "decode", lambda self, ids: 1 / 0 if ids[0] == 65 else kept(self, ids))
        worker.submit(failing)
        worker.submit(sound)
        with pytest.raises(Refusal, match="ZeroDivisionError") as refusal:
            await failing.done
        assert refusal.value.status == 500
        return await sound.done

    assert run(work) == ("abc", 3, "length")
    assert "ZeroDivisionError" in capsys.readouterr().err
