"""Load a running `glyphlm serve` on this machine: many requests, several at once; every answer is checked.

    glyphlm serve runs/mine --port 8000 &
    python scripts/load_server.py --port 8000 --model mine --pid $! --requests 1000 --at-once 50

Prints requests, lost or differing answers, requests per second, and the memory of the server before and after.
"""

import argparse
import http.client
import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

SECONDS = 120  # a request may take, waiting included


def ask(port: int, model: str, number: int, tokens: int) -> str:
    """One completion; the seed is the request's number modulo 10, so that a tenth of the requests are equal."""
    fields = {"model": model, "prompt": "Hello ", "max_tokens": tokens, "seed": number % 10, "temperature": 0.8}
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=SECONDS)
    try:
        connection.request("POST", "/v1/completions", json.dumps(fields), {"content-type": "application/json"})
        answer = connection.getresponse()
        text = answer.read().decode()
        return json.loads(text)["choices"][0]["text"] if answer.status == 200 else f"status {answer.status}: {text}"
    except (OSError, http.client.HTTPException) as error:
        return f"lost: {type(error).__name__}: {error}"
    finally:
        connection.close()


def resident_mib(pid: int) -> float:
    """Memory of a process, in MiB (Linux)."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) / 1024


def main() -> int:
    """Exit code 0 where no answer is lost or differs from the others of its seed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--pid", type=int, required=True, help="of the server")
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--at-once", type=int, default=50)
    parser.add_argument("--tokens", type=int, default=8)
    options = parser.parse_args()

    expected = [ask(options.port, options.model, seed, options.tokens) for seed in range(10)]
    if failed := [text for text in expected if text.startswith(("status ", "lost: "))]:
        parser.error(failed[0])
    before, began = resident_mib(options.pid), time.monotonic()
    with ThreadPoolExecutor(options.at_once) as pool:
        found = list(pool.map(lambda n: ask(options.port, options.model, n, options.tokens), range(options.requests)))
    seconds = time.monotonic() - began
    wrong = [text for number, text in enumerate(found) if text != expected[number % 10]]
    print(f"requests {len(found)}, {options.at_once} at once: {len(wrong)} lost or different, "
          f"{len(found) / seconds:.0f} a second, {before:.0f} MiB before, {resident_mib(options.pid):.0f} MiB after")
    for text in wrong[:3]:
        print(text[:300], file=sys.stderr)
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
