"""Folders go to a local stand-in of the Hub and come from one; nothing reaches the network."""

import base64
import json
import os
import re
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from glyphlm.base import hub
from glyphlm.base.errors import InputError
from glyphlm.base.hub import fetch, push

FILES = ["README.md", "config.json", "model.safetensors", "hf.py"]
KEPT = ["state/step-1/model.safetensors", "inputs/tokenizer/tokenizer.json", ".partial"]


class StandIn(BaseHTTPRequestHandler):
    """The few addresses that an upload asks for."""

    def do_POST(self):
        sent = self.rfile.read(int(self.headers["Content-Length"]))
        seen = self.server.seen
        seen["token"] = self.headers.get("Authorization")
        if self.server.refuses:
            return self.answer(403, {"error": "Forbidden: no rights"})
        if self.path == "/api/repos/create":
            seen["created"] = json.loads(sent)
            self.answer(200, {"url": f"{self.server.address}/me/mine", "name": "me/mine", "id": "me/mine"})
        elif self.path == "/api/validate-yaml":
            self.answer(200, {"errors": [], "warnings": []})
        elif re.fullmatch("/api/models/me/mine/preupload/main", self.path):
            paths = [file["path"] for file in json.loads(sent)["files"]]
            self.answer(200, {"files": [{"path": path, "uploadMode": "regular", "shouldIgnore": False} for path in paths]})
        elif re.fullmatch("/api/models/me/mine/commit/main", self.path):
            rows = [json.loads(line)["value"] for line in sent.splitlines() if json.loads(line)["key"] == "file"]
            seen["files"] = {row["path"]: base64.b64decode(row["content"]) for row in rows}
            self.answer(200, {"commitUrl": f"{self.server.address}/me/mine/commit/1", "commitOid": "1"})
        else:
            self.answer(404, {"error": self.path})

    def answer(self, status: int, body: dict) -> None:
        payload = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(payload)))
        self.end_headers()
        self.wfile.write(payload)

    def log_message(self, *_):
        """Nothing."""


@pytest.fixture
def server():
    server = ThreadingHTTPServer(("127.0.0.1", 0), StandIn)
    server.address = f"http://127.0.0.1:{server.server_port}"
    server.seen, server.refuses = {}, False
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def run(tmp_path) -> Path:
    for name in [*FILES, *KEPT]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"content of {name}")
    return tmp_path


def test_a_run_is_uploaded_without_its_training_state(run, server):
    address = push(run, "me/mine", private=True, endpoint=server.address, token="hf_secret")
    assert address.endswith("/me/mine")
    assert server.seen["files"] == {name: f"content of {name}".encode() for name in FILES}
    assert "private" in json.dumps(server.seen["created"]) and server.seen["token"] == "Bearer hf_secret"


@pytest.mark.parametrize(("change", "match"), [
    (lambda run, server: (run / "config.json").unlink(), "holds no config.json"),
    (lambda run, server: setattr(server, "refuses", True), "the Hub refuses me/mine .*hf auth login"),
])
def test_what_cannot_be_uploaded_is_refused(run, server, change, match):
    change(run, server)
    with pytest.raises(InputError, match=match) as error:
        push(run, "me/mine", endpoint=server.address, token="hf_secret")
    assert "\n" not in str(error.value) and "files" not in server.seen


@pytest.mark.parametrize("name", ["a/b/c", "me/../mine"])
def test_a_name_that_is_none_is_refused(run, server, name):
    with pytest.raises(InputError, match="OWNER/NAME"):
        push(run, name, endpoint=server.address, token="hf_secret")


def test_only_weights_config_and_tokenizer_are_fetched(monkeypatch, tmp_path):
    asked = []

    def download(repo, **options):
        asked.append({"repo": repo, **options})
        return str(tmp_path)

    monkeypatch.setattr(hub.huggingface_hub, "snapshot_download", download)
    assert fetch("them/theirs", "v1") == tmp_path
    assert [(one["repo"], one["revision"]) for one in asked] == [("them/theirs", "v1")] * 2  # again for older weights
    patterns = [pattern for one in asked for pattern in one["allow_patterns"]]
    assert "*.bin" in patterns and not any(pattern.endswith((".py", "*")) for pattern in patterns)
    (tmp_path / "model.safetensors").write_bytes(b"")
    pulled = hub.pull("hf:them/theirs@v2")
    assert pulled.repo == "them/theirs" and asked[-1]["revision"] == "v2" and len(asked) == 3


def test_a_repository_that_cannot_be_reached_is_refused(monkeypatch):
    monkeypatch.setattr(hub.huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match="not in the cache and the Hub cannot be reached"):
        fetch("them/a-model-that-was-never-loaded-here")


def test_an_upload_where_the_hub_is_switched_off_is_refused(run, monkeypatch):
    monkeypatch.setattr(hub.huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match="Hub cannot be reached for me/mine .*offline mode.*; go online"):
        push(run, "me/mine", token="t")


def test_an_upload_without_network_is_refused_on_one_line(run):
    with pytest.raises(InputError, match="Hub cannot be reached for me/mine .*; go online") as refused:
        push(run, "me/mine", endpoint="http://127.0.0.1:9", token="t")  # nothing listens there
    assert "\n" not in str(refused.value)


def test_the_hub_is_looked_for_where_nothing_else_is_loaded(tmp_path):
    """In a new process: huggingface_hub loads its modules when they are first named."""
    code = "from glyphlm.base.hub import fetch; fetch('me/mine')"
    nowhere = {"HF_ENDPOINT": "http://localhost:9", "HF_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ | nowhere)
    assert "InputError: me/mine is not in the cache and the Hub cannot be reached" in done.stderr
