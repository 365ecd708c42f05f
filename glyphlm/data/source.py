"""One source of training data, as recipes describe it."""

from dataclasses import dataclass
from typing import Literal

from glyphlm.base.errors import InputError
from glyphlm.base.ranges import Range, check_values


@dataclass
class Source:
    """One source of training data: a shard folder, or text or examples to prepare, and its weight.

    Args:
        shards: A folder made by glyphlm prepare.
        text: A file, a folder, hf:NAME, or a list of these.
        sft: Supervised examples, a list of NAME=PATH, such as arc_easy=ARC-Easy-Train.jsonl.
        weight: Share of all sequences, relative to the other sources; by default its number of sequences.
        epochs: Alternative to weights: number of passes over this source, relative to the others.
        loss: Whether the loss covers all tokens of the source, or only those of answers (sft).
        exclude: Of text: characters that training must not see, as a file that holds them, spans such as U+0400-04FF, or
            general categories of Unicode such as So.
        excluding: Whether a document that holds one is left out (drop), or only its sentences that hold one (cut).
    """

    shards: str | None = None
    text: str | list[str] | None = None
    sft: list[str] | None = None
    weight: float | None = None
    epochs: float | None = None
    loss: Literal["all", "answers"] = "all"
    exclude: str | None = None
    excluding: Literal["drop", "cut"] = "drop"

    def __post_init__(self) -> None:
        if self.exclude is not None and self.text is None:
            raise InputError(f"data.exclude {self.exclude} applies only to text, from which shards are made; remove it, or "
                             "give it to glyphlm prepare")
        if self.weight is not None and self.epochs is not None:
            raise InputError(f"a data source has weight {self.weight} and epochs {self.epochs}; give only one")
        check_values(self, "data.", {"weight": Range(0, 1e12, above=True), "epochs": Range(0, 1e6, above=True)})

    @property
    def texts(self) -> list[str]:
        """`text` as a list."""
        return [self.text] if isinstance(self.text, str) else list(self.text or [])
