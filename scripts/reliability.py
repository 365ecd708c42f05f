"""Kills, pairs of writers, damaged files and odd invocations, counted: kind, tried, failed.

    python scripts/reliability.py --kills 300 --pairs 60 --files 200 --calls 1500

A failure is a traceback, an exit code other than 0 and 2, a command that does not end, an error of more than one line, or
a result that differs in a bit from that of the undisturbed command. Each failure is printed with its command; the exit
code is then 1. Everything is made from a text of this file in a temporary folder, without network. Processes are forked
from a server that has loaded torch, so that a start takes milliseconds; `console` starts the program as a user does.
"""

import argparse
import hashlib
import io
import json
import multiprocessing
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout, suppress
from pathlib import Path

from glyphlm.cli.main import VERBS, main

SECONDS = 120  # after which a command counts as one that does not end
WORDS = random.Random(0)
TEXT = "\n".join(" ".join("".join(WORDS.choices("etaoinshrdlucmfw", k=WORDS.randint(2, 8))) for _ in range(8))
                 for _ in range(1500))  # fmt: skip
RECIPE = {
    "tokenizer": {"layout": "compact", "vocab_size": 512},
    "substrate": {"kind": "token_bits", "n_embed": 16},
    "model": {"d_model": 32, "n_layer": 1, "n_head": 2, "block_size": 32},
    "data": [{"text": "text.txt"}],
    "train": {"steps": 40, "batch_tokens": 128, "micro_batch_tokens": 128, "save_every": 3, "log_every": 1, "keep": 2,
              "validate_every": 20, "validation_tokens": 512, "precision": "fp32", "device": "cpu"},
}  # fmt: skip
GROWN = RECIPE | {"stages": [{"layers": 1, "steps": 15}, {"layers": 1, "steps": 15}]}
STUDY = {"recipe": RECIPE | {"train": RECIPE["train"] | {"steps": 6}}, "arms": {"a": None}, "seeds": [1]}
DISTURBED = {  # name -> command without --out, what is compared of its output, how often it is taken in turn
    "train": (["train", "recipe.json"], "model.safetensors", 6),
    "grow": (["grow", "grown.json"], "stage-2/model.safetensors", 2),
    "prepare": (["prepare", "--tokenizer", "run", "text.txt", "--jobs", "1"], "part-00000/train-00000.bin", 2),
    "console": (["train", "recipe.json"], "model.safetensors", 1),
    "ddp": (["train", "recipe.json"], "model.safetensors", 1),
    "study": (["study", "study.json", "--unlock"], "runs/*/*/model.safetensors", 1),
}
ODD = ["", "0", "-1", "1e309", "nan", ".inf", "99999999999999999999", "no", "null", "[", "{a: b}", "[1, [2]]", "\udcff",
       "a=b", "hf:", "embedded:xx", "/", ".", "/dev/null", "x" * 300, "010", "1:30", "тест", "{x}", "--", "text.txt", "run",
       "nowhere"]  # fmt: skip
DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "emptied": lambda data: b"",
    "cut": lambda data: data[: len(data) // 2],
    "list": lambda data: b"[1, 2]",
    "number": lambda data: b"7",
    "deep": lambda data: b"[" * 20_000,
    "not UTF-8": lambda data: b"\xff\xfe" + data,
    "NaN": lambda data: re.sub(rb": \d+", b": NaN", data, count=3),
    "huge": lambda data: re.sub(rb": \d+", b": 1000000000000", data, count=2),
    "negative": lambda data: re.sub(rb": (\d)", rb": -\1", data, count=2),
    "words": lambda data: re.sub(rb": \d+", b': "x"', data, count=2),
    "swapped": lambda data: data.replace(b"1", b"\0", 5),
}
READ_BY = {  # a file of the run -> the commands that read it
    **dict.fromkeys(("settings.yaml", "inputs.json", "state/*/state.json", "metrics.jsonl", "state/*/optimizer.safetensors",
                     "inputs/shards-0/build.json", "inputs/substrate/build.json", "inputs/tokenizer/tokenizer.json"),
                    (["train", "recipe.json", "--out", "RUN"],)),
    **dict.fromkeys(("config.json", "model.safetensors", "tokenizer.json", "generation_config.json"),
                    (["generate", "RUN", "--prompt", "Line", "--max_new_tokens", "2"],
                     ["export", "RUN", "--to", "gpt_neox", "--out", "OUT"], ["substrate", "inspect", "RUN"])),
    **dict.fromkeys(("summary.json", "metrics.jsonl", "samples.jsonl", "results.jsonl"),
                    (["report", "RUN", "--out", "OUT"],)),
}  # fmt: skip
server = multiprocessing.get_context("forkserver")


class Command:
    """One command of the program in a process group of its own, its output in a file."""

    def __init__(self, arguments: list[str], how: str = "forked"):
        self.arguments, self._log = arguments, Path(tempfile.mkstemp(dir="logs")[1])
        if how == "forked":
            self._process = server.Process(target=_run, args=(arguments, str(self._log)))
            self._process.start()
        else:
            starter = ["-m", "torch.distributed.run", "--nproc-per-node", "2"] if how == "ddp" else []
            with self._log.open("w") as log:
                self._popen = subprocess.Popen([sys.executable, *starter, "-m", "glyphlm", *arguments], stdout=log,
                                               stderr=log, start_new_session=True)  # fmt: skip
        self.pid = self._process.pid if how == "forked" else self._popen.pid

    def code(self, seconds: float) -> int | None:
        """The exit code, or None while it still runs after `seconds`."""
        if hasattr(self, "_popen"):
            try:
                return self._popen.wait(seconds)
            except subprocess.TimeoutExpired:
                return None
        self._process.join(seconds)
        return self._process.exitcode

    def kill(self) -> None:
        """SIGKILL for all of its processes."""
        try:
            os.killpg(self.pid, signal.SIGKILL)
        except ProcessLookupError:  # it has not become a group yet, or has just ended
            os.kill(self.pid, signal.SIGKILL) if self.code(0) is None else None
        self.code(10)

    def fault(self, allowed: tuple[int, ...] = (0, 2)) -> str | None:
        """What is wrong with how it ended."""
        code = self.code(SECONDS)
        if code is None:
            self.kill()
            return f"has not ended after {SECONDS} s"
        printed = self._log.read_text(encoding="utf-8", errors="replace")
        errors = [line for line in printed.splitlines() if line.startswith("glyphlm: ")]
        if "Traceback" in printed or code not in allowed or (code == 2 and len(errors) != 1):
            return f"exit code {code}: {printed[-300:]!r}"
        return None


def _run(arguments: list[str], log: str) -> None:
    os.setsid()
    file = os.open(log, os.O_WRONLY)
    os.dup2(file, 1), os.dup2(file, 2)
    sys.exit(main(arguments))


def disturb(name: str, out: Path) -> Command:
    """Start one of DISTURBED."""
    return Command([*DISTURBED[name][0], "--out", str(out)], name if name in ("console", "ddp") else "forked")


def digest(out: Path, pattern: str) -> str:
    """sha256 of the files that match."""
    return hashlib.sha256(b"".join(path.read_bytes() for path in sorted(out.glob(pattern)))).hexdigest()


def undisturbed(name: str) -> tuple[str, float]:
    """The digest that a command gives when it is left alone, and its seconds; made once."""
    out = Path("undisturbed", name)
    if name not in undisturbed.found:
        started = time.monotonic()
        fault = disturb(name, out).fault((0,))
        assert fault is None, f"{name}: {fault}"
        undisturbed.found[name] = digest(out, DISTURBED[name][1]), time.monotonic() - started
    return undisturbed.found[name]


undisturbed.found = {}  # type: ignore[attr-defined]


def checked(name: str, out: Path) -> str | None:
    """Finish a disturbed command; what is wrong with its result."""
    if fault := disturb(name, out).fault((0,)):
        return fault
    if digest(out, DISTURBED[name][1]) != undisturbed(name)[0]:
        return "the result differs"
    rows = [(row["step"], row["split"]) for path in out.glob("metrics.jsonl") for row in map(json.loads, path.open())]
    return "rows of metrics.jsonl are doubled" if len({*rows}) < len(rows) else None


def kills(number: int, chance: random.Random) -> Iterator[str | None]:
    """Kill commands at random moments, up to five times each, and let them end."""
    turns, done = [name for name, (*_, often) in DISTURBED.items() for _ in range(often)], 0
    while done < number:
        name = turns[done % len(turns)]
        out, (_, seconds) = Path("killed", f"{name}-{done}"), undisturbed(name)
        for _ in range(min(chance.randint(1, 5), number - done)):
            command = disturb(name, out)
            if command.code(chance.uniform(0, seconds)) is None:
                command.kill()
            done += 1
            yield None
        if fault := checked(name, out):
            yield f"{name} --out {out} after kills: {fault}"
        shutil.rmtree(out, ignore_errors=True)


def pairs(number: int, chance: random.Random) -> Iterator[str | None]:
    """Start the same command twice on one folder, a moment apart."""
    for count in range(number):
        name = ("train", "prepare", "grow")[count % 3]
        out, _ = Path("pairs", f"{name}-{count}"), undisturbed(name)
        first = disturb(name, out)
        time.sleep(chance.uniform(0, 0.5))
        second = disturb(name, out)
        faults = [command.fault() for command in (first, second)]
        fault = next(filter(None, faults), None) or checked(name, out)
        yield f"pair of {name}: {fault}" if fault else None
        shutil.rmtree(out)


def files(number: int, chance: random.Random) -> Iterator[str | None]:
    """Damage one file of a run that was stopped or finished, and read it."""
    targets = [(pattern, command) for pattern, commands in READ_BY.items() for command in commands]
    for count in range(number):
        pattern, command = targets[count % len(targets)]
        name, damage = chance.choice([*DAMAGES.items()])
        run = shutil.copytree("stopped" if command[0] == "train" else "run", Path("damaged", str(count)))
        for path in run.glob(pattern):
            path.write_bytes(damage(path.read_bytes()))
        typed = [str(run) if part == "RUN" else f"{run}.out" if part == "OUT" else part for part in command]
        fault = Command(typed).fault()
        yield f"{pattern} {name}: {' '.join(typed)}: {fault}" if fault else None
        shutil.rmtree(run)


def calls(number: int, chance: random.Random) -> Iterator[str | None]:
    """Invoke each verb with odd options and values; what would run for long or listen gets something that is refused."""
    left_out = {"--help", "--out", "--unlock"}
    options = {verb: sorted({*re.findall(r"--[a-z][\w.]+", _help(verb))} - left_out) for verb in VERBS}
    for count in range(number):
        verb = [*VERBS][count % len(VERBS)]
        arguments = [*verb.split()]
        arguments += [chance.choice([*ODD, "recipe.json", "study.json"]) for _ in range(chance.randint(0, 2))]
        for option in chance.sample(options[verb], min(len(options[verb]), chance.randint(0, 3))):
            arguments += [option, chance.choice(ODD)]
        arguments += ["--out", f"calls/{count}"] if chance.random() < 0.8 else []
        arguments += {"study": ["--dry_run"], "quickstart": ["--steps", "x"], "serve": ["--port", "x"]}.get(verb, [])
        fault = Command(arguments).fault()
        yield f"{arguments}: {fault}" if fault else None


def _help(verb: str) -> str:
    with redirect_stdout(io.StringIO()) as printed, suppress(SystemExit):
        main([*verb.split(), "--help"])
    return printed.getvalue()


def prepare_folder() -> None:
    """The text, the recipes, a finished run and one that was stopped."""
    os.mkdir("logs")
    Path("text.txt").write_text(TEXT)
    for name, values in (("recipe", RECIPE), ("grown", GROWN), ("study", STUDY)):
        Path(f"{name}.json").write_text(json.dumps(values))  # JSON is YAML
    assert (fault := Command(["train", "recipe.json", "--out", "run"]).fault((0,))) is None, fault
    shutil.copytree("run", "stopped")
    for name in ("summary.json", "model.safetensors"):
        Path("stopped", name).unlink()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds = {"kills": kills, "pairs": pairs, "files": files, "calls": calls}
    for kind in kinds:
        parser.add_argument(f"--{kind}", type=int, default=0, metavar="N")
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    os.environ |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1])}
    server.set_forkserver_preload(["glyphlm.experiments.grow_recipe", "glyphlm.cli.models", "glyphlm.analysis.report"])
    counts = {}
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        prepare_folder()
        for kind, tries in kinds.items():
            faults = [*filter(None, tries(getattr(given, kind), random.Random(given.seed)))] if getattr(given, kind) else []
            print(*faults, f"{kind}: {getattr(given, kind)} tried", sep="\n", file=sys.stderr, flush=True)
            counts[kind] = (getattr(given, kind), len(faults))
        os.chdir("/")
    print("kind    tried  failed")
    for kind, (tried, failed) in counts.items():
        print(f"{kind:7}{tried:6}{failed:8}")
    sys.exit(any(failed for _, failed in counts.values()))
