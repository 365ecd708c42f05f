"""Encoding in pieces gives the ids of encoding at once, for any vocabulary of ours and any text."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glyphlm.tokenizer import piece_encoder as pieces
from glyphlm.tokenizer.layouts import BYTES, SPECIALS, bpe_backend
from glyphlm.tokenizer.piece_encoder import PieceEncoder

CHARACTERS = [*"ab\n <é中", "\U00020bb7"]
TEXT = st.text("".join([*CHARACTERS, "x", "\U0001f600"]), max_size=40)
NGRAMS = st.lists(st.text("ab<é中\U00020bb7", min_size=2, max_size=4), unique=True, max_size=8)


def encoder_of(ngrams, fallback=BYTES):
    tokens = [*SPECIALS, *fallback, *CHARACTERS, *ngrams]
    backend = bpe_backend(tokens, ngrams, SPECIALS)
    backend.encode_special_tokens = True
    return backend, PieceEncoder(backend, ["" if token in SPECIALS else token for token in tokens])


def at_once(backend, text):
    return backend.encode(text, add_special_tokens=False).ids


@settings(max_examples=300, deadline=None)
@given(ngrams=NGRAMS, fallback=st.sampled_from([BYTES, ()]), texts=st.lists(TEXT, max_size=5))
def test_pieces_give_the_ids_of_the_whole(ngrams, fallback, texts):
    backend, encoder = encoder_of(ngrams, fallback)
    assert [ids.tolist() for ids in encoder.encode_batch(texts)] == [at_once(backend, text) for text in texts]


@settings(max_examples=300, deadline=None)
@given(ngrams=NGRAMS, fallback=st.sampled_from([BYTES, ()]), text=TEXT)
def test_every_cut_is_exact(ngrams, fallback, text):
    backend, encoder = encoder_of(ngrams, fallback)
    for cut in encoder.cuts(text).tolist():
        assert at_once(backend, text[:cut]) + at_once(backend, text[cut:]) == at_once(backend, text)


def test_characters_of_no_common_token_are_cut_apart():
    _, encoder = encoder_of(["ab", "b中"])
    assert encoder.cuts("ab中 a").tolist() == [3, 4]


def test_no_text_gives_no_ids():
    _, encoder = encoder_of([])
    assert encoder.encode_batch([]) == [] and [ids.size for ids in encoder.encode_batch(["", ""])] == [0, 0]


def test_pairs_that_share_a_flag_change_no_id(monkeypatch):
    monkeypatch.setattr(pieces, "PAIR_BITS", 2)  # nearly every pair counts as joined
    backend, encoder = encoder_of(["ab", "b中", "<a"])
    text = "ab中\n<ab \U0001f600中a\n\nb"
    assert encoder.cuts(text).size < 6
    assert encoder.encode_batch([text, "", text])[2].tolist() == at_once(backend, text)


def test_forgetting_known_pieces_changes_no_id(monkeypatch):
    monkeypatch.setattr(pieces, "MAX_KNOWN", 1)
    backend, encoder = encoder_of(["ab", "ba"])
    for text in ("ab ba aab", "ab bba", "ab ba aab"):
        assert encoder.encode_batch([text])[0].tolist() == at_once(backend, text)
    assert len(encoder._known.numbers) <= 3


@pytest.mark.parametrize("text", ["x", "\U0001f600", "\n\n"])
def test_characters_without_an_id_go_the_backends_way(text):
    backend, encoder = encoder_of(["ab"])
    (ids,) = encoder.encode_batch([text])
    assert ids.dtype == np.uint32 and ids.tolist() == at_once(backend, text)
