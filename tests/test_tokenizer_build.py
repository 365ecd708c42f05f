"""Foreign vocabularies are kept as they are, and settings that do not belong to a layout are refused."""

import json
from pathlib import Path

import pytest
import tokenizers
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from glyphlm.base.errors import InputError
from glyphlm.corpus.phrasebook import phrases
from glyphlm.corpus.reading import Passage
from glyphlm.tokenizer.build import TokenizerSettings, build_tokenizer
from glyphlm.tokenizer.tokenizer import HF_CONFIG, Tokenizer

PHRASES = [phrase.text for phrase in phrases()[:300]]
ANY = st.text(st.characters(exclude_categories=["Cs"]))
CONFIG = {"tokenizer_class": "GPT2Tokenizer", "eos_token": {"content": "<end>", "special": True}, "pad_token": None}


def byte_level(folder: Path, config=CONFIG) -> Path:
    """A byte-level vocabulary of 600 ids, as GPT-2's or Mistral-Nemo's."""
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=600, initial_alphabet=alphabet, special_tokens=["<end>"], show_progress=False)
    backend.train_from_iterator(PHRASES, trainer)
    return saved(backend, folder, config)


def sentencepiece_like(folder: Path) -> Path:
    """Characters, bytes and a few words, with U+2581 for a space, as Llama 2's vocabulary."""
    specials = ["<unk>", "<s>", "</s>"]
    tokens = [*specials, *(f"<0x{byte:02X}>" for byte in range(256)), "\u2581", "a", "b", "\u2581a", "ab"]
    model = models.BPE(
        vocab={token: number for number, token in enumerate(tokens)}, merges=[("\u2581", "a"), ("a", "b")],
        unk_token="<unk>", byte_fallback=True, fuse_unk=True,
    )  # fmt: skip
    backend = tokenizers.Tokenizer(model)
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    backend.add_special_tokens(specials)
    return saved(backend, folder, {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"})


def saved(backend, folder, config):
    folder.mkdir()
    backend.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def foreign(tmp_path_factory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("foreign")
    base = byte_level(folder / "base")
    return build_tokenizer([], TokenizerSettings(layout="bvv241-nemo", base=str(base)), folder / "tok")


def refusal(tmp_path, texts=(), **changes):
    with pytest.raises(InputError) as caught:
        build_tokenizer(texts, TokenizerSettings(**changes), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    return str(caught.value)


# Foreign vocabularies


def test_a_foreign_vocabulary_keeps_its_ids(foreign, tmp_path):
    theirs = tokenizers.Tokenizer.from_file(str(byte_level(tmp_path / "base") / "tokenizer.json"))
    assert foreign.tokens == [theirs.id_to_token(number) for number in range(theirs.get_vocab_size())]
    assert foreign.encode("\n".join(PHRASES)) == theirs.encode("\n".join(PHRASES)).ids


@settings(max_examples=300, deadline=None)
@given(text=ANY)
def test_the_bytes_of_foreign_ids_are_the_bytes_of_the_text(foreign, text):
    ids = foreign.encode(text)
    assert b"".join(map(foreign.text_bytes, ids)) == text.encode() and foreign.decode(ids) == text


@pytest.mark.parametrize("start", ["<s>", "<end>"])
def test_in_the_files_of_a_model_nothing_is_put_around_a_text(tmp_path, start):
    folder = byte_level(tmp_path / "base", {"bos_token": "<s>", "eos_token": "<end>"})
    backend = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    backend.add_special_tokens(["<s>"])
    ids = [(start, backend.token_to_id(start))]
    backend.post_processor = processors.TemplateProcessing(single=f"{start} $A", pair=f"{start} $A $B", special_tokens=ids)
    backend.save(str(folder / "tokenizer.json"))
    assert transformers.AutoTokenizer.from_pretrained(folder)("a b")["input_ids"][0] == ids[0][1]
    tokenizer = Tokenizer.load(folder)
    tokenizer.as_trained().save(folder)
    assert transformers.AutoTokenizer.from_pretrained(folder)("a b")["input_ids"] == tokenizer.encode("a b")
    assert Tokenizer.load(folder).fingerprint == tokenizer.fingerprint


def test_foreign_documents_are_encoded_whole(foreign):
    text = "\n".join(PHRASES)
    stream = [Passage(text[:1000], False), Passage(text[1000:], True), Passage("end", True)]
    assert [piece.ids.tolist() for piece in foreign.encode_passages(stream)] == [foreign.encode(text), foreign.encode("end")]


def test_a_foreign_document_too_long_to_hold_is_refused(foreign, monkeypatch):
    monkeypatch.setattr("glyphlm.tokenizer.piece_encoder.MAX_HELD", 100)
    with pytest.raises(InputError, match="longer than 100 characters, which a foreign vocabulary cannot encode in parts"):
        list(foreign.encode_passages([Passage("a" * 101, False)]))


def test_a_foreign_vocabulary_without_padding_pads_with_the_end_of_text(foreign):
    assert foreign.tokens[foreign.end_id] == "<end>" and foreign.pad_id == foreign.end_id
    assert foreign.start_id is None and foreign.unknown_id is None


def test_pictures_show_what_a_foreign_token_decodes_to_or_how_it_is_spelled(foreign):
    decoded, raw = foreign.pictured(), foreign.pictured("raw")
    space, cyrillic = raw.index("\u0120"), raw.index("\u00d0")  # the byte-level letters of 20 and D0
    assert (decoded[space], decoded[cyrillic], decoded[foreign.end_id]) == (" ", "D0", "<end>")
    assert raw == foreign.tokens and "" not in decoded


def test_transformers_reads_a_foreign_folder_and_gives_the_same_ids(foreign, tmp_path):
    from transformers import AutoTokenizer

    foreign.save(tmp_path)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    assert theirs(PHRASES[0])["input_ids"] == foreign.encode(PHRASES[0]) and theirs.eos_token == "<end>"


def test_sentencepiece_spelling_is_understood(tmp_path):
    base = sentencepiece_like(tmp_path / "base")
    tokenizer = build_tokenizer([], TokenizerSettings(layout="bvv241-nemo", base=str(base)), tmp_path / "tok")
    ids = tokenizer.encode("a ab \u00e9")
    assert b"".join(map(tokenizer.text_bytes, ids)) == " a ab \u00e9".encode()  # it writes a space before each text
    assert tokenizer.decode(ids) == "a ab \u00e9"


def test_a_foreign_tokenizer_that_names_no_end_of_text_is_refused(tmp_path):
    base = byte_level(tmp_path / "base", {"eos_token": None})
    assert "has no eos_token (None); name one of its tokens in tokenizer_config.json" in refusal(
        tmp_path, layout="bvv241-nemo", base=str(base)
    )


def test_a_foreign_tokenizer_that_hides_its_bytes_is_refused(tmp_path):
    backend = tokenizers.Tokenizer(models.WordPiece({"[UNK]": 0, "</s>": 1, "a": 2}, unk_token="[UNK]"))
    backend.decoder = decoders.WordPiece()
    base = saved(backend, tmp_path / "base", dict(HF_CONFIG))
    assert "decoder WordPiece does not determine the bytes" in refusal(tmp_path, layout="bvv241-nemo", base=str(base))


def test_a_damaged_configuration_is_refused(tmp_path):
    base = byte_level(tmp_path / "base")
    (base / "tokenizer_config.json").write_text("[", encoding="utf-8")
    assert "tokenizer_config.json is damaged" in refusal(tmp_path, layout="bvv241-nemo", base=str(base))


# Settings


@pytest.mark.parametrize(("changes", "reported"), [
    ({"layout": "compact", "lossless": True}, "layout compact takes no lossless (True); it takes vocab_size"),
    ({"layout": "bvv241-2-3", "vocab_size": 8192}, "layout bvv241-2-3 takes no vocab_size (8192)"),
    ({"layout": "bvv241-nemo", "ngrams": "x"}, "layout bvv241-nemo takes no ngrams ('x'); it takes base"),
    ({"layout": "compact"}, "layout compact is counted on text"),
    ({"layout": "bvv241-max"}, "layout bvv241-max is made from n-gram statistics: name a file with --ngrams"),
    ({"layout": "bvv241-nemo"}, "layout bvv241-nemo keeps the ids of another tokenizer: name its folder with --from"),
    ({"layout": "bvv241-max", "ngrams": "nowhere.txt"}, "nowhere.txt does not exist"),
    ({"layout": "bvv241-nemo", "base": "nowhere"}, "nowhere/tokenizer.json does not exist"),
])  # fmt: skip
def test_settings_that_do_not_belong_to_the_layout_are_refused(tmp_path, changes, reported):
    assert reported in refusal(tmp_path, **changes)


def test_text_for_a_layout_that_counts_none_is_refused(tmp_path):
    assert "is not counted on text ('a.txt'); leave the texts out" in refusal(
        tmp_path, texts=["a.txt"], layout="bvv241-2-3", ngrams="x"
    )
