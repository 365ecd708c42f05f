"""Files of tensors that others made are read without running anything, and within what they hold."""

import os
import zipfile

import numpy as np
import pytest
import torch

from glyphlm.base.errors import InputError
from glyphlm.base.tensors import (
    load_ending,
    load_foreign,
    load_tensors,
    plain_tensor,
    read_foreign,
    save_tensors,
    tensor_types,
)

TENSOR = torch.arange(6.0).view(2, 3)


class Runs:
    def __reduce__(self):
        return print, ("run",)


@pytest.mark.parametrize("suffix", [".pt", ".npy", ".safetensors"])
def test_the_one_tensor_of_a_file_is_read(tmp_path, suffix):
    path = tmp_path / f"table{suffix}"
    {".pt": lambda: torch.save(TENSOR, path), ".npy": lambda: np.save(path, TENSOR.numpy()),
     ".safetensors": lambda: save_tensors({"table": TENSOR}, path)}[suffix]()  # fmt: skip
    assert torch.equal(load_foreign(path), TENSOR)


def test_a_file_that_would_run_something_is_refused_and_does_not(tmp_path, capsys):
    torch.save({"x": Runs()}, tmp_path / "a.pt")
    with pytest.raises(InputError, match="a.pt is damaged or holds more than plain tensors .*; get it again"):
        read_foreign(tmp_path / "a.pt", "get it again")
    assert "run" not in capsys.readouterr().out


def test_a_file_that_holds_itself_ends(tmp_path):
    itself = {}
    itself["model"] = itself
    torch.save(itself, tmp_path / "a.pt")
    with pytest.raises(InputError, match="a.pt holds 0 tensors, exactly one"):
        load_foreign(tmp_path / "a.pt")


def test_a_packed_file_is_refused_before_it_is_unpacked(tmp_path):
    torch.save(torch.zeros(1 << 20), tmp_path / "a.pt")
    with zipfile.ZipFile(tmp_path / "a.pt") as plain, zipfile.ZipFile(tmp_path / "b.pt", "w") as packed:
        for part in plain.filelist:
            packed.writestr(part.filename, plain.read(part), zipfile.ZIP_DEFLATED)
    with pytest.raises(InputError, match="b.pt is compressed"):
        load_foreign(tmp_path / "b.pt")


@pytest.mark.parametrize("value", [3, TENSOR.to_sparse(), TENSOR.to(torch.complex64), torch.zeros(1).expand(1 << 40)])
def test_what_is_not_a_tensor_of_numbers_that_the_file_holds_is_refused(tmp_path, value):
    with pytest.raises(InputError, match="'x' (is .*, not a dense tensor|claims the shape)"):
        plain_tensor(tmp_path / "a.pt", "x", value)


def test_a_header_that_claims_more_than_the_file_takes_no_memory(tmp_path):
    header = repr({"descr": "<f4", "fortran_order": False, "shape": (1 << 40,)}).ljust(118).encode() + b"\n"
    (tmp_path / "a.npy").write_bytes(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + bytes(12))
    with pytest.raises(InputError, match="a.npy is damaged"):
        load_foreign(tmp_path / "a.npy")


@pytest.mark.parametrize("data", [b"", b"PK\x03\x04 no zip PK\x05\x06" + bytes(18), b"\x80\x02}q\x00."])
@pytest.mark.parametrize("suffix", [".pt", ".npy", ".safetensors"])
def test_a_damaged_file_is_refused_with_its_name(tmp_path, suffix, data):
    path = tmp_path / f"a{suffix}"
    path.write_bytes(data)
    with pytest.raises(InputError, match=f"{path} (is damaged|cannot be read|holds 0 tensors)"):
        load_foreign(path)
    with pytest.raises(InputError, match=f"{path} cannot be read"):
        load_tensors(path)


def test_a_missing_file_and_an_unknown_kind_are_refused(tmp_path):
    with pytest.raises(InputError, match="does not exist or is not a file"):
        load_foreign(tmp_path / "a.npy")
    with pytest.raises(InputError, match=r"ends in '.txt'; name a file that ends in .pt, .safetensors, .npy"):
        load_foreign(tmp_path / "a.txt")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes in the file system")
@pytest.mark.parametrize("read", [load_tensors, tensor_types, lambda path: load_ending(path, ["x"])])
def test_a_pipe_is_not_waited_for(tmp_path, read):
    os.mkfifo(tmp_path / "model.safetensors")
    with pytest.raises(InputError, match="model.safetensors cannot be read .it is not a file"):
        read(tmp_path / "model.safetensors")
