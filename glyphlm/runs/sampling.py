"""How the next token is chosen: typed settings, and their defaults."""

from dataclasses import dataclass, replace
from typing import Any

from glyphlm.base.errors import InputError
from glyphlm.base.ranges import Range, check_values

# As on the published model cards.
SAMPLING = {"max_new_tokens": 100, "temperature": 0.8, "top_k": 50, "top_p": 0.95, "do_sample": True}
RANGES = {
    "max_new_tokens": Range(1, 10**7, whole=True),
    "temperature": Range(0, 1000),
    "top_k": Range(0, 10**7, whole=True),
    "top_p": Range(0, 1, above=True),
    "seed": Range(0, 2**63 - 1, whole=True),
}


@dataclass
class Sampling:
    """How the next token is chosen; the defaults are those of the published model cards.

    Args:
        max_new_tokens: Length of the continuation; a document that ends sooner stops there.
        temperature: 0 takes the likeliest token always; below 1 sharpens the distribution, above 1 flattens it.
        top_k: Choose among the k likeliest tokens; 0 for all.
        top_p: Choose among the likeliest tokens that together have this probability.
        seed: Same seed, same text.
    """

    max_new_tokens: int = SAMPLING["max_new_tokens"]
    temperature: float = SAMPLING["temperature"]
    top_k: int = SAMPLING["top_k"]
    top_p: float = SAMPLING["top_p"]
    seed: int = 1

    def __post_init__(self) -> None:
        check_values(self, "", RANGES)

    def changed(self, **options: Any) -> "Sampling":
        """These settings with other values of the named ones.

        Raises:
            InputError: a name is unknown, or a value out of range.
        """
        for name in options:
            if name not in RANGES:
                raise InputError(f"{name!r} is not a setting of sampling; choose from {', '.join(RANGES)}")
        return replace(self, **options)

    def describe(self) -> str:
        """The settings on one line."""
        if self.temperature == 0:
            return "greedy"
        return f"temperature {self.temperature:g}, top_k {self.top_k}, top_p {self.top_p:g}, seed {self.seed}"
