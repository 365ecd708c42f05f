"""Every kind of file gives the same documents, bad input is named by its place, and memory stays bounded."""

import bz2
import gzip
import json
import lzma
import random
import re
import tracemalloc
from pathlib import Path

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from glyphlm.base.errors import InputError
from glyphlm.corpus import reading as corpus
from glyphlm.corpus.phrasebook import chosen
from glyphlm.corpus.reading import PASSAGE_CHARS, Passage, Reading, passages

DOCUMENTS = ["First.\r\nSecond line.", "Второй", "第三\u2028个 😀", "a\x00b"]
REPLACE = Reading(errors="replace")


def read(*paths, reading=corpus.STRICT):
    """The whole documents of `paths`."""
    documents, parts = [], []
    for text, last in passages([str(path) for path in paths], reading):
        parts.append(text)
        if last:
            documents.append("".join(parts))
            parts = []
    assert not parts
    return documents


PACKINGS = {
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": lambda data: pyarrow.compress(data, "zstd", asbytes=True),
}


def pack(data, name):
    return PACKINGS.get(Path(f"x{name}").suffix.lower(), bytes)(data)


def write(path, data):
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(pack(data, path.name))
    return path


def lines(documents=DOCUMENTS, field="text"):
    return "".join(json.dumps({field: text}, ensure_ascii=False) + "\n" for text in documents).encode()


def write_parquet(path, documents=DOCUMENTS, field="text"):
    pyarrow.parquet.write_table(pyarrow.table({"id": range(len(documents)), field: documents}), path)
    return path


def refusal(*paths, reading=corpus.STRICT):
    with pytest.raises(InputError) as caught:
        read(*paths, reading=reading)
    return str(caught.value)


# Kinds of files


@pytest.mark.parametrize("suffix", ["", *PACKINGS])
def test_json_lines_hold_a_document_a_line(tmp_path, suffix):
    assert read(write(tmp_path / f"a.jsonl{suffix}", lines())) == DOCUMENTS


@pytest.mark.parametrize("suffix", ["", *PACKINGS, ".GZ"])
def test_plain_text_is_one_document_with_every_character(tmp_path, suffix):
    assert read(write(tmp_path / f"a.txt{suffix}", "".join(DOCUMENTS).encode())) == ["".join(DOCUMENTS)]


def test_parquet_holds_a_document_a_row(tmp_path):
    assert read(write_parquet(tmp_path / "a.parquet")) == DOCUMENTS


def test_sources_come_in_the_order_given(tmp_path):
    first, second = write(tmp_path / "b.txt", b"1"), write(tmp_path / "a.txt", b"2")
    assert read(first, second) == ["1", "2"]


def test_only_the_last_suffix_decides_the_kind(tmp_path):
    assert read(write(tmp_path / "notes.txt.jsonl", lines())) == DOCUMENTS


@pytest.mark.parametrize("suffix", PACKINGS)
def test_compressed_parts_one_after_another_are_one_file(tmp_path, suffix):
    path = tmp_path / f"a.jsonl{suffix}"
    path.write_bytes(b"".join(pack(part, suffix) for part in (lines(), b"", lines())))
    assert read(path) == DOCUMENTS * 2


def test_a_byte_order_mark_is_not_text(tmp_path):
    mark = b"\xef\xbb\xbf"
    paths = write(tmp_path / "a.txt", mark + b"a" + mark), write(tmp_path / "a.jsonl", mark + lines())
    assert read(*paths) == ["a\ufeff", *DOCUMENTS]


def test_blank_json_lines_are_no_documents(tmp_path):
    assert read(write(tmp_path / "a.jsonl", b"\n" + lines().replace(b"\n", b"\r\n  \r\n"))) == DOCUMENTS


def test_an_empty_document_among_others_is_kept(tmp_path):
    assert read(write(tmp_path / "a.jsonl", lines(["", "a", ""]))) == ["", "a", ""]


def test_the_text_field_is_named_by_the_reader(tmp_path):
    reading = Reading(text_field="body")
    paths = write(tmp_path / "a.jsonl", lines(field="body")), write_parquet(tmp_path / "a.parquet", field="body")
    assert read(*paths, reading=reading) == DOCUMENTS * 2


def test_escaped_halves_of_a_pair_become_their_character(tmp_path):
    assert read(write(tmp_path / "a.jsonl", rb'{"text": "\ud83d\ude00"}')) == ["😀"]


# The embedded phrase book


def test_the_phrase_book_is_read_by_language():
    found = read("embedded:en,zh")
    assert found == chosen("en,zh") and len(found) > 1000


def test_what_the_phrase_book_does_not_have_is_refused():
    assert refusal("embedded:en,fr").startswith("the embedded phrase book has no fr; it has en, ru, zh, text, qa")


# Long text


@pytest.mark.parametrize("kind", ["txt", "jsonl", "parquet"])
def test_a_long_document_comes_in_pieces_that_join_to_it(tmp_path, kind):
    text, path = "длинный 文\n" * (PASSAGE_CHARS // 8), tmp_path / f"a.{kind}"
    match kind:
        case "txt":
            write(path, text.encode())
        case "jsonl":
            write(path, lines([text]))
        case "parquet":
            write_parquet(path, [text])
    found = list(passages([str(path)]))
    assert "".join(passage.text for passage in found) == text
    assert [passage.last for passage in found] == [False] * (len(found) - 1) + [True] and len(found) > 1
    assert max(len(passage.text) for passage in found) <= PASSAGE_CHARS


@pytest.mark.parametrize("before", range(4))
def test_a_character_cut_by_a_block_border_is_whole(tmp_path, before):
    text = "a" * (PASSAGE_CHARS - before) + "😀b"
    assert read(write(tmp_path / "a.txt", text.encode())) == [text]


def test_memory_does_not_grow_with_the_file(tmp_path):
    path, block = tmp_path / "a.txt", "Ж".encode() * 500_000
    with path.open("wb") as file:
        file.writelines(block for _ in range(60))
    tracemalloc.start()
    try:
        characters = sum(len(passage.text) for passage in passages([str(path)]))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert characters == 30_000_000 and peak < 5_000_000


# Bytes that are not UTF-8


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
@pytest.mark.parametrize("offset", [0, 5, PASSAGE_CHARS - 1, PASSAGE_CHARS, 2 * PASSAGE_CHARS + 1001])
def test_bad_bytes_of_plain_text_are_named_by_their_offset(tmp_path, suffix, offset):
    path = write(tmp_path / f"a.txt{suffix}", b"a" * offset + b"\xff rest")
    assert refusal(path).startswith(f"{path} is not UTF-8 at byte {offset};")


def test_a_bad_character_across_a_block_border_is_named_by_its_first_byte(tmp_path):
    offset = PASSAGE_CHARS - 2
    path = write(tmp_path / "a.txt", b"a" * offset + "😀".encode()[:3] + b"a")
    assert f"at byte {offset};" in refusal(path)


def test_a_character_cut_by_the_end_of_the_file_is_named(tmp_path):
    assert "at byte 3;" in refusal(write(tmp_path / "a.txt", b"abc" + "中".encode()[:2]))


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_bad_bytes_of_json_lines_are_named_by_their_offset_in_the_file(tmp_path, suffix):
    path = write(tmp_path / f"a.jsonl{suffix}", lines() + b'{"text": "\xff"}\n')
    assert f"{path} is not UTF-8 at byte {len(lines()) + 10};" in refusal(path)


def test_bad_bytes_can_be_replaced(tmp_path):
    paths = write(tmp_path / "a.txt", b"a\xffb"), write(tmp_path / "a.jsonl", b'{"text": "a\xffb"}')
    assert read(*paths, reading=REPLACE) == ["a\ufffdb"] * 2


def test_half_a_character_pair_is_refused_with_its_line(tmp_path):
    path = write(tmp_path / "a.jsonl", lines() + rb'{"text": "ab\ud800"}')
    assert refusal(path).startswith(f"{path}:5 has half of a character pair (a lone surrogate) at 2;")


def test_half_a_character_pair_can_be_replaced(tmp_path):
    path = write(tmp_path / "a.jsonl", rb'{"text": "\udc00a\ud800b\ud800"}')
    assert read(path, reading=REPLACE) == ["\ufffda\ufffdb\ufffd"]


def test_parquet_text_that_is_not_utf8_is_refused_with_the_file(tmp_path):
    offsets = pyarrow.py_buffer((0).to_bytes(4, "little") + (2).to_bytes(4, "little"))
    column = pyarrow.Array.from_buffers(pyarrow.string(), 1, [None, offsets, pyarrow.py_buffer(b"a\xff")])
    pyarrow.parquet.write_table(pyarrow.table({"text": column}), tmp_path / "a.parquet")
    assert f"{tmp_path / 'a.parquet'} holds text that is not UTF-8" in refusal(tmp_path / "a.parquet")


# Files that cannot be used


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.txt.gz", "a.jsonl.zst"])
def test_an_empty_file_is_refused_with_its_name(tmp_path, name):
    full, empty = write(tmp_path / "full.txt", b"a"), write(tmp_path / name, b"")
    assert refusal(full, empty).startswith(f"{empty} holds no text;")


def test_documents_without_a_character_are_not_text(tmp_path):
    assert "holds no text" in refusal(write(tmp_path / "a.jsonl", lines(["", ""])))


@pytest.mark.parametrize("line", [b"{", b"text", b"[" * 200_000, b'{"n": ' + b"1" * 5000 + b"}"])
def test_what_is_not_json_is_refused_with_its_line(tmp_path, line):
    path = write(tmp_path / "a.jsonl", lines() + b"\n" + line)
    assert refusal(path).startswith(f"{path}:6 is not JSON (")


@pytest.mark.parametrize(("line", "has"), [
    (b'{"title": "a", "body": "b"}', "body, title"),
    (b'{"text": 7}', "text"),
    (b'["a"]', "list"),
])  # fmt: skip
def test_a_line_without_the_text_field_is_refused_with_what_it_has(tmp_path, line, has):
    path = write(tmp_path / "a.jsonl", lines() + line)
    assert refusal(path) == f"{path}:5 has no text in 'text' (it has: {has}); name it with --text-field"


def test_a_parquet_file_without_the_column_is_refused_with_its_columns(tmp_path):
    assert "has no column 'text' (it has: id, body)" in refusal(write_parquet(tmp_path / "a.parquet", field="body"))


def test_a_parquet_row_without_text_is_refused_with_its_number(tmp_path):
    assert "a.parquet row 2 has null in 'text'" in refusal(write_parquet(tmp_path / "a.parquet", ["a", None]))


@pytest.mark.parametrize("write_rows", [write_parquet, lambda path, rows: write(path.with_suffix(".jsonl"), lines(rows))])
def test_rows_of_null_are_refused_or_left_out_with_blank_ones(tmp_path, write_rows, capsys):
    path = write_rows(tmp_path / "a.parquet", ["a", None, "", " \n", "b"])
    assert re.search(r"(:| row )2 has null in 'text'; .*--skip-empty", refusal(path))
    assert read(path, reading=Reading(skip_empty=True)) == ["a", "b"]
    assert f"{path}: 3 rows without text are left out" in capsys.readouterr().err


def test_rows_without_the_field_are_no_empty_rows(tmp_path):
    path = write(tmp_path / "a.jsonl", lines() + b'{"body": null}')
    assert "has no text in 'text'" in refusal(path, reading=Reading(skip_empty=True))


def test_a_source_of_empty_rows_alone_is_refused(tmp_path):
    assert "holds no text" in refusal(write(tmp_path / "a.jsonl", lines([None, ""])), reading=Reading(skip_empty=True))


def test_an_empty_field_name_is_refused():
    with pytest.raises(InputError, match="text_field is empty"):
        Reading(text_field="")


@pytest.mark.parametrize("suffix", [f"{kind}{packing}" for kind in (".txt", ".jsonl") for packing in PACKINGS])
@pytest.mark.parametrize("lost", [1, 1000])
def test_a_compressed_file_that_was_cut_off_is_refused(tmp_path, suffix, lost):
    path = tmp_path / f"a{suffix}"
    noise = random.Random(1)
    documents = ["".join(noise.choices("abcdefghijklmnop", k=1000)) for _ in range(500)]
    path.write_bytes(pack(lines(documents), suffix)[:-lost])
    assert refusal(path).startswith(f"{path} is damaged or cut off (")


@pytest.mark.parametrize("suffix", PACKINGS)
def test_a_file_that_only_claims_to_be_compressed_is_refused(tmp_path, suffix):
    path = tmp_path / f"a.txt{suffix}"
    path.write_bytes(b"plain text")
    assert refusal(path).startswith(f"{path} is damaged or cut off (")


@pytest.mark.parametrize("damage", ["none of it", "cut off", "flipped"])
def test_a_damaged_parquet_file_is_refused(tmp_path, damage):
    path = write_parquet(tmp_path / "a.parquet", [f"{number} " * 100 for number in range(500)])
    data = path.read_bytes()
    broken = {"none of it": b"", "cut off": data[:1000], "flipped": data[:2000] + bytes(4000) + data[6000:]}
    path.write_bytes(broken[damage])
    assert refusal(path).startswith(f"{path} is not a readable parquet file (")


def test_a_line_that_cannot_be_held_is_refused_with_its_number(tmp_path, monkeypatch):
    monkeypatch.setattr(corpus, "MAX_LINE_BYTES", 100)
    path = write(tmp_path / "a.jsonl", lines(["a", "b" * 200]))
    assert refusal(path).startswith(f"{path}:2 is longer than 100 bytes;")


# Data sets of the Hub


@pytest.fixture
def hub(monkeypatch):
    """A Hub that keeps what it was asked for and answers with `hub.rows`, which may be an error."""

    class Hub:
        rows = [{"text": text} for text in DOCUMENTS]
        asked = None

        def load_dataset(self, name, config, **options):
            self.asked = name, config, options
            if isinstance(self.rows, Exception):
                raise self.rows
            return iter(self.rows)

    fake = Hub()
    monkeypatch.setattr(datasets, "load_dataset", fake.load_dataset)
    return fake


@pytest.mark.parametrize(("source", "name", "config", "split"), [
    ("hf:org/name", "org/name", None, "train"),
    ("hf:org/name:en", "org/name", "en", "train"),
    ("hf:org/name:en:test", "org/name", "en", "test"),
    ("hf:org/name::test", "org/name", None, "test"),
])  # fmt: skip
def test_a_data_set_is_streamed_by_its_name(hub, source, name, config, split):
    assert read(source) == DOCUMENTS
    assert hub.asked == (name, config, {"split": split, "streaming": True})


def test_a_data_set_is_read_row_by_row(hub):
    def rows():
        yield {"text": "first"}
        raise AssertionError("read ahead")

    hub.rows = rows()
    assert next(passages(["hf:name"])) == Passage("first", True)


@pytest.mark.parametrize("error", [OSError("no network\nat all"), ValueError("no network"), ConnectionError()])
def test_a_data_set_that_cannot_be_reached_is_refused_with_its_name(hub, error):
    hub.rows = error
    reason = "no network" if str(error) else "ConnectionError"
    expected = f"hf:org/name cannot be read ({reason}); check the name, the configuration and the network"
    assert refusal("hf:org/name") == expected


def test_a_row_without_text_is_refused_with_its_number(hub):
    hub.rows = [{"text": "a"}, {"body": "b"}]
    assert refusal("hf:name").startswith("hf:name row 2 has no text in 'text' (it has: body)")
