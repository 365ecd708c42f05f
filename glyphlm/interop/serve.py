"""`glyphlm serve`: a run behind an OpenAI-compatible endpoint, our own, or that of vLLM, which replaces this process."""

import os
import shlex
import shutil
import socket
import sys
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path

from glyphlm.base.devices import resolve_device
from glyphlm.base.errors import InputError
from glyphlm.base.progress import say
from glyphlm.interop.export_neox import export_gpt_neox
from glyphlm.interop.generation_queue import Worker
from glyphlm.interop.settings import ServeSettings
from glyphlm.runs.folder import run_config
from glyphlm.runs.opening import open_model
from glyphlm.runs.where import folder_of

EXPORT = ".served"  # hidden in the run folder, so that it is never pushed
NEEDED = {"glyphlm": ("pydantic", "starlette", "uvicorn"), "vllm": ("vllm",)}
CURES = {"glyphlm": "pip install 'glyphlm[serve]'", "vllm": "pip install vllm, or leave --server out"}


def serve(run: str | Path, settings: ServeSettings) -> None:
    """Answer requests until a signal ends the process; requests name the model by the name of the run folder.

    Raises:
        InputError: the server is not installed or cannot listen there, or the run cannot be loaded or exported.
    """
    check_installed(settings.server)
    listening = listen(settings.host, settings.port)
    with listening:
        if settings.server == "glyphlm":
            serve_here(run, settings, listening)
    if settings.server == "vllm":
        become_vllm(folder_of(run).resolve(), settings)


def check_installed(server: str) -> None:
    """Raise InputError where a package that `server` needs is absent."""
    absent = [name for name in NEEDED[server] if find_spec(name) is None]
    if absent:
        raise InputError(f"--server {server} needs {', '.join(absent)}: {CURES[server]}")


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; it is taken before the model is loaded, so that no time is lost where that fails.

    Raises:
        InputError: the address is unknown or taken.
    """
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        raise InputError(f"cannot listen at {host} port {port} ({error}); give another --host or --port") from None


def serve_here(run: str | Path, settings: ServeSettings, listening: socket.socket) -> None:
    """Load the run once and serve it from this process."""
    from glyphlm.interop.http_server import Server
    from glyphlm.interop.openai_api import Api, Served
    from glyphlm.pages.show import Explorer

    opened = open_model(run, resolve_device(settings.device))
    worker = Worker(opened.model, opened.tokenizer, settings.max_waiting)
    port = listening.getsockname()[1]
    address = f"http://{settings.host}:{port}"
    ready = f"OpenAI endpoint: {address}/v1  model: {opened.name}  page: {address}/"
    plain = replace(opened, model=getattr(opened.model, "gpt", opened.model))  # which the page looks into
    twin = partial(open_model, settings.twin) if settings.twin else lambda: None
    api = Api(Served(opened, settings), worker, lambda: Explorer(plain, twin()))
    server = Server(api.app(), settings, worker, lambda: say(ready))
    try:
        server.run([listening])
    finally:
        worker.close()


def become_vllm(run: Path, settings: ServeSettings) -> None:
    """Export the run and replace this process by vLLM; -P keeps Python from importing what lies in the folder."""
    folder = exported(run)
    command = [sys.executable, "-P", "-m", "vllm.entrypoints.cli.main", "serve", folder.name]
    command += ["--host", settings.host, "--port", str(settings.port)]
    say(f"cd {shlex.quote(str(folder.parent))} && {shlex.join(command)}")
    say(f"OpenAI endpoint: http://{settings.host}:{settings.port}/v1  model: {folder.name}")
    os.chdir(folder.parent)  # a model's name is its path, and has to be short
    os.execve(command[0], command, dict(os.environ))


def exported(run: Path) -> Path:
    """A GPT-NeoX export of the run, made anew each time, because its chat template may have changed.

    Raises:
        InputError: the run is not finished, or cannot be exported.
    """
    run_config(run)
    shutil.rmtree(run / EXPORT, ignore_errors=True)
    return export_gpt_neox(run, run / EXPORT / run.name, fold_head_bias=True)
