"""The executors of datatrove make the same bytes as the plain way, which goes on where they stop."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glyphlm.base.errors import InputError
from glyphlm.base.jobs import Engine, Share, Submitted, usable_cores
from glyphlm.cli.main import main
from glyphlm.corpus.phrasebook import phrases
from glyphlm.data import shards as preparation
from glyphlm.data.shards import prepare
from glyphlm.tokenizer.ngram_stats import NgramSettings, count_ngrams

DOCUMENTS = [phrase.text for phrase in phrases()[:300]]
QUEUE = {"partition": "cpu", "time": "1:00:00", "cpus_per_task": 2}
CLUSTER = {  # stand-ins for Slurm's commands; the first keeps every script that it is given
    "sbatch": 'n=$(ls -d submitted-* 2> /dev/null | wc -l); mkdir submitted-$n; echo "$@" > submitted-$n/given\n'
              'cp "${@: -1}" submitted-$n/script; echo Submitted batch job 1$n',
    "srun": '[ "$1 $2 $3" = "-l -n 1" ] && shift 3 && exec "$@"',
    "scontrol": "echo localhost",
}  # fmt: skip

needs_datatrove = pytest.mark.skipif(find_spec("datatrove") is None, reason='datatrove is not installed: "glyphlm[cluster]"')
# The local executor forks a manager, and from Python 3.12 on that is warned of where there are threads.
forks = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")


@pytest.fixture
def files(tmp_path, monkeypatch) -> list[str]:
    """Five files, each a part of its own, named from the folder that we are in."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(preparation, "PART_BYTES", 1)
    for number in range(5):
        lines = (json.dumps({"text": text}) + "\n" for text in DOCUMENTS[number::5])
        Path(f"{number}.jsonl").write_text("".join(lines), encoding="utf-8")
    return [f"{number}.jsonl" for number in range(5)]


@pytest.fixture
def slurm(tmp_path, monkeypatch) -> None:
    """Stand-ins for Slurm's commands."""
    (tmp_path / "bin").mkdir()
    for name, script in CLUSTER.items():
        (tmp_path / "bin" / name).write_text(f"#!/bin/bash\n{script}\n", encoding="utf-8")
        (tmp_path / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def times(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def command(tokenizer_folder, files, *options):
    return main(["prepare", "--tokenizer", str(tokenizer_folder), "--out", "out", *files, *options])


def run_task(number):
    """What Slurm does with one task of the array, on another machine."""
    environment = os.environ | {"SLURM_ARRAY_TASK_ID": str(number), "RUN_OFFSET": "0", "SLURM_NODELIST": "localhost"}
    script = Path("submitted-0", "script").absolute()
    return subprocess.run(["bash", str(script)], env=environment, cwd="/", capture_output=True, text=True)


# What an engine is given


@given(st.lists(st.tuples(st.integers())), st.integers(1, 9))
def test_the_tasks_make_every_part_once(parts, tasks):
    made = []
    for rank in range(tasks):
        Share(made.append, parts)(None, rank, tasks)
    assert sorted(made) == sorted(number for number, in parts)


def test_a_task_that_is_started_twice_leaves_what_is_there(tokenizer, files):
    def twice(work, parts):
        for part in parts:
            work(*part)
        before = times(Path())
        for part in parts:
            work(*part)
        assert times(Path()) == before

    out = prepare(tokenizer, files, Path("out"), engine=twice)
    assert contents(out) == contents(prepare(tokenizer, files, Path("plain")))
    count_ngrams({"en": files}, NgramSettings(), Path("out.txt"), engine=twice)


def test_an_engine_gets_only_unfinished_parts(tokenizer, files):
    def none(work, parts):
        raise AssertionError

    out = prepare(tokenizer, files, Path("out"))
    assert prepare(tokenizer, files, Path("out"), engine=none) == out
    count_ngrams({"en": files}, NgramSettings(), Path("out.txt"))
    count_ngrams({"en": files}, NgramSettings(), Path("out.txt"), engine=none)


# On this machine


@forks
@needs_datatrove
def test_the_local_engine_prepares_the_same_bytes(tokenizer, tokenizer_folder, files):
    assert command(tokenizer_folder, files, "--engine", "local", "--tasks", "2", "--engine-options", '{"workers": 2}') == 0
    assert contents(Path("out")) == contents(prepare(tokenizer, files, Path("plain")))
    assert len(list(Path(".out.logs/completions").iterdir())) == 2 and not Path(".out.partial").exists()


@forks
@needs_datatrove
def test_the_local_engine_counts_the_same_bytes(files):
    texts = [part for number, file in enumerate(files) for part in ("--lang", f"{('en', 'ru')[number % 2]}={file}")]
    for out, options in (("plain.txt", []), ("out.txt", ["--engine", "local", "--tasks", "2"])):
        assert main(["tokenizer", "ngrams", *texts, "--out", out, *options]) == 0
    assert Path("out.txt").read_bytes() == Path("plain.txt").read_bytes()
    assert contents(Path("out.txt.parts")) == contents(Path("plain.txt.parts"))


@forks
@needs_datatrove
@pytest.mark.parametrize("goes_on", ["plain", "local"])
def test_what_a_failed_engine_has_made_is_kept(tokenizer, files, goes_on, capsys):
    good = Path(files[2]).read_bytes()
    Path(files[2]).write_bytes(b'{"text": "a"}\n{"text": 1}')
    engine = Engine("local", Path("out"), options={"workers": 1})
    with pytest.raises(InputError, match=r"2.jsonl:2 has no text in 'text' .*\(engine local, logs in .*/\.out\.logs\)$"):
        prepare(tokenizer, files, Path("out"), engine=engine)
    assert "InputError: 2.jsonl:2" in Path(".out.logs/logs/task_00002.log").read_text(encoding="utf-8")
    Path(files[2]).write_bytes(good)
    out = prepare(tokenizer, files, Path("out"), engine=engine if goes_on == "local" else None)
    assert "resuming: 2 of 5 parts are finished" in capsys.readouterr().err
    assert contents(out) == contents(prepare(tokenizer, files, Path("plain")))


def test_tasks_that_fail_without_a_word_are_reported(tokenizer, files, monkeypatch):
    class Silent:
        def __init__(self, pipeline, tasks=1, logging_dir=None):
            self.tasks = tasks

        def run(self):
            pass

        def get_incomplete_ranks(self, skip_completed):
            return [1, 2] if skip_completed else [*range(self.tasks)]

    monkeypatch.setattr(Engine, "_executor", Silent)
    with pytest.raises(InputError, match=r"2 of 5 tasks failed, see .*/\.out\.logs; run the same command again"):
        prepare(tokenizer, files, Path("out"), engine=Engine("ray", Path("out"), 9))


def test_an_error_without_words_has_its_name(tmp_path, monkeypatch):
    class Full:
        def __init__(self, pipeline, tasks=1, logging_dir=None):
            pass

        def run(self):
            raise MemoryError

    monkeypatch.setattr(Engine, "_executor", Full)
    with pytest.raises(InputError, match=r"^MemoryError \(engine ray, logs in "):
        Engine("ray", tmp_path / "out")(print, [(1,)])


# Slurm


@needs_datatrove
def test_slurm_makes_the_parts_and_the_same_command_joins_them(tokenizer, tokenizer_folder, files, slurm, capfd):
    options = ["--engine", "slurm", "--tasks", "2", "--engine-options", json.dumps(QUEUE)]
    assert command(tokenizer_folder, files, *options) == 0
    assert "2 tasks submitted; when they have ended, run the same command again" in capfd.readouterr().err
    script = Path("submitted-0/script").read_text(encoding="utf-8")
    for line in ("partition=cpu", "time=1:00:00", "cpus-per-task=2", "array=0-1"):
        assert f"#SBATCH --{line}\n" in script

    assert run_task(0).returncode == 0
    with pytest.raises(InputError, match="1 of 2 tasks submitted before still run"):  # it would make their parts, too
        prepare(tokenizer, files, Path("out"))
    assert not Path("out").exists() and len(list(Path(".out.partial").glob("part-*"))) == 3
    assert command(tokenizer_folder, files, *options) == 2
    assert "1 of 2 tasks submitted before still run or failed" in capfd.readouterr().err
    assert run_task(1).returncode == 0
    assert command(tokenizer_folder, files, *options) == 0
    assert contents(Path("out")) == contents(prepare(tokenizer, files, Path("plain")))


@needs_datatrove
def test_a_task_of_slurm_that_fails_is_seen_as_failed(tokenizer, files, slurm):
    Path(files[1]).write_bytes(b'{"text": "a"}\n{"text": 1}')
    engine = Engine("slurm", Path("out"), 2, QUEUE)
    with pytest.raises(Submitted):
        prepare(tokenizer, files, Path("out"), engine=engine)
    assert "1.jsonl:2 has no text" in run_task(1).stderr and run_task(0).returncode == 0
    with pytest.raises(InputError, match=r"1 of 2 tasks submitted before still run or failed, see .*/\.out\.logs; when"):
        prepare(tokenizer, files, Path("out"), engine=engine)
    shutil.rmtree(".out.logs")
    with pytest.raises(Submitted):
        prepare(tokenizer, files, Path("out"), engine=engine)
    assert "#SBATCH --array=0-1\n" in Path("submitted-2/script").read_text(encoding="utf-8")  # 1: statistics of 0


@needs_datatrove
def test_a_queue_that_takes_nothing_is_reported_and_may_be_tried_again(tokenizer, files, slurm):
    Path("bin/sbatch").rename("bin/kept")
    engine = Engine("slurm", Path("out"), None, QUEUE)
    with pytest.raises(InputError, match="sbatch.*engine slurm"):
        prepare(tokenizer, files, Path("out"), engine=engine)
    Path("bin/kept").rename("bin/sbatch")
    with pytest.raises(Submitted):
        prepare(tokenizer, files, Path("out"), engine=engine)
    assert "#SBATCH --array=0-4\n" in Path("submitted-0/script").read_text(encoding="utf-8")


@needs_datatrove
@pytest.mark.parametrize(("named", "line"), [({}, "export PATH="), ({"venv_path": "my/env"}, "source my/env")])
def test_tasks_of_slurm_have_this_environment_or_the_one_named(tokenizer, files, slurm, named, line):
    with pytest.raises(Submitted):
        prepare(tokenizer, files, Path("out"), engine=Engine("slurm", Path("out"), None, QUEUE | named))
    script = Path("submitted-0/script").read_text(encoding="utf-8")
    assert line in script and (str(Path(sys.executable).parent) in script) == (not named)


# Mistakes


@needs_datatrove
@pytest.mark.parametrize(("options", "reported"), [
    (["--engine", "slurm"], "the engine slurm needs the option 'partition'"),
    (["--engine", "local", "--engine-options", '{"speed": 9}'], "engine local has no option 'speed'; it has local_"),
    (["--engine", "local", "--engine-options", '{"tasks": 9}'], "engine local has no option 'tasks'"),
    (["--engine", "local", "--engine-options", "{"], "engine_options"),
    (["--engine", "local", "--tasks", "0"], "tasks 0 is less than 1"),
    (["--engine", "spark"], "spark"),
    (["--tasks", "2"], "name it: --engine local|slurm|ray"),
    (["--engine-options", '{"workers": 2}'], "name it: --engine local|slurm|ray"),
])  # fmt: skip
def test_mistakes_are_one_line_before_anything_is_read(tokenizer_folder, files, capsys, options, reported):
    assert command(tokenizer_folder, files, *options) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert reported in line and not Path(".out.logs").exists()


def test_without_datatrove_the_cure_is_reported(monkeypatch):
    monkeypatch.setitem(sys.modules, "datatrove", None)
    with pytest.raises(InputError, match=r'the engine local needs datatrove; pip install "glyphlm\[cluster\]"'):
        Engine("local", Path("out"))


# This machine


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({}, 8),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "max 100000\n"}, 8),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "250000 100000\n"}, 2),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "50000 100000\n"}, 1),
        ({"proc/self/cgroup": "0::/a b/c\n", "sys/fs/cgroup/a b/cpu.max": "300000 100000\n"}, 3),
        ({"proc/self/cgroup": "0::/a\n", "sys/fs/cgroup/a/cpu.max": "9900000 100000\n"}, 8),
        ({"proc/self/cgroup": "3:cpu,cpuacct:/a\n2:memory:/a\n", "sys/fs/cgroup/cpu/a/cpu.cfs_quota_us": "400000\n",
          "sys/fs/cgroup/cpu/a/cpu.cfs_period_us": "100000\n"}, 4),
        ({"proc/self/cgroup": "3:cpu:/\n", "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
          "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n"}, 8),
    ],
)  # fmt: skip
def test_cores_are_those_of_the_process_and_its_control_groups(tmp_path, monkeypatch, files, cores):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(8))
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    assert usable_cores(tmp_path) == cores


def test_cores_are_known_on_systems_without_affinity(tmp_path, monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    assert usable_cores(tmp_path) == 6


SLEEPERS = """
import os, sys, time
from pathlib import Path
from glyphlm.base.jobs import Engine, share_out
def work(number):
    Path(f"pid-{os.getpid()}").touch()
    time.sleep(600)
if __name__ == "__main__":
    if sys.argv[1] == "engine":
        Engine("local", Path("out"), options={"workers": 2})(work, [(1,), (2,)])
    share_out(work, [(1,), (2,)], 2, "sleeping", [1, 1])
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
@pytest.mark.parametrize("way", ["plain", pytest.param("engine", marks=needs_datatrove)])
def test_processes_end_with_their_parent(tmp_path, way, how):
    (tmp_path / "sleepers.py").write_text(SLEEPERS, encoding="utf-8")
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen([sys.executable, "sleepers.py", way], cwd=tmp_path, **quiet) as parent:
        until(lambda: len(list(tmp_path.glob("pid-*"))) == 2)
        parent.send_signal(how)
    until(lambda: not any(is_alive(path.name.removeprefix("pid-")) for path in tmp_path.glob("pid-*")))


def until(condition):
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def is_alive(pid):
    """A zombie, which nobody has waited for yet, is not."""
    state = subprocess.run(["ps", "-o", "stat=", "-p", pid], capture_output=True, text=True).stdout
    return not state.startswith("Z") and bool(state)


LAUNCHED = """
import os, subprocess, sys, time
from glyphlm.base.jobs import LAUNCHER, end_with_launcher, launcher
if len(sys.argv) == 2:
    given = {"study": {LAUNCHER: launcher()}, "torchrun": {"TORCHELASTIC_RUN_ID": "1"}, "elsewhere": {LAUNCHER: "x 1"}}
    environment = os.environ | given[sys.argv[1]]
    print(subprocess.Popen([sys.executable, __file__, "as", "command"], env=environment).pid, flush=True)
else:
    end_with_launcher()
    open("begun", "w")
time.sleep(600)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="processes have no such parents there")
@pytest.mark.parametrize(("by", "ends"), [("study", True), ("torchrun", True), ("elsewhere", False)])
def test_a_command_ends_with_the_study_or_torchrun_that_started_it(tmp_path, by, ends):
    (tmp_path / "launched.py").write_text(LAUNCHED, encoding="utf-8")
    with subprocess.Popen([sys.executable, "launched.py", by], cwd=tmp_path, stdout=subprocess.PIPE) as parent:
        command = parent.stdout.readline().decode().strip()
        until(lambda: (tmp_path / "begun").exists())
        parent.kill()
        parent.wait()
        if ends:
            until(lambda: not is_alive(command))
        else:
            time.sleep(2)
            assert is_alive(command)
            os.kill(int(command), signal.SIGKILL)
