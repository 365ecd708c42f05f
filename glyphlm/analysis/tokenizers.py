"""Comparison of tokenizers on the same texts: compression, unknown tokens, lossless decoding, speed."""

import hashlib
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from glyphlm.base.errors import InputError
from glyphlm.base.outputs import Build
from glyphlm.base.records import read_json_lines, to_lines
from glyphlm.base.tables import aligned
from glyphlm.corpus.reading import STRICT, Passage, Reading, passages
from glyphlm.corpus.sources import describe, find_sources
from glyphlm.tokenizer.tokenizer import Tokenizer

MB = 1_000_000
ROWS, PLOT = "compare.jsonl", "compare.svg"
COLUMNS = {  # of the table: key of a row -> head, format
    "language": ("language", ""),
    "tokenizer": ("tokenizer", ""),
    "characters": ("characters", ","),
    "bytes": ("bytes", ","),
    "tokens": ("tokens", ","),
    "characters_per_token": ("chars/token", ".3f"),
    "bytes_per_token": ("bytes/token", ".3f"),
    "unknown": ("unknown", ","),
    "documents": ("documents", ","),
    "changed": ("changed", ","),
    "mb_per_second": ("MB/s", ".2f"),
}


def split_inputs(given: Sequence[str]) -> tuple[list[str], dict[str, list[str]]]:
    """Split arguments into tokenizer folders, and texts by language: LANGUAGE=TEXT, else the stem of the file name.

    Raises:
        InputError: there is no tokenizer, or no text.
    """
    folders = [name for name in given if (Path(name) / "tokenizer.json").is_file()]
    texts: dict[str, list[str]] = {}
    for name in given:
        if name not in folders:
            language, text = _language_and_text(name)
            texts.setdefault(language, []).append(text)
    if not folders:
        raise InputError(f"no tokenizer was given: none of {', '.join(given)} is a folder that holds tokenizer.json; make "
                         "one with glyphlm tokenizer build")
    if not texts:
        raise InputError("no text was given besides the tokenizers: name files, folders or hf:NAME data sets")
    return folders, texts


def _language_and_text(name: str) -> tuple[str, str]:
    language, equals, text = name.partition("=")
    if not equals or Path(name).exists():
        return Path(name).name.partition(".")[0] or name, name
    if not language or not text:
        raise InputError(f"{name!r} is not LANGUAGE=TEXT; give such as en=english.txt")
    return language, text


def compare(
    folders: Sequence[str],
    texts: Mapping[str, Sequence[str]],
    limit_mb: float | None = None,
    out: Path | None = None,
    reading: Reading = STRICT,
) -> list[dict[str, Any]]:
    """A row per language and tokenizer, also written with a plot to the folder `out`; finished results are reused.

    Args:
        folders: Tokenizers, ours or any with a tokenizer.json.
        texts: Language -> files, folders or data sets, which are read as one text.
        limit_mb: Megabytes read per language; by default all.

    Raises:
        InputError: a tokenizer or a text is bad or empty, the limit is not positive, or `out` holds something else.
    """
    if limit_mb is not None and not limit_mb > 0:
        raise InputError(f"limit_mb {limit_mb} is not above 0; give the megabytes of each language that are to be read")
    sources = {language: find_sources(given) for language, given in texts.items()}
    tokenizers = named(folders)
    fingerprints = {name: Tokenizer.load(folder).fingerprint for name, folder in tokenizers.items()}
    if out is None:
        return _rows(tokenizers, sources, limit_mb, reading)
    read = {language: describe(found) for language, found in sources.items()}
    build = Build("comparison", {"limit_mb": limit_mb, **reading.settings()}, {"tokenizers": fingerprints, "texts": read})
    if not build.is_done(out):
        from glyphlm.analysis.plots import draw_bars  # needs the extra report: refused before the work

        with build.folder(out) as partial:
            _write(partial, _rows(tokenizers, sources, limit_mb, reading), draw_bars)
    return read_json_lines(out / ROWS)


def named(folders: Sequence[str]) -> dict[str, str]:
    """Name -> folder: the last part of the path, or the whole path if it is not unique."""
    short = {folder: Path(folder).resolve().name for folder in folders}
    alone = {folder for folder, name in short.items() if list(short.values()).count(name) == 1}
    return {short[folder] if folder in alone else folder: folder for folder in short}


def _rows(
    tokenizers: Mapping[str, str], sources: Mapping[str, Sequence[str]], limit_mb: float | None, reading: Reading
) -> list[dict[str, Any]]:
    """All rows, ordered by language; tokenizers are loaded one at a time: a large one takes 300 MB with its cache."""
    rows = []
    for name, folder in tokenizers.items():
        tokenizer = Tokenizer.load(folder)
        for language, found in sources.items():
            stream = limited(passages(found, reading, f"{language} {name}"), limit_mb)
            row = {"language": language, "tokenizer": name, **count_tokens(tokenizer, stream)}
            if not row["tokens"]:
                raise InputError(f"tokenizer {name} makes no token of {', '.join(found)}; leave one of the two out")
            per_token = {f"{unit}_per_token": row[unit] / row["tokens"] for unit in ("characters", "bytes")}
            rows.append(row | per_token)
    return sorted(rows, key=lambda row: list(sources).index(row["language"]))


def limited(stream: Iterable[Passage], limit_mb: float | None) -> Iterator[Passage]:
    """The passages up to `limit_mb` megabytes; the last document ends with the passage that reaches them."""
    left = float("inf") if limit_mb is None else limit_mb * MB
    for text, last in stream:
        left -= len(text.encode())
        yield Passage(text, last or left <= 0)
        if left <= 0:
            return


def count_tokens(tokenizer: Tokenizer, stream: Iterable[Passage]) -> dict[str, Any]:
    """Counts of a text and its tokens, the documents that decoding does not restore (`changed`), and the encoding speed.

    Memory is bounded as in `Tokenizer.encode_passages`. The speed excludes reading and decoding.
    """
    list(tokenizer.encode_passages([Passage("\n", True)]))  # warm-up
    given, restored, unknown_id = Documents(), Documents(), tokenizer.unknown_id
    source = Timed(given.passing(stream))
    pieces = Timed(tokenizer.encode_passages(source))
    tokens = unknown = changed = 0
    for ids, last in pieces:
        tokens += len(ids)
        unknown += int(np.count_nonzero(ids == unknown_id))
        restored.add(tokenizer.decode(ids.tolist()), last)
        if last:
            changed += given.digests.popleft() != restored.digests.popleft()
    counts = {"documents": given.count, "characters": given.characters, "bytes": given.bytes, "tokens": tokens}
    speed = given.bytes / MB / (pieces.seconds - source.seconds)
    return {**counts, "unknown": unknown, "changed": changed, "mb_per_second": round(speed, 3)}


class Timed(Iterator[Any]):
    """An iterator that measures the seconds spent in the stream it wraps."""

    def __init__(self, stream: Iterable[Any], clock: Callable[[], float] = time.perf_counter):
        self._stream, self._clock, self.seconds = iter(stream), clock, 0.0

    def __next__(self) -> Any:
        begun = self._clock()
        try:
            return next(self._stream)
        finally:
            self.seconds += self._clock() - begun


class Documents:
    """Counts and a digest of each document of a stream of passages: two streams are compared without being stored."""

    def __init__(self):
        self.count = self.characters = self.bytes = 0
        self.digests: deque[bytes] = deque()
        self._open = hashlib.blake2b()

    def passing(self, stream: Iterable[Passage]) -> Iterator[Passage]:
        """Yield the passages of a stream while counting them."""
        for passage in stream:
            self.add(*passage)
            yield passage

    def add(self, text: str, last: bool) -> None:
        """Count a passage; `last` marks the end of its document."""
        data = text.encode()
        self.characters += len(text)
        self.bytes += len(data)
        self._open.update(data)
        if last:
            self.count += 1
            self.digests.append(self._open.digest())
            self._open = hashlib.blake2b()


def _write(folder: Path, rows: Sequence[Mapping[str, Any]], draw: Callable[[Any, str], str]) -> None:
    (folder / ROWS).write_text(to_lines(rows), encoding="utf-8")
    bars: dict[str, dict[str, float]] = {}
    for row in rows:
        bars.setdefault(row["tokenizer"], {})[row["language"]] = row["characters_per_token"]
    (folder / PLOT).write_text(draw(bars, "characters per token"), encoding="utf-8")


def table(rows: Iterable[Mapping[str, Any]]) -> str:
    """The rows as aligned text."""
    heads = [head for head, _ in COLUMNS.values()]
    return aligned([heads, *([format(row[key], form) for key, (_, form) in COLUMNS.items()] for row in rows)])
