"""What is probed: classes by Unicode, pairs that stay pairs, translations with one meaning, files that are refused."""

import unicodedata

import pytest

from glyphlm.analysis.probe_texts import (
    FEWEST,
    MOST_CLASSES,
    ProbeSettings,
    find_names,
    find_texts,
    token_classes,
    whole_tokens,
)
from glyphlm.base.errors import InputError

NAMES = {"en": ["one", "two"], "ru": ["один", "два"]}


@pytest.fixture
def pairs(tmp_path):
    def write(content):
        (tmp_path / "pairs.tsv").write_bytes(content if isinstance(content, bytes) else content.encode())
        return ProbeSettings(pairs=str(tmp_path / "pairs.tsv"))

    return write


def test_tokens_are_classed_by_script_case_and_category():
    found = token_classes(["a", "A", "the", "The", "THE", "да", "Да", "国", "aд", "12", "²", ",", "«", "+", "a1", " a", " "])
    assert found["script"] == {"Latin": ["a", "A", "the", "The", "THE", "a1", " a"], "Cyrillic": ["да", "Да"], "Han": ["国"]}
    assert found["case"] == {"lower": ["a", "the", "да"], "upper": ["A", "The", "Да"]}
    assert found["category"] == {
        "letter": ["a", "A", "the", "The", "THE", "да", "Да", "国", "aд"],
        "number": ["12", "²"], "punctuation": [",", "«"], "symbol": ["+"],
    }  # fmt: skip


def test_whole_tokens_are_one_id_each(tokenizer):
    tokens = whole_tokens(tokenizer)
    assert len(set(tokens)) == len(tokens) > 500
    assert all(len(tokenizer.encode(token)) == 1 for token in tokens) and "</s>" not in tokens


def test_a_text_leaves_only_the_tokens_that_occur_in_it(tokenizer, tmp_path):
    text = "Германия, Germany 国 " * 50 + "\n" + "9" * 20
    (tmp_path / "a.txt").write_text(text, encoding="utf-8")
    tokens = whole_tokens(tokenizer, str(tmp_path / "a.txt"))
    assert {tokenizer.encode(token)[0] for token in tokens} == set(tokenizer.encode(text)) and "国" in tokens


def test_classes_are_the_largest_ones_and_their_tokens_are_drawn_by_the_seed(tokenizer):
    settings = ProbeSettings(per_class=12, seed=3)
    texts = find_texts(tokenizer, NAMES, settings)
    assert set(texts.classes["script"]) == {"Latin", "Cyrillic", "Han"}
    for classes in texts.classes.values():
        assert 1 < len(classes) <= MOST_CLASSES and all(FEWEST <= len(set(group)) <= 12 for group in classes.values())
    assert [token.capitalize() for token in texts.classes["case"]["lower"]] == texts.classes["case"]["upper"]
    assert all(unicodedata.category(token[0])[0] == "N" for token in texts.classes["category"].get("number", []))
    assert find_texts(tokenizer, NAMES, settings) == texts != find_texts(tokenizer, NAMES, ProbeSettings(per_class=12))


def test_a_class_of_few_tokens_and_a_task_of_one_class_are_left_out(tokenizer, tmp_path):
    (tmp_path / "a.txt").write_text("".join(whole_tokens(tokenizer)[:30]) + "国", encoding="utf-8")
    texts = find_texts(tokenizer, NAMES, ProbeSettings(text=str(tmp_path / "a.txt")))
    assert all(len(classes) > 1 for classes in texts.classes.values()) and "CJK" not in texts.classes.get("script", {})


def test_translations_are_those_with_one_meaning(tokenizer):
    names = {"en": ["won", "won", "lev", "euro", "yen", "x"], "ru": ["вона", "вона (КНДР)", "лев", "евро", "иена", "x"],
             "zh": ["韩元", "朝鲜圆", "列弗", "欧元", "欧元", "x"]}  # fmt: skip
    assert find_texts(tokenizer, names, ProbeSettings()).translations == {
        "en-ru": [("lev", "лев"), ("euro", "евро"), ("yen", "иена")],
        "ru-zh": [("вона", "韩元"), ("вона (КНДР)", "朝鲜圆"), ("лев", "列弗")],
    }  # only one pair is left of en-zh


def test_the_names_of_cldr_stand_in_three_languages():
    names = find_names(ProbeSettings())
    assert list(names) == ["en", "ru", "zh"] and len({len(column) for column in names.values()}) == 1
    place = names["en"].index("Germany")
    assert (names["ru"][place], names["zh"][place]) == ("Германия", "德国")


def test_every_text_is_named_once_and_words_come_first(tokenizer):
    texts = find_texts(tokenizer, NAMES, ProbeSettings(words=["two", "far away"]))
    every = texts.all()
    assert every[:2] == ["two", "far away"] and len(set(every)) == len(every) and {"один", "два", "one"} <= set(every)
    assert find_texts(tokenizer, {"en": list("abcdefghijkl"), "ru": list("абвгдежзийкл")}, ProbeSettings()).words == [
        "a", "c", "e", "g", "i",
    ]  # fmt: skip


def test_pairs_are_read_from_a_file(pairs):
    found = find_names(pairs("\ufeffen\tde\r\n\r\none\t eins\r\ntwo\tzwei \r\n"))
    assert found == {"en": ["one", "two"], "de": ["eins", "zwei"]}


@pytest.mark.parametrize(("content", "said"), [
    ("en\tde\none\teins\ntwo", r"\['two'\] is not a word for each of \['en', 'de'\]"),
    ("en\tde\none\teins\ntwo\t", "is not a word for each"),
    ("en\nyes\nno\n", "at least two languages"),
    ("en\ten\nyes\tyes\nno\tno", "at least two languages"),
    ("en\tde\none\teins", "has 2 lines"),
    ("", "has 0 lines"),
    (b"\xff\xfe", "cannot be read"),
])  # fmt: skip
def test_a_file_of_pairs_that_does_not_fit_is_refused(pairs, content, said):
    with pytest.raises(InputError, match=said):
        find_names(pairs(content))


def test_a_file_that_is_not_there_and_too_few_tokens_are_refused(tmp_path):
    with pytest.raises(InputError, match="cannot be read.*TSV file in UTF-8"):
        find_names(ProbeSettings(pairs=str(tmp_path / "none.tsv")))
    with pytest.raises(InputError, match="per_class 9 .*at least 10"):
        ProbeSettings(per_class=9)
    with pytest.raises(InputError, match="seed -1 .*at least 0"):
        ProbeSettings(seed=-1)
