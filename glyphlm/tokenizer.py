"""`str` -> ids and back, the bytes that each id stands for, and the folder that any library reads."""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import tokenizers

from glyphlm.corpus import STRICT, Passage, Reading, describe, passages
from glyphlm.errors import InputError
from glyphlm.layouts import BYTES, MIN_VOCAB, compact_backend
from glyphlm.ngrams import count_text
from glyphlm.outputs import Build, to_json
from glyphlm.progress import say

PIECE_CHARS = 1 << 14  # bulk encoding cuts text about here; one BPE call is quadratic in what it cannot cut


@dataclass
class TokenizerSettings:
    """Which tokenizer.

    Args:
        path: Folder of a tokenizer that exists; without it one is built.
        layout: How ids are given to code points and n-grams.
        vocab_size: Number of ids, from 512 up to what the text supports.
    """

    path: str | None = None
    layout: Literal["compact"] = "compact"
    vocab_size: int = 8192


class Piece(NamedTuple):
    """Ids of a piece of a document, in order; `last` marks the piece that ends its document."""

    ids: np.ndarray
    last: bool


class Tokenizer:
    """`str` -> ids and back, and the bytes that each id stands for.

    `decode(encode(text)) == text` for every `str` that is valid Unicode. Names of special tokens in a text stay text.
    """

    def __init__(self, backend: tokenizers.Tokenizer):
        self._backend = backend
        self._backend.encode_special_tokens = True

    @classmethod
    def load(cls, folder: str | Path) -> "Tokenizer":
        """Read `folder`/tokenizer.json.

        Raises:
            InputError: the file is missing or damaged.
        """
        path = Path(folder) / "tokenizer.json"
        if not path.is_file():
            raise InputError(f"{path} does not exist; make it with: glyphlm tokenizer build --out {folder} TEXT...")
        try:
            return cls(tokenizers.Tokenizer.from_file(str(path)))
        except Exception as error:  # the library raises bare Exception
            raise InputError(f"{path} is not a tokenizer ({error}); build it again") from None

    @cached_property
    def tokens(self) -> list[str]:
        """The spelling of each id in the vocabulary, in order of ids."""
        vocab = self._backend.get_vocab(with_added_tokens=True)
        return sorted(vocab, key=vocab.__getitem__)

    @property
    def vocab_size(self) -> int:
        """Number of ids."""
        return len(self.tokens)

    @cached_property
    def special_ids(self) -> frozenset[int]:
        """Ids that stand for no text."""
        added = self._backend.get_added_tokens_decoder()
        return frozenset(number for number, token in added.items() if token.special)

    @property
    def pad_id(self) -> int:
        """Id of `<pad>`."""
        return self._backend.token_to_id("<pad>")

    @property
    def start_id(self) -> int:
        """Id of `<s>`, which a user may put before a conversation; our training text does not use it."""
        return self._backend.token_to_id("<s>")

    @property
    def end_id(self) -> int:
        """Id of the token `</s>` that stands between documents."""
        return self._backend.token_to_id("</s>")

    def text_bytes(self, token_id: int) -> bytes:
        """The UTF-8 bytes that `token_id` stands for; empty for special tokens."""
        if token_id in self.special_ids:
            return b""
        token = self.tokens[token_id]
        return bytes([BYTES.index(token)]) if token in BYTES else token.encode()

    @cached_property
    def bytes_per_id_V(self) -> np.ndarray:
        """uint16 [V]: how many bytes of text each id stands for, the unit of bits per byte."""
        return np.array([len(self.text_bytes(number)) for number in range(self.vocab_size)], dtype=np.uint16)

    @cached_property
    def fingerprint(self) -> str:
        """sha256 of the vocabulary in order of ids and of the merges: equal exactly where all ids mean the same."""
        return hashlib.sha256(self._backend.to_str().encode()).hexdigest()

    def encode(self, text: str) -> list[int]:
        """Ids of `text`.

        Raises:
            InputError: `text` holds a lone surrogate, which is no Unicode character; the position is named.
        """
        try:
            text.encode()
        except UnicodeEncodeError as error:
            where = f"position {error.start} of the text"
            raise InputError(f"{where} holds half of a character pair (a lone surrogate); mend it") from None
        return self._backend.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Sequence[int]) -> str:
        """Text of `ids`; special tokens are left out, bytes that are not UTF-8 become U+FFFD."""
        return self._backend.decode(list(ids), skip_special_tokens=True)

    def encode_passages(self, stream: Iterable[Passage]) -> Iterator[Piece]:
        """Ids of a stream of passages, equal to encoding each document at once, in bounded memory."""
        waiting = ""
        for text, last in stream:
            pieces = self._cut(waiting + text, last)
            waiting = "" if last else pieces.pop()
            encodings = self._backend.encode_batch_fast(pieces, add_special_tokens=False)
            for number, encoding in enumerate(encodings, 1):
                yield Piece(np.array(encoding.ids, dtype=np.uint32), last and number == len(pieces))

    def _cut(self, text: str, last: bool) -> list[str]:
        """Pieces of about PIECE_CHARS, cut where no merge can cross; unless `last`, the final piece waits for more."""
        pieces, start = [], 0
        while len(text) - start > 2 * PIECE_CHARS:
            cut = self._safe_cut(text, start, start + PIECE_CHARS)
            pieces.append(text[start:cut])
            start = cut
        if not last and (cut := self._safe_cut(text, start, len(text) - 1)) > start:
            pieces.append(text[start:cut])
            start = cut
        return [*pieces, text[start:]]

    def _safe_cut(self, text: str, start: int, end: int) -> int:
        """The last place up to `end` between two characters that stand side by side in no token, else `start`."""
        for cut in range(end, start, -1):
            if text[cut - 1 : cut + 1] not in self._neighbours:
                return cut
        if end - start < PIECE_CHARS:
            return start  # no cut yet
        return end  # PIECE_CHARS letters without a break occur in no text; made-up ones lose one merge here

    @cached_property
    def _neighbours(self) -> frozenset[str]:
        ordinary = (token for number, token in enumerate(self.tokens) if number not in self.special_ids)
        return frozenset(token[i : i + 2] for token in ordinary if token not in BYTES for i in range(len(token) - 1))

    def save(self, folder: Path) -> None:
        """Write tokenizer.json and tokenizer_config.json for any library, vocab.txt for the eye."""
        (folder / "tokenizer.json").write_text(self._backend.to_str(pretty=True), encoding="utf-8")
        (folder / "tokenizer_config.json").write_text(to_json(HF_CONFIG), encoding="utf-8")
        lines = (f"{number}\t{token!r}\n" for number, token in enumerate(self.tokens))
        (folder / "vocab.txt").write_text("".join(lines), encoding="utf-8")


# The class is named because transformers 5 otherwise guesses one from config.json and adds a byte-level pre-tokenizer.
HF_CONFIG = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "pad_token": "<pad>",
    "bos_token": "<s>",
    "eos_token": "</s>",
    "unk_token": "<unk>",
    "clean_up_tokenization_spaces": False,
    "model_max_length": 10**9,
}


def build_tokenizer(
    texts: Sequence[str], settings: TokenizerSettings, out: Path, reading: Reading = STRICT
) -> Tokenizer:
    """Count `texts`, lay out the vocabulary and write the tokenizer folder `out`; found done, it is only loaded.

    Raises:
        InputError: the size is out of range or larger than the text supports, or `out` holds something else.
    """
    if settings.vocab_size < MIN_VOCAB:
        raise InputError(f"vocab_size {settings.vocab_size} is below {MIN_VOCAB}, which 256 bytes and letters need")
    kept = {key: value for key, value in asdict(settings).items() if key != "path"}
    build = Build("tokenizer", {**kept, **asdict(reading)}, describe(texts))
    if not build.is_done(out):
        counts = count_text(passages(texts, reading, "counting words"))
        say(f"learning n-grams from {len(counts.words):,} distinct words")
        tokenizer = Tokenizer(compact_backend(counts, settings.vocab_size))
        with build.folder(out) as partial:
            tokenizer.save(partial)
            build.result = {"fingerprint": tokenizer.fingerprint, "vocab_size": tokenizer.vocab_size}
        say(f"{out}: {tokenizer.vocab_size:,} tokens, see {out}/vocab.txt")
    return Tokenizer.load(out)
