"""The Hub: checkpoints in, run folders out."""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import huggingface_hub
from huggingface_hub import constants
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from glyphlm.base.errors import InputError
from glyphlm.base.names import CONFIG, HUB
from glyphlm.base.outputs import lacks

# Weights, sizes, vocabulary, records of a run; never the Python files that a repository may hold.
FETCHED = ("*.safetensors", "*.json", "*.jsonl", "*.jinja", "merges.txt", "vocab.txt", "settings.yaml", "glyphs.png")
OLDER = ("*.bin", "*.pt")  # weights, where there are no safetensors
CONNECT_SECONDS = 5
NOT_PUSHED = ("state/**", "inputs/**", ".*", "**/.*")  # training checkpoints, and copies of the inputs


def fetch(repo: str, revision: str | None = None) -> Path:
    """Download weights, config and tokenizer of a repository; cached files are not downloaded again.

    Raises:
        InputError: the repository does not exist or cannot be reached.
    """
    given: dict[str, Any] = {"revision": revision, "local_files_only": not _can_be_reached()}
    with _as_input_errors(repo):
        folder = Path(huggingface_hub.snapshot_download(repo, allow_patterns=list(FETCHED), **given))
        if not any(folder.glob("*.safetensors")):
            huggingface_hub.snapshot_download(repo, allow_patterns=list(OLDER), **given)
        return folder


def _can_be_reached() -> bool:
    """Whether the Hub answers within seconds: the library itself would try for minutes."""
    if any(os.environ.get(name) for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")):
        return True  # the proxy decides
    place = urlsplit(constants.ENDPOINT)
    try:
        socket.create_connection((place.hostname or "", place.port or 443), CONNECT_SECONDS).close()
    except OSError:
        return False
    return True


class Pulled(NamedTuple):
    """A repository as it is on this machine.

    Args:
        folder: In the cache of the Hub; it is not to be written to.
        repo: OWNER/NAME.
        revision: The commit.
    """

    folder: Path
    repo: str
    revision: str


def pull(name: str, revision: str | None = None) -> Pulled:
    """The repository hf:OWNER/NAME[@REVISION], downloaded unless the cache has it.

    Raises:
        InputError: the repository does not exist, or it is not in the cache and cannot be reached.
    """
    repo, _, given = name.removeprefix(HUB).partition("@")
    folder = fetch(repo, given or revision)
    return Pulled(folder, repo, folder.name)  # ../snapshots/COMMIT


def push(run: Path, repo: str, private: bool = False, endpoint: str | None = None, token: str | None = None) -> str:
    """Upload a run folder, or an export of one, as the model repository `repo`; returns its URL.

    Checkpoints and shards are not uploaded. `endpoint` and `token` default to those stored by `hf auth login`.

    Raises:
        InputError: the folder is not a model, or the Hub refuses.
    """
    if not (run / CONFIG).is_file():
        raise InputError(f"{run} {lacks(run, CONFIG)}; give a finished run, or a folder of glyphlm export --to gpt_neox")
    api = huggingface_hub.HfApi(endpoint=endpoint, token=token)
    with _as_input_errors(repo):
        found = api.create_repo(repo, private=private, exist_ok=True)
        api.upload_folder(
            folder_path=run, repo_id=found.repo_id, ignore_patterns=list(NOT_PUSHED), commit_message="Upload by GlyphLM"
        )
        return str(found)


@contextmanager
def _as_input_errors(repo: str) -> Iterator[None]:
    try:
        yield
    except HFValidationError as error:
        raise InputError(f"{repo!r} is not a repository name ({error}); give OWNER/NAME") from None
    except LocalEntryNotFoundError:
        raise InputError(f"{repo} is not in the cache and the Hub cannot be reached; give a folder, or go online") from None
    except HfHubHTTPError as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"the Hub refuses {repo} ({reason}); check the name, and log in with: hf auth login") from None
    except InputError:
        raise
    except Exception as error:  # network errors: their classes differ between releases of the library
        if isinstance(error, OSError) and not isinstance(error, (ConnectionError, TimeoutError)):
            raise  # about the folder
        raise InputError(f"the Hub cannot be reached for {repo} ({' '.join(str(error).split())}); go online") from None
