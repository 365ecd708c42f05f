"""Text sources: files, folders, data sets of the Hub and the embedded phrase book, each identified by its digest."""

import hashlib
import os
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from glyphlm.base.errors import InputError
from glyphlm.base.names import BUILD, EMBEDDED, HUB, TOKENIZER
from glyphlm.base.outputs import sha256_file
from glyphlm.base.progress import meter, say

PACKINGS = ("", ".gz", ".bz2", ".xz", ".zst")
SUFFIXES = (*(f"{kind}{packing}" for packing in PACKINGS for kind in (".txt", ".jsonl")), ".parquet")
OURS = (BUILD, TOKENIZER)  # a folder with one of these was made by glyphlm, and its vocab.txt is not training text


def find_sources(texts: Sequence[str]) -> list[str]:
    """Names of all files and data sets in `texts`; folders are searched through, in sorted order.

    Linked folders are followed. Hidden files, files of other kinds and folders made by glyphlm are left out; one line lists
    them.

    Raises:
        InputError: nothing was given, a path does not exist, a file is of an unknown kind, or one is named twice.
    """
    if not texts:
        raise InputError("no text was given: name files, folders, hf:NAME data sets or embedded:LANGUAGES")
    sources = [source for text in texts for source in _expand(text)]
    seen: dict[Any, str] = {}
    for source in sources:
        known = seen.get(_identity(source))
        if known is not None:
            which = source if known == source else f"{source} is {known}, which then"
            raise InputError(f"{which} is named twice; name it once (a recipe can weigh sources)")
        seen[_identity(source)] = source
    return sources


def _identity(source: str) -> Any:
    """A key that is equal for all paths and links to the same file."""
    if is_data_set(source):
        return source
    found = os.stat(source)
    return found.st_dev, found.st_ino


def describe(texts: Sequence[str]) -> dict[str, str]:
    """What identifies the input: name -> sha256 of each file; a data set of the Hub is identified by its name."""
    return digests(find_sources(texts))


def digests(sources: Iterable[str]) -> dict[str, str]:
    """As `describe`, of what `find_sources` gave."""
    sizes = {source: size_of(source) for source in sources}
    found = {}
    with meter("computing checksums", sum(sizes.values()) or None) as bar:
        for source, size in sizes.items():
            found[source] = _digest(source)
            bar.advance(size)
    return found


def is_data_set(source: str) -> bool:
    """Whether `source` names a data set, of the Hub or embedded, rather than a file."""
    return source.startswith((HUB, EMBEDDED))


def suffix_of(name: str) -> str:
    """The one of SUFFIXES that a file name ends in, in small or capital letters; "" for other kinds of files."""
    return next((suffix for suffix in SUFFIXES if name.lower().endswith(suffix)), "")


def packing_of(name: str) -> str:
    """The one of PACKINGS that a file name ends in, in small or capital letters; "" for a file that is not packed."""
    return next((packing for packing in PACKINGS[1:] if name.lower().endswith(packing)), "")


def size_of(source: str) -> int:
    """Bytes on disk; 0 for a data set."""
    return 0 if is_data_set(source) else os.stat(source).st_size


def _digest(source: str) -> str:
    if source.startswith(EMBEDDED):
        texts = embedded_documents(source)  # another release of CLDR has other texts
        return hashlib.sha256("\0".join(texts).encode()).hexdigest()
    return "hub" if is_data_set(source) else sha256_file(Path(source))


def embedded_documents(source: str) -> list[str]:
    """The documents that embedded:WORDS chooses from the phrase book."""
    from glyphlm.corpus.phrasebook import chosen  # loads CLDR, and most texts are files

    return chosen(source.removeprefix(EMBEDDED))


def _expand(text: str) -> list[str]:
    path = Path(text)
    if is_data_set(text):
        return [text]
    if text and path.is_dir():
        return _files_below(text)
    if not text or not path.exists():
        raise InputError(f"{text or repr(text)} does not exist; give a file, a folder, hf:NAME or embedded:LANGUAGES")
    if not suffix_of(path.name):
        raise InputError(f"{text} is of an unknown kind; known are {', '.join(SUFFIXES)}")
    if not path.is_file():
        raise InputError(f"{text} is not a regular file; save its content as a file")
    return [text]


def _files_below(top: str) -> list[str]:
    found: list[str] = []
    left_out: dict[str, list[str]] = {}
    seen = set()
    for folder, folders, names in os.walk(top, followlinks=True, onerror=_unreadable):
        place = os.stat(folder)
        if any(Path(folder, name).exists() for name in OURS) or (place.st_dev, place.st_ino) in seen:
            what = "folders that were read under another name" if (place.st_dev, place.st_ino) in seen else "made by glyphlm"
            left_out.setdefault(what, []).append(folder)
            folders.clear()
            continue
        seen.add((place.st_dev, place.st_ino))
        left_out.setdefault("hidden", []).extend(name for name in folders if name.startswith("."))
        # Links last, so that a folder that is also linked is read under its own name.
        folders[:] = sorted((name for name in folders if not name.startswith(".")),
                            key=lambda name: (os.path.islink(os.path.join(folder, name)), name))
        for name in names:
            path = Path(folder, name)
            if not name.startswith(".") and suffix_of(name) and path.is_file():
                found.append(str(path))
            else:
                left_out.setdefault("hidden" if name.startswith(".") else "of other kinds", []).append(str(path))
    if not found:
        raise InputError(f"{top} holds no {', '.join(SUFFIXES)} file{_in_words(left_out, ' (left out: {})')}")
    _say_once(f"{top}: {len(found):,} files{_in_words(left_out, '; left out: {}')}" if any(left_out.values()) else "")
    return sorted(found)


def _unreadable(error: OSError) -> None:
    raise InputError(f"{error.filename} cannot be searched ({error.strerror}); make it readable, or name its files")


def _in_words(left_out: dict[str, list[str]], form: str) -> str:
    parts = [f"{len(names):,} {what} ({', '.join(sorted(names)[:3])}{', ..' if len(names) > 3 else ''})"
             for what, names in left_out.items() if names]
    return form.format(", ".join(parts)) if parts else ""


@cache
def _say_once(message: str) -> None:
    if message:
        say(message)
