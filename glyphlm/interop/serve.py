"""A run behind an OpenAI-compatible endpoint of `transformers serve` or vLLM, which takes the place of this process."""

import os
import shlex
import shutil
import socket
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Literal, NoReturn

from glyphlm.base.errors import InputError
from glyphlm.base.progress import say
from glyphlm.interop.export_neox import export_gpt_neox
from glyphlm.modeling.model import GPT
from glyphlm.runs.folder import load_run

EXPORT = ".served"  # hidden in the run folder, so that it is never pushed
NEEDED = {"transformers": ("accelerate", "fastapi", "openai", "pydantic", "uvicorn"), "vllm": ("vllm",)}
CURES = {"transformers": "pip install 'glyphlm[serve]'", "vllm": "pip install vllm, or leave --server away"}
STARTS = {"transformers": ["-m", "transformers.cli.transformers"], "vllm": ["-m", "vllm.entrypoints.cli.main"]}
# `transformers serve` looks the class up by its name in transformers, and asks for no remote code where it stands there.
WITH_OUR_CLASS = ["-c", "import transformers; from glyphlm.modeling.hf import GlyphLMForCausalLM as ours; "
                  "transformers.GlyphLMForCausalLM = ours; from transformers.cli.transformers import main; main()"]


@dataclass
class ServeSettings:
    """Where requests are answered, and by whom.

    Args:
        host: Address to listen at; 0.0.0.0 also lets other machines in, and there is no password.
        port: Port to listen at; 0 takes a free one, which the server names.
        server: `transformers` takes every run. `vllm` answers many at once; it needs a run without bias in its head that
            is no fusion, and was not tried by us.
    """

    host: str = "localhost"
    port: int = 8000
    server: Literal["transformers", "vllm"] = "transformers"

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise InputError(f"port {self.port} is none; give --port from 0 to 65535")


def serve(run: Path, settings: ServeSettings) -> NoReturn:
    """Become the server; requests name the model by the name of the run folder.

    Raises:
        InputError: the server is not installed or cannot listen there, or the run cannot be loaded or expressed.
    """
    check_installed(settings.server)
    check_address(settings.host, settings.port)
    folder = servable(run, settings.server)
    command = server_command(folder, settings)
    say(f"cd {shlex.quote(str(folder.parent))} && {shlex.join(command)}")
    say(f"OpenAI endpoint: http://{settings.host}:{settings.port}/v1  model: {folder.name}")
    os.chdir(folder.parent)  # a model's name is its path, and has to be short
    os.execve(command[0], command, os.environ | {"HF_HUB_DISABLE_UPDATE_CHECK": "1"})


def check_installed(server: str) -> None:
    """Raise InputError where a package that `server` needs is absent."""
    absent = [name for name in NEEDED[server] if find_spec(name) is None]
    if absent:
        raise InputError(f"the server of {server} needs {', '.join(absent)}: {CURES[server]}")


def check_address(host: str, port: int) -> None:
    """Raise InputError where nobody can listen at `host` and `port`."""
    try:
        socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET).close()
    except OSError as error:
        raise InputError(f"nobody can listen at {host} port {port} ({error}); give another --host or --port") from None


def servable(run: Path, server: str) -> Path:
    """The folder to serve: a GPT-NeoX export of the run, or, where the run cannot be exported so, the run itself.

    The export is made anew each time, as the run's chat template may have changed.

    Raises:
        InputError: the run cannot be loaded, or `server` takes nothing but exports and it cannot be exported.
    """
    run = run.resolve()
    gpt = load_run(run)[0].gpt
    if server == "transformers" and not (isinstance(gpt, GPT) and gpt.head.bias is None):
        return run
    shutil.rmtree(run / EXPORT, ignore_errors=True)
    return export_gpt_neox(run, run / EXPORT / run.name, fold_head_bias=True)


def server_command(folder: Path, settings: ServeSettings) -> list[str]:
    """What starts the server in the folder above `folder`; -P keeps Python from importing what lies there."""
    stock = folder.parent.name == EXPORT
    start = STARTS[settings.server] if stock else WITH_OUR_CLASS
    return [sys.executable, "-P", *start, "serve", folder.name, "--host", settings.host, "--port", str(settings.port)]
