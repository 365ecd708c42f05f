"""`str` -> ids and back, the bytes that each id stands for, and the folder that any library reads."""

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import tokenizers

from glyphlm.base.errors import InputError
from glyphlm.base.names import TOKENIZER, TOKENIZER_CONFIG, VOCABULARY
from glyphlm.base.records import read_json, to_json
from glyphlm.corpus.reading import Passage
from glyphlm.tokenizer.layouts import SPECIALS, is_reserved
from glyphlm.tokenizer.piece_encoder import PieceEncoder, batched, can_be_cut, segments
from glyphlm.tokenizer.spelling import BYTE_OF_LETTER, Spelling, legible, spelling_of

SKIPPED_IDS = 1 << 12  # ids without a token that a foreign vocabulary may have, besides as many as it has tokens
# The class is named because transformers 5 otherwise guesses one from config.json and adds a byte-level pre-tokenizer.
HF_CONFIG = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "pad_token": "<pad>",
    "bos_token": "</s>",
    "eos_token": "</s>",
    "unk_token": "<unk>",
    "clean_up_tokenization_spaces": False,
    "model_max_length": 10**9,
}
KEPT_FROM_FOREIGN = ("pad_token", "bos_token", "eos_token", "unk_token", "chat_template")


class Piece(NamedTuple):
    """Ids of a piece of a document, in order; `last` marks the piece that ends its document."""

    ids: np.ndarray
    last: bool


class Tokenizer:
    """`str` -> ids and back, and the bytes that each id stands for.

    With the layout compact, and with the published ones made lossless, `decode(encode(text)) == text` for every `str`
    that is valid Unicode; the published ones as they are turn characters above U+FFFF into `<unk>`.

    Args:
        backend: What tokenizer.json holds.
        config: What tokenizer_config.json holds; names the special tokens.
        specials_in_text: Whether the name of a special token in a text stays text or becomes that token (control).
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        config: Mapping[str, object] = HF_CONFIG,
        specials_in_text: Literal["literal", "control"] = "literal",
    ):
        self._backend, self.config = backend, dict(config)
        self.specials_in_text: Literal["literal", "control"] = specials_in_text
        self._backend.no_truncation()  # some foreign files ask for it
        self._backend.no_padding()
        post = self._backend.post_processor
        if isinstance(post, tokenizers.processors.TemplateProcessing) and not post.num_special_tokens_to_add(is_pair=True):
            self._backend.post_processor = None  # transformers write an empty one where there was none
        self._backend.encode_special_tokens = specials_in_text == "literal"

    def __reduce__(self):
        """Pickle the constructor's arguments only; derived values are recomputed in the other process."""
        return type(self), (self._backend, self.config, self.specials_in_text)

    @classmethod
    def load(cls, folder: str | Path, specials_in_text: Literal["literal", "control"] = "literal") -> "Tokenizer":
        """Read tokenizer.json and, where it is there, tokenizer_config.json of `folder`.

        Raises:
            InputError: a file is missing or damaged.
        """
        path = Path(folder) / TOKENIZER
        if not path.is_file():
            raise InputError(f"{path} does not exist; make it with: glyphlm tokenizer build --out {folder} TEXT...")
        with _rust_errors(f"{path} is not a tokenizer", "build it again"):
            backend = tokenizers.Tokenizer.from_file(str(path))
        tokenizer = cls(backend, _read_config(path.with_name(TOKENIZER_CONFIG)), specials_in_text)
        _check_numbers(path, backend.get_vocab(with_added_tokens=True))
        if dropout := getattr(backend.model, "dropout", None):
            raise InputError(f"{path} leaves out merges at random (dropout {dropout:g}), so that a text has other ids each "
                             "time; set model.dropout to null")
        tokenizer.decode(tokenizer.encode("a b"))  # a damaged normalizer or decoder is found here, not in the middle of work
        return tokenizer

    def as_trained(self) -> "Tokenizer":
        """This tokenizer with bos = eos, for the files of a model: in training each text follows an end-of-text token.

        What a foreign tokenizer.json puts around a text (`<s>`) is left out, since training never saw it.
        """
        config = self.config | {"bos_token": self.config.get("eos_token")}
        return type(self)(self._bare, config, self.specials_in_text)

    @property
    def _bare(self) -> tokenizers.Tokenizer:
        """The backend without the tokens that it puts around a text."""
        post = self._backend.post_processor
        if post is None or not post.num_special_tokens_to_add(is_pair=False):
            return self._backend
        bare = tokenizers.Tokenizer.from_str(self._backend.to_str())
        bare.post_processor = None
        return bare

    def with_chat_template(self, template: str) -> "Tokenizer":
        """This tokenizer with a chat template in its tokenizer_config.json."""
        return type(self)(self._backend, self.config | {"chat_template": template}, self.specials_in_text)

    @cached_property
    def tokens(self) -> list[str]:
        """The spelling of each id in the vocabulary, in order of ids; ids that a foreign vocabulary skips are reserved."""
        numbered = {number: token for token, number in self._backend.get_vocab(with_added_tokens=True).items()}
        return [numbered.get(number, f"<unused_{number}>") for number in range(max(numbered) + 1)]

    @property
    def vocab_size(self) -> int:
        """Number of ids."""
        return len(self.tokens)

    @cached_property
    def special_ids(self) -> frozenset[int]:
        """Ids without text: special tokens and reserved ids."""
        added = self._backend.get_added_tokens_decoder()
        reserved = (number for number, token in enumerate(self.tokens) if is_reserved(number, token))
        return frozenset({*(number for number, token in added.items() if token.special), *reserved})

    @property
    def pad_id(self) -> int:
        """Padding id: `<pad>`, or the end-of-text id where a vocabulary has none."""
        return self._special_id("pad_token") if self.config.get("pad_token") else self.end_id

    @property
    def start_id(self) -> int | None:
        """Id of the token that tokenizer_config.json puts before a text; in the files of our models it is `end_id`."""
        return self._special_id("bos_token") if self.config.get("bos_token") else None

    @property
    def end_id(self) -> int:
        """Id of the token between documents, `</s>` in our vocabularies."""
        return self._special_id("eos_token")

    @property
    def unknown_id(self) -> int | None:
        """Id of characters outside the vocabulary; None where every character has an id."""
        name = self.config.get("unk_token")
        return self._backend.token_to_id(name) if isinstance(name, str) else None

    def _special_id(self, role: str) -> int:
        name = self.config.get(role)
        number = self._backend.token_to_id(name) if isinstance(name, str) else None
        if number is None:
            raise InputError(f"the tokenizer has no {role} ({name!r}); name one of its tokens in tokenizer_config.json")
        return number

    def text_bytes(self, token_id: int) -> bytes:
        """The UTF-8 bytes that `token_id` stands for; empty for special tokens."""
        return b"" if token_id in self.special_ids else self._spell(self.tokens[token_id])

    @cached_property
    def _spell(self) -> Spelling:
        return spelling_of(self._backend)

    def pictured(self, spelling: Literal["decoded", "raw"] = "decoded") -> list[str]:
        """What is drawn for each id: its text, hexadecimal digits of bytes that are not text, the name of a special token.

        `raw` takes the spelling in the vocabulary instead, which in byte-level vocabularies is not the text (so the
        pictures of the published bvv241-nemo were drawn).
        """
        if spelling == "raw":
            return self.tokens
        return [legible(self.text_bytes(number), token) for number, token in enumerate(self.tokens)]

    @cached_property
    def bytes_per_id_V(self) -> np.ndarray:
        """uint16 [V]: how many bytes of text each id stands for, the unit of bits per byte."""
        return np.array([len(self.text_bytes(number)) for number in range(self.vocab_size)], dtype=np.uint16)

    @cached_property
    def fingerprint(self) -> str:
        """sha256 of the vocabulary in order of ids and of the merges: equal exactly where all ids mean the same."""
        return hashlib.sha256(self._bare.to_str().encode()).hexdigest()

    def is_known_as(self, fingerprint: str | None) -> bool:
        """Whether this is the fingerprint, or that of version 0.2, which included what is put around a text."""
        return fingerprint in (self.fingerprint, hashlib.sha256(self._backend.to_str().encode()).hexdigest())

    def to_json(self) -> str:
        """What tokenizer.json holds."""
        return self._backend.to_str()

    def encode(self, text: str) -> list[int]:
        """Ids of `text`.

        Raises:
            InputError: `text` contains a lone surrogate, which is not valid Unicode; the position is named.
        """
        try:
            text.encode()
        except UnicodeEncodeError as error:
            where = f"position {error.start} of the text"
            raise InputError(f"{where} holds half of a character pair (a lone surrogate); fix it") from None
        with _rust_errors("the tokenizer cannot encode this text", "make tokenizer.json again"):
            return self._backend.encode(text, add_special_tokens=False).ids

    def encode_pair(self, prompt: str, answer: str) -> tuple[list[int], list[int]]:
        """Ids of `prompt` and of the `answer` after it, cut at the border: the one cut of training, scoring and generation.

        A prompt has the ids that it has alone, since text is generated after these. The answer has the ids that follow them
        in prompt + answer (as in lm-eval; a vocabulary with a sign for the start of a text gives the answer none). Where a
        token of the whole spans the border, as in Tekken's `:A`, the answer is encoded on its own instead.

        Raises:
            InputError: as `encode`.
        """
        first = self.encode(prompt)
        if self._encoder is None:  # ids that follow from merges alone are the same either way
            whole = self.encode(prompt + answer)
            if whole[: len(first)] == first:
                return first, whole[len(first) :]
        return first, self.encode(answer)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of `ids`; special tokens are left out, bytes that are not UTF-8 become U+FFFD."""
        with _rust_errors("the tokenizer cannot decode these ids", "make tokenizer.json again"):
            return self._backend.decode(list(ids), skip_special_tokens=True)

    def encode_passages(self, stream: Iterable[Passage]) -> Iterator[Piece]:
        """Ids of a stream of passages, equal to encoding each document at once.

        Memory stays bounded with a vocabulary of ours. Foreign ones have no safe cuts: each document is held in memory.

        Raises:
            InputError: a document is too long for a foreign vocabulary.
        """
        for batch in batched(segments(stream, self._encoder)):
            texts = [text for text, _ in batch]
            encoder = self._encoder
            found = encoder.encode_batch(texts) if encoder else [np.array(self.encode(text), np.uint32) for text in texts]
            yield from (Piece(ids, last) for ids, (_, last) in zip(found, batch))

    @cached_property
    def _encoder(self) -> PieceEncoder | None:
        """None for a foreign vocabulary, whose text must not be cut."""
        as_text = self.special_ids if self.specials_in_text == "literal" else frozenset()
        spelled = ["" if number in as_text else token for number, token in enumerate(self.tokens)]
        return PieceEncoder(self._backend, spelled) if can_be_cut(self._backend, spelled) else None

    def save(self, folder: Path) -> None:
        """Write tokenizer.json and tokenizer_config.json for any library, vocab.txt for people."""
        (folder / TOKENIZER).write_text(self._backend.to_str(pretty=True), encoding="utf-8")
        (folder / TOKENIZER_CONFIG).write_text(to_json(self.config), encoding="utf-8")
        lines = (f"{number}\t{token!r}\n" for number, token in enumerate(self.tokens))
        (folder / VOCABULARY).write_text("".join(lines), encoding="utf-8")


def byte_tokenizer() -> Tokenizer:
    """The vocabulary of which each id is a byte, after the special tokens; any bytes decode, wrong ones to U+FFFD."""
    letters = sorted(BYTE_OF_LETTER, key=BYTE_OF_LETTER.__getitem__)
    ids = {token: number for number, token in enumerate([*SPECIALS, *letters])}
    backend = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=ids, merges=[]))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    backend.add_special_tokens(list(SPECIALS))
    return Tokenizer(backend).as_trained()


def _read_config(path: Path) -> dict[str, Any]:
    """Our default where the file is missing; of a foreign file the names of the special tokens and the chat template."""
    template = path.with_name("chat_template.jinja")  # where transformers write it
    written = {"chat_template": template.read_text(encoding="utf-8")} if template.is_file() else {}
    if not path.exists():
        return HF_CONFIG | written
    found = read_json(path, cure="build the tokenizer again") | written
    kept = {key: found[key] for key in KEPT_FROM_FOREIGN if found.get(key)}
    for key, value in kept.items():
        value = value.get("content") if isinstance(value, dict) else value
        if key.endswith("_token") and not isinstance(value, str):
            raise InputError(f"{path} is damaged ({key} is {value!r:.60}, not the name of a token); build the tokenizer "
                             "again")
        kept[key] = value
    return {key: value for key, value in HF_CONFIG.items() if not key.endswith("_token")} | kept


@contextmanager
def _rust_errors(what: str, cure: str) -> Iterator[None]:
    """Convert errors of the library to InputError; it raises bare Exceptions, and its panics are BaseExceptions."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit, GeneratorExit, InputError):
        raise
    except BaseException as error:
        raise InputError(f"{what} ({str(error)[:200]}); {cure}") from None


def _check_numbers(path: Path, ids: Mapping[str, int]) -> None:
    """Refuse a file whose ids are far more than its tokens: a list of all ids would fill the memory.

    Raises:
        InputError: there are no tokens, fewer than half of the ids have one, or two tokens have one id.
    """
    largest = max(ids.values(), default=-1)
    if largest >= 2 * len(ids) + SKIPPED_IDS or not ids:
        raise InputError(f"{path} has {len(ids):,} tokens and ids up to {largest:,}, which do not fit; build it again")
    double = next((number for number, count in Counter(ids.values()).items() if count > 1), None)
    if double is not None:
        names = [token for token, number in ids.items() if number == double]
        raise InputError(f"{path} has {len(names)} tokens with the id {double} ({str(names)[:100]}); build it again")
