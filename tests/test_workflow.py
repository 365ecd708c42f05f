"""StudyCommands run in order, once, again where they must, after a kill, and without those that fail."""

import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from glyphlm.base.errors import InputError
from glyphlm.studies import workflow
from glyphlm.studies.workflow import DONE, Command, finished, reason, run_workflow, snakefile

pytest.importorskip("snakemake")


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    """The reader's folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def stage(name, needs=(), script="true", reads=()):
    """A stage that writes a line into the file `trace` and makes a file of its own name."""
    command = f"echo {name} >> trace; {script} && echo made > {name}"
    return Command(name, ("sh", "-c", command), Path(name), tuple(needs), tuple(map(Path, reads)))


def ran(stages, **options):
    """The stages that ran, in order."""
    Path("trace").write_text("")
    run_workflow(stages, Path("out"), 1, **options)
    return Path("trace").read_text().split()


def test_stages_run_in_order_only_once_and_again_when_what_they_read_or_make_changes(monkeypatch):
    """Braces in a name make no wildcard. Snakemake takes seconds to start, so that one workflow is asked everything."""
    Path("in {here}").mkdir()
    monkeypatch.chdir("in {here}")
    for name in ("text", "text {a}"):
        Path(name).write_text("1")
    stages = [stage("a", reads=["text"]), stage("b", reads=["text {a}"]), stage("c"), stage("d", ["c"]), stage("e", ["d"])]
    assert sorted(before := ran(stages)) == ["a", "b", "c", "d", "e"] and before.index("c") < before.index("d")
    assert before.index("d") < before.index("e") and finished(stages, Path("out")) == {"a", "b", "c", "d", "e"}
    assert ran(stages) == []
    Path("text {a}").write_text("other")
    Path("d").unlink()
    assert sorted(ran(stages)) == ["b", "d", "e"]
    Path("text").write_text("2")
    assert ran(stages) == ["a"]


def test_a_failed_stage_leaves_the_others_and_reports_why(capfd):
    stages = [stage("a", script="echo the disk is {full} >&2; false"), stage("b", ["a"]), stage("c")]
    assert sorted(ran(stages)) == ["a", "c"]
    assert finished(stages, Path("out")) == {"c"}
    assert reason(Path("out"), "a") == "the disk is {full}" and reason(Path("out"), "b") == "it has not begun"
    assert "a failed: the disk is {full}" in capfd.readouterr().err


def test_a_dry_run_prints_the_commands_and_runs_none(capsys):
    assert ran([stage("a")], dry_run=True) == []
    assert "echo a >> trace" in capsys.readouterr().out


KILLED = """
from pathlib import Path
from glyphlm.studies.workflow import Command, run_workflow
a = Command("a", ("sh", "-c", "echo a >> trace; echo > a"), Path("a"))
b = Command("b", ("sh", "-c", "echo > b.begun; sleep 60"), Path("b"), ("a",))
run_workflow([a, b], Path("out"), 1)
"""


def test_it_continues_after_a_kill():
    killed = subprocess.Popen([sys.executable, "-c", KILLED], start_new_session=True, stderr=subprocess.DEVNULL)
    while not Path("b.begun").exists():
        assert killed.poll() is None
        time.sleep(0.05)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.wait()
    stages = [stage("a"), stage("b", ["a"])]
    stages[0] = Command("a", ("sh", "-c", "echo a >> trace; echo > a"), Path("a"))
    with pytest.raises(InputError, match="one was killed: if none is running, give the same command with --unlock"):
        ran(stages)
    assert ran(stages, unlock=True) == ["b"]


ENDING = """
from pathlib import Path
from glyphlm.studies import workflow
workflow.SNAKEMAKE = "import glyphlm.base.jobs as jobs; jobs.SECONDS_TO_END = 1; " + workflow.SNAKEMAKE
a = workflow.Command("a", ("sh", "-c", "echo > a.begun; sleep 60"), Path("a"))
workflow.run_workflow([a], Path("out"), 1)
"""


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="processes are found in /proc")
def test_snakemake_ends_with_a_study_that_is_killed_alone():
    """Even while it waits for a command that goes on."""
    killed = subprocess.Popen([sys.executable, "-c", ENDING], start_new_session=True, stderr=subprocess.DEVNULL)
    while not Path("a.begun").exists():
        assert killed.poll() is None
        time.sleep(0.05)
    snakemake = int(subprocess.check_output(["pgrep", "-P", str(killed.pid), "-f", "snakemake"]))
    killed.kill()
    killed.wait()
    end = time.monotonic() + 20
    try:
        while Path(f"/proc/{snakemake}").exists():
            assert time.monotonic() < end, "Snakemake lives on"
            time.sleep(0.1)
    finally:
        os.killpg(killed.pid, signal.SIGKILL)


def test_the_workflow_can_be_read():
    text = snakefile([stage("a"), stage("b", ["a"])], Path("out"), 3)
    assert "rule b:\n    input: 'done/a'\n    output: touch('done/b')\n" in text
    assert "    threads: 3\n" in text and f"cd {Path.cwd()}" in text


def test_a_workflow_that_snakemake_refuses_is_an_error():
    with pytest.raises(InputError, match="Snakemake stopped: .*--no-such-option"):
        run_workflow([stage("a")], Path("out"), 1, options=["--no-such-option"])


def test_without_snakemake_the_cure_is_reported(monkeypatch):
    monkeypatch.setattr(workflow.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"not installed \(snakemake, matplotlib\): pip install 'glyphlm\[study\]'"):
        run_workflow([stage("a")], Path("out"), 1)


def test_commands_run_here_in_their_order_until_the_time_is_over(tmp_path, capsys):
    """The second fails and the third waits for it; the last begins too late, and a second call makes it."""
    made = tmp_path / "made"
    commands = [Command(name, (name,), made, needs) for name, needs in
                (("a", ()), ("b", ()), ("c", ("b",)), ("d", ("a",)), ("e", ()))]
    ran = []

    def run(arguments):
        ran.append(*arguments)
        return arguments == ("b",)

    workflow.run_here(commands, tmp_path, run)
    assert ran == ["a", "b", "d", "e"] and finished(commands, tmp_path) == {"a", "d", "e"}
    (tmp_path / DONE / "e").unlink()
    workflow.run_here(commands, tmp_path, run, until=-math.inf)
    assert ran == ["a", "b", "d", "e"] and "3 of 5 commands are left" in capsys.readouterr().err
