"""The published layouts (arXiv 2507.04886, builder notebooks): code points keep their numbers, n-grams fill unused ranges.

Ids 0..D7FF and F900..FFFE are the code points themselves. E000..E0FF are special slots. N-grams, longest first, then by
code point, take D800..DFFF and E100..F8FF, in the large layouts also 10000..1FFFE. What stays free is `<unused_ID>`.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import tokenizers

from glyphlm.base.errors import InputError
from glyphlm.base.progress import say
from glyphlm.tokenizer.layouts import BYTES, bpe_backend
from glyphlm.tokenizer.ngram_stats import LanguageNgrams

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
    """Whether the id stands for nothing: a special slot without a name, or an id that no n-gram took."""
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
        InputError: one of `<pad>`, `<s>`, `</s>`, `<unk>` is missing, a name stands twice, or they overlap with bytes.
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
