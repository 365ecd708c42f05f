"""Token -> the UTF-8 bytes that it stands for.

Our vocabularies spell characters as they are and bytes as `<0xXX>`. Foreign vocabularies may be byte-level (each byte is
written as one printable character, as in GPT-2) or SentencePiece-like (U+2581 for a space, bytes as `<0xXX>`).
"""

import json
import re
from collections.abc import Callable
from typing import Any

import tokenizers

from glyphlm.base.errors import InputError

BYTE = re.compile(r"<0x([0-9A-F]{2})>")
# The visible characters of Latin-1 stand for their own bytes, the other 68 bytes for the characters from U+0100 on.
VISIBLE = (*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100))
HIDDEN = tuple(byte for byte in range(256) if byte not in VISIBLE)
BYTE_OF_LETTER = {chr(byte): byte for byte in VISIBLE} | {chr(0x100 + place): byte for place, byte in enumerate(HIDDEN)}

Spelling = Callable[[str], bytes]


def spelling_of(backend: tokenizers.Tokenizer) -> Spelling:
    """The function token -> UTF-8 bytes of this vocabulary.

    Raises:
        InputError: its decoder is of a kind (such as WordPiece) that does not determine the bytes of a token.
    """
    decoder: dict[str, Any] = json.loads(backend.to_str())["decoder"] or {"type": "none"}
    parts: list[dict[str, Any]] = decoder.get("decoders", [decoder])
    kinds = {part["type"] for part in parts}
    if "ByteLevel" in kinds:
        return spell_byte_level
    if "Metaspace" in kinds or any(part.get("content") == " " for part in parts):
        return lambda token: spell_plain(token.replace("\u2581", " "))
    if kinds <= {"ByteFallback", "Fuse"}:
        return spell_plain
    raise InputError(f"a tokenizer with the decoder {', '.join(sorted(kinds))} does not determine the bytes of its tokens; "
                     "use a byte-level or SentencePiece-like one")


def spell_plain(token: str) -> bytes:
    """`<0xXX>` is that byte, any other token its own UTF-8 bytes."""
    byte = BYTE.fullmatch(token)
    return bytes.fromhex(byte[1]) if byte else token.encode()


def spell_byte_level(token: str) -> bytes:
    """One byte a letter; added tokens, which are written as plain text, are their own UTF-8 bytes."""
    if all(letter in BYTE_OF_LETTER for letter in token):
        return bytes(BYTE_OF_LETTER[letter] for letter in token)
    return token.encode()


def legible(text: bytes, token: str) -> str:
    """The text; hexadecimal digits of bytes that are not characters; the name of tokens without text."""
    try:
        return text.hex().upper() if BYTE.fullmatch(token) else text.decode() or token
    except UnicodeDecodeError:
        return text.hex().upper()
