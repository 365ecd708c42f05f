"""Texts -> a file of n-gram statistics, counted source by source into a folder of partial counts; reading that file.

The file has the published shape (arXiv 2507.04886, the bvv241 builders), one Python literal:
[{'lang': 'en', 'language_name': 'English', 'top_ngrams': {2: [('th', 3464625), ...], 3: [...]}}, ...].

Each source (file or data set) is counted once, into one file of `OUT.parts`, which bears the digest of its bytes and of
the settings. So a stopped run continues with what is missing; the result is the same for any number of jobs and any order
of the texts; and machines can share the work: count some texts on each, put the files of all their .parts folders into
one, and run the command with all the texts there: every source is already counted.
"""

import ast
import hashlib
import io
import itertools
import re
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial, reduce
from pathlib import Path
from typing import Any

import numpy as np

from glyphlm.base.errors import InputError
from glyphlm.base.jobs import Engine, share_out
from glyphlm.base.names import BUILD
from glyphlm.base.outputs import Build, one_writer, write_atomic
from glyphlm.base.progress import say
from glyphlm.base.records import SURROGATE, to_json
from glyphlm.corpus.cldr import language_name
from glyphlm.corpus.reading import STRICT, Passage, Reading, passages
from glyphlm.corpus.sources import digests, find_sources, size_of, suffix_of
from glyphlm.tokenizer.ngrams import NgramCounts, NgramTable
from glyphlm.tokenizer.settings import NgramSettings

# The shape as `repr` writes it. Possessive repeats (*+) never backtrack: a file of another shape is refused at once.
STRING = r"""(?:'(?:[^'\\\n\r\0]|\\[^\n\r\0])*+'|"(?:[^"\\\n\r\0]|\\[^\n\r\0])*+")"""
NUMBER = r"(?:0|[1-9][0-9]{0,17})"
NEXT = r"(?:, |(?=[\]}]))"
PAIR = rf"\(({STRING}), ({NUMBER})\)"
TABLE = rf"({NUMBER}): \[((?:{PAIR}{NEXT})*+)\]"
LANGUAGE = rf"\{{'lang': ({STRING}), 'language_name': ({STRING}), 'top_ngrams': \{{((?:{TABLE}{NEXT})*+)\}}\}}"
FILE = rf"\[(?:{LANGUAGE}{NEXT})*+\]\s*+"
KEYS = ("lang", "language_name", "top_ngrams")


@dataclass(frozen=True)
class LanguageNgrams:
    """One language: n -> its n-grams with their counts, most frequent first."""

    lang: str
    language_name: str
    top_ngrams: dict[int, list[tuple[str, int]]]


def write_ngrams(path: Path, languages: Sequence[LanguageNgrams]) -> None:
    """Write the statistics in the published format: a published file that is read and written again has the same bytes."""
    write_atomic(path, repr([vars(language) for language in languages]))


def read_ngrams(path: Path) -> list[LanguageNgrams]:
    """The languages of a file of n-gram statistics, in its order.

    Raises:
        InputError: the file does not exist, is not a Python literal, or has another shape; the place is named.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path} does not exist; give a file that glyphlm tokenizer ngrams wrote, or a published one")
    try:
        rows = parse_literal(path.read_text(encoding="utf-8-sig"))
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 at byte {error.start}; give a file of n-gram statistics") from None
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError) as error:
        reason = str(error) or "nested too deeply"
        raise InputError(f"{path} is not a Python literal ({reason}); give a file of n-gram statistics") from None
    fault = _fault(rows)
    if fault:
        raise InputError(f"{path}: {fault}; make it again with glyphlm tokenizer ngrams")
    return [LanguageNgrams(**{key: row[key] for key in KEYS}) for row in rows]


def parse_literal(text: str) -> Any:
    """What ast.literal_eval gives, but 10 times as fast and in a tenth of the memory for text of the published shape."""
    if not re.fullmatch(FILE, text):
        return ast.literal_eval(text)
    return [
        {"lang": _string(lang), "language_name": _string(name), "top_ngrams": _tables(tables)}
        for lang, name, tables, *_ in re.findall(LANGUAGE, text)
    ]


def _tables(tables: str) -> dict[int, list[tuple[str, int]]]:
    return {
        int(n): [(_string(gram), int(count)) for gram, count in re.findall(PAIR, pairs)]
        for n, pairs, *_ in re.findall(TABLE, tables)
    }


def _string(literal: str) -> str:
    return ast.literal_eval(literal) if "\\" in literal else literal[1:-1]


def _fault(rows: Any) -> str | None:
    """The first place where `rows` is not of the published shape."""
    if not isinstance(rows, list) or not rows:
        return "it is not a list of languages"
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict) or set(row) != set(KEYS):
            return f"language {number} does not have exactly the keys {', '.join(KEYS)}"
        if not isinstance(row["lang"], str) or not isinstance(row["language_name"], str):
            return f"language {number} has no text as its lang and language_name"
        if fault := _table_fault(row["top_ngrams"]):
            return f"language {number} ({row['lang']!r}): {fault}"
    return None


def _table_fault(tables: Any) -> str | None:
    if not isinstance(tables, dict):
        return "top_ngrams is not a dictionary of n to n-grams"
    for n, pairs in tables.items():
        if type(n) is not int or n < 1 or not isinstance(pairs, list):
            return f"top_ngrams of {n!r} is not a list of n-grams of a whole number n"
        for number, pair in enumerate(pairs, start=1):
            if not _is_pair(pair, n):
                return f"{n}-gram {number} is {pair!r:.60}, not (a text of {n} characters, its whole count)"
    return None


def _is_pair(pair: Any, n: int) -> bool:
    if not isinstance(pair, tuple) or [type(part) for part in pair] != [str, int]:
        return False
    text, count = pair
    return len(text) == n and count > 0 and not SURROGATE.search(text)


RULES_VERSION = 1  # to be raised with every change of word rules or partial files, so that old ones are not found
DAMAGED = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error)  # what such a file raises


def count_ngrams(
    texts: Mapping[str, Sequence[str]],
    settings: NgramSettings,
    out: Path,
    reading: Reading = STRICT,
    jobs: int = 1,
    engine: Engine | None = None,
) -> list[LanguageNgrams]:
    """Count the n-grams of the `texts` of each language code, in `jobs` processes or on `engine`, and write them to `out`.

    Raises:
        InputError: a text is missing or damaged, a language has no words, or `out` holds something else.
    """
    if jobs < 1:
        raise InputError(f"jobs {jobs} is less than 1; give the number of processes that count")
    out = Path(out)
    if not out.name or out.is_dir():
        raise InputError(f"{out} is a folder; name the file of statistics to write, such as {out / 'ngrams.txt'}")
    folder = out.with_name(f"{out.name}.parts")
    with one_writer(folder):
        sources = {lang: find_sources(given) for lang, given in texts.items()}
        found = digests(dict.fromkeys(itertools.chain(*sources.values())))
        named = {source: source if digest == "hub" else digest for source, digest in found.items()}
        parts = {source: folder / _part_name(source, digest, settings, reading) for source, digest in named.items()}
        missing = {part: source for source, part in parts.items() if not part.exists()}
        if out.exists() and missing:
            raise InputError(f"{out} exists, but not all of these texts are counted; choose another --out or remove it")
        folder.mkdir(parents=True, exist_ok=True)
        count = partial(_count_source, settings=settings, reading=reading)
        if engine and missing:
            engine(count, [*missing.items()])
        else:
            _count_here(count, missing, jobs)
        languages = [_language(lang, [parts[source] for source in given], settings) for lang, given in sources.items()]
        record = Build("ngrams", asdict(settings) | reading.settings(), {"languages": sources, "sources": named})
        write_atomic(folder / BUILD, to_json(asdict(record)))
        _write_once(out, languages)
    return languages


def _part_name(source: str, digest: str, settings: NgramSettings, reading: Reading) -> str:
    kind = suffix_of(source) or "hub"
    asked = asdict(settings) | reading.settings() | {"source": digest, "kind": kind, "version": RULES_VERSION}
    del asked["top"]  # a part holds all n-grams
    return f"{hashlib.sha256(to_json(asked).encode()).hexdigest()[:24]}.npz"


def _count_here(count: Callable[..., None], missing: Mapping[Path, str], jobs: int) -> None:
    """Count in `jobs` processes, the largest sources first, so that all end at about the same time."""
    if jobs == 1:
        for number, (part, source) in enumerate(missing.items(), start=1):
            count(part, source, title=f"counting {number} of {len(missing)}")
    elif missing:
        order = sorted(missing.items(), key=lambda item: size_of(item[1]), reverse=True)
        share_out(count, order, min(jobs, len(missing)), "counting", [size_of(source) for _, source in order])


def _count_source(part: Path, source: str, settings: NgramSettings, reading: Reading, title: str | None = None) -> None:
    if part.exists():
        return  # a cluster may start a task twice
    counts = NgramCounts(settings.scripts, settings.sizes)
    for text in _sampled(passages([source], reading, title), settings):
        counts.add(text)
    _write_part(part, counts.tables())


def _sampled(stream: Iterable[Passage], settings: NgramSettings) -> Iterator[str]:
    """The texts of the sampled documents; the first passage of a document decides."""
    taken = begins = True
    for text, last in stream:
        if begins:
            taken = settings.sample == 1 or _is_taken(text, settings)
        begins = last
        if taken:
            yield text


def _is_taken(text: str, settings: NgramSettings) -> bool:
    digest = hashlib.blake2b(f"{settings.seed} {text}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") < settings.sample * 2**64


def _write_part(part: Path, tables: Mapping[int, NgramTable]) -> None:
    arrays = {}
    for n, table in tables.items():
        arrays |= {f"keys_{n}": np.stack(table.keys_KG), f"counts_{n}": table.counts_G, f"lost_{n}": np.int64(table.lost)}
    data = io.BytesIO()
    np.savez_compressed(data, **arrays)
    write_atomic(part, data.getvalue())


def _read_table(part: Path, n: int) -> NgramTable:
    try:
        with part.open("rb") as file, np.load(file) as arrays:
            return NgramTable(list(arrays[f"keys_{n}"]), arrays[f"counts_{n}"], int(arrays[f"lost_{n}"]))
    except DAMAGED:
        raise InputError(f"{part} is damaged; remove it, and it is counted again") from None


def _language(lang: str, parts: Sequence[Path], settings: NgramSettings) -> LanguageNgrams:
    """The sum of all parts, in an order that does not depend on the order of the texts."""
    top_ngrams = {}
    for n in settings.sizes:
        table = reduce(NgramTable.merge, (_read_table(part, n) for part in sorted(parts)))
        top_ngrams[n] = table.top(n, settings.top)
        if table.lost and top_ngrams[n]:
            say(f"{lang}: counts of {n}-grams may be up to {table.lost} too low, because there were too many to hold; "
                f"the last one written has {top_ngrams[n][-1][1]}")
    if not any(top_ngrams.values()):
        raise InputError(f"{lang}: no word of {settings.sizes[0]} letters was found; give more text or a larger --sample")
    return LanguageNgrams(lang, language_name(lang), top_ngrams)


def _write_once(out: Path, languages: Sequence[LanguageNgrams]) -> None:
    if not out.exists():
        write_ngrams(out, languages)
    elif read_ngrams(out) != languages:
        raise InputError(f"{out} already holds other n-grams; choose another --out or remove it")
