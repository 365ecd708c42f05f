"""The published layouts: ids, merges and texts as the published builders give them, and what `lossless` adds."""

import hashlib
import json
import sys
from pathlib import Path

import pytest
import tokenizers
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from glyphlm.base.errors import InputError
from glyphlm.tokenizer.build import TokenizerSettings, build_tokenizer
from glyphlm.tokenizer.layouts import (
    FALLBACK_BYTES,
    KNOWN_NAMES,
    LAYOUTS,
    SPECIAL_SLOTS,
    choose_published_ngrams,
    read_shared_strings,
    read_special_names,
)
from glyphlm.tokenizer.ngram_stats import LanguageNgrams, write_ngrams
from glyphlm.tokenizer.tokenizer import Tokenizer

HELLO = "hello the test"
PUBLISHED = {
    "bvv241-2-3": ("_n-gramms-2-3.txt", None, [104, 56035, 111, 32, 57811, 32, 116, 56117]),
    "bvv241-max": ("_n-gramms-2-3-4-5.txt", "_n-gramms-intersection.txt", [70960, 32, 113757, 32, 99060]),
}
MERGES = {  # sha256 of the published merges.txt
    "bvv241-2-3": "7f749158ed2612e87a86d7e384e6ffcc4f2e18f13c42d4d002c8e9740cb230d3",
    "bvv241-max": "0c5acea3c44f54419c42855f17a70ba802edabfaa6f63d71e3283aeaeeb36878",
}
GRAMS = [("the", 9), ("th", 8), ("he", 8), ("пр", 5), ("при", 4), ("中国", 3)]
ANY = st.text(st.characters(exclude_categories=["Cs"]))
NAMES = [KNOWN_NAMES.get(slot, f"<name_{slot}>") for slot in range(23)]


@pytest.fixture(scope="module")
def ngrams_file(tmp_path_factory) -> Path:
    """Six n-grams of one language, in the published shape."""
    path = tmp_path_factory.mktemp("ngrams") / "ngrams.txt"
    sizes = {n: [gram for gram in GRAMS if len(gram[0]) == n] for n in (2, 3)}
    write_ngrams(path, [LanguageNgrams("en", "English", sizes)])
    return path


def build(ngrams_file, out, **changes):
    return build_tokenizer([], TokenizerSettings(layout="bvv241-2-3", ngrams=str(ngrams_file), **changes), out)


@pytest.fixture(scope="module")
def small(ngrams_file, tmp_path_factory) -> Tokenizer:
    return build(ngrams_file, tmp_path_factory.mktemp("bvv") / "small")


@pytest.fixture(scope="module")
def lossless(ngrams_file, tmp_path_factory) -> Tokenizer:
    return build(ngrams_file, tmp_path_factory.mktemp("bvv") / "lossless", lossless=True)


@pytest.fixture(scope="module", params=PUBLISHED)
def published(request, data, tmp_path_factory) -> tuple[str, Path]:
    """A published layout built from the published statistics."""
    grams, shared, _ = PUBLISHED[request.param]
    folder = data / "ngrams"
    if not (folder / grams).is_file():
        pytest.skip(f"{folder} does not hold {grams}")
    choice = TokenizerSettings(layout=request.param, ngrams=str(folder / grams),
                               shared_strings=shared and str(folder / shared))  # fmt: skip
    out = tmp_path_factory.mktemp(request.param) / "tok"
    build_tokenizer([], choice, out)
    return request.param, out


def fixture_file(name):
    path = Path(__file__).parents[2] / "shared" / "fixtures" / name
    if not path.is_file():
        pytest.skip(f"{path} does not exist")
    return json.loads(path.read_text(encoding="utf-8"))


# As published


def test_the_published_texts_give_the_published_ids(published):
    layout, out = published
    tokenizer = Tokenizer.load(out, specials_in_text="control")
    cases = [case for case in fixture_file(f"tokens_{layout[7:]}.json")["cases"] if "text" in case]
    assert len(cases) > 50
    for case in cases:
        ids = tokenizer.encode(case["text"])
        assert ids == case["ids"], case["name"]
        assert [tokenizer.tokens[number] for number in ids] == case["tokens"]
        assert tokenizer.decode(ids) == case["decode_skip_special"]


def test_the_published_merges_come_out_byte_for_byte(published):
    layout, out = published
    assert hashlib.sha256((out / "merges.txt").read_bytes()).hexdigest() == MERGES[layout]


def test_sample_ids_are_the_published_ones(published):
    layout, out = published
    vocabulary = json.loads((out / "vocab.json").read_text(encoding="utf-8"))
    assert len(vocabulary) == LAYOUTS[layout].vocab_size
    assert fixture_file("build.json")[layout[7:]]["sample_ids"].items() <= vocabulary.items()


def test_tokenizers_and_transformers_give_the_published_ids_without_glyphlm(published, monkeypatch):
    layout, out = published
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "glyphlm", None)  # nothing more of it can be imported
        plain = transformers.AutoTokenizer.from_pretrained(out)
    assert type(plain).__module__.startswith("transformers.") and plain(HELLO)["input_ids"] == PUBLISHED[layout][2]
    assert tokenizers.Tokenizer.from_file(str(out / "tokenizer.json")).encode(HELLO).ids == PUBLISHED[layout][2]
    assert Tokenizer.load(out).encode(HELLO) == PUBLISHED[layout][2]


# The layout, on six n-grams


def test_code_points_keep_their_numbers(small):
    assert small.encode("A中\n\ud7ff\ufffd") == [0x41, 0x4E2D, 0x0A, 0xD7FF, 0xFFFD]
    assert all(small.tokens[number] == chr(number) for number in (*range(0xD800), *range(0xF900, 0xFFFF)))


def test_ngrams_take_the_free_ids_longest_first_then_by_code_point(small):
    assert small.tokens[0xD800:0xD806] == ["the", "при", "he", "th", "пр", "中国"]
    assert small.tokens[0xD806] == f"<unused_{0xD806}>"


def test_special_slots_have_the_published_names(small):
    assert small.tokens[0xE000:0xE006] == ["<pad>", "<s>", "</s>", "<unk>", "<think>", "</think>"]
    assert small.tokens[0xE016:0xE018] == ["[FILE_SEP]", f"<special_token_{0xE017}>"]
    assert (small.pad_id, small.end_id, small.unknown_id) == (0xE000, 0xE002, 0xE003)
    assert small.start_id == small.end_id  # in training a document stands after the end of another


def test_ids_without_text_count_no_bytes(small):
    assert {*SPECIAL_SLOTS, 0xD806, 0xFFFF} <= small.special_ids
    assert small.bytes_per_id_V[[0xE000, 0xE050, 0xD806, 0xD800, 0x4E2D]].tolist() == [0, 0, 0, 3, 3]


def test_characters_above_the_first_plane_are_unknown_as_published(small):
    assert small.encode("x😀y") == [ord("x"), 0xE003, ord("y")] and small.decode(small.encode("x😀y")) == "xy"


def test_names_of_specials_stay_text_or_become_control_tokens(ngrams_file, small, tmp_path):
    build(ngrams_file, tmp_path / "tok")
    control = Tokenizer.load(tmp_path / "tok", specials_in_text="control")
    assert control.encode("a</s>") == [ord("a"), 0xE002]
    assert small.encode("a</s>") == [ord(letter) for letter in "a</s>"]


# Lossless


@settings(max_examples=1000, deadline=None)
@given(text=ANY)
def test_lossless_keeps_every_character(lossless, text):
    ids = lossless.encode(text)
    assert lossless.decode(ids) == text
    assert int(lossless.bytes_per_id_V[ids].sum()) == len(text.encode())


@pytest.mark.parametrize("block", range(0, 0x110000, 0x1000))
def test_lossless_keeps_every_code_point_of_unicode(lossless, block):
    text = "".join(chr(number) for number in range(block, block + 0x1000) if not 0xD800 <= number < 0xE000)
    assert lossless.decode(lossless.encode(text)) == text


def test_lossless_changes_only_special_slots_without_a_name(small, lossless):
    changed = [number for number, tokens in enumerate(zip(small.tokens, lossless.tokens)) if tokens[0] != tokens[1]]
    assert changed == [0xE000 + byte for byte in FALLBACK_BYTES]
    assert all(small.tokens[number] == f"<special_token_{number}>" for number in changed)


@settings(max_examples=300, deadline=None)
@given(text=st.text(st.characters(max_codepoint=0xFFFE, exclude_categories=["Cs", "Co"])))
def test_lossless_changes_no_id_of_a_text_that_was_kept(small, lossless, text):
    assert lossless.encode(text) == small.encode(text)


# What cannot be built


def test_ngrams_that_do_not_fit_are_refused_with_the_room(ngrams_file):
    grams = [(chr(0x4E00 + i // 100) + chr(0x4E00 + i % 100), 1) for i in range(9000)]
    statistics = [LanguageNgrams("zh", "Chinese", {2: grams, 3: []})]
    with pytest.raises(InputError, match=r"9,000 n-grams do not fit, 8,192 do; take fewer .* --top-ngrams"):
        choose_published_ngrams(statistics, [], LAYOUTS["bvv241-2-3"], 9000)
    assert len(choose_published_ngrams(statistics, [], LAYOUTS["bvv241-2-3"], 8200)) == 8192


def test_statistics_without_a_size_are_refused(ngrams_file, tmp_path):
    with pytest.raises(InputError, match="no n-grams of 4 characters for en"):
        build_tokenizer([], TokenizerSettings(layout="bvv241-max", ngrams=str(ngrams_file)), tmp_path / "out")


def test_shared_strings_with_whitespace_are_refused_with_the_line(tmp_path):
    (tmp_path / "shared.txt").write_text("one\nt wo\n", encoding="utf-8")
    with pytest.raises(InputError, match="shared.txt line 2 is 't wo': tokens hold no whitespace"):
        read_shared_strings(str(tmp_path / "shared.txt"))


def test_all_names_of_the_special_slots_can_be_given(ngrams_file, tmp_path):
    (tmp_path / "names.txt").write_text("\n".join(NAMES) + "\n", encoding="utf-8")
    tokenizer = build(ngrams_file, tmp_path / "tok", special_names=str(tmp_path / "names.txt"))
    assert tokenizer.tokens[0xE000:0xE017] == NAMES and tokenizer.tokens[0xE017] == f"<special_token_{0xE017}>"


@pytest.mark.parametrize("names", [NAMES[1:], [*NAMES, "<s>"], [*NAMES, *map(str, range(110))], ["", *NAMES]])
def test_bad_names_of_special_slots_are_refused(tmp_path, names):
    (tmp_path / "names.txt").write_text("\n".join(names), encoding="utf-8")
    with pytest.raises(InputError, match="must hold at most 128 different names"):
        read_special_names(str(tmp_path / "names.txt"))
