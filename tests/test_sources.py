"""Folders give every text that is meant, files are known by their digests, and what is left out is named."""

import os
from pathlib import Path

import pytest

from glyphlm.base.errors import InputError
from glyphlm.base.names import BUILD, TOKENIZER
from glyphlm.corpus.sources import describe, find_sources, suffix_of


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch) -> Path:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path


def write(*names):
    for name in map(Path, names):
        name.parent.mkdir(parents=True, exist_ok=True)
        name.write_text(str(name), encoding="utf-8", errors="surrogateescape")


def refusal(*texts):
    with pytest.raises(InputError) as caught:
        find_sources(texts)
    return str(caught.value)


def test_a_folder_gives_its_files_sorted_at_any_depth():
    write("corpus/e.txt", "corpus/b/d.txt.zst", "corpus/b/c.JSONL.gz", "corpus/A.TXT", "corpus/f.parquet",
          "corpus/g.txt.bz2")
    Path("corpus/named.txt").mkdir()
    assert find_sources(["corpus"]) == [
        f"corpus/{name}" for name in ("A.TXT", "b/c.JSONL.gz", "b/d.txt.zst", "e.txt", "f.parquet", "g.txt.bz2")
    ]


@pytest.mark.parametrize(
    ("name", "suffix"),
    [("a.txt", ".txt"), ("a.TXT", ".txt"), ("a.Jsonl.XZ", ".jsonl.xz"), ("a.txt.jsonl", ".jsonl"), ("a.json", ""),
     ("txt", "")],
)
def test_the_suffix_gives_the_kind_in_small_or_capital_letters(name, suffix):
    assert suffix_of(name) == suffix


def test_linked_folders_are_read_once(place, capsys):
    write("corpus/real/a.txt", "../elsewhere/b.txt")
    Path("corpus/linked").symlink_to(place / "elsewhere")
    Path("corpus/again").symlink_to("real")
    Path("corpus/real/up").symlink_to("..")
    assert find_sources(["corpus"]) == ["corpus/linked/b.txt", "corpus/real/a.txt"]
    assert "2 folders that were read under another name (corpus/again, corpus/real/up)" in capsys.readouterr().err


def test_what_is_left_out_is_named(capsys):
    write("c1/a.txt", "c1/b.json", "c1/.hidden.txt", "c1/.git/c.txt", f"c1/tok/{TOKENIZER}", "c1/tok/vocab.txt",
          f"c1/made/{BUILD}", "c1/made/deep/d.txt")
    Path("c1/gone.txt").symlink_to("nowhere")
    assert find_sources(["c1"]) == ["c1/a.txt"]
    said = capsys.readouterr().err
    for part in ("c1: 1 files", "2 hidden (.git, c1/.hidden.txt)", "2 of other kinds (c1/b.json, c1/gone.txt)",
                 "2 made by glyphlm (c1/made, c1/tok)"):
        assert part in said
    find_sources(["c1"])
    assert capsys.readouterr().err == ""  # once is enough


def test_without_skipped_files_nothing_is_reported(capsys):
    write("c2/a.txt")
    find_sources(["c2"])
    assert capsys.readouterr().err == ""


def test_a_folder_without_text_is_refused_with_what_it_holds():
    write(f"tok/{TOKENIZER}", "tok/vocab.txt", "docs/a.pdf")
    assert "tok holds no .txt" in refusal("tok") and "1 made by glyphlm (tok)" in refusal("tok")
    assert "1 of other kinds (docs/a.pdf)" in refusal("docs")


def test_a_file_of_ours_may_be_named():
    write(f"tok/{TOKENIZER}", "tok/vocab.txt")
    assert find_sources(["tok/vocab.txt"]) == ["tok/vocab.txt"]


@pytest.mark.parametrize("spelling", ["a.txt", "./a.txt", "../here/a.txt", "link.txt", "hard.txt", "."])
def test_one_file_under_two_spellings_is_refused(spelling):
    write("a.txt")
    if spelling == "link.txt":
        Path(spelling).symlink_to("a.txt")
    if spelling == "hard.txt":
        Path(spelling).hardlink_to("a.txt")
    assert "named twice" in refusal("a.txt", spelling) and "a.txt" in refusal("a.txt", spelling)


def test_a_data_set_named_twice_is_refused():
    assert "hf:a is named twice" in refusal("hf:a", "hf:b", "hf:a")


@pytest.mark.parametrize(
    ("text", "fault"),
    [("", "'' does not exist"), ("missing.txt", "missing.txt does not exist"),
     ("a.json", "a.json is of an unknown kind; known"),
     ("pipe.txt", "pipe.txt is not a regular file")],
)  # fmt: skip
def test_what_is_not_text_is_refused_with_its_name(text, fault):
    write("a.json", "b.txt")
    os.mkfifo("pipe.txt")
    assert refusal(text).startswith(fault)


def test_a_folder_that_cannot_be_searched_is_refused(monkeypatch):
    write("corpus/a.txt", "corpus/b/c.txt")
    scan = os.scandir

    def scandir(path):
        if os.fspath(path).endswith("b"):
            raise PermissionError(13, "Permission denied", path)
        return scan(path)

    monkeypatch.setattr(os, "scandir", scandir)
    assert refusal("corpus").startswith("corpus/b cannot be searched (Permission denied); make it readable")


def test_no_source_at_all_is_refused():
    assert "no text was given" in refusal()


def test_a_name_that_is_not_utf8_stays_what_it_is(capsys):
    write(os.fsdecode(b"corpus/caf\xe9.txt"), os.fsdecode(b"corpus/\xff:fire:[b].pdf"))
    assert [os.fsencode(source) for source in find_sources(["corpus"])] == [b"corpus/caf\xe9.txt"]
    assert r"\udcff:fire:[b].pdf" in capsys.readouterr().err


def test_a_file_is_described_by_its_digest():
    Path("a.txt").write_bytes(b"abc")
    assert describe(["a.txt", "hf:name"]) == {
        "a.txt": "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
        "hf:name": "hub",
    }


def test_the_phrase_book_is_described_by_its_texts():
    digests = describe(["embedded:", "embedded:en,ru,zh,text,train", "embedded:ru"])
    assert len(set(digests.values())) == 2 and all(len(digest) == 64 for digest in digests.values())
