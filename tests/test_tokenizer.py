"""No text is lost, pieces give the same ids as the whole, and a vocabulary depends on its text alone."""

import json
import os
import subprocess
import sys
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import tokenizers
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from glyphlm.base.errors import InputError
from glyphlm.corpus.phrasebook import phrases
from glyphlm.corpus.reading import Passage
from glyphlm.tokenizer.build import TokenizerSettings, build_tokenizer
from glyphlm.tokenizer.layouts import BYTES, SPECIALS, choose_characters, compact_backend, repeated
from glyphlm.tokenizer.ngrams import LONG_RUN, TextCounts, count_text
from glyphlm.tokenizer.piece_encoder import MAX_UNCUT, PIECE_CHARS
from glyphlm.tokenizer.tokenizer import Tokenizer, byte_tokenizer

UNICODE = st.text(st.characters(exclude_categories=["Cs"]))
PHRASES = [phrase.text for phrase in phrases()[:60]]
# Text like the vocabulary's own, where merges happen, and any other text between it.
MIXED = st.lists(st.sampled_from(PHRASES) | UNICODE | st.sampled_from([*SPECIALS, *BYTES]), max_size=4).map("".join)
EXAMPLES = settings(max_examples=300, deadline=None)


def passages_of(text, cuts):
    """`text` as one document in the passages that sorted `cuts` make."""
    edges = [0, *sorted(cut % (len(text) + 1) for cut in cuts), len(text)]
    return [Passage(text[start:end], number == len(cuts)) for number, (start, end) in enumerate(pairwise(edges))]


def documents_of(pieces):
    """Ids of each document of a stream of pieces."""
    documents, ids = [], []
    for piece in pieces:
        ids.extend(piece.ids.tolist())
        if piece.last:
            documents.append(ids)
            ids = []
    assert not ids
    return documents


def counts(text):
    return count_text([Passage(text, True)])


def refusal(text_counts, vocab_size):
    with pytest.raises(InputError) as caught:
        compact_backend(text_counts, vocab_size)
    return str(caught.value)


# Text to ids and back


@EXAMPLES
@given(text=MIXED)
def test_decoding_gives_back_any_text(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text)) == text


@EXAMPLES
@given(text=MIXED)
def test_bytes_of_the_ids_are_the_bytes_of_the_text(tokenizer, text):
    ids = tokenizer.encode(text)
    assert b"".join(tokenizer.text_bytes(number) for number in ids) == text.encode()
    assert int(tokenizer.bytes_per_id_V[ids].sum()) == len(text.encode())


@pytest.mark.parametrize("name", SPECIALS)
def test_names_of_special_tokens_in_a_text_stay_text(tokenizer, name):
    ids = tokenizer.encode(f"a{name}b")
    assert not tokenizer.special_ids & set(ids) and tokenizer.decode(ids) == f"a{name}b"


@pytest.mark.parametrize("name", ["<0x41>", "<0xFF>"])
def test_names_of_byte_tokens_in_a_text_stay_text(tokenizer, name):
    assert tokenizer.decode(tokenizer.encode(name)) == name


def test_special_ids_stand_for_no_text(tokenizer):
    ids = [tokenizer.pad_id, tokenizer.tokens.index("<s>"), tokenizer.end_id, tokenizer.unknown_id]
    assert tokenizer.special_ids == set(ids) and len(set(ids)) == 4
    assert tokenizer.decode(ids) == "" and not tokenizer.bytes_per_id_V[ids].any()


def test_a_text_begins_behind_what_ended_the_one_before_in_every_library(tokenizer, tmp_path):
    """An old folder names `<s>`, which training never saw."""
    old = Tokenizer(tokenizer._backend, tokenizer.config | {"bos_token": "<s>"})
    old.as_trained().save(tmp_path)
    loaded = transformers.PreTrainedTokenizerFast.from_pretrained(tmp_path)
    assert loaded.bos_token_id == loaded.eos_token_id == Tokenizer.load(tmp_path).start_id == tokenizer.end_id


def test_bytes_that_are_not_utf8_become_the_replacement_character(tokenizer):
    assert tokenizer.decode([tokenizer.tokens.index("<0xFF>"), *tokenizer.encode("a")]) == "\ufffda"


@pytest.mark.parametrize(("text", "position"), [("\ud800", 0), ("ab\udfffc", 2), ("😀\ud83d", 1)])
def test_half_a_character_pair_is_refused_with_its_position(tokenizer, text, position):
    with pytest.raises(InputError, match=f"^position {position} of the text .*lone surrogate"):
        tokenizer.encode(text)


def test_text_like_its_own_takes_fewer_ids_than_characters(tokenizer):
    text = "\n".join(PHRASES)
    assert len(tokenizer.encode(text)) < 0.75 * len(text)


# Pieces


@EXAMPLES
@given(text=MIXED, cuts=st.lists(st.integers(min_value=0), max_size=4))
def test_passages_give_the_ids_of_the_whole_document(tokenizer, text, cuts):
    assert documents_of(tokenizer.encode_passages(passages_of(text, cuts))) == [tokenizer.encode(text)]


@settings(max_examples=50, deadline=None)
@given(texts=st.lists(MIXED, max_size=4))
def test_documents_of_a_stream_stay_apart(tokenizer, texts):
    stream = [passage for text in texts for passage in passages_of(text, [len(text) // 2])]
    assert documents_of(tokenizer.encode_passages(stream)) == [tokenizer.encode(text) for text in texts]


def test_long_text_gives_the_same_ids_in_pieces(tokenizer):
    text = "\n".join(phrase.text for phrase in phrases()[:2000])
    pieces = list(tokenizer.encode_passages(passages_of(text, [100_001, 100_003])))
    assert documents_of(pieces) == [tokenizer.encode(text)] and len(pieces) > len(text) // (2 * PIECE_CHARS)


@pytest.mark.parametrize("run", ["а" * 700_000, "онон" * 175_000, "的英语名称是" * 120_000, "\U0010ffff" * 700_000])
def test_a_run_without_any_break_comes_in_bounded_pieces(tokenizer, run):
    pieces = list(tokenizer.encode_passages(passages_of(run, range(200_000, len(run), 200_000))))
    assert tokenizer.decode([number for piece in pieces for number in piece.ids.tolist()]) == run
    lengths = [int(tokenizer.bytes_per_id_V[piece.ids].sum()) for piece in pieces]
    assert max(lengths) <= (MAX_UNCUT + 200_000) * len(run[0].encode())


def test_a_run_that_no_merge_joins_gives_the_same_ids_in_pieces(tokenizer):
    assert documents_of(tokenizer.encode_passages([Passage("а" * 100_000, True)])) == [tokenizer.encode("а" * 100_000)]


# The vocabulary


def test_the_vocabulary_has_exactly_the_size_asked_for(tokenizer):
    assert tokenizer.vocab_size == 1024 == len(set(tokenizer.tokens))


def test_ids_begin_with_specials_and_bytes(tokenizer):
    assert tuple(tokenizer.tokens[:260]) == (*SPECIALS, *BYTES)


def test_no_token_holds_whitespace_next_to_another_character(tokenizer):
    assert not [token for token in tokenizer.tokens if len(token) > 1 and any(map(str.isspace, token))]


def test_tokens_of_several_characters_are_letters_alone(tokenizer):
    ordinary = [token for token in tokenizer.tokens[260:] if len(token) > 1]
    assert ordinary and all(character.isalpha() for token in ordinary for character in token)


def test_every_character_of_an_ngram_is_a_token_of_its_own(tokenizer):
    assert {character for token in tokenizer.tokens[260:] for character in token} <= set(tokenizer.tokens)


def test_the_list_for_the_eye_names_every_token(tokenizer, tokenizer_folder):
    lines = (tokenizer_folder / "vocab.txt").read_text(encoding="utf-8").splitlines()
    assert lines == [f"{number}\t{token!r}" for number, token in enumerate(tokenizer.tokens)]


@pytest.mark.parametrize("vocab_size", [511, 0, -1])
def test_a_vocabulary_too_small_for_bytes_and_letters_is_refused(texts, tmp_path, vocab_size):
    with pytest.raises(InputError, match=f"vocab_size {vocab_size} .*at least 512"):
        build_tokenizer(texts, TokenizerSettings(vocab_size=vocab_size), tmp_path / "out")


@pytest.mark.parametrize("text", [
    "\n".join(PHRASES),
    " ".join(map(chr, range(0x4E00, 0x4E00 + 400))),  # characters alone, more than half of the room
    " ".join(chr(number) + chr(number + 1) for number in range(0x4E00, 0x4E00 + 800, 2)),
], ids=["phrases", "characters", "pairs"])  # fmt: skip
def test_a_vocabulary_larger_than_the_text_supports_is_refused_with_the_size_that_works(text):
    message = refusal(counts(text), 50_000)
    assert message.startswith("vocab_size 50000 is larger than the text supports: ")
    supported = int(message.split()[-1])
    assert compact_backend(counts(text), supported).get_vocab_size() == supported
    assert refusal(counts(text), supported + 1).endswith(f"--vocab-size {supported}")


def test_text_too_small_for_any_vocabulary_is_refused_without_a_size():
    assert refusal(counts("hello world"), 512).endswith("; give more text")


def test_rare_characters_are_left_to_bytes():
    assert choose_characters(Counter({"a": 9_990, "b": 8, "c": 1, "d": 1}), 100) == ["a", "b"]


def test_characters_of_equal_frequency_come_by_code_point():
    assert choose_characters(Counter({"b": 5, "a": 5, "c": 6}), 2) == ["c", "a"]


# Counting


def test_words_are_runs_of_letters_with_their_marks():
    assert counts("it's e\u0301t\u0301 9 x2").words == Counter({"it": 1, "s": 1, "e\u0301t\u0301": 1, "x": 1})


def test_long_runs_of_letters_are_counted_in_parts():
    assert counts("中" * (2 * LONG_RUN + 1)).words == Counter({"中" * LONG_RUN: 2, "中": 1})


def test_the_rare_half_of_too_many_words_is_forgotten(monkeypatch):
    monkeypatch.setattr("glyphlm.tokenizer.ngrams.MAX_WORDS", 4)
    found = TextCounts()
    found.add("a a b b c d e")
    assert found.words == Counter({"a": 2, "b": 2})


def test_counts_are_divided_where_there_are_too_many_words(monkeypatch):
    monkeypatch.setattr("glyphlm.tokenizer.layouts.MAX_WORDS_LEARNED", 10)
    assert list(repeated(Counter({"b": 15, "a": 8, "c": 1}))) == ["a a", "b b b b b"]


# Folders


BUILD = (
    "import sys; from pathlib import Path; from glyphlm.tokenizer.build import TokenizerSettings, build_tokenizer; "
    "build_tokenizer(sys.argv[2:], TokenizerSettings(vocab_size=1024), Path(sys.argv[1]))"
)


def test_another_process_makes_the_same_bytes(texts, tokenizer_folder, tmp_path):
    environment = os.environ | {"PYTHONHASHSEED": "12345"}
    subprocess.run([sys.executable, "-c", BUILD, tmp_path / "again", *texts], env=environment, check=True)
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "build.json"):
        assert (tmp_path / "again" / name).read_bytes() == (tokenizer_folder / name).read_bytes(), name


def test_the_same_command_finds_its_work_done(texts, tokenizer_folder):
    before = (tokenizer_folder / "tokenizer.json").stat().st_mtime_ns
    build_tokenizer(texts, TokenizerSettings(vocab_size=1024), tokenizer_folder)
    assert (tokenizer_folder / "tokenizer.json").stat().st_mtime_ns == before


def test_another_size_into_the_same_folder_is_refused(texts, tokenizer_folder):
    with pytest.raises(InputError, match="vocab_size = 1024, not 1000"):
        build_tokenizer(texts, TokenizerSettings(vocab_size=1000), tokenizer_folder)


def test_the_folder_records_the_fingerprint_of_what_is_loaded(tokenizer, tokenizer_folder):
    build = json.loads((tokenizer_folder / "build.json").read_text(encoding="utf-8"))
    assert build["result"] == {"fingerprint": tokenizer.fingerprint, "vocab_size": 1024}


def fingerprint(texts, vocab_size):
    return Tokenizer(compact_backend(counts("\n".join(texts)), vocab_size)).fingerprint


def test_fingerprints_of_different_vocabularies_differ():
    assert len({fingerprint(PHRASES, 700), fingerprint(PHRASES, 699), fingerprint(PHRASES[:30], 700)}) == 3


def test_the_order_of_the_text_does_not_matter():
    assert fingerprint(PHRASES, 700) == fingerprint(PHRASES[::-1], 700)


def test_a_missing_tokenizer_is_refused_with_the_command_that_makes_it(tmp_path):
    with pytest.raises(InputError, match="tokenizer.json does not exist; make it with: glyphlm tokenizer build"):
        Tokenizer.load(tmp_path)


def changed(tokenizer, folder: Path, change) -> Path:
    """A folder whose tokenizer.json was changed."""
    tokenizer.save(folder)
    path = folder / "tokenizer.json"
    parts = json.loads(path.read_text(encoding="utf-8"))
    change(parts)
    path.write_text(json.dumps(parts), encoding="utf-8")
    return folder


@pytest.mark.parametrize(("change", "match"), [
    (lambda parts: parts["model"]["vocab"].update(zzzz=4294967290), "ids up to 4,294,967,290"),
    (lambda parts: parts.update(normalizer={"type": "Precompiled", "precompiled_charsmap": "AAAA"}), "not a tokenizer"),
    (lambda parts: parts["model"].update(merges=[["no", "such"]]), "not a tokenizer"),
    (lambda parts: parts.update(model={"type": "WordLevel", "vocab": {}, "unk_token": "?"}, added_tokens=[]),
     "ids up to -1|not a tokenizer"),
    (lambda parts: parts["model"]["vocab"].update(zzzz=300), "2 tokens with the id 300"),
])
def test_a_tokenizer_that_would_fill_the_memory_or_panic_is_refused(tokenizer, tmp_path, change, match):
    with pytest.raises(InputError, match=f"tokenizer.json .*({match}).*build it again"):
        Tokenizer.load(changed(tokenizer, tmp_path, change))


def test_a_tokenizer_that_draws_its_merges_is_refused(tokenizer, tmp_path):
    with pytest.raises(InputError, match="tokenizer.json .*dropout 0.5.*null"):
        Tokenizer.load(changed(tokenizer, tmp_path, lambda parts: parts["model"].update(dropout=0.5)))


@pytest.mark.parametrize("config", [
    "", "[]", "{", '{"eos_token": 5}', '{"eos_token": {"a": 1}}', '{"pad_token": ["<pad>"]}', "NaN",
])
def test_a_damaged_tokenizer_config_is_refused_with_its_name(tokenizer, tmp_path, config):
    tokenizer.save(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(config)
    with pytest.raises(InputError, match="tokenizer_config.json is damaged .*build the tokenizer again"):
        Tokenizer.load(tmp_path)


def test_a_chat_template_of_its_own_file_is_read(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    (tmp_path / "chat_template.jinja").write_text("{{ messages }}")
    assert Tokenizer.load(tmp_path).config["chat_template"] == "{{ messages }}"


def test_a_folder_that_another_process_writes_is_refused(texts, tmp_path):
    hold = "import sys\nfrom glyphlm.base.outputs import one_writer\n"
    hold += "with one_writer(sys.argv[1]): print(1, flush=1), input()"
    out = tmp_path / "out"
    with subprocess.Popen([sys.executable, "-c", hold, out], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout.readline()
        with pytest.raises(InputError, match=f"{out} is being written by process {other.pid}"):
            build_tokenizer(texts, TokenizerSettings(vocab_size=1024), out)
        other.communicate(b"\n")


@pytest.mark.parametrize("damage", [b"", b"{}", b"\xff", b"[]", b'{"version": "1.0", "model": {"type": "BPE"'])
def test_a_damaged_tokenizer_is_refused_with_its_name(tmp_path, damage):
    (tmp_path / "tokenizer.json").write_bytes(damage)
    with pytest.raises(InputError, match=f"{tmp_path / 'tokenizer.json'} is not a tokenizer"):
        Tokenizer.load(tmp_path)


def test_transformers_reads_the_folder_and_gives_the_same_ids(tokenizer, tokenizer_folder):
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(tokenizer_folder)
    text = " \n".join([*PHRASES, "  two  spaces ", "₿ 𠮷 \u200b\x00"])
    ids = theirs(text)["input_ids"]
    assert ids == tokenizer.encode(text) and theirs.decode(ids) == text
    assert (theirs.pad_token_id, theirs.bos_token_id, theirs.eos_token_id) == (
        tokenizer.pad_id, tokenizer.start_id, tokenizer.end_id
    )  # fmt: skip


def test_real_text_in_three_languages_survives(tokenizer, data):
    folder = Path(data) / "eval" / "flores200"
    files = [folder / name for name in ("eng_Latn.dev", "rus_Cyrl.dev", "zho_Hans.dev")]
    if not all(path.is_file() for path in files):
        pytest.skip(f"{folder} does not hold {', '.join(path.name for path in files)}")
    for path in files:
        text = path.read_text(encoding="utf-8")
        (ids,) = documents_of(tokenizer.encode_passages(passages_of(text, [len(text) // 3])))
        assert tokenizer.decode(ids) == text and ids == tokenizer.encode(text)


def test_the_bytes_of_an_id_fit_the_type_that_holds_them(tokenizer):
    assert tokenizer.bytes_per_id_V.dtype == np.uint16 and int(tokenizer.bytes_per_id_V.max()) < 2**16 - 1


@EXAMPLES
@given(prompt=MIXED, answer=MIXED)
def test_a_prompt_and_its_answer_are_cut_at_their_border(tokenizer, prompt, answer):
    assert tokenizer.encode_pair(prompt, answer) == (tokenizer.encode(prompt), tokenizer.encode(answer))


def foreign(model, pre_tokenizer, ids) -> Tokenizer:
    """A small vocabulary of another library's kind."""
    backend = tokenizers.Tokenizer(model(ids))
    backend.pre_tokenizer = pre_tokenizer
    backend.add_special_tokens(["</s>"])
    return Tokenizer(backend, {"eos_token": "</s>"})


def test_a_foreign_vocabulary_is_cut_there_too(tokenizer):
    """Tekken joins a mark to the word behind it; a sign for the start of a text is none in the middle of one."""
    split = tokenizers.pre_tokenizers.Split(tokenizers.Regex(r"[:]?\p{L}+|."), "isolated")
    words = {"Answer": 0, ":": 1, ":A": 2, "A": 3, "x": 4}
    marked = foreign(lambda ids: tokenizers.models.WordLevel(ids, "x"), split, words)
    assert marked.encode("Answer:A") == [0, 2] and marked.encode_pair("Answer:", "A") == ([0, 1], [3])
    metaspace = tokenizers.pre_tokenizers.Metaspace(prepend_scheme="first")
    started = foreign(lambda ids: tokenizers.models.BPE(ids, []), metaspace, {"\u2581": 0, ":": 1, "A": 2})
    assert started.encode("A") == [0, 2] and started.encode_pair(":", "A") == ([0, 1], [2])


def test_the_byte_vocabulary_keeps_every_text_and_every_byte():
    tokenizer = byte_tokenizer()
    text = "Ж 中 𝄞\n\t</s>"
    assert tokenizer.encode(text) == [4 + byte for byte in text.encode()]
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert [tokenizer.text_bytes(4 + byte) for byte in range(256)] == [bytes([byte]) for byte in range(256)]
    assert tokenizer.decode([*tokenizer.encode("Hi"), 4 + 0xFF]) == "Hi\ufffd" and tokenizer.vocab_size == 260
