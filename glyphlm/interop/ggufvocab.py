"""Our tokenizers as llama.cpp's SentencePiece-BPE ("llama"): the same ids for every text, or a refusal.

SentencePiece joins the two neighbours whose joined text has the best score, leftmost first. Our merges are all splits of
each n-gram, n-gram by n-gram, so a score of minus the n-gram's rank joins the same neighbours.

llama.cpp writes a space as U+2581 before it looks tokens up, and U+2581 is a character of its own in our vocabularies. Both
are therefore user-defined tokens: these it cuts out of a text first, as they are. No n-gram holds either. It also reads
token texts up to the first NUL, so that U+0000 is spelled as a byte.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from glyphlm.base.errors import InputError
from glyphlm.tokenizer.bvv241 import FALLBACK_BYTES, SPECIAL_SLOTS, is_reserved
from glyphlm.tokenizer.layouts import BYTES
from glyphlm.tokenizer.spelling import BYTE
from glyphlm.tokenizer.tokenizer import Tokenizer

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE_KIND = range(1, 7)  # token types of GGUF
CUT_OUT = (" ", "\u2581")
PLAIN = {"type": "BPE", "dropout": None, "fuse_unk": False, "ignore_merges": False, "byte_fallback": True,
         "continuing_subword_prefix": None, "end_of_word_suffix": None}
SAMPLED, JOINED = 4000, 6  # tokens whose texts are compared at export, so many at once


@dataclass(frozen=True)
class Piece:
    """A token as a GGUF file holds it."""

    text: str
    score: float
    kind: int


def gguf_pieces(run: Path, tokenizer: Tokenizer) -> tuple[list[Piece], list[str]]:
    """The pieces in order of ids, and what they cannot express, in words; compared on a sample of the vocabulary.

    Raises:
        InputError: the tokenizer is none of our layouts, or gives other ids than the pieces would.
    """
    ranks = merge_ranks(run, tokenizer.tokens)
    pieces = [_piece(number, token, tokenizer, ranks) for number, token in enumerate(tokenizer.tokens)]
    pieces, cannot = with_all_bytes(spell_nul_as_byte(pieces), run)
    compare(run, tokenizer, pieces, ranks)
    return pieces, cannot


def merge_ranks(run: Path, tokens: Sequence[str]) -> dict[str, int]:
    """The rank of each n-gram: the place of its merges.

    Raises:
        InputError: scores cannot order these merges as the tokenizer does.
    """
    parts = json.loads((run / "tokenizer.json").read_text(encoding="utf-8"))
    model, refusal = parts["model"], f"{run}/tokenizer.json cannot be written as SentencePiece-BPE"
    if any(model.get(key) != value for key, value in PLAIN.items()) or parts["normalizer"] or parts["pre_tokenizer"]:
        raise InputError(f"{refusal}: it is none of our layouts (BPE over characters, without normalizer and "
                         "pre-tokenizer); export --to gpt_neox, which keeps any tokenizer")
    merges = [tuple(merge.split(" ")) if isinstance(merge, str) else tuple(merge) for merge in model["merges"]]
    joined = [left + right for left, right in merges]
    ranks = {text: rank for rank, text in enumerate(dict.fromkeys(joined))}
    known = set(tokens)
    splits = {(text[:cut], text[cut:]) for text in known for cut in range(1, len(text))
              if text[:cut] in known and text[cut:] in known}
    grouped = all(ranks[later] - ranks[earlier] in (0, 1) for earlier, later in zip(joined, joined[1:]))
    if splits != set(merges) or not grouped:
        raise InputError(f"{refusal}: its merges are not all splits of its tokens, token by token; export "
                         "--to gpt_neox, which keeps any tokenizer")
    spaced = next((text for text in ranks if any(character in text for character in CUT_OUT)), None)
    if spaced or " " not in known:
        reason = f"the token {spaced!r} holds a space or U+2581" if spaced else "no token is a space"
        raise InputError(f"{refusal}: {reason}; export --to gpt_neox, which keeps any tokenizer")
    return ranks


def _piece(number: int, token: str, tokenizer: Tokenizer, ranks: dict[str, int]) -> Piece:
    kind = NORMAL
    if number == tokenizer.unknown_id:
        kind = UNKNOWN
    elif BYTE.fullmatch(token):
        kind = BYTE_KIND
    elif number in tokenizer.special_ids:
        kind = UNUSED if is_reserved(number, token) else CONTROL
    elif token in CUT_OUT:
        kind = USER_DEFINED
    return Piece(token, -float(ranks.get(token, len(ranks))), kind)


def spell_nul_as_byte(pieces: Sequence[Piece]) -> list[Piece]:
    """U+0000 under the name of byte 0, which stands for nothing else."""
    if all(piece.text != "\0" for piece in pieces):
        return list(pieces)
    named = {"\0": (BYTES[0], BYTE_KIND), BYTES[0]: ("<unused_byte_0>", UNUSED)}
    return [replace(piece, text=named[piece.text][0], kind=named[piece.text][1]) if piece.text in named else piece
            for piece in pieces]


def with_all_bytes(pieces: list[Piece], run: Path) -> tuple[list[Piece], list[str]]:
    """The pieces with a byte for everything that has no id, without which llama.cpp ends with an error.

    The published layouts have none: theirs take the free slots that the lossless variant gives them.

    Raises:
        InputError: there are no free slots for them.
    """
    spelled = {piece.text for piece in pieces}
    lacking = (chr(code) for code in range(1, 0x110000) if not 0xD800 <= code < 0xE000)
    needed = {BYTES[byte] for character in lacking if character not in spelled for byte in character.encode()}
    missing = needed - spelled
    if not missing:
        return pieces, []
    slots = {SPECIAL_SLOTS[byte]: BYTES[byte] for byte in FALLBACK_BYTES if BYTES[byte] in missing}
    free = len(pieces) > SPECIAL_SLOTS[-1] and all(is_reserved(number, pieces[number].text) for number in slots)
    if not free or missing - set(slots.values()):
        raise InputError(f"{run}: {len(missing)} bytes have no token and no free slot, and llama.cpp has no other way to "
                         "characters without an id; use a lossless layout")
    for number, text in slots.items():
        pieces[number] = Piece(text, pieces[number].score, BYTE_KIND)
    return pieces, ["characters without an id (above U+FFFF, private use), which are <unk> here, are there the bytes of the "
                    "layout's lossless variant, which the model was not trained on"]


def compare(run: Path, tokenizer: Tokenizer, pieces: Sequence[Piece], ranks: dict[str, int]) -> None:
    """Compare ids on texts of the vocabulary's own tokens: n-grams side by side and with spaces, and single characters.

    Raises:
        InputError: they differ; the text is named.
    """
    ids = {piece.text: number for number, piece in enumerate(pieces)}
    texts = [token for token in tokenizer.tokens if len(token) == 1] + list(ranks)
    texts = texts[:: max(1, len(texts) // SAMPLED)]
    for start in range(0, len(texts), JOINED):
        group = texts[start : start + JOINED]
        for text in ("".join(group), " ".join(group)):
            if spm_ids(text, pieces, ids) != tokenizer.encode(text):
                raise InputError(f"{run}: SentencePiece-BPE would give other ids for {text!r}; export --to gpt_neox")


def spm_ids(text: str, pieces: Sequence[Piece], ids: dict[str, int]) -> list[int]:
    """The ids that llama.cpp's rule gives."""
    found, word = [], ""
    for character in [*text, None]:
        if character is not None and (character not in ids or pieces[ids[character]].kind != USER_DEFINED):
            word += character
            continue
        for part in _joined(word, pieces, ids):
            found += [ids[part]] if part in ids else [ids[BYTES[byte]] for byte in part.encode()]
        found += [ids[character]] if character else []
        word = ""
    return found


def _joined(text: str, pieces: Sequence[Piece], ids: dict[str, int]) -> list[str]:
    """The best-scored pair of neighbours is joined, leftmost first, until no two can be."""
    parts = list(text)
    while True:
        pairs = [(-pieces[ids[parts[i] + parts[i + 1]]].score, i) for i in range(len(parts) - 1)
                 if parts[i] + parts[i + 1] in ids]
        if not pairs:
            return parts
        place = min(pairs)[1]
        parts[place : place + 2] = [parts[place] + parts[place + 1]]
