"""The Hub: checkpoints in, run folders out."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import huggingface_hub
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from glyphlm.base.errors import InputError
from glyphlm.base.names import CONFIG

# Weights, sizes, vocabulary; never the Python files that a repository may hold.
FETCHED = ("*.safetensors", "*.bin", "*.pt", "*.json", "merges.txt", "vocab.txt")
NOT_PUSHED = ("state/**", "inputs/**", ".*", "**/.*")  # what training goes on from, and what it was made from


def fetch(repo: str, revision: str | None = None) -> Path:
    """Download weights, config and tokenizer of a repository; found in the cache, they are not loaded again.

    Raises:
        InputError: there is no such repository, or no way to it.
    """
    with _as_input_errors(repo):
        return Path(huggingface_hub.snapshot_download(repo, revision=revision, allow_patterns=list(FETCHED)))


def push(run: Path, repo: str, private: bool = False, endpoint: str | None = None, token: str | None = None) -> str:
    """Upload a run folder, or an export of one, as the model repository `repo`; returns its address.

    Training state and shards stay here. `endpoint` and `token` are by default those that `hf auth login` left.

    Raises:
        InputError: the folder is no model, or the Hub refuses.
    """
    if not (run / CONFIG).is_file():
        raise InputError(f"{run} holds no {CONFIG}; give a finished run, or a folder of glyphlm export --to gpt_neox")
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
        raise InputError(f"{repo!r} is no name of a repository ({error}); give OWNER/NAME") from None
    except LocalEntryNotFoundError:
        raise InputError(f"{repo} is not in the cache and the Hub cannot be reached; give a folder, or go online") from None
    except HfHubHTTPError as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"the Hub refuses {repo} ({reason}); check the name, and log in with: hf auth login") from None
    except (InputError, OSError):
        raise  # of the folder
    except Exception as error:  # of the network: each release of the library has other classes for it
        raise InputError(f"the Hub cannot be reached for {repo} ({' '.join(str(error).split())}); go online") from None
