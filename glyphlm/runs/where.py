"""Where a run is: a folder, or hf:OWNER/NAME[@REVISION] in the cache of the Hub."""

from pathlib import Path

from glyphlm.base.names import HUB


def folder_of(run: str | Path) -> Path:
    """The folder of a run; hf:NAME[@REVISION] is downloaded into the cache of the Hub, unless it is there.

    Raises:
        InputError: the repository does not exist, or cannot be reached.
    """
    if not str(run).startswith(HUB):
        return Path(run)
    from glyphlm.base.hub import pull  # loads huggingface_hub

    return pull(str(run)).folder


def name_of(run: str | Path) -> str:
    """The name of a run's folder, or of its repository."""
    given = str(run)
    return given.removeprefix(HUB).partition("@")[0].split("/")[-1] if given.startswith(HUB) else Path(run).resolve().name
