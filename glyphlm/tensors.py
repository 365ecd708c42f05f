"""Tensors on disk: safetensors only, with errors that name the file."""

import errno
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from glyphlm.errors import InputError

TENSOR_ERRORS = (OSError, SafetensorError)  # what a damaged or missing file raises


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


@contextmanager
def as_os_errors(path: Path) -> Iterator[None]:
    """The library reports a full disk as its own error; outside it is the OSError that it was."""
    try:
        yield
    except SafetensorError as error:
        code = re.search(r"os error (\d+)", str(error))
        raise OSError(int(code[1]) if code else errno.EIO, str(error), str(path)) from None
