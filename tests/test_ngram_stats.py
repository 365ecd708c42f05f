"""N-gram statistics: the published file is read exactly and fast, counting is exact, parts can be shared and resumed."""

import ast
import json
import re
import shutil
from collections import Counter
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from itertools import islice, permutations
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glyphlm.base import jobs as base_jobs
from glyphlm.base.errors import InputError
from glyphlm.cli.main import main
from glyphlm.corpus.cldr import language_name
from glyphlm.corpus.reading import passages
from glyphlm.tokenizer import ngram_stats, ngrams
from glyphlm.tokenizer.ngram_stats import (
    LanguageNgrams,
    NgramSettings,
    count_ngrams,
    parse_literal,
    read_ngrams,
    write_ngrams,
)
from glyphlm.tokenizer.ngrams import RULES, NgramCounts, any_words, published_words

PUBLISHED = ("_n-gramms-2-3.txt", "_n-gramms-2-3-4-5.txt")
SMALL = [LanguageNgrams("fr", "French", {2: [("l'", 7), ('"a', 1)], 3: [("l'a", 2), ("\\\n'", 1)]})]
GOOD = "[{'lang': 'fr', 'language_name': 'French', 'top_ngrams': {2: [('ab', 3)]}}]"
odd_text = st.text(st.sampled_from("a'\"\\(){}[]:, 1\n\r\t\0\x85\u2028é字😀"), max_size=6)
counted = st.integers(1, 10**30)


@st.composite
def languages(draw):
    """One to three languages with up to three tables of odd n-grams."""
    sizes = st.dictionaries(st.integers(1, 6), st.just([]), max_size=3)
    found = []
    for _ in range(draw(st.integers(1, 3))):
        tables = draw(sizes)
        for n in tables:
            tables[n] = draw(st.lists(st.tuples(st.text(min_size=n, max_size=n), counted), max_size=4))
        found.append(LanguageNgrams(draw(odd_text), draw(odd_text), tables))
    return found


# The file


@given(languages())
@settings(max_examples=25, deadline=None)  # each waits for the disk
def test_what_is_written_is_read_again(tmp_path_factory, found):
    path = tmp_path_factory.getbasetemp() / "ngrams.txt"
    write_ngrams(path, found)
    assert read_ngrams(path) == found


@given(languages(), odd_text, st.randoms(use_true_random=False))
@settings(max_examples=150, deadline=None)
def test_the_fast_way_of_reading_gives_what_pythons_own_gives(found, odd, random):
    text = repr([vars(language) for language in found])
    assert parse_literal(text) == ast.literal_eval(text)
    start = random.randrange(len(text))
    same_as_literal_eval(text[:start] + odd + text[start + random.randrange(3) :])


@pytest.mark.parametrize("text", [
    GOOD.replace(", ", ","), GOOD.replace("(", "[").replace(")", "]"), GOOD[:-1] + ", ]", GOOD + "\n", GOOD + " # 1",
    GOOD.replace("3", "0x3"), GOOD.replace("3", "03"), GOOD.replace("3", "٣"), GOOD.replace("'ab'", "'a' 'b'"),
    GOOD.replace("'ab'", r"'\x61\N{BULLET}'"), GOOD.replace("'ab'", r"'\x6'"), GOOD.replace("'ab'", "'''ab'''"),
    GOOD.replace("'ab'", "b'ab'"), GOOD.replace("}}]", "}}{}]"), GOOD.replace("2: [", "2: [] 3: ["), "[]", "",
])  # fmt: skip
def test_other_shapes_are_read_as_python_reads_them(text):
    same_as_literal_eval(text)


def same_as_literal_eval(text):
    try:
        expected = ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError) as error:
        with pytest.raises(type(error)):
            parse_literal(text)
    else:
        assert parse_literal(text) == expected


@pytest.mark.parametrize(("text", "place"), [
    ("", "not a Python literal"),
    ("[" * 100_000, "not a Python literal"),
    ("-" * 1_000_000 + "1", "not a Python literal"),
    ("[1" + "0" * 5000 + "]", "not a Python literal"),
    ("[{[]: 1}]", "not a Python literal"),
    ("[open('x')]", "not a Python literal"),
    ("{}", "not a list of languages"),
    ("[]", "not a list of languages"),
    (GOOD.replace("lang'", "language'"), "language 1 does not have exactly the keys lang, language_name, top_ngrams"),
    (GOOD.replace("'fr'", "7"), "language 1 has no text as its lang"),
    (GOOD.replace("{2: [('ab', 3)]}", "[]"), "language 1 ('fr'): top_ngrams is not a dictionary"),
    (GOOD.replace("2:", "'2':"), "top_ngrams of '2'"),
    (GOOD.replace("('ab', 3)", "('ab', 3), ('abc', 3)"), "language 1 ('fr'): 2-gram 2 is ('abc', 3)"),
    (GOOD.replace("3)", "3.5)"), "2-gram 1 is ('ab', 3.5)"),
    (GOOD.replace("3)", "True)"), "2-gram 1 is ('ab', True)"),
    (GOOD.replace("3)", "0)"), "2-gram 1 is ('ab', 0)"),
    (GOOD.replace("'ab'", r"'a\ud800'"), "2-gram 1 is ('a\\ud800', 3)"),
])  # fmt: skip
def test_a_file_that_is_not_statistics_is_refused_in_one_line(tmp_path, text, place):
    path = tmp_path / "ngrams.txt"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError) as caught:
        read_ngrams(path)
    assert place in str(caught.value) and str(path) in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_a_missing_file_and_bytes_are_refused(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        read_ngrams(tmp_path / "none.txt")
    (tmp_path / "bytes.txt").write_bytes(b"ab\xff")
    with pytest.raises(InputError, match="not UTF-8 at byte 2"):
        read_ngrams(tmp_path / "bytes.txt")


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_files_are_read_and_written_byte_for_byte(data, tmp_path, name):
    published = data / "ngrams" / name
    found = read_ngrams(published)
    write_ngrams(tmp_path / name, found)
    assert (tmp_path / name).read_bytes() == published.read_bytes()
    assert re.fullmatch(ngram_stats.FILE, published.read_text(encoding="utf-8"))  # so the fast way is taken
    assert [(language.lang, language.language_name) for language in found] == [
        (language.lang, language_name(language.lang)) for language in found
    ]


# The words


@pytest.mark.parametrize(("text", "words"), [
    ("It's 1984: don’t say 'so'!", ["It's", "don’t", "say", "so"]),
    ("Ёлка и 2-й", ["Ёлка", "и", "й"]),
    ("नमस्ते दुनिया। क्‍ष", ["नमस्ते", "दुनिया", "क्‍ष"]),
    ("كَتَبَ، می‌روم ٢٠", ["كَتَبَ", "می‌روم"]),
    ("צה״ל שָׁלוֹם", ["צה״ל", "שָׁלוֹם"]),
    ("我爱北京，天安门。2008年", ["我爱北京", "天安门", "年"]),
    ("コーヒーを飲む・人々", ["コーヒーを飲む", "人々"]),
    ("한국어 문장", ["한국어", "문장"]),
    ("ภาษาไทยนี้", ["ภาษาไทยนี้"]),
    ("e\u0301te\u0301 𐐷𐐲 ❤\ufe0f 1\ufe0f\u20e3", ["e\u0301te\u0301", "𐐷𐐲"]),
])  # fmt: skip
def test_words_of_any_script_are_letters_with_their_marks(text, words):
    assert any_words(text) == words


@pytest.mark.parametrize(("text", "words"), [
    ("It's 1984, the dogs' x1y", ["It's", "the", "dogs", "xy"]),
    ("Việt Nam, λόγος, שלום, Ёлка, Łódź", ["Nam", "Ёлка", "Łódź"]),
    ("北京 2008 (Peking), \n2020年", ["北京(Peking),年"]),
    ("২০০৮ 한국", ["২০০৮한국"]),
])  # fmt: skip
def test_the_published_rule_knows_latin_and_cyrillic_words_and_whole_texts_with_cjk(text, words):
    assert published_words(text) == words


def test_our_count_of_english_resembles_the_published_one(data):
    stream = islice(passages([str(data / "train" / "en_wikipedia.jsonl.gz")]), 100)
    ours = dict(count_tables((text for text, _ in stream), [3], "published")[3].top(3, 300))
    english = next(found for found in read_ngrams(data / "ngrams" / PUBLISHED[0]) if found.lang == "en")
    assert len(ours.keys() & dict(english.top_ngrams[3][:300])) > 230


# The counts


def plain_counts(texts, n, rule="all"):
    """The reference: every n-gram of every word, one by one."""
    words = (word for text in texts for word in RULES[rule](text))
    return Counter(word[start : start + n] for word in words for start in range(len(word) - n + 1))


def ranked(counts):
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))


def count_tables(texts, sizes, rule="all"):
    counts = NgramCounts(rule, sizes)
    for text in texts:
        counts.add(text)
    return counts.tables()


letters = st.text(st.sampled_from("abcаб字𐐷 '0,\n\u0301"), max_size=40)


@given(st.lists(letters, max_size=12), st.sets(st.integers(1, 8), min_size=1), st.sampled_from([*RULES]))
@settings(max_examples=150, deadline=None)
def test_counts_are_those_of_the_plain_way_in_the_order_of_count_and_code_point(texts, sizes, rule):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ngrams, "CHECKED_CHARS", 20)
        patch.setattr(ngrams, "PENDING_CHARS", 10)
        found = count_tables(texts, sizes, rule)
    assert {n: table.top(n, 10**6) for n, table in found.items()} == {n: ranked(plain_counts(texts, n, rule)) for n in sizes}


@given(st.lists(letters, max_size=20))
@settings(max_examples=150, deadline=None)
def test_where_memory_ends_counts_are_at_most_so_much_too_low_as_is_reported(texts):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ngrams, "CHECKED_CHARS", 5)
        patch.setattr(ngrams, "PENDING_CHARS", 5)
        patch.setattr(ngrams, "MAX_NGRAMS", 8)
        table = count_tables(texts[::2], [2])[2].merge(count_tables(texts[1::2], [2])[2])
    counts, lost = dict(table.top(2, 9)), table.lost
    true = plain_counts(texts, 2)
    assert len(counts) <= 8
    assert all(counts.get(gram, 0) <= count <= counts.get(gram, 0) + lost for gram, count in true.items())
    assert lost or counts == true


# The way from texts to the file

RUSSIAN = "Кот и пёс. Кот и кит."
ENGLISH = [f"The {word} of number {number} is there." for number, word in enumerate("cat dog hen cow ant".split() * 40)]
SETTINGS = NgramSettings(sizes=(2, 3), top=20)


@pytest.fixture
def shelf(tmp_path) -> Path:
    """English in two files and a folder's third, Russian in one."""
    folder = tmp_path / "texts"
    (folder / "more").mkdir(parents=True)
    for name, part in (("a.jsonl", ENGLISH[:80]), ("b.jsonl", ENGLISH[80:120]), ("more/c.jsonl", ENGLISH[120:])):
        write_lines(folder / name, part)
    (folder / "ru.txt").write_text(RUSSIAN, encoding="utf-8")
    return folder


def write_lines(path, documents):
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents), encoding="utf-8")


def english(folder, *names):
    return [str(folder / name) for name in names or ("a.jsonl", "b.jsonl", "more")]


def test_the_file_holds_the_top_of_each_size_of_each_language(shelf, tmp_path):
    texts = {"ru": [str(shelf / "ru.txt")], "en": english(shelf)}
    found = count_ngrams(texts, SETTINGS, tmp_path / "out.txt")
    assert read_ngrams(tmp_path / "out.txt") == found
    assert [(language.lang, language.language_name) for language in found] == [("ru", "Russian"), ("en", "English")]
    assert found[0].top_ngrams == {n: ranked(plain_counts([RUSSIAN], n)) for n in (2, 3)}
    assert found[1].top_ngrams == {n: ranked(plain_counts(ENGLISH, n))[:20] for n in (2, 3)}


def test_neither_jobs_nor_the_order_of_texts_change_a_byte(shelf, tmp_path):
    for number, (names, jobs) in enumerate(((("a.jsonl", "b.jsonl", "more"), 1), (("more", "b.jsonl", "a.jsonl"), 2))):
        count_ngrams({"en": english(shelf, *names)}, SETTINGS, tmp_path / f"{number}.txt", jobs=jobs)
    assert (tmp_path / "0.txt").read_bytes() == (tmp_path / "1.txt").read_bytes()


def test_the_order_of_texts_changes_nothing_where_memory_ends_either(shelf, tmp_path, monkeypatch):
    monkeypatch.setattr(ngrams, "MAX_NGRAMS", 20)
    found = []
    for order in permutations(["a.jsonl", "b.jsonl", "more", "ru.txt"]):
        found += count_ngrams({"en": english(shelf, *order)}, SETTINGS, tmp_path / "out.txt")
        (tmp_path / "out.txt").unlink()
    assert all(one == found[0] for one in found)


def sources_counted(monkeypatch):
    """The list that grows by the name of each source that is really read."""
    seen, count = [], ngram_stats._count_source

    def counted(part, source, **settings):
        seen.append(Path(source).name)
        count(part, source, **settings)

    monkeypatch.setattr(ngram_stats, "_count_source", counted)
    return seen


def test_a_stopped_count_continues_with_what_is_missing(shelf, tmp_path, monkeypatch):
    whole = count_ngrams({"en": english(shelf)}, SETTINGS, tmp_path / "whole.txt")
    b = (shelf / "b.jsonl").read_bytes()
    (shelf / "b.jsonl").write_text("{", encoding="utf-8")
    with pytest.raises(InputError, match="b.jsonl:1 is not JSON"):
        count_ngrams({"en": english(shelf)}, SETTINGS, tmp_path / "out.txt")
    assert not (tmp_path / "out.txt").exists()
    (shelf / "b.jsonl").write_bytes(b)
    seen = sources_counted(monkeypatch)
    assert count_ngrams({"en": english(shelf)}, SETTINGS, tmp_path / "out.txt") == whole
    assert seen == ["b.jsonl", "c.jsonl"]


def test_parts_of_two_machines_are_merged_without_reading_a_text_again(shelf, tmp_path, monkeypatch):
    whole = count_ngrams({"en": english(shelf)}, SETTINGS, tmp_path / "whole.txt")
    for machine, names in (("one", ["a.jsonl"]), ("two", ["b.jsonl", "more"])):
        count_ngrams({"en": english(shelf, *names)}, SETTINGS, tmp_path / f"{machine}.txt")
        shutil.copytree(tmp_path / f"{machine}.txt.parts", tmp_path / "all.txt.parts", dirs_exist_ok=True)
    seen = sources_counted(monkeypatch)
    assert count_ngrams({"en": english(shelf)}, SETTINGS, tmp_path / "all.txt") == whole
    assert not seen


def test_the_same_command_is_done_and_another_does_not_overwrite(shelf, tmp_path, monkeypatch):
    texts, out = {"en": english(shelf, "a.jsonl")}, tmp_path / "out.txt"
    done, before = count_ngrams(texts, SETTINGS, out), out.read_bytes()
    seen = sources_counted(monkeypatch)
    assert count_ngrams(texts, SETTINGS, out) == done
    with pytest.raises(InputError, match="already holds other n-grams"):
        count_ngrams(texts, NgramSettings(sizes=(2, 3), top=5), out)
    for other in (({"en": english(shelf)}, SETTINGS), (texts, NgramSettings(sizes=(2, 3), sample=0.5))):
        with pytest.raises(InputError, match="not all of these texts are counted"):
            count_ngrams(*other, out)
    assert not seen and out.read_bytes() == before


def test_equal_bytes_of_another_kind_of_file_are_counted_again(shelf, tmp_path):
    shutil.copy(shelf / "a.jsonl", shelf / "a.txt")
    lines = count_ngrams({"en": english(shelf, "a.jsonl")}, SETTINGS, tmp_path / "out.txt")
    (tmp_path / "out.txt").unlink()
    assert count_ngrams({"en": english(shelf, "a.txt")}, SETTINGS, tmp_path / "out.txt") != lines


def test_a_sample_is_the_same_documents_in_any_file_and_order(shelf, tmp_path):
    a_third = NgramSettings(sizes=(2,), sample=0.3)
    write_lines(shelf / "one.jsonl", ENGLISH[::-1])
    found = [
        count_ngrams({"en": english(shelf, *names)}, a_third, tmp_path / f"{len(names)}.txt")[0].top_ngrams[2]
        for names in ((), ("one.jsonl",))
    ]
    assert found[0] == found[1]
    assert 0.15 * 200 < dict(found[0])["Th"] < 0.45 * 200
    other = count_ngrams({"en": english(shelf)}, NgramSettings(sizes=(2,), sample=0.3, seed=1), tmp_path / "seed.txt")
    assert other[0].top_ngrams[2] != found[0]


def test_a_long_document_is_taken_or_left_as_a_whole(monkeypatch):
    monkeypatch.setattr(ngram_stats, "_is_taken", lambda text, settings: text.startswith("+"))
    stream = [("+a", False), ("b", True), ("-c", False), ("+d", True), ("+e", True)]
    assert list(ngram_stats._sampled(stream, NgramSettings(sample=0.5))) == ["+a", "b", "+e"]


def test_a_source_that_is_damaged_is_named_by_the_process_that_reads_it(shelf, tmp_path):
    (shelf / "b.jsonl").write_text("{", encoding="utf-8")
    with pytest.raises(InputError, match="b.jsonl:1 is not JSON"):
        count_ngrams({"en": english(shelf, "b.jsonl", "a.jsonl")}, SETTINGS, tmp_path / "out.txt", jobs=2)
    assert not (tmp_path / "out.txt").exists()


def test_a_damaged_part_is_named(shelf, tmp_path):
    count_ngrams({"en": english(shelf, "a.jsonl")}, SETTINGS, tmp_path / "out.txt")
    (part,) = (tmp_path / "out.txt.parts").glob("*.npz")
    for damaged in (part.read_bytes()[:-50], b"", b"no part"):
        part.write_bytes(damaged)
        with pytest.raises(InputError, match=f"{part.name} is damaged; remove it"):
            count_ngrams({"en": english(shelf, "a.jsonl")}, SETTINGS, tmp_path / "out.txt")


def test_a_killed_process_is_reported_with_its_cure(shelf, tmp_path, monkeypatch):
    class Killed:
        def __init__(self, *args, **kwargs):
            self.shutdown = lambda **_: None

        def __enter__(self):
            return self

        def __exit__(self, *_):
            return None

        def submit(self, *_):
            future = Future()
            future.set_exception(BrokenProcessPool("died"))
            return future

    monkeypatch.setattr(base_jobs, "ProcessPoolExecutor", Killed)
    with pytest.raises(InputError, match="killed.* fewer --jobs"):
        count_ngrams({"en": english(shelf)}, SETTINGS, tmp_path / "out.txt", jobs=2)


def test_the_bound_of_what_is_missing_is_reported(shelf, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(ngrams, "MAX_NGRAMS", 12)
    count_ngrams({"en": english(shelf, "a.jsonl")}, NgramSettings(sizes=(2,)), tmp_path / "out.txt")
    assert "en: counts of 2-grams may be up to" in capsys.readouterr().err


@pytest.mark.parametrize(("bad", "place"), [
    ({"sizes": (0, 2)}, "sizes 0 2"), ({"sizes": (13,)}, "sizes 13"), ({"sizes": ()}, "sizes"), ({"top": 0}, "top 0"),
    ({"sample": 0.0}, "sample 0.0"), ({"sample": 1.5}, "sample 1.5"), ({"sample": float("nan")}, "sample nan"),
])  # fmt: skip
def test_settings_that_cannot_be_are_refused(bad, place):
    with pytest.raises(InputError, match=re.escape(place)):
        NgramSettings(**bad)


@pytest.mark.parametrize(("code", "name"), [
    ("en", "English"), ("bn", "Bangla"), ("pt-BR", "Brazilian Portuguese"), ("qq", "qq")
])  # fmt: skip
def test_languages_have_their_english_names(code, name):
    assert language_name(code) == name


def test_the_verb_counts_and_reports_mistakes(shelf, tmp_path, capsys):
    out = str(tmp_path / "out.txt")
    a, more, ru = english(shelf, "a.jsonl", "more", "ru.txt")
    options = ["--sizes", "2", "4", "--top", "7", "--scripts", "published", "--jobs", "1", "--out", out]
    assert main(["tokenizer", "ngrams", "--lang", f"en={a}", "--lang", f"ru={ru}", "--lang", f"en={more}", *options]) == 0
    found = read_ngrams(Path(out))
    assert [(language.lang, [*language.top_ngrams]) for language in found] == [("en", [2, 4]), ("ru", [2, 4])]
    capsys.readouterr()
    (shelf / "digits.txt").write_text("1 2 3", encoding="utf-8")
    wrong = {"en": "'en' .*CODE=TEXT", "=x": "'=x' .*CODE=TEXT", f"en={shelf}/digits.txt": "en: no word of 2"}
    for lang, place in wrong.items():
        assert main(["tokenizer", "ngrams", "--lang", lang, "--out", f"{tmp_path}/other.txt"]) == 2
        assert re.search(place, capsys.readouterr().err)
    assert main(["tokenizer", "ngrams", "--lang", f"en={a}", "--out", out, "--jobs", "0"]) == 2
    assert "jobs 0" in capsys.readouterr().err
