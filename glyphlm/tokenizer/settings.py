"""How a vocabulary is built, and how n-grams are counted: typed settings."""

from dataclasses import dataclass
from typing import Literal

from glyphlm.base.errors import InputError
from glyphlm.base.ranges import Range, check_values

MIN_VOCAB = 512
COMPACT_SIZE = 8192
LayoutName = Literal["compact", "bvv241-2-3", "bvv241-max", "bvv241-abs", "bvv241-nemo"]


@dataclass
class TokenizerSettings:
    """Settings of a tokenizer.

    Args:
        path: Folder of a tokenizer that exists; without it one is built.
        layout: How ids are given: counted on your text (compact), as published (bvv241-2-3, -max, -abs), or all kept
            from another tokenizer (bvv241-nemo).
        vocab_size: Number of ids of compact, from 512 up to what the text supports; by default 8192.
        ngrams: N-gram statistics for the published layouts, published ones or counted by glyphlm tokenizer ngrams.
        shared_strings: More strings for them, one a line.
        top_ngrams: N-grams of each language and size; by default as published, 338 (2-3) or 906 (max, abs).
        special_names: Names of their special slots, one a line; by default the publicly known ones.
        lossless: Whether characters without an id of their own are kept as bytes, in free special slots.
        base: Folder of the Hugging Face tokenizer that bvv241-nemo keeps.
    """

    path: str | None = None
    layout: LayoutName = "compact"
    vocab_size: int | None = None
    ngrams: str | None = None
    shared_strings: str | None = None
    top_ngrams: int | None = None
    special_names: str | None = None
    lossless: bool = False
    base: str | None = None

    def __post_init__(self) -> None:
        ids, ngrams = Range(MIN_VOCAB, 1 << 24, whole=True), Range(1, 1 << 24, whole=True)
        check_values(self, "tokenizer.", {"vocab_size": ids, "top_ngrams": ngrams})


@dataclass
class NgramSettings:
    """Settings of counting n-grams.

    Args:
        sizes: Lengths of the n-grams in characters, each from 1 to 12.
        top: How many of each size are written, most frequent first.
        scripts: Words of all scripts, or as in the published statistics, which only know Latin, Cyrillic and CJK.
        sample: Share of the documents that is counted, chosen by a hash of their text; a .txt file is one document.
        seed: Seed of that choice.
    """

    sizes: tuple[int, ...] = (2, 3, 4, 5)
    top: int = 1000
    scripts: Literal["all", "published"] = "all"
    sample: float = 1.0
    seed: int = 42

    def __post_init__(self) -> None:
        self.sizes = tuple(sorted(set(self.sizes)))
        if not self.sizes or not 1 <= self.sizes[0] <= self.sizes[-1] <= 12:
            raise InputError(f"sizes {' '.join(map(str, self.sizes))} cannot be counted; give numbers from 1 to 12")
        if self.top < 1:
            raise InputError(f"top {self.top} is less than 1; the published files have 1000")
        if not 0 < self.sample <= 1:
            raise InputError(f"sample {self.sample} is not a share; give a number above 0 and up to 1")
