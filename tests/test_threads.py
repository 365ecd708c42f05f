"""Threads: as many as the machine allows, and asleep instead of spinning where other programs want the cores."""

import os
import subprocess
import sys
import threading

import pytest
import torch

from glyphlm.base import threads
from glyphlm.base.errors import InputError
from glyphlm.base.threads import Load, Watch, let_threads_sleep, own_cores, sharing_cores, use_threads

BUSY = "import time\nend = time.monotonic() + 20\nwhile time.monotonic() < end: pass"


@pytest.fixture
def two_threads(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(("usable", "expected"), [(1, 1), (2, 2), (8, 2)])
def test_threads_stay_within_the_cores_that_may_be_used(two_threads, monkeypatch, usable, expected):
    monkeypatch.setattr(threads, "usable_cores", lambda: usable)
    use_threads(None)
    assert torch.get_num_threads() == expected


def test_the_user_decides_the_number(two_threads, monkeypatch):
    use_threads(1)
    assert torch.get_num_threads() == 1
    torch.set_num_threads(2)
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    monkeypatch.setattr(threads, "usable_cores", lambda: 1)
    use_threads(None)
    assert torch.get_num_threads() == 2
    for wrong in (0, -1, 5000):
        with pytest.raises(InputError, match=f"--threads {wrong} .*at least 1 and at most 1,024"):
            use_threads(wrong)


def test_cores_are_counted_where_the_system_has_no_affinity(monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    assert own_cores() == set(range(os.cpu_count()))


@pytest.mark.skipif(not threads.STAT.is_file(), reason="needs Linux's /proc/stat")
def test_the_load_of_another_program_is_seen_and_our_own_is_not():
    load = Load()
    with subprocess.Popen([sys.executable, "-c", BUSY]) as process:
        end = threading.Event()
        end.wait(0.5)
        load.others()
        end.wait(1.0)
        beside = load.others()
        process.kill()
    assert 0.1 < beside < len(own_cores()) + 0.2  # the system counts in hundredths of a second


def test_without_proc_the_load_average_is_asked(two_threads, monkeypatch, tmp_path):
    monkeypatch.setattr(threads, "STAT", tmp_path / "stat")
    monkeypatch.setattr(os, "getloadavg", lambda: (3.5, 0, 0), raising=False)
    assert Load().others() == 1.5
    monkeypatch.delattr(os, "getloadavg")
    assert Load().others() == 0


def test_the_way_of_waiting_follows_the_load(two_threads, monkeypatch, capsys):
    acts = []
    monkeypatch.setattr(threads, "own_cores", lambda: {0, 1})
    monkeypatch.setattr(threads, "let_threads_sleep", lambda: acts.append("sleep") or (lambda: acts.append("spin")))
    watch = Watch()
    for others in (0.1, 0.9, 0.8, 0.0, 0.0, 0.9, 0.0, 0.0, 0.0, 0.0, 1.5):
        watch.look(others)
    assert acts == ["sleep", "spin", "sleep"]
    assert "other programs use 0.9 of 2 cores: the 2 threads sleep" in " ".join(capsys.readouterr().err.split())
    torch.set_num_threads(1)
    alone = Watch()
    alone.look(2.0)  # a single thread waits for nobody
    assert acts == ["sleep", "spin", "sleep"]


@pytest.mark.skipif(not hasattr(threads._openmp(), "GOMP_parallel"), reason="needs the OpenMP runtime of GNU")
def test_an_idle_team_of_threads_ends(two_threads):
    def teams() -> int:
        return sum(thread.name == "team" for thread in threading.enumerate())

    spin = let_threads_sleep()
    assert teams() == 1
    assert spin() is None
    for thread in [thread for thread in threading.enumerate() if thread.name == "team"]:
        thread.join(10)
    assert teams() == 0


def test_results_do_not_depend_on_how_threads_wait(two_threads):
    x_ND, weight_DV = torch.randn(300, 400), torch.randn(400, 500)
    spinning = (x_ND @ weight_DV).softmax(-1).sum(0)
    spin = let_threads_sleep()
    sleeping = (x_ND @ weight_DV).softmax(-1).sum(0)
    spin()
    assert torch.equal(spinning, sleeping)


def test_only_the_outer_block_watches_and_a_policy_of_the_user_stands(monkeypatch):
    for name in threads.POLICY:
        monkeypatch.delenv(name, raising=False)

    def watching() -> int:
        return sum(isinstance(thread, Watch) for thread in threading.enumerate())

    with sharing_cores():
        with sharing_cores():
            assert watching() == 1
        assert watching() == 1
    assert watching() == 0
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    with sharing_cores():
        assert watching() == 0
