"""Which runs become one model, and how: typed settings."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from glyphlm.base.errors import InputError
from glyphlm.base.ranges import Range, check_values
from glyphlm.modeling.config import FusionConfig, Method

TRAINED = ("gate", "head", "adapter", "stitch")
WEIGHTED = ("weighted_logits", "mean_probs", "posterior")  # the methods that take weights
RANGES = {
    "top_k": Range(1, 1000, whole=True),
    "route_after": Range(1, 10**9, whole=True),
    "rank": Range(1, 10**6, whole=True),
    "temperature": Range(0, 1e6, above=True),
    "memory": Range(0, 1e9, above=True),
    "reset": Range(0, 0.999),
    "segment": Range(2, 10**9, whole=True),
    "cut": Range(1, 10**6, whole=True),
}
OF_BYTES = ("mean_logits", "weighted_logits", "mean_probs", "max_confidence", "posterior")  # methods for any vocabulary
LATER = ("level", "without", "routers", "segment", "cut", "memory", "reset")  # settings that older fused runs do not name


@dataclass
class FusionSettings:
    """Which runs become one model, and how.

    Args:
        experts: Run folders, at least two. A fused run among them counts as its experts.
        method: The mean of logits (as published) or another weighting of them, the mean of probabilities, the surest
            expert, the expert that explains the text so far best (posterior); or trained on top of frozen experts: a gate
            that weighs them token by token, the head (as published), a low-rank adapter below the head.
        weights: Of the runs, in their order, with the sum 1, for weighted_logits, mean_probs and posterior; by default
            all experts count alike. Experts of a fused run share its weight as they did in it.
        top_k: With gate: only so many experts go on after the first `route_after` tokens of a text; others cost nothing.
        route_after: Tokens that all experts read before top_k of them are chosen.
        rank: Of the adapter.
        temperature: Of posterior; above 1 it follows the text more slowly.
        memory: Of posterior; tokens (bytes, with level bytes) after which what was read counts 1/e. By default all of a text
            counts alike.
        reset: Of posterior; the probability that a text goes over to another expert at a token, such as 0.01 for text that
            changes its language in mid-sentence.
        level: What is fused: the next tokens of experts of one vocabulary, or the next bytes, for experts of any
            vocabularies, models of other libraries among them (exact, and slow: each expert reads a text byte by byte).
        cut: Of stitch; blocks of the first run that stay, by default half of them. Of the second one those above the same
            share of its depth stay.
        routers: Of router: small runs, one an expert in the same order, that read the first `route_after` tokens; the expert
            of the one that gives them the highest probability reads the rest of the segment alone.
        segment: Of router; tokens after which an expert is chosen anew. By default one reads the whole text.
        allow_different_substrates: Fuse experts that read other codes or tables; logits need only the vocabulary.
        without: Experts that are left out, by their number among all of them from 1 on; a single one that remains is a run
            of its own again, with the weights that it had.
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
        check_values(self, "fusion.", RANGES)
        if self.weights is not None and not (all(w >= 0 for w in self.weights) and abs(sum(self.weights) - 1) <= 1e-6):
            raise InputError(f"fusion.weights {self.weights} sum to {sum(self.weights):g}; give numbers from 0 that "
                             "sum to 1")
        if self.top_k is not None and self.method != "gate":
            raise InputError(f"fusion.top_k {self.top_k} applies only to method gate, not to {self.method}; remove it")
        if (self.memory is not None or self.reset) and self.method != "posterior":
            raise InputError(f"fusion.memory {self.memory} and reset {self.reset} apply only to method posterior, not to "
                             f"{self.method}; remove them")
        if bool(self.routers) != (self.method == "router") or (self.segment is not None and not self.routers):
            raise InputError(f"fusion.routers {self.routers} and segment {self.segment} do not fit method {self.method}: "
                             "router needs small runs, one an expert; other methods none")
        if self.segment is not None and self.segment <= self.route_after:
            raise InputError(f"fusion.segment {self.segment} must be longer than route_after {self.route_after}")
        if self.level == "bytes" and self.method not in OF_BYTES:
            raise InputError(f"method {self.method} does not apply to level bytes; choose {', '.join(OF_BYTES)}")

    def described(self) -> dict[str, Any]:
        """The settings as they are recorded in a run: those of later versions only where they are not at their default."""
        defaults = asdict(FusionSettings())
        return {name: value for name, value in asdict(self).items() if name not in LATER or value != defaults[name]}

    def config(self, weights: Sequence[float] | None) -> FusionConfig:
        """What the model needs of them, with the weights of all experts."""
        values: dict[str, Any] = {name: getattr(self, name) for name in FusionConfig.__dataclass_fields__}
        values |= {"weights": weights and [*weights], "routers": len(self.routers)}
        return FusionConfig(**values)


def kept_numbers(settings: FusionSettings, count: int) -> list[int]:
    """The numbers, from 0 on, of those of `count` experts that are fused.

    Raises:
        InputError: an expert to be left out does not exist, or none remains.
    """
    wrong = next((number for number in settings.without if not 1 <= number <= count), None)
    if wrong is not None:
        raise InputError(f"without {wrong} names no expert; give numbers from 1 to {count}")
    kept = [number for number in range(count) if number + 1 not in settings.without]
    if not kept:
        raise InputError(f"without {settings.without} leaves none of {count} experts; keep at least one")
    return kept


def check_settings(settings: FusionSettings) -> None:
    """Refuse a number of runs or of weights that the method cannot use.

    Raises:
        InputError: the value, the limit and the cure are named.
    """
    method, runs, weights = settings.method, len(settings.experts), settings.weights
    if runs < 2 and not settings.without:
        raise InputError(f"{runs} expert ({', '.join(settings.experts)}) cannot be fused; name at least two runs")
    if method == "stitch" and runs != 2:
        raise InputError(f"stitch puts the upper blocks of one run on the lower ones of another; name two runs, not {runs}")
    if weights is None and method == "weighted_logits":
        raise InputError(f"weighted_logits needs weights, one a run ({runs}), such as {[round(1 / runs, 3)] * runs}")
    if weights is not None and method not in WEIGHTED:
        raise InputError(f"method {method} takes no weights ({weights}); choose {', '.join(WEIGHTED)}")
    if weights is not None and len(weights) != runs:
        raise InputError(f"{len(weights)} weights ({weights}) for {runs} runs; give one a run")
