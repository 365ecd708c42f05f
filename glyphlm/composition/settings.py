"""Settings of models made out of models: fusion of several runs, and growth of one."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from glyphlm.base.errors import InputError
from glyphlm.base.ranges import Range, check_values
from glyphlm.modeling.config import FusionConfig, Method

TRAINED = ("gate", "head", "adapter", "stitch")
WEIGHTED = ("weighted_logits", "mean_probs", "posterior")  # the methods that take weights
OF_BYTES = ("mean_logits", "weighted_logits", "mean_probs", "max_confidence", "posterior")  # methods for any vocabulary
LATER = ("level", "without", "routers", "segment", "cut", "memory", "reset")  # settings that older fused runs do not name

Target = Literal["attention.qkv", "attention.out", "mlp.up", "mlp.down"]  # the matrices of a block
LORA_RANGES = {
    "rank": Range(0, 10**6, whole=True),
    "alpha": Range(0, 1e6, above=True),
    "from_depth": Range(1, 10**6, whole=True),
}
GROWTH_RANGES = {"head_rank": Range(1, 10**6, whole=True), "cache_gb": Range(0, 1e9, above=True)}


@dataclass
class FusionSettings:
    """Which runs become one model, and how.

    Args:
        experts: Run folders, at least two. A fused run among them counts as its experts.
        method: The mean of logits (as published) or another weighting of them, the mean of probabilities, the most
            confident expert, the expert that best explains the text so far (posterior); or trained on top of frozen
            experts: a gate that weighs them token by token, the head (as published), a low-rank adapter below the head.
        weights: Of the runs, in their order, with the sum 1, for weighted_logits, mean_probs and posterior; by default
            all experts count alike. Experts of a fused run share its weight as they did in it.
        top_k: Of gate: number of experts that still run after the first `route_after` tokens; others cost nothing.
        route_after: Tokens that all experts read before top_k of them are chosen.
        rank: Of the adapter.
        temperature: Of posterior; above 1 it follows the text more slowly.
        memory: Of posterior; tokens (bytes, with level bytes) after which earlier text counts 1/e. By default all of a text
            counts alike.
        reset: Of posterior; the probability per token that a text switches to another expert, such as 0.01 for text that
            changes its language in mid-sentence.
        level: Mix the distributions of the next token, for experts of one vocabulary, or of the next byte, for experts of
            any vocabularies, also models of other libraries (exact, and slow: each expert reads a text byte by byte).
        cut: Of stitch; number of lower blocks kept of the first run, by default half of them. Of the second run the blocks
            above the same share of its depth are kept.
        routers: Of router: small runs, one an expert in the same order, that read the first `route_after` tokens; the expert
            of the one that gives them the highest probability reads the rest of the segment alone.
        segment: Of router; tokens after which an expert is chosen again. By default one reads the whole text.
        allow_different_substrates: Fuse experts that read other codes or tables; logits need only the vocabulary.
        without: Experts that are left out, by their number from 1; if a single one remains, the result is that expert as an
            ordinary run.
    """

    experts: list[str] = field(default_factory=list)
    method: Method = "mean_logits"
    weights: list[float] | None = None
    top_k: int | None = None
    route_after: int = 32
    rank: int = 16
    temperature: float = 1.0
    memory: float | None = None
    reset: float = 0.0
    level: Literal["tokens", "bytes"] = "tokens"
    routers: list[str] = field(default_factory=list)
    segment: int | None = None
    cut: int | None = None
    allow_different_substrates: bool = False
    without: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        check_values(self, "fusion.", {"cut": Range(1, 10**6, whole=True)})
        if self.weights is not None and not (all(w >= 0 for w in self.weights) and abs(sum(self.weights) - 1) <= 1e-6):
            raise InputError(f"fusion.weights {self.weights} sum to {sum(self.weights):g}; give numbers from 0 that "
                             "sum to 1")
        self.config(self.weights)
        if self.level == "bytes" and self.method not in OF_BYTES:
            raise InputError(f"method {self.method} does not apply to level bytes; choose {', '.join(OF_BYTES)}")

    def described(self) -> dict[str, Any]:
        """The settings as they are recorded in a run: those of later versions only where they are not at their default."""
        defaults = asdict(FusionSettings())
        return {name: value for name, value in asdict(self).items() if name not in LATER or value != defaults[name]}

    def config(self, weights: Sequence[float] | None) -> FusionConfig:
        """The part of the settings that the model needs, with a weight for each expert.

        Raises:
            InputError: as `FusionConfig`.
        """
        values: dict[str, Any] = {name: getattr(self, name) for name in FusionConfig.__dataclass_fields__}
        values |= {"weights": weights and [*weights], "routers": len(self.routers)}
        try:
            return FusionConfig(**values)
        except ValueError as error:
            raise InputError(f"fusion.{error}") from None

    def check_runs(self) -> None:
        """Check the number of runs, and whether the method needs or allows weights.

        Raises:
            InputError: the value, the limit and the cure are named.
        """
        runs = len(self.experts)
        if runs < 2 and not self.without:
            raise InputError(f"{runs} expert ({', '.join(self.experts)}) cannot be fused; name at least two runs")
        if self.weights is None and self.method == "weighted_logits":
            raise InputError(f"weighted_logits needs weights, one a run ({runs}), such as {[round(1 / runs, 3)] * runs}")
        if self.weights is not None and self.method not in WEIGHTED:
            raise InputError(f"method {self.method} takes no weights ({self.weights}); choose {', '.join(WEIGHTED)}")
        if self.weights is not None and len(self.weights) != runs:
            raise InputError(f"{len(self.weights)} weights ({self.weights}) for {runs} runs; give one a run")

    def kept(self, count: int) -> list[int]:
        """The numbers, from 0 on, of those of `count` experts that are not left out.

        Raises:
            InputError: an expert to be left out does not exist, or none remains.
        """
        wrong = next((number for number in self.without if not 1 <= number <= count), None)
        if wrong is not None:
            raise InputError(f"without {wrong} names no expert; give numbers from 1 to {count}")
        kept = [number for number in range(count) if number + 1 not in self.without]
        if not kept:
            raise InputError(f"without {self.without} leaves none of {count} experts; keep at least one")
        return kept


@dataclass
class LoraSettings:
    """Low-rank adapters on the old blocks, by peft. The papers do not state rank and targets; the defaults are our choice.

    Args:
        rank: Rank of each adapter; 0 means no adapters.
        alpha: Adapters are scaled by alpha / rank.
        targets: Matrices of a block that get an adapter, of attention.qkv, attention.out, mlp.up, mlp.down.
        from_depth: Old blocks are adapted if the grown model has at least this many blocks.
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
        base: Run folder of the model to grow; without it a new model is trained.
        start: Initial values of new blocks: random (as published), zero (the block adds nothing at first, so the loss does
            not jump), copy (of the block below), stack (of all old blocks in turn; G_stack, arXiv 2405.15319).
        place: Whether new blocks are on top (as published), or spread between old ones (LLaMA-Pro, arXiv 2401.02415).
        blocks: Which blocks train: the new ones, or all (and then also a trainable substrate).
        head: Whether the head trains in full (as published), by a low-rank update, or not at all.
        head_rank: Rank of that update.
        norm: Whether the final norm trains.
        lora: Adapters on the old blocks.
        carry: Start with the optimizer moments of the base: old blocks keep theirs, copied blocks copy them, others have
            none. By default all start at 0.
        continue_data: Start at the data position where the base ended, instead of at the beginning of the data.
        cache: Where to cache the outputs of the frozen blocks for later epochs: none, memory, or a folder. All epochs then
            cut the text at the same places.
        cache_gb: Largest size of the cache, in gigabytes.
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
        check_values(self, "growth.", GROWTH_RANGES)
