"""Kills, pairs of writers, damaged files, odd invocations and requests to a server, counted: kind, tried, failed.

    python scripts/reliability.py --kills 300 --pairs 60 --files 200 --calls 1500 --requests 1000

A failure is a traceback, an exit code other than 0 and 2, a command that does not end, an error of more than one line or
of a kind that nobody foresaw, a process that outlives its parent, or a result that differs in a bit from that of the
undisturbed command; of a server, a lost or different answer, a status of 500 or memory that grows. Each failure is printed
with its command; the exit code is then 1. With --log FILE the counts are appended to a file of JSON lines and those of all
its rows are added up, so that many short calls, each with a --seed of its own, make one table.

Everything is made from a text of this file in a temporary folder, without network. Processes are forked from a server
that has loaded torch, so that a start takes milliseconds; `console` starts the program as a user does. POSIX only.
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
from typing import Any

from load_server import load

from glyphlm.base.records import read_json_lines, to_lines
from glyphlm.cli.main import VERBS, main
from glyphlm.data import shards

SECONDS = 180  # after which a command counts as one that does not end
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
    "train": (["train", "recipe.json"], "model.safetensors", 5),
    "grow": (["grow", "grown.json"], "stage-2/model.safetensors", 2),
    "prepare": (["prepare", "--tokenizer", "run", "text.txt", "--jobs", "1"], "part-00000/train-00000.bin", 2),
    "jobs": (["prepare", "--tokenizer", "run", "many", "--jobs", "2"], "part-*/train-00000.bin", 1),
    "console": (["train", "recipe.json"], "model.safetensors", 1),
    "ddp": (["train", "recipe.json"], "model.safetensors", 1),
    "study": (["study", "study.json", "--unlock"], "runs/*/*/model.safetensors", 1),
}
STARTED = ("console", "ddp")  # as a user starts them, not forked
PARENTS = ("jobs", "ddp", "study")  # which start processes of their own
RIGHT = {  # an invocation of each verb, without --out, in which something is then changed
    "quickstart": ["--steps", "x"],
    "tokenizer build": ["short.txt", "--vocab_size", "512"],
    "tokenizer ngrams": ["en=short.txt"],
    "tokenizer extend": ["run", "--characters", "U+0400-040F"],
    "tokenizer compare": ["run", "--texts", "short.txt"],
    "substrate build": ["--tokenizer", "run", "--kind", "token_bits", "--n_embed", "16"],
    "substrate inspect": ["run"],
    "prepare": ["--tokenizer", "run", "short.txt", "--jobs", "1"],
    "plan": ["recipe.json", "--no_measure"],
    "train": ["recipe.json", "--train.steps", "2"],
    "grow": ["grown.json"],
    "fuse": ["run", "twin"],
    "import": ["neox"],
    "study": ["study.json", "--dry_run"],
    "chat": ["run", "--max_new_tokens", "2"],
    "pull": ["run"],
    "completion": ["bash"],
    "generate": ["run", "--prompt", "a", "--max_new_tokens", "2"],
    "eval": ["run", "--tasks", "bpb=short.txt", "arc_easy=arc.jsonl"],
    "probe": ["run", "--text", "short.txt"],
    "export": ["run", "--to", "gpt_neox"],
    "serve": ["run", "--port", "x"],
    "push": ["run", "--repo", "a/b"],
    "report": ["run", "twin"],
    "show": ["run", "--text", "a"],
}
NEEDED = {"study": ["--dry_run"], "quickstart": ["--steps", "x"], "serve": ["--port", "x"]}  # else they run for long
ODD = ["", "0", "-1", "1e309", "nan", ".inf", "99999999999999999999", "no", "null", "[", "{a: b}", "[1, [2]]", "\udcff",
       "a=b", "hf:", "embedded:xx", "/", ".", "..", "/dev/null", "x" * 300, "010", "1:30", "тест", "{x}", "--", "text.txt",
       "run", "nowhere", "pipe", "loop", "&a [*a]", "!!python/name:os.system", "\n", "run/config.json"]  # fmt: skip
DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "emptied": lambda data: b"",
    "cut": lambda data: data[: len(data) // 2],
    "list": lambda data: b"[1, 2]",
    "number": lambda data: b"7",
    "null": lambda data: b"null",
    "deep": lambda data: b"[" * 20_000,
    "not UTF-8": lambda data: b"\xff\xfe" + data,
    "NaN": lambda data: re.sub(rb": \d+", b": NaN", data, count=3),
    "huge": lambda data: re.sub(rb": \d+", b": 1000000000000", data, count=2),
    "negative": lambda data: re.sub(rb": (\d)", rb": -\1", data, count=2),
    "words": lambda data: re.sub(rb": \d+", b': "x"', data, count=2),
    "nulls": lambda data: re.sub(rb": [^{[\n,]+", b": null", data, count=3),
    "lists": lambda data: re.sub(rb": [^{[\n,]+", b": []", data, count=3),
    "keys": lambda data: re.sub(rb'"(\w+)":', rb'"\1_":', data, count=2),
    "swapped": lambda data: data.replace(b"1", b"\0", 5),
}
READ_BY = {  # a file -> the commands that read it
    **dict.fromkeys(("settings.yaml", "inputs.json", "state/*/state.json", "metrics.jsonl", "state/*/optimizer.safetensors",
                     "state/*/model.safetensors", "inputs/shards-0/build.json", "inputs/shards-0/part-*/build.json",
                     "inputs/shards-0/token_bytes.npy", "inputs/substrate/build.json", "inputs/tokenizer/build.json",
                     "inputs/tokenizer/tokenizer.json"),
                    (["train", "recipe.json", "--out", "RUN"],)),
    **dict.fromkeys(("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"),
                    (["generate", "RUN", "--prompt", "Line", "--max_new_tokens", "2"],
                     ["export", "RUN", "--to", "gpt_neox", "--out", "OUT"],
                     ["export", "RUN", "--to", "gguf", "--out", "OUT"],
                     ["substrate", "inspect", "RUN"], ["fuse", "RUN", "twin", "--out", "OUT"],
                     ["eval", "RUN", "--tasks", "bpb=short.txt"],
                     ["prepare", "--tokenizer", "RUN", "short.txt", "--out", "OUT"])),
    **dict.fromkeys(("summary.json", "settings.yaml", "metrics.jsonl", "samples.jsonl", "results.jsonl"),
                    (["report", "RUN", "--out", "OUT"], ["eval", "RUN", "--tasks", "bpb=short.txt"])),
}  # fmt: skip
OUTLIVING_SECONDS = 45
server = multiprocessing.get_context("forkserver")


class Command:
    """One command of the program in a process group of its own, its output in a file."""

    def __init__(self, arguments: list[str], how: str = "forked"):
        self.arguments, self._log = arguments, Path(tempfile.mkstemp(dir="logs")[1])
        if how == "forked":
            self._process = server.Process(target=_run, args=(arguments, str(self._log)))
            self._process.start()
        else:
            starter = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"] if how == "ddp" else []
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

    def kill(self, alone: bool = False) -> str | None:
        """SIGKILL for all of its processes, or for the first one `alone`; whether others outlive that."""
        with suppress(ProcessLookupError):  # it has not become a group yet, or has just ended
            if not alone:
                os.killpg(self.pid, signal.SIGKILL)
        if self.code(0) is None:
            os.kill(self.pid, signal.SIGKILL)
        self.code(10)
        for _ in range(OUTLIVING_SECONDS * 10 if alone else 0):
            try:
                os.killpg(self.pid, 0)
            except ProcessLookupError:
                return None
            time.sleep(0.1)
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
            return f"{self.arguments}: its processes live on {OUTLIVING_SECONDS} s after it was killed" if alone else None

    def fault(self, allowed: tuple[int, ...] = (0, 2)) -> str | None:
        """What is wrong with how it ended."""
        code = self.code(SECONDS)
        if code is None:
            self.kill()
            return f"has not ended after {SECONDS} s"
        errors = [line for line in self.printed.splitlines() if line.startswith("glyphlm: ")]
        unforeseen = "Traceback" in self.printed or "GLYPHLM_TRACEBACK" in self.printed
        if unforeseen or code not in allowed or (code == 2 and len(errors) != 1):
            return f"exit code {code}: {self.printed[-400:]!r}"
        return None

    @property
    def printed(self) -> str:
        """What it has printed so far."""
        return self._log.read_text(encoding="utf-8", errors="replace")


def _run(arguments: list[str], log: str) -> None:
    os.setsid()
    shards.PART_BYTES = 1 << 16  # so that a few small files are several parts, for several processes
    file = os.open(log, os.O_WRONLY)
    os.dup2(file, 1), os.dup2(file, 2)
    sys.exit(main(arguments))


def disturb(name: str, out: Path) -> Command:
    """Start one of DISTURBED."""
    return Command([*DISTURBED[name][0], "--out", str(out)], name if name in STARTED else "forked")


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
    for _ in range(OUTLIVING_SECONDS):
        fault = (command := disturb(name, out)).fault((0,))
        if "is being written by" not in command.printed:  # by a process that is about to end after its parent
            break
        time.sleep(1)
    if fault:
        return fault
    if digest(out, DISTURBED[name][1]) != undisturbed(name)[0]:
        return "the result differs"
    rows = [(row["step"], row["split"]) for path in out.glob("metrics.jsonl") for row in map(json.loads, path.open())]
    return "rows of metrics.jsonl are doubled" if len({*rows}) < len(rows) else None


def kills(number: int, chance: random.Random) -> Iterator[str | None]:
    """Kill commands at random moments, up to five times each, and let them end."""
    turns, done = [name for name, (*_, often) in DISTURBED.items() for _ in range(often)], 0
    chance.shuffle(turns)  # so that short calls with other seeds come to all of them
    while done < number:
        name = turns[done % len(turns)]
        out, (_, seconds) = Path("killed", f"{name}-{done}"), undisturbed(name)
        for _ in range(min(chance.randint(1, 5), number - done)):
            command, fault = disturb(name, out), None
            if command.code(chance.uniform(0, seconds)) is None:
                fault = command.kill(alone=name in PARENTS and chance.random() < 0.5)
            done += 1
            yield fault
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
    """Damage one file of a run that was stopped or finished, or put something else in its place, and read it."""
    targets = [(pattern, command) for pattern, commands in READ_BY.items() for command in commands]
    for count in range(number):
        pattern, command = targets[count % len(targets)]
        name = chance.choice([*DAMAGES, "missing", "folder", "pipe", "loop"])
        run = shutil.copytree("stopped" if command[0] == "train" else "run", Path("damaged", str(count)))
        for path in run.glob(pattern):
            _damage(path, name)
        typed = [str(run) if part == "RUN" else f"{run}.out" if part == "OUT" else part for part in command]
        fault = Command(typed).fault()
        yield f"{pattern} {name}: {' '.join(typed)}: {fault}" if fault else None
        shutil.rmtree(run)


def _damage(path: Path, name: str) -> None:
    data = path.read_bytes()
    if name in DAMAGES:
        path.write_bytes(DAMAGES[name](data))
        return
    path.unlink()
    if name == "folder":
        path.mkdir()
    elif name == "pipe":
        os.mkfifo(path)
    elif name == "loop":
        path.symlink_to(path)


def calls(number: int, chance: random.Random) -> Iterator[str | None]:
    """Invoke each verb with odd options and values; what would run for long or listen gets something that is refused."""
    left_out = {"--help", "--out", "--unlock"}
    options = {verb: sorted({*re.findall(r"--[a-z][\w.]+", _help(verb))} - left_out) for verb in VERBS}
    for count in range(number):
        verb = [*VERBS][count % len(VERBS)]
        arguments = list(RIGHT.get(verb, []))
        if chance.random() < 0.3:
            arguments = [chance.choice([*ODD, "recipe.json", "study.json"]) for _ in range(chance.randint(0, 2))]
        for _ in range(chance.randint(0, 2) if arguments else 0):
            arguments[chance.randrange(len(arguments))] = chance.choice(ODD)
        for option in chance.sample(options[verb], min(len(options[verb]), chance.randint(0, 2))):
            arguments += [option, chance.choice(ODD)]
        arguments += ["--out", chance.choice([*ODD, f"calls/{count}"])] if chance.random() < 0.8 else []
        fault = Command([*verb.split(), *arguments, *NEEDED.get(verb, [])]).fault()
        yield f"{verb} {arguments}: {fault}" if fault else None


def requests(number: int, chance: random.Random) -> Iterator[str | None]:
    """Ask a server, many at once; at the end it must end by SIGTERM."""
    serving = Command(["serve", "run", "--port", "0", "--client_seconds", "5", "--max_waiting", "500"], "console")
    while not (found := re.search(r"http://localhost:(\d+)/v1", serving.printed)):
        if (code := serving.code(0.2)) is not None:
            yield f"the server ended with {code}: {serving.printed}"
            return
    yield from load(int(found[1]), "run", serving.pid, number, chance)
    os.kill(serving.pid, signal.SIGTERM)
    if serving.code(10) is None:
        serving.kill()
        yield "the server has not ended 10 s after SIGTERM"
    elif "Traceback" in serving.printed:
        yield f"the server printed {serving.printed[-300:]!r}"


def _help(verb: str) -> str:
    with redirect_stdout(io.StringIO()) as printed, suppress(SystemExit):
        main([*verb.split(), "--help"])
    return printed.getvalue()


def prepare_folder() -> None:
    """Texts, recipes, two finished runs, an export, one run that was stopped, and what is no file."""
    os.mkdir("logs")
    os.mkdir("many")
    lines = TEXT.splitlines()
    Path("text.txt").write_text(TEXT)
    Path("short.txt").write_text("\n".join(lines[:20]))
    for number in range(8):
        Path("many", f"{number}.txt").write_text("\n".join(lines[number * 100 : number * 100 + 100]) * 20)
    options = {"text": ["owls", "mice"], "label": ["A", "B"]}
    Path("arc.jsonl").write_text(json.dumps({"id": "1", "question": "Who?", "choices": options, "answerKey": "A"}))
    os.mkfifo("pipe")
    os.symlink("loop", "loop")
    for name, values in (("recipe", RECIPE), ("grown", GROWN), ("study", STUDY)):
        Path(f"{name}.json").write_text(json.dumps(values))  # JSON is YAML
    train = ["train", "recipe.json", "--out"]
    for arguments in ([*train, "run"], [*train, "twin", "--train.seed", "2"], ["eval", "run", "--tasks", "bpb=short.txt"],
                      ["export", "run", "--to", "gpt_neox", "--out", "neox"]):
        assert (fault := Command(arguments).fault((0,))) is None, fault
    shutil.copytree("run", "stopped")
    for name in ("summary.json", "model.safetensors"):
        Path("stopped", name).unlink()


KINDS = {"kills": kills, "pairs": pairs, "files": files, "calls": calls, "requests": requests}


def table(rows: list[dict[str, Any]]) -> str:
    """The sums of the counts of each kind."""
    found = {kind: [row for row in rows if row["kind"] == kind] for kind in KINDS}
    lines = (f"{kind:9}{sum(row['tried'] for row in those):6}{sum(row['failed'] for row in those):8}"
             for kind, those in found.items())
    return "\n".join(["kind      tried  failed", *lines])


def count(given: argparse.Namespace) -> bool:
    """Try everything that was asked for in a temporary folder, and print the table; whether all went well."""
    log = given.log.resolve() if given.log else None
    rows = read_json_lines(log) if log else []
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        prepare_folder()
        for kind, tries in KINDS.items():
            if number := getattr(given, kind):
                faults = [*filter(None, tries(number, random.Random(given.seed)))]
                print(*faults, f"{kind}: {number} tried", sep="\n", file=sys.stderr, flush=True)
                rows.append({"kind": kind, "tried": number, "failed": len(faults), "seed": given.seed, "faults": faults})
                if log:
                    log.write_text(to_lines(rows))
        os.chdir("/")
    print(table(rows))
    return not any(row["failed"] for row in rows)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for kind in KINDS:
        parser.add_argument(f"--{kind}", type=int, default=0, metavar="N")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--log", type=Path, metavar="FILE")
    os.environ |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1])}
    server.set_forkserver_preload(["glyphlm.experiments.grow_recipe", "glyphlm.cli.models", "glyphlm.pages.report"])
    sys.exit(not count(parser.parse_args()))
