"""Text from anywhere, as a stream of passages: memory stays bounded however long a file or a document is.

A source is a `.txt` file (one document), `.jsonl` (a document a line), either as `.gz` or `.zst`, `.parquet` (a
document a row), a folder of these, `hf:NAME[:CONFIG][:SPLIT]`, a data set of the Hugging Face Hub, or `embedded:WORDS`,
documents of the phrase book, such as `embedded:en,ru` or `embedded:qa` (see `phrasebook.chosen`).
"""

import codecs
import gzip
import hashlib
import io
import json
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple

import pyarrow
import pyarrow.parquet

from glyphlm.base.errors import InputError
from glyphlm.base.outputs import sha256_file
from glyphlm.base.progress import Meter, meter

SUFFIXES = (".txt", ".jsonl", ".txt.gz", ".jsonl.gz", ".txt.zst", ".jsonl.zst", ".parquet")
PASSAGE_CHARS = 1 << 18  # a quarter million characters: small for memory, large against the cost of a call
MAX_LINE_BYTES = 1 << 30  # a JSON line must be held whole to be parsed
HUB, EMBEDDED = "hf:", "embedded:"


class Passage(NamedTuple):
    """A piece of a document, in order; `last` marks the piece that ends its document."""

    text: str
    last: bool


@dataclass(frozen=True)
class Reading:
    """How text is read: the JSON or column name of a document, and what to do with bytes that are not UTF-8."""

    text_field: str = "text"
    errors: Literal["strict", "replace"] = "strict"


STRICT = Reading()


def passages(texts: Sequence[str], reading: Reading = STRICT, title: str | None = "reading") -> Iterator[Passage]:
    """Stream every document of `texts` in order, with a progress bar over the bytes read (none without `title`).

    Raises:
        InputError: a source is missing, empty, of an unknown kind or damaged; the place is named.
    """
    sources = find_sources(texts)
    sizes = [0 if is_data_set(source) else Path(source).stat().st_size for source in sources]
    with meter(title, sum(sizes) or None) as bar:
        for source, size in zip(sources, sizes):
            yield from _not_empty(source, _read(source, reading, Advance(bar, size)))


def find_sources(texts: Sequence[str]) -> list[str]:
    """Names of all files and data sets in `texts`; folders are searched through, in sorted order.

    Raises:
        InputError: nothing was given, a path does not exist, a file is of an unknown kind, or one is named twice.
    """
    if not texts:
        raise InputError("no text was given: name files, folders, hf:NAME data sets or embedded:LANGUAGES")
    sources = [source for text in texts for source in _expand(text)]
    if len(set(sources)) < len(sources):
        twice = next(source for number, source in enumerate(sources) if source in sources[:number])
        raise InputError(f"{twice} is named twice; name it once (a recipe can weigh sources)")
    return sources


def describe(texts: Sequence[str]) -> dict[str, str]:
    """What identifies the input: name -> sha256 of each file; a data set of the Hub stands for itself."""
    return {source: _digest(source) for source in find_sources(texts)}


def is_data_set(source: str) -> bool:
    """Whether `source` names a data set, of the Hub or embedded, and no file."""
    return source.startswith((HUB, EMBEDDED))


def _digest(source: str) -> str:
    if source.startswith(EMBEDDED):
        return hashlib.sha256("\0".join(_embedded(source)).encode()).hexdigest()  # another release of CLDR says other things
    return "hub" if is_data_set(source) else sha256_file(Path(source))


def _embedded(source: str) -> list[str]:
    from glyphlm.corpus.phrasebook import chosen  # loads CLDR, and most texts are files

    return chosen(source.removeprefix(EMBEDDED))


def _expand(text: str) -> list[str]:
    path = Path(text)
    if is_data_set(text):
        return [text]
    if path.is_dir():
        found = sorted(str(file) for file in path.rglob("*") if file.name.endswith(SUFFIXES) and file.is_file())
        if not found:
            raise InputError(f"{text} holds no {', '.join(SUFFIXES)} file")
        return found
    if not path.exists():
        raise InputError(f"{text} does not exist; give a file, a folder, hf:NAME or embedded:LANGUAGES")
    if not path.name.endswith(SUFFIXES):
        raise InputError(f"{text} is of an unknown kind; known are {', '.join(SUFFIXES)}")
    return [text]


class Advance:
    """Moves the bar by the share of a file's bytes that have been read since the last call."""

    def __init__(self, bar: Meter, size: int):
        self._bar, self._size, self._seen = bar, size, 0

    def to(self, position: int) -> None:
        """`position`: bytes of the file read so far; Hub data sets have no size and count documents."""
        self._bar.advance(position - self._seen)
        self._seen = position


def _read(source: str, reading: Reading, advance: Advance) -> Iterator[Passage]:
    if source.startswith(EMBEDDED):
        return _split_rows((_Row(text, number) for number, text in enumerate(_embedded(source), 1)), advance)
    if is_data_set(source):
        return _split_rows(_hub_rows(source, reading), advance)
    if source.endswith(".parquet"):
        return _split_rows(_parquet_rows(source, reading), advance)
    plain = source.endswith((".txt", ".txt.gz", ".txt.zst"))
    return (_read_txt if plain else _read_jsonl)(source, reading, advance)


def _not_empty(source: str, stream: Iterable[Passage]) -> Iterator[Passage]:
    empty = True
    for passage in stream:
        empty = empty and not passage.text
        yield passage
    if empty:
        raise InputError(f"{source} holds no text; remove it from the list or give another file")


@dataclass
class _Stream:
    """An opened, decompressing file; `raw.tell()` is the progress in the file on disk."""

    name: str
    raw: BinaryIO
    plain: BinaryIO

    def read_block(self, size: int) -> bytes:
        return self._guard(lambda: self.plain.read(size))

    def read_line(self) -> bytes:
        return self._guard(lambda: self.plain.readline(MAX_LINE_BYTES))

    def _guard(self, read: Any) -> bytes:
        try:
            return read()
        except (OSError, EOFError, zlib.error) as error:
            raise InputError(f"{self.name} is damaged or cut off ({error}); fetch or compress it again") from None


def _open(source: str) -> _Stream:
    raw = open(source, "rb")  # closed with the generator that reads it
    if source.endswith(".gz"):
        return _Stream(source, raw, gzip.GzipFile(fileobj=raw))
    if source.endswith(".zst"):
        # zstandard's own reader takes a file that was cut off for a shorter one
        return _Stream(source, raw, io.BufferedReader(pyarrow.CompressedInputStream(raw, "zstd")))
    return _Stream(source, raw, raw)


def _read_txt(source: str, reading: Reading, advance: Advance) -> Iterator[Passage]:
    stream, decoder, offset = _open(source), codecs.getincrementaldecoder("utf-8")(reading.errors), 0
    with stream.raw:
        while block := stream.read_block(PASSAGE_CHARS):
            text = _decode(decoder, block, offset, source)
            yield Passage(text.removeprefix("\ufeff") if offset == 0 else text, False)
            offset += len(block)
            advance.to(stream.raw.tell())
        yield Passage(_decode(decoder, b"", offset, source, final=True), True)


def _decode(decoder: codecs.IncrementalDecoder, block: bytes, offset: int, source: str, final: bool = False) -> str:
    pending = len(decoder.getstate()[0])
    try:
        return decoder.decode(block, final)
    except UnicodeDecodeError as error:
        raise _not_utf8(source, offset - pending + error.start) from None


def _not_utf8(source: str, offset: int) -> InputError:
    return InputError(f"{source} is not UTF-8 at byte {offset}; convert it, or go on with --errors replace")


def _read_jsonl(source: str, reading: Reading, advance: Advance) -> Iterator[Passage]:
    stream, offset, number = _open(source), 0, 0
    with stream.raw:
        while line := stream.read_line():
            number += 1
            if len(line) == MAX_LINE_BYTES:
                raise InputError(f"{source}:{number} is longer than {MAX_LINE_BYTES} bytes; give such text as .txt")
            if line.strip():
                yield from _split(_json_text(line, reading, f"{source}:{number}", source, offset))
            offset += len(line)
            advance.to(stream.raw.tell())


def _json_text(line: bytes, reading: Reading, where: str, source: str, offset: int) -> str:
    try:
        row = json.loads(line.decode("utf-8", reading.errors).removeprefix("\ufeff"))
    except UnicodeDecodeError as error:
        raise _not_utf8(source, offset + error.start) from None
    except (ValueError, RecursionError) as error:  # not JSON, a number of thousands of digits, or too deep
        raise InputError(f"{where} is not JSON ({error})") from None
    return _field(row, reading, where)


def _field(row: Any, reading: Reading, where: str) -> str:
    text = row.get(reading.text_field) if isinstance(row, dict) else None
    if not isinstance(text, str):
        keys = ", ".join(sorted(row)) if isinstance(row, dict) else type(row).__name__
        raise InputError(f"{where} has no text in {reading.text_field!r} (it has: {keys}); name it with --text-field")
    return _without_surrogates(text, reading, where)


def _without_surrogates(text: str, reading: Reading, where: str) -> str:
    try:
        text.encode()
        return text
    except UnicodeEncodeError as error:
        if reading.errors == "replace":
            return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        raise InputError(f"{where} has half of a character pair (a lone surrogate) at {error.start}; "
                         "mend it, or go on with --errors replace") from None


def _split(text: str) -> Iterator[Passage]:
    for start in range(0, max(len(text), 1), PASSAGE_CHARS):
        yield Passage(text[start : start + PASSAGE_CHARS], start + PASSAGE_CHARS >= len(text))


class _Row(NamedTuple):
    text: str
    position: int  # bytes (or documents, where bytes are unknown) read when this row has been read


def _split_rows(rows: Iterable[_Row], advance: Advance) -> Iterator[Passage]:
    for row in rows:
        yield from _split(row.text)
        advance.to(row.position)


def _parquet_rows(source: str, reading: Reading) -> Iterator[_Row]:
    size = Path(source).stat().st_size
    try:
        file = pyarrow.parquet.ParquetFile(source)
        total = max(file.metadata.num_rows, 1)
        if reading.text_field not in file.schema_arrow.names:
            raise InputError(f"{source} has no column {reading.text_field!r} (it has: "
                             f"{', '.join(file.schema_arrow.names)}); name it with --text-field")
        rows = (row for batch in file.iter_batches(64, columns=[reading.text_field]) for row in batch.to_pylist())
        for number, row in enumerate(rows, 1):
            yield _Row(_field(row, reading, f"{source} row {number}"), size * number // total)
    except UnicodeDecodeError:
        raise InputError(f"{source} holds text that is not UTF-8; write the file again") from None
    except (pyarrow.ArrowException, OSError) as error:
        raise InputError(f"{source} is not a readable parquet file ({error})") from None


def _hub_rows(source: str, reading: Reading) -> Iterator[_Row]:
    import datasets  # takes seconds to import, and most corpora are files

    name, config, split = (source.removeprefix(HUB).split(":") + ["", ""])[:3]
    try:
        rows = datasets.load_dataset(name, config or None, split=split or "train", streaming=True)
        for number, row in enumerate(rows, 1):
            yield _Row(_field(row, reading, f"{source} row {number}"), number)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        if isinstance(error, InputError):
            raise
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"{source} cannot be read ({reason}); check the name, the configuration and the network") from None
