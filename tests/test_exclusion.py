"""Characters that training must not see: how they are named, and what is left of a text that holds one."""

import unicodedata
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glyphlm.base.errors import InputError
from glyphlm.corpus.reading import Passage
from glyphlm.data.exclusion import Exclusion, characters_of
from glyphlm.data.source import Source


def kept(texts: list[str], characters: str, how: str) -> tuple[list[str], Counter]:
    counts = Counter()
    return [text for text, _ in Exclusion(characters, how).apply((Passage(text, True) for text in texts), counts)], counts


def test_files_spans_and_categories_name_characters(tmp_path):
    path = tmp_path / "held out.txt"
    path.write_text("国 家\n国🙂", encoding="utf-8")
    assert characters_of(str(path)) == "国家🙂"
    assert characters_of("U+0041-43") == characters_of("U+0041-U+0043") == "ABC"
    assert characters_of("U+1F600, U+0041") == "A😀"
    symbols = characters_of("So")
    assert {"©", "🙂"} <= set(symbols) and all(unicodedata.category(one) == "So" for one in symbols)


def test_the_list_of_the_recipe_is_found_in_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert len(characters_of("recipes/unseen.txt")) > 500


@pytest.mark.parametrize(("named", "message"), [
    ("missing.txt", "'missing.txt' is no file.*U.0400-04FF"),
    ("U+0043-0041", "U.0043-0041 is no span"),
    ("U+110000", "U.110000 is no span"),
    ("Cs", "names no character"),
    ("", "is no file"),
])  # fmt: skip
def test_what_names_no_characters_is_refused(named, message):
    with pytest.raises(InputError, match=message):
        characters_of(named)


def test_a_file_that_is_not_text_is_refused(tmp_path):
    (tmp_path / "a.bin").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="a.bin is not UTF-8"):
        characters_of(str(tmp_path / "a.bin"))


def test_drop_leaves_the_document_out_and_cut_its_sentences():
    texts = ["One. A 国 here! Three? Four.", "no end 国", "第一。第二国。第三", "plain"]
    assert kept(texts, "国", "drop") == (["plain"], Counter(
        documents=3, occurrences=3, characters=sum(map(len, texts[:3]))))
    found, counts = kept(texts, "国", "cut")
    assert found == ["One. ", "Three? Four.", "第一。", "第三", "plain"]
    assert counts == Counter(documents=3, occurrences=3, characters=sum(map(len, texts)) - sum(map(len, found)))


def test_a_document_of_several_passages_is_one():
    passages = [Passage("a", False), Passage("国", False), Passage("b", True), Passage("c", True)]
    assert list(Exclusion("国").apply(passages, Counter())) == [Passage("c", True)]


@given(st.lists(st.text(alphabet="ab国]^-\\\n.! ", max_size=30), max_size=5), st.sampled_from(["drop", "cut"]),
       st.sampled_from(["国", "]", "^a", "-", "\\", "ab-"]))  # fmt: skip
def test_no_excluded_character_is_left_and_no_other_text_is_lost(texts, how, characters):
    characters = "".join(sorted(set(characters)))
    found, counts = kept(texts, characters, how)
    assert not any(set(text) & set(characters) for text in found)
    clean = [text for text in texts if not set(text) & set(characters)]
    assert [text for text in clean if text not in found] == []
    assert counts["documents"] == len(texts) - len(clean)
    assert counts["characters"] == sum(map(len, texts)) - sum(map(len, found))


def test_only_text_can_be_filtered_in_a_recipe():
    assert Source(text="a.txt", exclude="So").exclude == "So"
    with pytest.raises(InputError, match="data.exclude So applies only to text.*glyphlm prepare"):
        Source(shards="a/", exclude="So")
