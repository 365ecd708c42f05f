"""How a model is grown out of another: typed settings."""

from dataclasses import dataclass, field
from typing import Literal

from glyphlm.base.errors import InputError
from glyphlm.base.ranges import Range, check_values

Target = Literal["attention.qkv", "attention.out", "mlp.up", "mlp.down"]  # the matrices of a block
LORA_RANGES = {
    "rank": Range(0, 10**6, whole=True),
    "alpha": Range(0, 1e6, above=True),
    "from_depth": Range(1, 10**6, whole=True),
}
RANGES = {"head_rank": Range(1, 10**6, whole=True), "cache_gb": Range(0, 1e9, above=True)}


@dataclass
class LoraSettings:
    """Low-rank adapters on the old blocks, by peft. The papers do not state rank and targets: these are our choice.

    Args:
        rank: Of each adapter; 0 means none.
        alpha: An adapter counts alpha / rank times.
        targets: Matrices of a block that get one, of attention.qkv, attention.out, mlp.up, mlp.down.
        from_depth: Number of blocks of the grown model from which on old blocks are adapted.
        apart: Keep the adapters in the run's folder `adapter` (a peft folder) instead of merging them into the weights.
    """

    rank: int = 0
    alpha: float = 16.0
    targets: list[Target] = field(default_factory=lambda: ["attention.qkv", "attention.out"])
    from_depth: int = 1
    apart: bool = False

    def __post_init__(self) -> None:
        check_values(self, "growth.lora.", LORA_RANGES)
        if not self.targets:
            raise InputError("growth.lora.targets [] names no matrix; give at least one, or set growth.lora.rank to 0")


@dataclass
class GrowthSettings:
    """How a model is grown out of another.

    Args:
        base: Run folder of the model to grow; without it training begins at nothing.
        start: Of the new blocks: random (as published), zero (they change nothing yet, so the loss goes on where it was),
            copy (of the block below), stack (of all old blocks in turn; G_stack, arXiv 2405.15319).
        place: New blocks stand on top (as published), or spread between old ones (LLaMA-Pro, arXiv 2401.02415).
        blocks: Which blocks train: the new ones, or all (and then a trainable substrate, too).
        head: Whether the head trains (as published), a low-rank change of it, or nothing of it.
        head_rank: Of that change.
        norm: Whether the final norm trains.
        lora: Adapters on the old blocks.
        carry: Go on with the optimizer's moments of the base: old blocks keep theirs, copied blocks copy them, new ones have
            none. By default it begins anew.
        continue_data: Go on where the base stopped reading, instead of at the beginning of the data.
        cache: Keep what leaves the frozen blocks for the next epochs: none, memory, or a folder. All epochs then cut the
            text at the same places.
        cache_gb: The most that is kept, in gigabytes.
    """

    base: str | None = None
    start: Literal["random", "zero", "copy", "stack"] = "random"
    place: Literal["top", "interleaved"] = "top"
    blocks: Literal["new", "all"] = "new"
    head: Literal["full", "low_rank", "frozen"] = "full"
    head_rank: int = 8
    norm: bool = True
    lora: LoraSettings = field(default_factory=LoraSettings)
    carry: bool = False
    continue_data: bool = True
    cache: str = "none"
    cache_gb: float = 4.0

    def __post_init__(self) -> None:
        check_values(self, "growth.", RANGES)
