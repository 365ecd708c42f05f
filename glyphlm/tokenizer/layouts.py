"""Vocabularies: which strings get an id, in which order, and the merges that reach them.

The layout `compact` holds the code points that occur, then n-grams counted on the given text, at any size; rare characters
are written as byte tokens, so that no text is ever lost. Merges are the published builders' (arXiv 2507.04886, bvv241
notebooks): every split of an n-gram into two tokens of the vocabulary.

In the published layouts (same notebooks) code points keep their numbers and n-grams fill unused ranges. Ids 0..D7FF and
F900..FFFE are the code points themselves. E000..E0FF are special slots. N-grams, longest first, then by code point, take
D800..DFFF and E100..F8FF, in the large layouts also 10000..1FFFE. What stays free is `<unused_ID>`.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from glyphlm.base.errors import InputError
from glyphlm.base.progress import say, working
from glyphlm.tokenizer.ngram_stats import LanguageNgrams
from glyphlm.tokenizer.ngrams import WORD, TextCounts, by_frequency
from glyphlm.tokenizer.settings import MIN_VOCAB

SPECIALS = ("<pad>", "<s>", "</s>", "<unk>")
BYTES = tuple(f"<0x{byte:02X}>" for byte in range(256))
MAX_WORDS_LEARNED = 30_000_000  # words from which n-grams are learned: more time, the same vocabulary


def compact_backend(counts: TextCounts, vocab_size: int) -> tokenizers.Tokenizer:
    """The layout `compact` in order of ids: specials, 256 bytes, code points by frequency, n-grams by usefulness."""
    room = vocab_size - len(SPECIALS) - len(BYTES)
    characters = choose_characters(counts.characters, room // 2)
    ngrams = choose_ngrams(counts.words, characters, room - len(characters))
    if len(characters) + len(ngrams) < room:  # the text has few n-grams: characters take the room that they leave
        characters = choose_characters(counts.characters, room - len(ngrams))
        ngrams = choose_ngrams(counts.words, characters, room - len(characters))
    missing = room - len(characters) - len(ngrams)
    if missing:
        supported = vocab_size - missing
        cure = f"give more text or --vocab-size {supported}" if supported >= MIN_VOCAB else "give more text"
        raise InputError(f"vocab_size {vocab_size} is larger than the text supports: {len(characters)} characters and "
                         f"{len(ngrams)} n-grams make {supported}; {cure}")
    return bpe_backend([*SPECIALS, *BYTES, *characters, *ngrams], ngrams, SPECIALS)


def choose_characters(characters: Counter[str], room: int) -> list[str]:
    """The most frequent code points, until 99.95% of the text is covered or `room` of them are taken."""
    wanted, covered, chosen = 0.9995 * characters.total(), 0, []
    for character, count in by_frequency(characters)[:room]:
        if covered >= wanted:
            break
        chosen.append(character)
        covered += count
    return chosen


def choose_ngrams(words: Counter[str], characters: Sequence[str], room: int) -> list[str]:
    """The `room` n-grams that save the most tokens, the most useful first.

    They are taken one by one, each counted on the text as the earlier ones leave it (byte-pair training over letters).
    Ranking plain counts instead spends the room on overlaps ("atio", "tion") and makes English 16% longer.
    """
    letters = [character for character in characters if WORD.fullmatch(character)]
    trainer = trainers.BpeTrainer(
        vocab_size=len(letters) + room, initial_alphabet=letters, limit_alphabet=len(letters), show_progress=False
    )
    learner = tokenizers.Tokenizer(models.BPE())
    learner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    with working("learning n-grams"):
        learner.train_from_iterator(repeated(words), trainer)
    ids = learner.get_vocab()
    return [token for token in sorted(ids, key=ids.__getitem__) if len(token) > 1]


def repeated(words: Counter[str]) -> Iterator[str]:
    """Each word as often as it occurs, separated by spaces; all counts are divided where there are too many."""
    divisor = -(-words.total() // MAX_WORDS_LEARNED)
    for word, count in sorted(words.items()):
        if count >= divisor:
            yield " ".join([word] * (count // divisor))


def bpe_backend(vocabulary: Sequence[str], ngrams: Sequence[str], specials: Sequence[str]) -> tokenizers.Tokenizer:
    """A BPE tokenizer without pre-tokenizer whose merges are all splits of each n-gram into two tokens, in id order."""
    ids = {token: number for number, token in enumerate(vocabulary)}
    if len(ids) != len(vocabulary):
        raise AssertionError("a token occurs twice in the vocabulary")
    splits = ((token[:cut], token[cut:]) for token in ngrams for cut in range(1, len(token)))
    merges = [(left, right) for left, right in splits if left in ids and right in ids]
    model = models.BPE(vocab=ids, merges=merges, unk_token="<unk>", byte_fallback=True)
    backend = tokenizers.Tokenizer(model)
    backend.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    backend.add_special_tokens(list(specials))
    return backend


SPECIAL_SLOTS = range(0xE000, 0xE100)
# 23 slots have names in the published vocabularies; these are the ones that are publicly known.
KNOWN_NAMES = {
    **dict(enumerate(("<pad>", "<s>", "</s>", "<unk>", "<think>", "</think>"))),
    **dict(enumerate(("[INST]", "[/INST]", "[EOT]"), 12)),
    22: "[FILE_SEP]",
}
# Bytes of the characters that have no id: planes 1 to 16, private use (EE, EF) and U+FFFF (EF). Byte B has slot E000 + B.
FALLBACK_BYTES = (*range(0x80, 0xC0), 0xEE, 0xEF, *range(0xF0, 0xF5))
MAX_DROPPED = 0.01  # the published max layout has 41 n-grams of 73,768 too many and drops the shortest


@dataclass(frozen=True)
class Layout:
    """Which n-grams a published layout takes: the `top` of each of `sizes` in each language, into `slots`."""

    top: int
    sizes: tuple[int, ...]
    slots: tuple[int, ...]
    vocab_size: int


SMALL_SLOTS = (*range(0xD800, 0xE000), *range(0xE100, 0xF900))
LAYOUTS = {
    "bvv241-2-3": Layout(338, (2, 3), SMALL_SLOTS, 1 << 16),
    "bvv241-max": Layout(906, (2, 3, 4, 5), (*SMALL_SLOTS, *range(0x10000, 0x1FFFF)), 1 << 17),
}
LAYOUTS["bvv241-abs"] = LAYOUTS["bvv241-max"]  # the same ids; only its pictures are larger


def choose_published_ngrams(
    languages: Sequence[LanguageNgrams], shared: Iterable[str], layout: Layout, top: int | None = None
) -> list[str]:
    """N-grams in the order of their ids: the most frequent of each language and size, and the `shared` strings.

    Raises:
        InputError: more than 1% of them do not fit, one holds whitespace, or the statistics lack a size.
    """
    chosen = {text for text in shared if len(text) > 1}
    for language in languages:
        for size in layout.sizes:
            if size not in language.top_ngrams:
                raise InputError(f"the n-gram file has no n-grams of {size} characters for {language.lang}, which the "
                                 f"layout takes; count sizes {' '.join(map(str, layout.sizes))}")
            chosen.update(text for text, _ in language.top_ngrams[size][: top or layout.top])
    spaced = next((text for text in chosen if any(map(str.isspace, text))), None)
    if spaced:
        raise InputError(f"the n-gram {spaced!r} holds whitespace, which no token does; take it out of the file")
    ordered, room = sorted(chosen, key=lambda text: (-len(text), text)), len(layout.slots)
    if len(ordered) * (1 - MAX_DROPPED) > room:
        raise InputError(f"{len(ordered):,} n-grams do not fit, {room:,} do; take fewer of each language and size than "
                         f"{top or layout.top} with --top-ngrams")
    if len(ordered) > room:
        say(f"{len(ordered) - room} of {len(ordered):,} n-grams find no room and are left out: the shortest, last ones")
    return ordered[:room]


def published_backend(
    ngrams: Sequence[str], layout: Layout, names: Sequence[str] | None = None, lossless: bool = False
) -> tokenizers.Tokenizer:
    """The BPE tokenizer of a published layout.

    `names` are those of the special slots from E000 on; by default the publicly known ones. `lossless` gives free
    special slots to the UTF-8 bytes of characters that have no id; no other id changes.
    """
    named = dict(enumerate(names)) if names else KNOWN_NAMES
    taken = dict(zip(layout.slots, ngrams)) | {SPECIAL_SLOTS[slot]: name for slot, name in named.items()}
    if lossless:
        taken |= {SPECIAL_SLOTS[byte]: BYTES[byte] for byte in FALLBACK_BYTES}
    vocabulary = [taken.get(number) or _own_name(number) for number in range(layout.vocab_size)]
    return bpe_backend(vocabulary, ngrams, list(named.values()))


def _own_name(number: int) -> str:
    if number in SPECIAL_SLOTS:
        return f"<special_token_{number}>"
    is_character = number < 0xD800 or 0xF900 <= number < 0xFFFF
    return chr(number) if is_character else f"<unused_{number}>"


def is_reserved(number: int, token: str) -> bool:
    """Whether the id is unused: a special slot without a name, or an id without an n-gram."""
    return token in (f"<special_token_{number}>", f"<unused_{number}>")


def read_shared_strings(path: str) -> list[str]:
    """Token strings, one a line.

    Raises:
        InputError: the file is missing or not UTF-8, or a line holds whitespace, which no token may.
    """
    lines = _read_text(path).split("\n")
    bad = next((number for number, line in enumerate(lines, 1) if any(map(str.isspace, line))), None)
    if bad:
        raise InputError(f"{path} line {bad} is {lines[bad - 1]!r}: tokens hold no whitespace; give one string a line")
    return lines


def read_special_names(path: str) -> list[str]:
    """Names of the special slots from E000 on, one a line.

    Raises:
        InputError: one of `<pad>`, `<s>`, `</s>`, `<unk>` is missing, a name occurs twice, or they overlap with bytes.
    """
    names = _read_text(path).split("\n")
    names = names[:-1] if names[-1] == "" else names
    missing = {"<pad>", "<s>", "</s>", "<unk>"}.difference(names)
    most = min(FALLBACK_BYTES)
    if missing or len(set(names)) < len(names) or "" in names or len(names) > most:
        raise InputError(f"{path} must hold at most {most} different names, one a line, among them <pad>, <s>, </s> and "
                         f"<unk>; it holds {len(names)}, {len(set(names))} different")
    return names


def _read_text(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read as UTF-8 text ({error})") from None
