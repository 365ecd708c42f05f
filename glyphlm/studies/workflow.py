"""Stages -> a Snakemake workflow, written and run. When, where and whether a stage runs is Snakemake's affair.

A stage is one command that goes on where it was stopped and finds its work done; an empty file in `done`, which Snakemake
makes and removes, says that it ended well. So Snakemake never touches what a stage has made.
"""

import importlib.util
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from glyphlm.base.errors import InputError
from glyphlm.base.jobs import usable_cores
from glyphlm.base.outputs import write_atomic
from glyphlm.base.progress import meter, say

SNAKEFILE, DONE, LOGS = "Snakefile", "done", "logs"
FINISHED = re.compile(r"Finished jobid: \d+ \(Rule: (\w+)\)")
FAILED = re.compile(r"Error in rule (\w+):")


@dataclass(frozen=True)
class Stage:
    """One command.

    Args:
        name: A word of letters, digits and underscores.
        command: As a reader types it in the present folder.
        makes: What is there when it is done.
        needs: Names of the stages that come before it.
        reads: Files of the reader; when one changes the stage runs again.
    """

    name: str
    command: tuple[str, ...]
    makes: Path
    needs: tuple[str, ...] = ()
    reads: tuple[Path, ...] = ()


def run_workflow(
    stages: Sequence[Stage], out: Path, jobs: int, dry_run: bool = False, unlock: bool = False, options: Sequence[str] = ()
) -> None:
    """Run what is to be run of `stages`, each after those that it needs, up to `jobs` at once; a failed one is told.

    Args:
        out: Folder of the workflow, its flags and logs.
        dry_run: Only tell what would run, and why.
        unlock: Remove the lock that a killed Snakemake left.
        options: More options of Snakemake, such as --executor slurm.

    Raises:
        InputError: Snakemake is not installed, cannot work in `out`, or does not know an option.
    """
    if importlib.util.find_spec("snakemake") is None:
        raise InputError("a study needs Snakemake, which is not installed: pip install 'glyphlm[study]'")
    threads = max(1, usable_cores() // jobs)
    out.mkdir(parents=True, exist_ok=True)
    write_atomic(out / SNAKEFILE, snakefile(stages, out, threads))
    for stage in stages:
        if not stage.makes.exists():
            (out / DONE / stage.name).unlink(missing_ok=True)  # somebody removed what it made
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(out / SNAKEFILE), "--directory", str(out),
               "--cores", str(jobs * threads), "--jobs", str(jobs), "--keep-going", "--rerun-incomplete", *options]
    if unlock:
        _listen([*command, "--unlock"])
    if dry_run:
        print("\n".join(_listen([*command, "--dry-run", "--printshellcmds"])))
    else:
        _listen(command, stages, out)


def snakefile(stages: Sequence[Stage], out: Path, threads: int) -> str:
    """The workflow as text; its commands run in the present folder."""
    rules = [
        f"# {len(stages)} stages, written by glyphlm study.\nshell.prefix({f'cd {shlex.quote(os.getcwd())}; '!r})\n",
        f"rule all:\n    input: {_listed(f'{DONE}/{stage.name}' for stage in stages)}\n",
    ]
    for stage in stages:
        inputs = [*(f"{DONE}/{name}" for name in stage.needs), *(str(path.resolve()) for path in stage.reads)]
        log = out / LOGS / f"{stage.name}.txt"
        command = f"{shlex.join(stage.command)} > {shlex.quote(str(log))} 2>&1".replace("{", "{{").replace("}", "}}")
        rules.append(
            f"rule {stage.name}:\n    input: {_listed(inputs)}\n    output: touch({f'{DONE}/{stage.name}'!r})\n"
            f"    log: {f'{LOGS}/{stage.name}.txt'!r}\n    threads: {threads}\n    shell: {command!r}\n"
        )
    return "\n".join(rules)


def _listed(paths: Iterator[str] | Sequence[str]) -> str:
    return ", ".join(map(repr, paths))


def _listen(command: Sequence[str], stages: Sequence[Stage] = (), out: Path = Path()) -> list[str]:
    """Run Snakemake and show how far it is; its lines.

    Raises:
        InputError: it stopped, and not because of a stage.
    """
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"}
    done, lines, failed = len(finished(stages, out)), [], False
    with (
        meter("stages" if stages else None, len(stages), done=done) as bar,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment) as process,
    ):
        for line in process.stdout:
            lines.append(line.rstrip())
            if found := FINISHED.search(line):
                before, done = done, len(finished(stages, out))
                bar.advance(done - before, found[1])
            elif found := FAILED.search(line):
                failed = True
                say(f"{found[1]} failed: {reason(out, found[1])}")
    if process.returncode and not failed:
        raise InputError(_told(lines))
    return lines


def _told(lines: Sequence[str]) -> str:
    text = " ".join(" ".join(lines[-20:]).split())
    if "cannot be locked" in text:
        return ("another study works in this folder, or one was killed: if none is running, give the same command with "
                "--unlock")
    return f"Snakemake stopped: {text[-400:]}"


def finished(stages: Sequence[Stage], out: Path) -> set[str]:
    """Names of the stages that are done, and all before them."""
    done: set[str] = set()
    for stage in stages:
        if (out / DONE / stage.name).exists() and done.issuperset(stage.needs):
            done.add(stage.name)
    return done


def reason(out: Path, name: str) -> str:
    """The last line that a stage has said."""
    log = out / LOGS / f"{name}.txt"
    said = log.read_text(encoding="utf-8", errors="replace").split("\n") if log.is_file() else []
    return next((line.strip() for line in reversed(said) if line.strip()), "it has not begun")
