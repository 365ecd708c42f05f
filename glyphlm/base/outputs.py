"""Output folders: written atomically by one process, with a record of settings and inputs, and never overwritten."""

import hashlib
import json
import os
import re
import shlex
import shutil
import socket
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from glyphlm.base.errors import InputError
from glyphlm.base.names import BUILD, LOCK
from glyphlm.base.progress import IS_MAIN, say
from glyphlm.base.records import parse_json, read_json, to_json

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

SHA256 = re.compile("[0-9a-f]{64}")
MOST_TRIES = 1000  # to make a lock file; there is none in /proc
WINDOWS_BYTE = 1 << 30  # the byte that is locked on Windows: far behind the text, which other processes can still read


class OtherWork(InputError):
    """An output folder holds the result of another command, other settings or other inputs."""


def lacks(folder: str | Path, name: str) -> str:
    """Why there is no file `name` in `folder`, for error messages; the nearest name is suggested."""
    folder = Path(folder)
    if folder.exists():
        return f"holds no {name}" if folder.is_dir() else "is a file, not a folder"
    near = get_close_matches(folder.name, [path.name for path in folder.parent.glob("*/")], 1)
    return "does not exist" + (f" (did you mean {folder.parent / near[0]}?)" if near else "")


def write_atomic(path: Path, data: bytes | str) -> None:
    """Write `data` to a temporary sibling and rename it: a reader sees the old file or the new one, never a part."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    payload = data.encode() if isinstance(data, str) else data
    try:
        with partial.open("wb") as file:
            file.write(payload)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def sha256_file(path: Path) -> str:
    """Hex digest of a file's bytes, read in blocks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# One writer per folder

_held: Counter[Path | None] = Counter()  # lock file -> number of nested holders in this process


@contextmanager
def one_writer(folder: str | Path) -> Iterator[None]:
    """Lock `folder` for this process while the block runs; blocks may be nested.

    The lock belongs to the operating system (flock; on Windows a locked byte), so it is released when its process
    ends, and a requeued job can take it. Its file is `.NAME.lock` next to the folder, or `.lock` in it where
    the parent is not writable or the folder is a mount point. Leftovers of killed writers (`.NAME.PID.partial`) are
    removed. Under torchrun only rank 0 takes it; a worker that fills a folder of its own inside
    `folder` locks that one.

    Network file systems: NFS (v3 with a lock daemon, v4), CephFS, GPFS, and Lustre mounted with `flock` pass the lock on
    to all machines. After the death of a machine NFS frees it when the server's lease ends, about a minute. Lustre with
    `localflock` and older SMB lock on one machine only. Where locks are not supported, one line is printed, and it is
    up to the user to run one command at a time.

    Raises:
        InputError: another process holds it; its process id, machine, command and start time are reported.
    """
    path = _lock_file(Path(folder))
    if not IS_MAIN or path is None or _held[path]:
        with _counted(path):
            yield
        return
    made = [parent for parent in path.parents if not parent.exists()]
    try:
        file = _locked(path, folder)
        try:
            with _counted(path):
                _remove_leftovers(Path(folder).resolve())
                yield
        finally:
            with suppress(OSError):  # Windows keeps open files
                path.unlink()
            os.close(file)
    finally:
        for parent in made:
            with suppress(OSError):  # not empty
                parent.rmdir()


def _lock_file(folder: Path) -> Path | None:
    """None where this user cannot write, so that no lock is needed: a finished output on a read-only disk."""
    folder = folder.resolve()
    if not folder.name:
        raise InputError(f"{folder} is the root of a file system, not an output folder; name a folder in it")
    beside = next(parent for parent in folder.parents if parent.exists())
    if os.access(beside, os.W_OK) and not os.path.ismount(folder):
        return folder.with_name(f".{folder.name}{LOCK}")
    return folder / LOCK if os.access(folder, os.W_OK) else None


@contextmanager
def _counted(path: Path | None) -> Iterator[None]:
    _held[path] += 1
    try:
        yield
    finally:
        _held[path] -= 1


def _locked(path: Path, folder: str | Path) -> int:
    """The open lock file, with this process recorded in it as the holder."""
    while True:
        file = _opened(path)
        try:
            _lock(file)
        except (BlockingIOError, PermissionError):
            os.close(file)
            raise InputError(f"{folder} is being written by {_holder(path)}; wait until that ends, or choose another "
                             "--out") from None
        except OSError as error:
            say(f"{folder}: no file locks here ({error.strerror}); make sure that no other command writes this folder")
        if path.exists() and os.path.samestat(os.fstat(file), path.stat()):
            break
        os.close(file)  # the previous holder removed it between the two calls
    holder = {"pid": os.getpid(), "host": socket.gethostname(), "command": shlex.join(sys.argv),
              "since": time.strftime("%Y-%m-%d %H:%M:%S")}
    os.ftruncate(file, 0)
    os.write(file, to_json(holder).encode())
    return file


def _opened(path: Path) -> int:
    for _ in range(MOST_TRIES):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            return os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except FileNotFoundError:
            continue  # a command that failed removed the folder that it had made
        except PermissionError:
            raise InputError(f"{path} belongs to another user; when no command of theirs runs, have it removed, or choose "
                             "another --out") from None
    raise InputError(f"{path.parent} takes no files; choose another --out")


def _lock(file: int) -> None:
    if sys.platform == "win32":
        os.lseek(file, WINDOWS_BYTE, os.SEEK_SET)
        msvcrt.locking(file, msvcrt.LK_NBLCK, 1)
        os.lseek(file, 0, os.SEEK_SET)
    else:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _holder(path: Path) -> str:
    try:
        holder = parse_json(path.read_text(encoding="utf-8", errors="replace"), path)
        return f"process {holder['pid']} on {holder['host']} since {holder['since']} ({holder['command'][:200]})"
    except (OSError, InputError, KeyError):  # the holder has just started or ended
        return "another process"


def _remove_leftovers(folder: Path) -> None:
    """Remove what killed writers of this folder left; the lock guarantees that no other writer is active."""
    own = re.compile(rf"\.{re.escape(folder.name)}\.\d+\.partial")
    beside = [found for found in folder.parent.iterdir() if own.fullmatch(found.name)] if folder.parent.is_dir() else []
    inside = [found for found in folder.glob(".*.partial") if re.fullmatch(r"\..*\.\d+\.partial", found.name)]
    for found in beside + inside:
        shutil.rmtree(found) if found.is_dir() else found.unlink(missing_ok=True)


# Folders that are written atomically


def partial_of(out: Path) -> Path:
    """The hidden sibling of `out` that several processes of one command, or successive runs, fill before it is renamed."""
    return out.with_name(f".{out.name}.partial")


def check_file(out: Path, marks: Sequence[str], what: str) -> None:
    """Refuse to write the file `out` over a folder, or over a file without all the `marks` of a file of this command.

    Raises:
        InputError: with the path; nothing has been written yet.
    """
    if out.is_dir():
        raise InputError(f"{out} is a folder; give the file to write, such as {out / what}")
    if not (above := next(folder for folder in out.absolute().parents if folder.exists())).is_dir():
        raise InputError(f"{above} is a file, so {out} cannot be written; choose another --out")
    if out.exists():
        text = out.read_text(encoding="utf-8", errors="replace") if out.is_file() else ""
        if not all(mark in text for mark in marks):
            raise InputError(f"{out} exists and was not made by this command; choose another --out or remove it")


def holds_nothing(folder: Path) -> bool:
    """Whether an output folder is missing or empty; a lock in it does not count.

    Raises:
        InputError: it is a file.
    """
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file, and the output is a folder; choose another name")
    return not folder.exists() or all(found.name == LOCK for found in folder.iterdir())


@contextmanager
def replaced_folder(out: Path, resume: bool = False, shared: bool = False) -> Iterator[Path]:
    """Yield an empty sibling folder that is renamed to `out` when the block succeeds, and removed when it fails.

    With `resume` it is kept, so that the next run continues from it. With `shared` it is
    `partial_of(out)`, which other processes of the command fill too. Otherwise the name contains the process id.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = partial_of(out) if resume or shared else out.with_name(f".{out.name}.{os.getpid()}.partial")
    if not resume:
        shutil.rmtree(partial, ignore_errors=True)  # left by a killed process with this id
    partial.mkdir(exist_ok=True)
    try:
        yield partial
        if out.exists():
            out.rmdir()  # an empty folder: `Build.is_done` refused anything else
        os.replace(partial, out)
    except BaseException:
        if not resume or not any(partial.iterdir()):
            shutil.rmtree(partial, ignore_errors=True)
        raise


@dataclass
class Build:
    """One output folder: its kind (`made`), the settings and inputs it was made from, and the `result`.

    The four are written into the folder as build.json, so that a repeated command skips the finished work and
    another command refuses to overwrite it. Inputs are identified by their digests: a file may be renamed or moved.
    """

    made: str
    settings: dict[str, Any]
    inputs: dict[str, Any]
    result: dict[str, Any] = field(default_factory=dict)

    def is_done(self, out: Path) -> bool:
        """Whether `out` already holds exactly this build; if so, its `result` is loaded.

        Raises:
            InputError: `out` holds something else (the first difference is reported), or cannot be replaced by a folder.
        """
        found = found_build(out)
        if found is None:
            return False
        difference = self._difference(found)
        if difference:
            raise OtherWork(f"{out} already holds other work: {difference}; choose another --out or remove {out}")
        self.result = found.result
        return True

    @contextmanager
    def folder(self, out: Path, resume: bool = False) -> Iterator[Path]:
        """Yield the folder to fill; build.json is written last, and one rename puts the complete folder at `out`.

        With `resume` it still holds what a stopped run wrote. `out` is locked until the rename.

        Raises:
            InputError: another process writes `out`, or did so since `is_done`.
        """
        with one_writer(out):
            if not holds_nothing(out):
                raise InputError(f"{out} was made by another process meanwhile; run the command again to use it")
            with replaced_folder(out.resolve() if out.is_symlink() else out, resume) as partial:
                yield partial
                (partial / BUILD).write_text(to_json(vars(self)), encoding="utf-8")

    def _difference(self, found: "Build") -> str | None:
        if found.made != self.made:
            return f"made = {found.made!r}, not {self.made!r}"
        was, now = vars(found), json.loads(json.dumps(vars(self)))
        for part in ("settings", "inputs"):
            if part == "inputs" and same_inputs(was[part], now[part]):
                continue
            for key in sorted(was[part].keys() | now[part].keys()):
                if was[part].get(key) != now[part].get(key):
                    return f"{key} = {was[part].get(key)!r}, not {now[part].get(key)!r}"
        return None


def same_inputs(was: Any, now: Any) -> bool:
    """Whether two records of inputs (name -> sha256) have the same content, whatever the files are called."""
    if not (isinstance(was, dict) and isinstance(now, dict)):
        return was == now
    gone, new = ([part[key] for key in part.keys() - other.keys()] for part, other in ((was, now), (now, was)))
    renamed = all(isinstance(value, str) and SHA256.fullmatch(value) for value in gone) and sorted(gone) == sorted(new)
    return renamed and all(same_inputs(was[key], now[key]) for key in was.keys() & now.keys())


def found_build(out: Path) -> Build | None:
    """The build in an output folder, or None where it is missing or empty.

    Raises:
        InputError: it holds something else, is a file, or cannot be replaced by a folder.
    """
    if not holds_nothing(out):
        return read_build(out)
    if Path.cwd().is_relative_to(out.resolve()):
        raise InputError(f"{out} is the folder you are in, or above it; name a new folder, such as {out / 'out'}")
    return None


def read_build(folder: Path) -> Build:
    """Read the build.json of `folder`.

    Raises:
        InputError: the folder does not exist, was not made by a glyphlm command, or its record is damaged.
    """
    path = Path(folder) / BUILD
    if not path.is_file():
        raise InputError(f"{folder} {lacks(folder, BUILD)}; give a folder that a glyphlm command made, or an empty one")
    cure = f"remove {folder} and make it again"
    found = read_json(path, cure=cure)
    kinds = {"made": str, "settings": dict, "inputs": dict, "result": dict}
    if found.keys() != kinds.keys() or not all(isinstance(found[key], kind) for key, kind in kinds.items()):
        raise InputError(f"{path} is damaged (it does not hold {', '.join(kinds)} alone, each of its type); {cure}")
    return Build(**found)


def first_difference(was: Any, now: Any, name: str = "") -> str | None:
    """Where two nested settings first differ, with both values; None where they are equal."""
    if isinstance(was, dict) and isinstance(now, dict):
        found = (first_difference(was.get(key), now.get(key), f"{name}.{key}") for key in {**was, **now})
        return next((difference for difference in found if difference), None)
    return None if was == now else f"{name.lstrip('.')} was {was!r}, is now {now!r}"
