"""Outputs appear whole or not at all, say what they were made from, and are never overwritten by something else."""

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from glyphlm.base.errors import InputError

RECORD = "build.json"


def write_atomic(path: Path, data: bytes | str) -> None:
    """Write `data` to a temporary sibling and rename it: a reader sees the old file or the new one, never a part."""
    partial = path.with_name(f".{path.name}.partial")
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


def to_json(value: Any) -> str:
    """The one JSON form of the project: sorted keys, real characters, a newline at the end."""
    return json.dumps(value, ensure_ascii=False, indent=2, sort_keys=True) + "\n"


def to_lines(rows: Iterable[dict[str, Any]]) -> str:
    """Rows as JSON lines, with real characters."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def read_lines(path: Path, needed: Mapping[str, tuple[type, ...]] | None = None) -> list[dict[str, Any]]:
    """The rows of a file of JSON lines, each with the `needed` keys of these types; no file, no rows.

    Raises:
        InputError: a line is damaged; file and line are named.
    """
    rows = []
    # Bytes, because text would also be cut at the line separators of Unicode that a row may hold.
    for number, line in enumerate(path.read_bytes().splitlines() if path.is_file() else [], start=1):
        fault = _fault(line, needed or {})
        if fault:
            raise InputError(f"{path} line {number} is damaged ({fault}); mend or delete that line")
        rows.append(json.loads(line))
    return rows


def _fault(line: bytes, needed: Mapping[str, tuple[type, ...]]) -> str | None:
    try:
        row = json.loads(line)
    except ValueError:
        return "not JSON"
    if not isinstance(row, dict):
        return "not an object"
    return next((f"no valid {key!r}" for key, types in needed.items() if not isinstance(row.get(key), types)), None)


def sha256_file(path: Path) -> str:
    """Hex digest of a file's bytes, read in blocks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def partial_of(out: Path) -> Path:
    """The hidden sibling in which `out` is made."""
    return out.with_name(f".{out.name}.partial")


@contextmanager
def replaced_folder(out: Path, resume: bool = False) -> Iterator[Path]:
    """Yield an empty sibling folder that becomes `out` when the block ends well, and vanishes when it does not.

    With `resume` it does not vanish: what a stopped run left there is found by the next.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = partial_of(out)
    if not resume:
        shutil.rmtree(partial, ignore_errors=True)  # what an earlier kill left
    partial.mkdir(exist_ok=True)
    try:
        yield partial
        if out.exists():
            out.rmdir()  # only ever an empty folder: `Build.is_done` refused anything else
        os.replace(partial, out)
    except BaseException:
        if not resume or not any(partial.iterdir()):
            shutil.rmtree(partial, ignore_errors=True)
        raise


@dataclass
class Build:
    """One output folder: what it is (`made`), from which settings and inputs, and what came out (`result`).

    The three are written into the folder as build.json, so that the same command run again finds its work done and
    another command refuses to overwrite it.
    """

    made: str
    settings: dict[str, Any]
    inputs: dict[str, Any]
    result: dict[str, Any] = field(default_factory=dict)

    def is_done(self, out: Path) -> bool:
        """Whether `out` already holds exactly this build; True also loads its `result`.

        Raises:
            InputError: `out` holds something else; the first difference is named.
        """
        if not out.exists() or (out.is_dir() and not any(out.iterdir())):
            return False
        found = read_build(out)
        difference = self._difference(found)
        if difference:
            raise InputError(f"{out} already holds other work: {difference}; choose another --out or remove {out}")
        self.result = found.result
        return True

    @contextmanager
    def folder(self, out: Path, resume: bool = False) -> Iterator[Path]:
        """Yield the folder to fill; build.json is written last and the whole appears at `out` by one rename.

        With `resume` it still holds what a stopped run left there.
        """
        with replaced_folder(out, resume) as partial:
            yield partial
            record = {"made": self.made, "settings": self.settings, "inputs": self.inputs, "result": self.result}
            (partial / RECORD).write_text(to_json(record), encoding="utf-8")

    def _difference(self, found: "Build") -> str | None:
        if found.made != self.made:
            return f"made = {found.made!r}, not {self.made!r}"
        for part in ("settings", "inputs"):
            was, now = getattr(found, part), json.loads(json.dumps(getattr(self, part)))
            for key in sorted(was.keys() | now.keys()):
                if was.get(key) != now.get(key):
                    return f"{key} = {was.get(key)!r}, not {now.get(key)!r}"
        return None


def read_build(folder: Path) -> Build:
    """Read the build.json of `folder`.

    Raises:
        InputError: there is no such folder, or none of our commands made it.
    """
    path = Path(folder) / RECORD
    try:
        return Build(**json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        what = "holds files but no build.json" if Path(folder).exists() else "does not exist"
        raise InputError(f"{folder} {what}: give a folder that a glyphlm command made, or an empty one") from None
    except (ValueError, TypeError, NotADirectoryError) as error:  # ValueError: no JSON, or not even text
        raise InputError(f"{path} is damaged ({error}); remove {folder} and make it again") from None


def first_difference(was: Any, now: Any, name: str = "") -> str | None:
    """Where two nested settings first differ, with both values; None where they are equal."""
    if isinstance(was, dict) and isinstance(now, dict):
        found = (first_difference(was.get(key), now.get(key), f"{name}.{key}") for key in {**was, **now})
        return next((difference for difference in found if difference), None)
    return None if was == now else f"{name.lstrip('.')} was {was!r}, is now {now!r}"
