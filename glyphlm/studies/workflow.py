"""A Snakemake workflow of commands, written and run.

Each command resumes by itself. The output of a rule is an empty file in `done`, so that Snakemake never deletes what a
command has written.
"""

import hashlib
import importlib.util
import math
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from glyphlm.base.errors import InputError
from glyphlm.base.jobs import LAUNCHER, launcher, usable_cores
from glyphlm.base.outputs import write_atomic
from glyphlm.base.progress import meter, say

SNAKEFILE, DONE, LOGS = "Snakefile", "done", "logs"
FINISHED = re.compile(r"Finished jobid: \d+ \(Rule: (\w+)\)")
FAILED = re.compile(r"Error in rule (\w+):")
# Snakemake begins no further command after SIGTERM, which it gets when this process ends, even by SIGKILL.
SNAKEMAKE = "from glyphlm.base.jobs import end_with_launcher as f; f(); from snakemake.cli import main; main()"


@dataclass(frozen=True)
class Command:
    """One command of a workflow.

    Args:
        name: A word of letters, digits and underscores.
        arguments: Of a shell in the current folder.
        makes: A path that exists when it has finished.
        needs: Names of the commands that it depends on.
        reads: Files of the user: the command runs again when one changes.
    """

    name: str
    arguments: tuple[str, ...]
    makes: Path
    needs: tuple[str, ...] = ()
    reads: tuple[Path, ...] = ()


def check_installed() -> None:
    """Refuse to begin a study without the packages of the extra `study`."""
    if missing := [name for name in ("snakemake", "matplotlib") if importlib.util.find_spec(name) is None]:
        raise InputError(f"a study needs what is not installed ({', '.join(missing)}): pip install 'glyphlm[study]'")


def run_workflow(
    commands: Sequence[Command],
    out: Path,
    jobs: int,
    dry_run: bool = False,
    unlock: bool = False,
    options: Sequence[str] = (),
) -> None:
    """Run the unfinished `commands` in the order of their dependencies, up to `jobs` at once; failures are printed.

    Args:
        out: Folder of the workflow, its flags and logs.
        dry_run: Only print what would run, and why.
        unlock: Remove the lock that a killed Snakemake left.
        options: Further options of Snakemake, such as --executor slurm.

    Raises:
        InputError: Snakemake is not installed, cannot work in `out`, or does not know an option.
    """
    check_installed()
    threads = max(1, usable_cores() // jobs)
    out.mkdir(parents=True, exist_ok=True)
    write_atomic(out / SNAKEFILE, snakefile(commands, out, threads))
    for command in commands:
        if not command.makes.exists():
            (out / DONE / command.name).unlink(missing_ok=True)  # its output was removed
    snakemake = [sys.executable, "-c", SNAKEMAKE, "--snakefile", str(out / SNAKEFILE), "--directory", str(out),
                 "--cores", str(jobs * threads), "--jobs", str(jobs), "--keep-going", "--rerun-incomplete", *options]
    if unlock:
        _listen([*snakemake, "--unlock"])
    if dry_run:
        print("\n".join(_listen([*snakemake, "--dry-run", "--printshellcmds"])))
    else:
        _listen(snakemake, commands, out)


def run_here(
    commands: Sequence[Command], out: Path, run: Callable[[Sequence[str]], int], until: float = math.inf
) -> None:
    """Run the unfinished `commands` one after another, without Snakemake; none begins after `until` (`time.monotonic`).

    `run` is called with the arguments of a command and returns its exit status. Commands that wait for one that failed are
    left out. The flags are those of `run_workflow`, which can go on with what is left.

    Raises:
        KeyboardInterrupt: a command was stopped by Ctrl-C.
    """
    (out / DONE).mkdir(parents=True, exist_ok=True)
    with meter("commands", len(commands), done=len(finished(commands, out))) as bar:
        for command in commands:
            done = finished(commands, out)
            if command.name in done or not done.issuperset(command.needs):
                continue
            if time.monotonic() >= until:
                say(f"the time is over; {len(commands) - len(done)} of {len(commands)} commands are left")
                return
            status = run(command.arguments)
            if status == 130:  # of `glyphlm` after Ctrl-C
                raise KeyboardInterrupt
            if status == 0:
                (out / DONE / command.name).touch()
                bar.advance(1, command.name)


def snakefile(commands: Sequence[Command], out: Path, threads: int) -> str:
    """The Snakefile; commands run in the current folder, with priority to earlier ones."""
    rules = [
        f"# {len(commands)} commands, written by glyphlm study.\n"
        f"shell.prefix({_no_fields(f'cd {shlex.quote(os.getcwd())}; ')!r})\n",
        f"rule all:\n    input: {_listed(f'{DONE}/{command.name}' for command in commands)}\n",
    ]
    for number, command in enumerate(commands):
        files = [str(path.resolve()) for path in command.reads]
        # A brace in an input is a wildcard and cannot be escaped; a parameter that changes with the files replaces it.
        braced = [path for path in files if "{" in path or "}" in path]
        inputs = [*(f"{DONE}/{name}" for name in command.needs), *(path for path in files if path not in braced)]
        parameter = f"    params: {_state_of(braced)!r}\n" if braced else ""
        log = shlex.quote(str(out / LOGS / f"{command.name}.txt"))
        rules.append(
            f"rule {command.name}:\n    input: {_listed(inputs)}\n    output: touch({f'{DONE}/{command.name}'!r})\n"
            f"    log: {f'{LOGS}/{command.name}.txt'!r}\n{parameter}    threads: {threads}\n"
            f"    priority: {len(commands) - number}\n"
            f"    shell: {_no_fields(f'{shlex.join(command.arguments)} > {log} 2>&1')!r}\n"
        )
    return "\n".join(rules)


def _no_fields(shell: str) -> str:
    return shell.replace("{", "{{").replace("}", "}}")


def _state_of(files: Sequence[str]) -> str:
    """A digest that changes with sizes and modification times of the files."""
    found = [(path, os.stat(path).st_size, os.stat(path).st_mtime_ns) for path in files if os.path.exists(path)]
    return hashlib.sha256(repr(found).encode()).hexdigest()


def _listed(paths: Iterable[str]) -> str:
    return ", ".join(map(repr, paths))


def _listen(arguments: Sequence[str], commands: Sequence[Command] = (), out: Path = Path()) -> list[str]:
    """Run Snakemake with a progress bar; its lines. Failed commands are printed, other failures raised."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    environment = os.environ | {"PATH": path, LAUNCHER: launcher()}
    done, lines, failed = len(finished(commands, out)), [], False
    with (
        meter("commands" if commands else None, len(commands), done=done) as bar,
        subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment) as process,
    ):
        for line in process.stdout or ():
            lines.append(line.rstrip())
            if found := FINISHED.search(line):
                before, done = done, len(finished(commands, out))
                bar.advance(done - before, found[1])
            elif found := FAILED.search(line):
                failed = True
                say(f"{found[1]} failed: {reason(out, found[1])}")
    if process.returncode and not failed:
        raise InputError(_why_stopped(lines))
    return lines


def _why_stopped(lines: Sequence[str]) -> str:
    text = " ".join(" ".join(lines[-20:]).split())
    if "cannot be locked" in text:
        return ("another study works in this folder, or one was killed: if none is running, give the same command with "
                "--unlock")
    return f"Snakemake stopped: {text[-400:]}"


def finished(commands: Sequence[Command], out: Path) -> set[str]:
    """Names of the commands that have finished, with all their dependencies."""
    done: set[str] = set()
    for command in commands:
        if (out / DONE / command.name).exists() and done.issuperset(command.needs):
            done.add(command.name)
    return done


def failures(commands: Sequence[Command], out: Path) -> list[Command]:
    """The unfinished commands whose dependencies have finished."""
    done = finished(commands, out)
    return [command for command in commands if command.name not in done and done.issuperset(command.needs)]


def reason(out: Path, name: str) -> str:
    """The last line that a command printed."""
    log = out / LOGS / f"{name}.txt"
    printed = log.read_text(encoding="utf-8", errors="replace").split("\n") if log.is_file() else []
    return next((line.strip() for line in reversed(printed) if line.strip()), "it has not begun")
