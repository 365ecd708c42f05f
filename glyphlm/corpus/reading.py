"""Text from anywhere, as a stream of passages: memory stays bounded however long a file or a document is.

A source is a `.txt` file (one document), `.jsonl` (a document a line), either as `.gz`, `.bz2`, `.xz` or `.zst`, `.parquet`
(a document a row), a folder of these, `hf:NAME[:CONFIG][:SPLIT]`, a data set of the Hugging Face Hub, or `embedded:WORDS`,
documents of the phrase book, such as `embedded:en,ru` or `embedded:qa` (see `phrasebook.chosen`).
"""

import bz2
import codecs
import gzip
import io
import itertools
import json
import lzma
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, BinaryIO, Literal, NamedTuple

from glyphlm.base.errors import InputError
from glyphlm.base.names import EMBEDDED, HUB
from glyphlm.base.progress import Meter, meter, say
from glyphlm.corpus.sources import embedded_documents, find_sources, is_data_set, packing_of, size_of, suffix_of


def _unpack_zstd(raw: BinaryIO) -> BinaryIO:
    import pyarrow  # of the extra hub; zstandard's own reader accepts a truncated file silently

    return io.BufferedReader(pyarrow.CompressedInputStream(raw, "zstd"))


UNPACK: dict[str, Callable[[BinaryIO], Any]] = {
    "": lambda raw: raw,
    ".gz": lambda raw: gzip.GzipFile(fileobj=raw),
    ".bz2": bz2.BZ2File,
    ".xz": lzma.LZMAFile,
    ".zst": _unpack_zstd,
}
PASSAGE_CHARS = 1 << 18  # a quarter million characters: small for memory, large against the cost of a call
MAX_LINE_BYTES = 1 << 30  # a JSON line must be held whole to be parsed


class Passage(NamedTuple):
    """A piece of a document, in order; `last` marks the piece that ends its document."""

    text: str
    last: bool


@dataclass(frozen=True)
class Reading:
    """How text is read.

    Args:
        text_field: The JSON key or column name of a document.
        errors: Whether bytes that are not UTF-8 are refused, or replaced by U+FFFD.
        skip_empty: Leave out rows whose text is null or blank; otherwise null is refused and blank text is a document.
    """

    text_field: str = "text"
    errors: Literal["strict", "replace"] = "strict"
    skip_empty: bool = False

    def __post_init__(self) -> None:
        if not self.text_field:
            raise InputError("text_field is empty; give the name of a key or column, such as text")

    def settings(self) -> dict[str, Any]:
        """The settings for build.json; `skip_empty` is included only where it is set, since older records lack it."""
        found = asdict(self)
        return found if self.skip_empty else {key: found[key] for key in ("text_field", "errors")}


STRICT = Reading()


def passages(
    texts: Sequence[str], reading: Reading = STRICT, title: str | None = "reading", skipped: Counter[str] | None = None
) -> Iterator[Passage]:
    """Stream every document of `texts` in order, with a progress bar over the bytes read (none without `title`).

    Rows that `reading` skips are counted by source, in `skipped` or else in one printed line.

    Raises:
        InputError: a source is missing, empty, of an unknown kind or damaged; the place is named.
    """
    sources = find_sources(texts)
    counts = Counter() if skipped is None else skipped
    with meter(title, sum(map(size_of, sources)) or None) as bar:
        for name in sources:
            yield from _not_empty(name, _read(_Source(name, reading, counts, bar)))
            if skipped is None and counts[name]:
                say(f"{name}: {counts[name]:,} rows without text are left out")


def check_sources(sources: Sequence[str], reading: Reading) -> None:
    """Read the beginning of each file, so that most mistakes are found before the work and not in the middle of it.

    Raises:
        InputError: as `passages`.
    """
    with meter(None) as bar:
        for name in sources:
            if not is_data_set(name):
                next(_read(_Source(name, reading, Counter(), bar)), None)


@dataclass
class _Source:
    """One source that is being read, up to `position`: bytes of a file, or documents of a data set, which has no size."""

    name: str
    reading: Reading
    skipped: Counter[str]
    bar: Meter
    position: int = 0

    def advance_to(self, position: int) -> None:
        """Move the progress bar."""
        self.bar.advance(position - self.position)
        self.position = position


class _Row(NamedTuple):
    where: str
    value: Any
    position: int  # bytes (or documents, where bytes are unknown) read when this row has been read


def _read(source: _Source) -> Iterator[Passage]:
    name, suffix = source.name, suffix_of(source.name)
    if name.startswith(EMBEDDED):
        texts = enumerate(embedded_documents(name), 1)
        return _documents((_Row(name, {source.reading.text_field: text}, number) for number, text in texts), source)
    if is_data_set(name):
        return _documents((_Row(where, row, number) for number, (where, row) in enumerate(hub_rows(name), 1)), source)
    if suffix.startswith(".txt"):
        return _read_txt(source)
    return _documents((_parquet_rows if suffix == ".parquet" else _json_rows)(source), source)


def _documents(rows: Iterable[_Row], source: _Source) -> Iterator[Passage]:
    for where, value, position in rows:
        text = _text(value, source.reading, where)
        if source.reading.skip_empty and not text.strip():
            source.skipped[source.name] += 1
        else:
            for start in range(0, max(len(text), 1), PASSAGE_CHARS):
                yield Passage(text[start : start + PASSAGE_CHARS], start + PASSAGE_CHARS >= len(text))
        source.advance_to(position)


def _not_empty(name: str, stream: Iterable[Passage]) -> Iterator[Passage]:
    empty = True
    for passage in stream:
        empty = empty and not passage.text
        yield passage
    if empty:
        raise InputError(f"{name} holds no text; remove it from the list or give another file")


def _text(row: Any, reading: Reading, where: str) -> str:
    key = reading.text_field
    if isinstance(row, dict) and key in row and row[key] is None:
        if reading.skip_empty:
            return ""
        raise InputError(f"{where} has null in {key!r}; give it a text, or leave out such rows with --skip-empty")
    text = row.get(key) if isinstance(row, dict) else None
    if not isinstance(text, str):
        keys = ", ".join(sorted(row)) if isinstance(row, dict) else type(row).__name__
        raise InputError(f"{where} has no text in {key!r} (it has: {keys}); name it with --text-field")
    return _without_surrogates(text, reading, where)


def _without_surrogates(text: str, reading: Reading, where: str) -> str:
    try:
        text.encode()
        return text
    except UnicodeEncodeError as error:
        if reading.errors == "replace":
            return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        raise InputError(f"{where} has half of a character pair (a lone surrogate) at {error.start}; "
                         "fix it, or continue with --errors replace") from None


# Kinds of sources


@dataclass
class Unpacked:
    """An opened, decompressing file; `raw.tell()` is the progress in the file on disk."""

    name: str
    raw: BinaryIO
    plain: Any = field(init=False)

    def __post_init__(self) -> None:
        self.plain = UNPACK[packing_of(self.name)](self.raw)

    def read_block(self, size: int) -> bytes:
        """At most `size` bytes.

        Raises:
            InputError: the file is damaged or cut off.
        """
        return self._guard(lambda: self.plain.read(size))

    def lines(self) -> Iterator[tuple[str, bytes]]:
        """(FILE:LINE, the line with its end); only newlines end a line, since a text may contain Unicode separators.

        Raises:
            InputError: the file is damaged or cut off, or a line longer than MAX_LINE_BYTES.
        """
        for number in itertools.count(1):
            line, where = self._guard(lambda: self.plain.readline(MAX_LINE_BYTES)), f"{self.name}:{number}"
            if len(line) == MAX_LINE_BYTES:
                raise InputError(f"{where} is longer than {MAX_LINE_BYTES} bytes; give such text as .txt")
            if not line:
                return
            yield where, line

    def _guard(self, read: Callable[[], bytes]) -> bytes:
        try:
            return read()
        except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
            raise InputError(f"{self.name} is damaged or cut off ({error}); fetch or compress it again") from None


def _read_txt(source: _Source) -> Iterator[Passage]:
    decoder, offset = codecs.getincrementaldecoder("utf-8")(source.reading.errors), 0
    with open(source.name, "rb") as raw:
        stream = Unpacked(source.name, raw)
        while block := stream.read_block(PASSAGE_CHARS):
            text = _decode(decoder, block, offset, source.name)
            yield Passage(text.removeprefix("\ufeff") if offset == 0 else text, False)
            offset += len(block)
            source.advance_to(raw.tell())
        yield Passage(_decode(decoder, b"", offset, source.name, final=True), True)


def _decode(decoder: codecs.IncrementalDecoder, block: bytes, offset: int, name: str, final: bool = False) -> str:
    pending = len(decoder.getstate()[0])
    try:
        return decoder.decode(block, final)
    except UnicodeDecodeError as error:
        raise _not_utf8(name, offset - pending + error.start) from None


def _not_utf8(name: str, offset: int) -> InputError:
    return InputError(f"{name} is not UTF-8 at byte {offset}; convert it, or continue with --errors replace")


def _json_rows(source: _Source) -> Iterator[_Row]:
    offset = 0
    with open(source.name, "rb") as raw:
        for where, line in Unpacked(source.name, raw).lines():
            if line.strip():
                yield _Row(where, _json(line, source, where, offset), raw.tell())
            offset += len(line)


def _json(line: bytes, source: _Source, where: str, offset: int) -> Any:
    try:
        return json.loads(line.decode("utf-8", source.reading.errors).removeprefix("\ufeff"))
    except UnicodeDecodeError as error:
        raise _not_utf8(source.name, offset + error.start) from None
    except (ValueError, RecursionError) as error:  # not JSON, a number of thousands of digits, or too deep
        raise InputError(f"{where} is not JSON ({error})") from None


def _parquet_rows(source: _Source) -> Iterator[_Row]:
    import pyarrow.parquet  # of the extra hub

    name, key, size = source.name, source.reading.text_field, size_of(source.name)
    try:
        with pyarrow.parquet.ParquetFile(name) as file:
            total = max(file.metadata.num_rows, 1)
            if key not in file.schema_arrow.names:
                raise InputError(f"{name} has no column {key!r} (it has: {', '.join(file.schema_arrow.names)}); "
                                 "name it with --text-field")
            rows = (row for batch in file.iter_batches(64, columns=[key]) for row in batch.to_pylist())
            for number, row in enumerate(rows, 1):
                yield _Row(f"{name} row {number}", row, size * number // total)
    except UnicodeDecodeError:
        raise InputError(f"{name} holds text that is not UTF-8; write the file again") from None
    except (pyarrow.ArrowException, OSError) as error:
        raise InputError(f"{name} is not a readable parquet file ({error})") from None


def hub_rows(source: str, split: str = "train") -> Iterator[tuple[str, Any]]:
    """(place, row) of hf:NAME[:CONFIG][:SPLIT], a data set of the Hugging Face Hub; `split` is the default split.

    Raises:
        InputError: it cannot be read.
    """
    import datasets  # takes seconds to import, and most sources are files

    name, config, named = (source.removeprefix(HUB).split(":") + ["", ""])[:3]
    try:
        rows = datasets.load_dataset(name, config or None, split=named or split, streaming=True)
        for number, row in enumerate(rows, 1):
            yield f"{source} row {number}", row
    except Exception as error:  # of the network, the library or the set: each has classes of its own
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"{source} cannot be read ({reason}); check the name, the configuration and the network") from None
