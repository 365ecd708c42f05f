"""SentencePiece-BPE gives the ids of our tokenizers, and what it cannot express is refused or said."""

import json
from pathlib import Path

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import models

from glyphlm.base.errors import InputError
from glyphlm.interop.ggufvocab import BYTE_KIND, CONTROL, UNKNOWN, UNUSED, USER_DEFINED, gguf_pieces, spm_ids
from glyphlm.tokenizer.bvv241 import LAYOUTS, published_backend
from glyphlm.tokenizer.layouts import BYTES, SPECIALS, bpe_backend
from glyphlm.tokenizer.tokenizer import Tokenizer

# Overlaps, repetitions and splits of several lengths, in an order that joins long ones late.
NGRAMS = ["aa", "ab", "ba", "aab", "bb", "aaa", "abab", "bab", "baa", "aaaa"]


def saved(tokenizer: Tokenizer, folder: Path) -> tuple[Path, Tokenizer]:
    tokenizer.save(folder)
    return folder, tokenizer


@pytest.fixture(scope="module")
def nested(tmp_path_factory) -> tuple[list, dict, Tokenizer]:
    """The pieces of a vocabulary whose n-grams lie inside each other."""
    characters = [*"ab c\n", "\0", "\u2581"]
    backend = bpe_backend([*SPECIALS, *BYTES, *characters, *NGRAMS], NGRAMS, SPECIALS)
    folder, tokenizer = saved(Tokenizer(backend), tmp_path_factory.mktemp("nested"))
    pieces, cannot = gguf_pieces(folder, tokenizer)
    assert cannot == []
    return pieces, {piece.text: number for number, piece in enumerate(pieces)}, tokenizer


@given(st.text("ab c\n\0\u2581ж🙂<s>", max_size=24))
def test_ids_are_equal_for_every_text(nested, text):
    pieces, ids, tokenizer = nested
    assert spm_ids(text, pieces, ids) == tokenizer.encode(text)


def test_each_kind_of_token_is_told(nested):
    pieces, ids, tokenizer = nested
    kinds = {token: pieces[number].kind for number, token in enumerate(tokenizer.tokens)}
    assert kinds["<s>"] == kinds["<pad>"] == CONTROL and kinds["<unk>"] == UNKNOWN and kinds["<0x41>"] == BYTE_KIND
    assert kinds[" "] == kinds["\u2581"] == USER_DEFINED


def test_nul_takes_the_name_of_its_byte(nested):
    pieces, ids, tokenizer = nested
    assert ids["<0x00>"] == tokenizer.tokens.index("\0") and pieces[tokenizer.tokens.index("<0x00>")].kind == UNUSED


def test_every_token_keeps_a_text_of_its_own(nested):
    pieces, ids, tokenizer = nested
    assert len(ids) == len(pieces) == tokenizer.vocab_size


def test_a_compact_vocabulary_is_expressed(tokenizer, tokenizer_folder):
    pieces, cannot = gguf_pieces(tokenizer_folder, tokenizer)
    ids = {piece.text: number for number, piece in enumerate(pieces)}
    for text in ("Hello, world!  the end\n", "Привет — 你好 🙂\u2581", ""):
        assert spm_ids(text, pieces, ids) == tokenizer.encode(text)
    assert cannot == []


@pytest.fixture(scope="module")
def published() -> dict[bool, Tokenizer]:
    """The small published layout with a few n-grams, as it is and lossless."""
    layout, ngrams = LAYOUTS["bvv241-2-3"], ["the", "th", "he"]
    return {lossless: Tokenizer(published_backend(ngrams, layout, None, lossless)) for lossless in (False, True)}


@pytest.mark.parametrize("lossless", [False, True])
def test_a_published_layout_gets_bytes_where_it_has_free_slots(published, tmp_path, lossless):
    folder, tokenizer = saved(published[lossless], tmp_path)
    pieces, cannot = gguf_pieces(folder, tokenizer)
    ids = {piece.text: number for number, piece in enumerate(pieces)}
    for text in ("the thing\u2581 \0", "Привет 你好"):
        assert spm_ids(text, pieces, ids) == tokenizer.encode(text)
    assert spm_ids("🙂", pieces, ids) == published[True].encode("🙂")
    assert [line.split(" (")[0] for line in cannot] == ([] if lossless else ["characters without an id"])


def vocabulary(*tokens: str, merges=(), **options) -> Tokenizer:
    """A BPE tokenizer whose merges need not be ours."""
    ids = {token: number for number, token in enumerate([*SPECIALS, *BYTES, *tokens])}
    backend = tokenizers.Tokenizer(models.BPE(ids, list(merges), unk_token="<unk>", **{"byte_fallback": True} | options))
    backend.add_special_tokens(list(SPECIALS))
    return Tokenizer(backend)


REFUSED = {
    "a split is no merge": (vocabulary(*"abc ", "ab", "bc", "abc", merges=[("a", "b"), ("ab", "c")]), "not all splits"),
    "merges in another order": (
        vocabulary(*"abc ", "ab", "bc", "abc", merges=[("a", "b"), ("ab", "c"), ("b", "c"), ("a", "bc")]), "token by token"),
    "a token with a space": (vocabulary(*"a ", "a ", merges=[("a", " ")]), "'a ' holds a space"),
    "no space": (vocabulary(*"ab"), "no token is a space"),
    "no bytes": (vocabulary(*"ab ", byte_fallback=False), "none of our layouts"),
    "words": (vocabulary(*"ab ", end_of_word_suffix="_"), "none of our layouts"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_other_vocabularies_are_refused(tmp_path, name):
    tokenizer, match = REFUSED[name]
    folder, tokenizer = saved(tokenizer, tmp_path)
    with pytest.raises(InputError, match=match) as error:
        gguf_pieces(folder, tokenizer)
    assert "\n" not in str(error.value) and str(folder) in str(error.value)


def test_a_vocabulary_without_bytes_and_free_slots_is_refused(tmp_path):
    backend = bpe_backend([*SPECIALS, *"ab "], [], SPECIALS)
    folder, tokenizer = saved(Tokenizer(backend), tmp_path)
    with pytest.raises(InputError, match="bytes have no token and no free slot"):
        gguf_pieces(folder, tokenizer)


def test_other_ids_than_the_tokenizers_are_refused(tokenizer, tmp_path):
    """The comparison at export finds what the checks of the file do not know."""
    tokenizer.save(tmp_path)
    data = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))
    groups = {}
    for left, right in data["model"]["merges"]:
        groups.setdefault(left + right, []).append([left, right])
    data["model"]["merges"] = [merge for group in reversed(groups.values()) for merge in group]
    (tmp_path / "tokenizer.json").write_text(json.dumps(data), encoding="utf-8")
    with pytest.raises(InputError, match="would give other ids for"):
        gguf_pieces(tmp_path, tokenizer)
