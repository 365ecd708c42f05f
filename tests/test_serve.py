"""`glyphlm serve` in a process of its own: answers as `generate` does, stays up under load, and ends within seconds."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Timer
from typing import NamedTuple

import pytest
from small_models import make_run

from glyphlm.base.errors import InputError
from glyphlm.interop import serve as serving
from glyphlm.interop.serve import CURES, EXPORT, NEEDED, ServeSettings, check_installed, exported, listen, serve
from glyphlm.modeling.model import GPT, ModelConfig
from glyphlm.modeling.substrate import Substrate, SubstrateConfig
from glyphlm.runs.folder import export_model, load_run
from glyphlm.runs.generate import Sampling, continue_text
from glyphlm.tokenizer.tokenizer import Tokenizer

SECONDS = 120  # after which a server that does not start is ended
TEMPLATE = "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}assistant:"
CLIENT_SECONDS = 2
BLOCK = 256


class Running(NamedTuple):
    """A server process, its port, and the run that it serves."""

    process: subprocess.Popen
    port: int
    run: Path


def start(run: Path, *options: str) -> Running:
    """Start the program, and wait until it says its address."""
    command = [sys.executable, "-m", "glyphlm", "serve", str(run), "--host", "127.0.0.1", "--port", "0", *options]
    env = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True)
    clock, lines = Timer(SECONDS, process.kill), []
    clock.start()
    try:
        for line in process.stderr:
            lines.append(line)
            if found := re.search(r"http://127.0.0.1:(\d+)/v1  model: mine", line):
                return Running(process, int(found[1]), run)
    finally:
        clock.cancel()
    raise AssertionError("".join(lines))


@pytest.fixture(scope="module")
def running(tokenizer, tmp_path_factory) -> Iterator[Running]:
    check_installed("glyphlm")
    run = make_run(tmp_path_factory.mktemp("runs") / "mine", tokenizer, BLOCK)
    (run / "chat_template.jinja").write_text(TEMPLATE)
    running = start(run, "--client_seconds", str(CLIENT_SECONDS), "--max_body_bytes", "20000")
    try:
        yield running
    finally:
        running.process.kill()
        running.process.communicate()


def exchange(port: int, data: bytes, wait: float = 60) -> bytes:
    """What the server sends after `data`, until it closes the connection."""
    with socket.create_connection(("127.0.0.1", port), timeout=wait) as connection:
        connection.sendall(data)
        return b"".join(iter(lambda: connection.recv(1 << 16), b""))


def post(path: str, fields: dict, headers: str = "connection: close\r\n") -> bytes:
    body = json.dumps(fields).encode()
    kind = f"content-type: application/json\r\ncontent-length: {len(body)}"
    return f"POST {path} HTTP/1.1\r\nhost: x\r\n{kind}\r\n{headers}\r\n".encode() + body


def expected(run: Path, prompt: str, **sampling) -> str:
    return continue_text(*load_run(run), prompt, Sampling(max_new_tokens=8, **sampling)).removeprefix(prompt)


def test_a_run_answers_the_openai_client_as_it_generates(running):
    openai = pytest.importorskip("openai")
    prompt, said = "Hello, мир! ", [{"role": "user", "content": "Привет"}]
    asked = {"model": "mine", "max_tokens": 8, "temperature": 0.7, "seed": 3}
    direct = openai.DefaultHttpxClient(trust_env=False)  # a proxy knows no ports of this machine
    address = f"http://127.0.0.1:{running.port}/v1"
    with openai.OpenAI(base_url=address, api_key="none", max_retries=0, http_client=direct) as client:
        assert [model.id for model in client.models.list()] == ["mine"]
        continued = client.completions.create(prompt=prompt, **asked).choices[0].text
        streamed = "".join(c.choices[0].text for c in client.completions.create(prompt=prompt, stream=True, **asked))
        answered = client.chat.completions.create(messages=said, **asked).choices[0].message.content
        chunks = client.chat.completions.create(messages=said, stream=True, **asked)
        spoken = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
        with pytest.raises(openai.BadRequestError, match="n is not supported"):
            client.completions.create(prompt=prompt, n=2, **asked)
    assert continued == streamed == expected(running.run, prompt, temperature=0.7, seed=3) != ""
    assert answered == spoken == expected(running.run, "user: Привет\nassistant:", temperature=0.7, seed=3) != ""


def test_many_requests_at_once_all_get_the_answer_of_their_seed(running):
    def ask(number: int) -> str:
        fields = {"model": "mine", "prompt": "A", "max_tokens": 1, "seed": number % 5}
        return exchange(running.port, post("/v1/completions", fields)).decode().partition('"text":')[2].partition(',"')[0]

    def resident() -> int:
        return int(Path(f"/proc/{running.process.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    first = [ask(number) for number in range(5)]
    assert all(first)
    before = resident() if sys.platform == "linux" else 0
    with ThreadPoolExecutor(50) as pool:
        assert list(pool.map(ask, range(200))) == first * 40
    assert sys.platform != "linux" or resident() - before < 32 << 20


@pytest.mark.parametrize("data", [
    b"", b"POST /v1/completions HTTP/1.1\r\nhost:", b"GET /health HTTP/1.1\r\nhost: x\r\n\r\nGET /",
])
def test_a_client_that_does_not_finish_its_request_is_cut_off(running, data):
    began = time.monotonic()
    exchange(running.port, data)
    assert CLIENT_SECONDS * 0.9 < time.monotonic() - began


def test_a_slow_body_gets_status_408_and_a_large_one_413(running):
    body = b'{"model": "mine", "prompt": "' + b"x" * 50_000
    head = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
    slow = exchange(running.port, head % 100 + b"{")
    assert slow.startswith(b"HTTP/1.1 408") and b"2 s" in slow
    large = exchange(running.port, head % len(body) + body)
    assert large.startswith(b"HTTP/1.1 413") and b"50,029 bytes, more than 20,000" in large


@pytest.mark.parametrize("data", [
    b"\x00\xff\r\n\r\n", b"GET / HTTP/9\r\n\r\n", b"GET /health HTTP/1.1\r\nx: " + b"y" * 100_000 + b"\r\n\r\n",
])
def test_what_is_not_http_gets_status_400(running, data):
    assert exchange(running.port, data).startswith(b"HTTP/1.1 400")


def test_only_the_four_routes_answer(running):
    for path in ("/load_model", "/reset", "/v1/audio/transcriptions", "/v1/responses", "/docs", "/openapi.json"):
        assert exchange(running.port, post(path, {"model": "/"})).startswith(b"HTTP/1.1 404")


def test_sigterm_ends_the_server_while_it_answers(tokenizer, tmp_path):
    run = make_run(tmp_path / "mine", tokenizer, 1 << 15)
    running = start(run, "--max_new_tokens", "30000", "--request_seconds", "300")
    try:
        fields = {"model": "mine", "prompt": "A", "max_tokens": 30000, "seed": 1, "temperature": 100, "top_k": 0}
        with socket.create_connection(("127.0.0.1", running.port), timeout=60) as connection, \
                socket.create_connection(("127.0.0.1", running.port), timeout=60):  # one more, which says nothing
            connection.sendall(post("/v1/completions", {**fields, "stream": True}))
            assert b"200 OK" in connection.recv(1 << 16)
            running.process.send_signal(signal.SIGTERM)
            rest = b"".join(iter(lambda: connection.recv(1 << 16), b""))
            assert b"shutting down" in rest and b"[DONE]" not in rest
            assert running.process.wait(timeout=20) in (-signal.SIGTERM, 128 + signal.SIGTERM)
        assert "Traceback" not in running.process.stderr.read()
    finally:
        running.process.kill()
        running.process.communicate()


def make_stock(folder: Path, tokenizer: Tokenizer) -> Path:
    """A run of random weights that GPT-NeoX can express."""
    model = GPT(ModelConfig(32, 2, 4, 64), Substrate(SubstrateConfig(tokenizer.vocab_size, 16, "token_bits"), 32))
    model.init_weights(seed=1)
    export_model(model, tokenizer, folder)
    return folder


def test_vllm_takes_the_place_of_this_process_with_a_fresh_export(tokenizer, tmp_path, monkeypatch, capsys):
    became = []
    monkeypatch.setattr(serving, "check_installed", became.append)
    monkeypatch.setattr(os, "execve", lambda *arguments: became.append((Path.cwd(), *arguments)))
    monkeypatch.chdir(tmp_path)
    run = make_stock(tmp_path / "mine", tokenizer)
    for template in (None, TEMPLATE):
        Tokenizer(tokenizer._backend, tokenizer.config | {"chat_template": template}).save(run)
        assert Tokenizer.load(exported(run)).config.get("chat_template") == template
    serve(Path("mine"), ServeSettings(host="127.0.0.1", port=0, server="vllm"))
    listening = ["--host", "127.0.0.1", "--port", "0"]
    command = [sys.executable, "-P", "-m", "vllm.entrypoints.cli.main", "serve", "mine", *listening]
    assert became == ["vllm", (run / EXPORT, sys.executable, command, dict(os.environ))]
    assert "http://127.0.0.1:0/v1  model: mine" in capsys.readouterr().err
    with pytest.raises(InputError, match="biased has a head with bias"):
        exported(make_run(tmp_path / "biased", tokenizer))


@pytest.mark.parametrize("server", ["glyphlm", "vllm"])
def test_a_folder_that_is_not_a_run_is_refused(tmp_path, monkeypatch, server):
    monkeypatch.setattr(serving, "check_installed", lambda server: None)
    with pytest.raises(InputError, match="not a finished run"):
        serve(tmp_path, ServeSettings(host="127.0.0.1", port=0, server=server))


@pytest.mark.parametrize("server", CURES)
def test_an_absent_server_is_named_with_the_cure(monkeypatch, server):
    monkeypatch.setattr(serving, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=f"{NEEDED[server][-1]}.*{re.escape(CURES[server])}"):
        check_installed(server)


def test_an_address_that_cannot_be_bound_is_refused():
    with listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(InputError, match=f"127.0.0.1 port {port} .*another --host or --port"):
            listen("127.0.0.1", port)
    listen("127.0.0.1", port).close()
    with pytest.raises(InputError, match="no.such.host"):
        listen("no.such.host", 0)


@pytest.mark.parametrize(("given", "match"), [
    ({"port": 70000}, "port 70000 .*from 0 to 65535"),
    ({"max_waiting": 0}, "max_waiting 0 .*at least 1"),
    ({"max_body_bytes": -1}, "max_body_bytes -1 .*at least 1"),
    ({"request_seconds": float("nan")}, "request_seconds nan .*at least 0.1"),
    ({"client_seconds": float("inf")}, "client_seconds inf "),
    ({"server": "vllm", "max_new_tokens": 5}, "max_new_tokens: limits apply only to --server glyphlm"),
])
def test_settings_out_of_range_are_refused(given, match):
    with pytest.raises(InputError, match=match):
        ServeSettings(**given)
