"""Tensors on disk: safetensors only, with errors that name the file. Foreign files are read without running code in them."""

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
    """Give a file the default permissions (umask); safetensors 0.8 writes files that only their owner can read."""
    mask = os.umask(0)
    os.umask(mask)
    path.chmod(0o666 & ~mask)


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Refuse a path that is not a file (reading a pipe would block), and a damaged file."""
    if not path.is_file():
        raise InputError(f"{path} cannot be read (it {'is not a file' if path.exists() else 'does not exist'})")
    try:
        yield
    except TENSOR_ERRORS as error:
        raise InputError(f"{path} cannot be read ({' '.join(str(error).split())})") from None


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Read every tensor of `path`.

    Raises:
        InputError: the file is missing or damaged.
    """
    with _reading(path):
        return safetensors.torch.load_file(path)


def tensor_types(path: Path) -> dict[str, str]:
    """The type of each tensor of `path` as the format names it (F32, BF16, I64 ..); values are not read.

    Raises:
        InputError: the file is missing or damaged.
    """
    with _reading(path), safetensors.safe_open(path, framework="pt") as file:
        return {name: file.get_slice(name).get_dtype() for name in file.keys()}


def load_ending(path: Path, endings: Collection[str]) -> dict[str, Tensor]:
    """Read only the tensors of `path` whose names have one of these suffixes, under their full names.

    Raises:
        InputError: the file is missing or damaged.
    """
    with _reading(path), safetensors.safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys() if name.endswith(tuple(endings))}


def load_foreign(path: Path) -> Tensor:
    """The one tensor of a foreign .safetensors, .npy or .pt file; no code in the file can run.

    Raises:
        InputError: the file is missing or damaged, needs Python objects, or does not hold exactly one tensor.
    """
    if path.suffix not in READERS:
        raise InputError(f"{path} ends in {path.suffix!r}; name a file that ends in {', '.join(READERS)}")
    found = read_foreign(path, SAVE_ALONE)
    named = found if isinstance(found, Mapping) else {"": found}
    tensors = {str(name): tensor for name, tensor in named.items() if isinstance(tensor, Tensor)}
    if len(tensors) != 1:
        raise InputError(f"{path} holds {len(tensors)} tensors, exactly one is needed; {SAVE_ALONE}")
    ((name, tensor),) = tensors.items()
    return plain_tensor(path, name, tensor)


def read_foreign(path: Path, cure: str) -> Any:
    """The content of a foreign .safetensors, .npy, .pt or .bin file; no code in it can run.

    Raises:
        InputError: the file is missing, damaged or compressed, or needs Python objects; the message ends in `cure`.
    """
    if not path.is_file():
        raise InputError(f"{path} does not exist or is not a file; {cure}")
    try:
        _refuse_packed(path, cure)
        return READERS.get(path.suffix, _read_torch)(path)
    except InputError:
        raise
    except Exception as error:  # each library has its own set of errors for a damaged file
        reason = str(error).split(". ")[0].split("\n")[0] or type(error).__name__
        what = f"{path} is damaged or holds more than plain tensors ({reason})"
        raise InputError(f"{what}; no code in it was run; {cure}") from None


def plain_tensor(path: Path, name: str, value: Any) -> Tensor:
    """`value` if it is a dense tensor of real numbers whose storage is in the file, which bounds the memory it takes.

    Raises:
        InputError: it is something else.
    """
    if not isinstance(value, Tensor) or value.is_sparse or value.is_quantized or value.is_complex():
        found = f"a {value.layout} tensor of {value.dtype}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
        raise InputError(f"{path}: {name!r} is {found}, not a dense tensor of real numbers; {SAVE_ALONE}")
    if math.prod(value.shape) * value.element_size() > value.untyped_storage().nbytes():
        raise InputError(f"{path}: {name!r} claims the shape {tuple(value.shape)}, more than the file holds; get it again")
    return value.detach()


def _refuse_packed(path: Path, cure: str) -> None:
    """Refuse a compressed zip: torch stores .pt and .bin uncompressed, and a zip bomb of a few KB can expand to a TB."""
    if path.suffix != ".safetensors" and zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as parts:
            if any(part.compress_type != zipfile.ZIP_STORED for part in parts.filelist):
                raise InputError(f"{path} is compressed, and torch writes uncompressed files; {cure}")


def _read_torch(path: Path) -> Any:
    return torch.load(path, map_location="cpu", weights_only=True)


def _read_npy(path: Path) -> Tensor:
    # Memory-mapped, because a header may claim more values than the file holds; Python objects are refused.
    return torch.from_numpy(np.array(open_memmap(path, mode="r")))


READERS: dict[str, Callable[[Path], Any]] = {".pt": _read_torch, ".safetensors": load_tensors, ".npy": _read_npy}


@contextmanager
def as_os_errors(path: Path) -> Iterator[None]:
    """Convert the library's own error for a full disk back to OSError."""
    try:
        yield
    except SafetensorError as error:
        code = re.search(r"os error (\d+)", str(error))
        raise OSError(int(code[1]) if code else errno.EIO, str(error), str(path)) from None
