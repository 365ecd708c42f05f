"""A run answers the openai client as it answers here; what cannot be served is refused before anything starts."""

import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from threading import Timer

import pytest
from examinees import make_run

from glyphlm.base.errors import InputError
from glyphlm.interop import serve as serving
from glyphlm.interop.serve import (
    EXPORT,
    NEEDED,
    ServeSettings,
    check_address,
    check_installed,
    servable,
    serve,
    server_command,
)
from glyphlm.modeling.model import GPT, ModelConfig, Substrate, SubstrateConfig
from glyphlm.runs.folder import export_model, load_run
from glyphlm.runs.generate import Sampling, continue_text
from glyphlm.tokenizer.tokenizer import Tokenizer

LOCAL = ServeSettings("127.0.0.1", 0)
SECONDS = 120  # after which a server that does not start is ended
TEMPLATE = "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}assistant:"
CURES = {"transformers": r"pip install 'glyphlm\[serve\]'", "vllm": "pip install vllm"}


def make_stock(folder: Path, tokenizer: Tokenizer) -> Path:
    """A run of random weights that GPT-NeoX can express."""
    model = GPT(ModelConfig(32, 2, 4, 64), Substrate(SubstrateConfig(tokenizer.vocab_size, 16, "token_bits"), 32))
    model.init_weights(seed=1)
    for parameter in model.parameters():
        parameter.data.mul_(8)  # clear preferences
    export_model(model, tokenizer, folder)
    return folder


@pytest.fixture(scope="module")
def runs(tokenizer, tmp_path_factory) -> dict[str, Path]:
    """Runs with a chat template: one that can be exported, and one whose head has a bias."""
    folder = tmp_path_factory.mktemp("runs")
    chatting = Tokenizer(tokenizer._backend, tokenizer.config | {"chat_template": TEMPLATE})
    return {"stock": make_stock(folder / "stock", chatting), "biased": make_run(folder / "biased", chatting)}


@pytest.fixture(scope="module")
def addresses(runs) -> Iterator[dict[str, str]]:
    """Where each run answers."""
    try:
        check_installed("transformers")
    except InputError as absent:
        pytest.skip(str(absent))
    env, started = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}, {}
    try:
        for name, run in runs.items():
            folder = servable(run, "transformers")
            command = server_command(folder, LOCAL)
            started[name] = subprocess.Popen(command, cwd=folder.parent, env=env, stderr=subprocess.PIPE, text=True)
        yield {name: address_of(process) for name, process in started.items()}
    finally:
        for process in started.values():
            process.terminate()
            process.communicate()


def address_of(process: subprocess.Popen) -> str:
    """What a server says when it is ready."""
    clock, lines = Timer(SECONDS, process.kill), []
    clock.start()
    try:
        for line in process.stderr:
            lines.append(line)
            if found := re.search(r"running on (http://\S+)", line):
                return f"{found[1]}/v1"
    finally:
        clock.cancel()
    raise AssertionError("".join(lines))


def expected(run: Path, prompt: str) -> str:
    return continue_text(*load_run(run), prompt, Sampling(max_new_tokens=8, temperature=0)).removeprefix(prompt)


@pytest.mark.parametrize("name", ["stock", "biased"])
def test_a_run_answers_the_openai_client_as_it_answers_here(runs, addresses, name):
    import openai

    prompt, said = "Hello, мир! ", [{"role": "user", "content": "Привет"}]
    asked = {"model": name, "max_tokens": 8, "temperature": 0}
    direct = openai.DefaultHttpxClient(trust_env=False)  # a proxy knows no ports of this machine
    with openai.OpenAI(base_url=addresses[name], api_key="none", max_retries=0, http_client=direct) as client:
        continued = client.completions.create(prompt=prompt, **asked).choices[0].text
        answered = client.chat.completions.create(messages=said, **asked).choices[0].message.content
    assert continued == expected(runs[name], prompt) != ""
    assert answered == expected(runs[name], "user: Привет\nassistant:") != ""
    assert (runs[name] / EXPORT).is_dir() == (name == "stock")


def test_the_server_takes_the_place_of_this_process(runs, monkeypatch, capsys):
    became = []
    monkeypatch.setattr(serving, "check_installed", became.append)
    monkeypatch.setattr(os, "execve", lambda *arguments: became.append((Path.cwd(), *arguments)))
    monkeypatch.chdir(runs["biased"].parent)
    serve(Path("biased"), LOCAL)
    command = server_command(runs["biased"], LOCAL)
    assert became == ["transformers", (runs["biased"].parent, sys.executable, command, became[1][3])]
    assert became[1][3].items() > os.environ.items()
    assert "http://127.0.0.1:0/v1  model: biased" in capsys.readouterr().err


def test_the_export_is_made_anew_and_hidden(tokenizer, tmp_path):
    run = make_stock(tmp_path / "mine", tokenizer)
    for template in (None, TEMPLATE):
        Tokenizer(tokenizer._backend, tokenizer.config | {"chat_template": template}).save(run)
        folder = servable(run, "vllm")
        assert Tokenizer.load(folder).config.get("chat_template") == template
    assert folder == run / ".served" / "mine"
    make_run(run, tokenizer)
    assert servable(run, "transformers") == run


def test_what_only_glyphlm_expresses_is_refused_where_glyphlm_is_not(runs):
    with pytest.raises(InputError, match="biased has a head with bias, which GPT-NeoX does not have"):
        servable(runs["biased"], "vllm")


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(InputError, match="no finished run"):
        servable(tmp_path, "transformers")


def test_each_server_is_started_on_the_folder_by_its_name(tmp_path):
    settings = ServeSettings("0.0.0.0", 81)
    listening = ["serve", "mine", "--host", "0.0.0.0", "--port", "81"]
    export = tmp_path / EXPORT / "mine"
    for server, module in {"transformers": "transformers.cli.transformers", "vllm": "vllm.entrypoints.cli.main"}.items():
        command = server_command(export, replace(settings, server=server))
        assert command == [sys.executable, "-P", "-m", module, *listening]
    command = server_command(tmp_path / "mine", settings)
    assert command[2] == "-c" and "glyphlm" in command[3] and command[4:] == listening


@pytest.mark.parametrize("server", CURES)
def test_an_absent_server_is_named_with_the_cure(monkeypatch, server):
    monkeypatch.setattr(serving, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=f"{NEEDED[server][-1]}.*{CURES[server]}"):
        check_installed(server)


def test_an_address_where_nobody_can_listen_is_refused():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(InputError, match=f"127.0.0.1 port {port} .*another --host or --port"):
            check_address("127.0.0.1", port)
    check_address("127.0.0.1", port)
    with pytest.raises(InputError, match="no.such.host"):
        check_address("no.such.host", 0)
    with pytest.raises(InputError, match="port 70000 .*from 0 to 65535"):
        ServeSettings(port=70000)
