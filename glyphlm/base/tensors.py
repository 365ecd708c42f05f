"""Tensors on disk: safetensors only, with errors that name the file. Files of others are read, and nothing in them runs."""

import errno
import math
import os
import re
import zipfile
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from numpy.lib.format import open_memmap
from safetensors import SafetensorError
from torch import Tensor

from glyphlm.base.errors import InputError

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
    if path.suffix not in READERS:
        raise InputError(f"{path} ends in {path.suffix!r}; name a file that ends in {', '.join(READERS)}")
    found = read_foreign(path, SAVE_ALONE)
    named = found if isinstance(found, Mapping) else {"": found}
    tensors = {str(name): tensor for name, tensor in named.items() if isinstance(tensor, Tensor)}
    if len(tensors) != 1:
        raise InputError(f"{path} holds {len(tensors)} tensors, and one is needed; {SAVE_ALONE}")
    ((name, tensor),) = tensors.items()
    return plain_tensor(path, name, tensor)


def read_foreign(path: Path, cure: str) -> Any:
    """Whatever a .safetensors, .npy, .pt or .bin file of others holds; nothing in it can run.

    Raises:
        InputError: the file is missing, damaged or packed, or needs Python objects; the message ends in `cure`.
    """
    if not path.is_file():
        raise InputError(f"{path} does not exist or is no file; {cure}")
    try:
        _refuse_packed(path, cure)
        return READERS.get(path.suffix, _read_torch)(path)
    except InputError:
        raise
    except Exception as error:  # each library has its own set of errors for a damaged file
        reason = str(error).split(". ")[0].split("\n")[0] or type(error).__name__
        what = f"{path} is damaged or holds more than plain tensors ({reason})"
        raise InputError(f"{what}; nothing of it was run; {cure}") from None


def plain_tensor(path: Path, name: str, value: Any) -> Tensor:
    """`value` if it is a dense tensor of real numbers, each of which the file holds; else it could take any memory.

    Raises:
        InputError: it is something else.
    """
    if not isinstance(value, Tensor) or value.is_sparse or value.is_quantized or value.is_complex():
        raise InputError(f"{path}: {name!r} is no plain tensor of real numbers; only such are read")
    if math.prod(value.shape) * value.element_size() > value.untyped_storage().nbytes():
        raise InputError(f"{path}: {name!r} claims the shape {tuple(value.shape)}, more than the file holds; get it again")
    return value.detach()


def _refuse_packed(path: Path, cure: str) -> None:
    """torch writes its .pt and .bin as zip files whose parts are stored as they are; packed, a few KB can become a TB."""
    if path.suffix != ".safetensors" and zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as parts:
            if any(part.compress_type != zipfile.ZIP_STORED for part in parts.filelist):
                raise InputError(f"{path} is compressed, as torch writes no file; {cure}")


def _read_torch(path: Path) -> Any:
    return torch.load(path, map_location="cpu", weights_only=True)


def _read_npy(path: Path) -> Tensor:
    # Mapped, because a header may claim more values than the file holds; Python objects are refused.
    return torch.from_numpy(np.array(open_memmap(path, mode="r")))


READERS: dict[str, Callable[[Path], Any]] = {".pt": _read_torch, ".safetensors": load_tensors, ".npy": _read_npy}


@contextmanager
def as_os_errors(path: Path) -> Iterator[None]:
    """The library reports a full disk as its own error; outside it is the OSError that it was."""
    try:
        yield
    except SafetensorError as error:
        code = re.search(r"os error (\d+)", str(error))
        raise OSError(int(code[1]) if code else errno.EIO, str(error), str(path)) from None
