"""Tensors on disk: safetensors only, with errors that name the file. Files of others are read without running anything."""

import errno
import os
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from glyphlm.base.errors import InputError

WEIGHTS = "model.safetensors"  # of a run folder, under the name that transformers look for
TENSOR_ERRORS = (OSError, SafetensorError)  # what a damaged or missing file raises
SAVE_ALONE = "save the table alone with safetensors.torch.save_file"


def save_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write `tensors` to `path`.

    Raises:
        OSError: the disk is full or the place cannot be written.
    """
    with as_os_errors(path):
        safetensors.torch.save_file({name: tensor.detach().contiguous() for name, tensor in tensors.items()}, path)
    share(path)


def share(path: Path) -> None:
    """Give a file the permissions of any new file; safetensors 0.8 writes files that only their owner can read."""
    mask = os.umask(0)
    os.umask(mask)
    path.chmod(0o666 & ~mask)


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Read every tensor of `path`.

    Raises:
        InputError: the file is missing or damaged.
    """
    try:
        return safetensors.torch.load_file(path)
    except TENSOR_ERRORS as error:
        raise InputError(f"{path} cannot be read ({' '.join(str(error).split())})") from None


def load_ending(path: Path, endings: Collection[str]) -> dict[str, Tensor]:
    """Read only the tensors of `path` whose names end so; under their whole names.

    Raises:
        InputError: the file is missing or damaged.
    """
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys() if name.endswith(tuple(endings))}
    except TENSOR_ERRORS as error:
        raise InputError(f"{path} cannot be read ({' '.join(str(error).split())})") from None


def load_foreign(path: Path) -> Tensor:
    """The one tensor of a .safetensors, .npy or .pt file that others made; nothing in the file can run.

    Raises:
        InputError: the file is missing or damaged, needs Python objects, or does not hold exactly one tensor.
    """
    if not path.is_file():
        raise InputError(f"{path} does not exist; name a file that ends in {', '.join(READERS)}")
    if path.suffix not in READERS:
        raise InputError(f"{path} ends in {path.suffix!r}; name a file that ends in {', '.join(READERS)}")
    try:
        found = READERS[path.suffix](path)
    except InputError:
        raise
    except Exception as error:  # each library has its own set of errors for a damaged file
        reason = str(error).split(". ")[0].split("\n")[0] or type(error).__name__
        raise InputError(f"{path} is damaged or holds more than plain tensors ({reason}); {SAVE_ALONE}") from None
    named = found if isinstance(found, Mapping) else {"": found}
    tensors = [tensor.detach() for tensor in named.values() if isinstance(tensor, Tensor)]
    if len(tensors) != 1:
        raise InputError(f"{path} holds {len(tensors)} tensors, and one is needed; {SAVE_ALONE}")
    return tensors[0]


READERS: dict[str, Callable[[Path], Any]] = {
    ".pt": lambda path: torch.load(path, map_location="cpu", weights_only=True),
    ".safetensors": load_tensors,
    ".npy": lambda path: torch.from_numpy(np.load(path, allow_pickle=False)),
}


@contextmanager
def as_os_errors(path: Path) -> Iterator[None]:
    """The library reports a full disk as its own error; outside it is the OSError that it was."""
    try:
        yield
    except SafetensorError as error:
        code = re.search(r"os error (\d+)", str(error))
        raise OSError(int(code[1]) if code else errno.EIO, str(error), str(path)) from None
