"""Load a running `glyphlm serve` on this machine: many requests, several at once; every answer is checked.

    glyphlm serve runs/mine --port 8000 &
    python scripts/load_server.py --port 8000 --model mine --pid $! --requests 1000

Three of four requests are completions, whose text must be the one that their seed gave before. The others are requests
that must be refused with a status from 400 to 499, and clients that stop in the middle, which must be cut off. The memory
of the server must not grow. `scripts/reliability.py` does the same with a server of its own.
"""

import argparse
import http.client
import json
import random
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

SECONDS, HANGING_SECONDS = 180, 60  # a request may take, waiting included; a client that stopped may stay
AT_ONCE, MOST_GROWTH_MIB = 50, 64
SEEDS = 10
ASKED = {"prompt": "Hello ", "max_tokens": 8, "temperature": 0.8}
REFUSED: list[tuple[str, str, Any]] = [  # method, path, body or what is changed of ASKED
    *(("POST", "/v1/completions", changes) for changes in (
        {"model": "other"}, {"model": None}, {"prompt": 7}, {"prompt": ["a", "b"]}, {"prompt": "x" * 100_000}, {"top_p": 0},
        {"max_tokens": 0}, {"max_tokens": -1}, {"max_tokens": 10**12}, {"max_tokens": "x"}, {"temperature": -1}, {"n": 2},
        {"temperature": float("nan")}, {"seed": 2**70}, {"stop": ["a"] * 100}, {"unknown": 1}, {"stream": "x"},
        {"logprobs": 5}, {"prompt": "a" * 2_000_000},
    )),
    *(("POST", "/v1/completions", body) for body in (b"", b"{", b"[]", b"null", b"[" * 100_000, b"\xff",
                                                     b'{"model": 1e999}')),
    ("POST", "/v1/chat/completions", {"messages": [{"role": "user", "content": "hi"}]}),
    ("POST", "/v1/chat/completions", {"messages": []}),
    ("GET", "/v1/completions", None), ("PUT", "/v1/models", b""), ("POST", "/load_model", {"model": "twin"}),
    ("POST", "/reset", b""), ("POST", "/look", {"text": 7}), ("POST", "/look", {"text": "x" * 2_000_000}),
    ("GET", "/look", None), ("GET", "/../run/config.json", None), ("GET", "/" + "x" * 5000, None),
]  # fmt: skip


def load(port: int, model: str, process: int, number: int, chance: random.Random) -> Iterator[str | None]:
    """Send `number` requests, AT_ONCE at once; what is wrong with the answer of each, and at the end with the server."""
    asked = ASKED | {"model": model}

    def complete(seed: int) -> tuple[int, str]:
        return answer(port, "POST", "/v1/completions", asked | {"seed": seed})

    def ask(kind: int) -> str | None:
        if kind == 0:
            return hang_up(port)
        if kind < 5:
            method, path, body = chance.choice(REFUSED)
            if isinstance(body, dict):
                body = (asked if path == "/v1/completions" else {"model": model}) | body
            status, text = answer(port, method, path, body)
            return None if 400 <= status < 500 else f"{method} {path} {str(body)[:200]}: status {status}: {text[:200]}"
        found = complete(kind % SEEDS)
        return None if found == expected[kind % SEEDS] else f"seed {kind % SEEDS}: {found}, not {expected[kind % SEEDS]}"

    expected, kinds = [complete(seed) for seed in range(SEEDS)], [chance.randrange(20) for _ in range(number)]
    yield from (f"seed {seed}: {found}" for seed, found in enumerate(expected) if found[0] != 200)
    began = time.monotonic()
    with ThreadPoolExecutor(AT_ONCE) as pool:
        yield from pool.map(ask, kinds[: number // 5])
        before = resident_mib(process)
        yield from pool.map(ask, kinds[number // 5 :])
    after, seconds = resident_mib(process), time.monotonic() - began
    print(f"{number} requests, {AT_ONCE} at once, {number / seconds:.0f} a second; the server had {before:.0f} MiB after a "
          f"fifth of them, {after:.0f} MiB after all", file=sys.stderr)  # fmt: skip
    if after - before > MOST_GROWTH_MIB:
        yield f"the server has grown from {before:.0f} to {after:.0f} MiB"


def answer(port: int, method: str, path: str, body: Any) -> tuple[int, str]:
    """Status and text of the answer; (0, reason) where there is none."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=SECONDS)
    try:
        body = json.dumps(body) if isinstance(body, dict) else body
        with suppress(BrokenPipeError):  # refused before it was read to its end
            connection.request(method, path, body, {"content-type": "application/json"})
        answer = connection.getresponse()
        text = answer.read().decode()
        return answer.status, json.loads(text)["choices"][0]["text"] if answer.status == 200 else text
    except (OSError, http.client.HTTPException) as error:
        return 0, f"{type(error).__name__}: {error}"
    finally:
        connection.close()


def hang_up(port: int) -> str | None:
    """Send a part of a request and wait; the server must close the connection."""
    with socket.create_connection(("127.0.0.1", port), timeout=HANGING_SECONDS) as connection:
        connection.sendall(b"POST /v1/completions HTTP/1.1\r\nhost: a\r\ncontent-length: 9\r\n")
        try:
            connection.recv(1)
        except TimeoutError:
            return f"a client that sent half of a request is still connected after {HANGING_SECONDS} s"
        except ConnectionError:
            pass
    return None


def resident_mib(process: int) -> float:
    """Memory of a process."""
    found = subprocess.run(["ps", "-o", "rss=", "-p", str(process)], capture_output=True, text=True, check=True)
    return int(found.stdout) / 1024


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--pid", type=int, required=True, help="of the server")
    parser.add_argument("--requests", type=int, default=1000)
    given = parser.parse_args()
    faults = [*filter(None, load(given.port, given.model, given.pid, given.requests, random.Random(1)))]
    print(f"{given.requests} requests, {len(faults)} failed", *faults[:10], sep="\n")
    sys.exit(bool(faults))
