"""Which runs become one model, and how: typed settings."""

from dataclasses import dataclass, field
from typing import get_args

from glyphlm.base.errors import InputError
from glyphlm.modeling.fusion import Method

TRAINED = ("gate", "head", "adapter")
WEIGHTED = ("weighted_logits", "mean_probs", "posterior")  # the methods that weights have a say in


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
        allow_different_substrates: Fuse experts that read other codes or tables; logits need only the vocabulary.
    """

    experts: list[str] = field(default_factory=list)
    method: Method = "mean_logits"
    weights: list[float] | None = None
    top_k: int | None = None
    route_after: int = 32
    rank: int = 16
    temperature: float = 1.0
    allow_different_substrates: bool = False


def check_settings(settings: FusionSettings) -> None:
    """Refuse settings out of range, and those that the method does not take.

    Raises:
        InputError: the value, the limit and the cure are named.
    """
    method, runs, weights = settings.method, len(settings.experts), settings.weights
    if method not in get_args(Method):
        raise InputError(f"method {method!r} is none of {', '.join(get_args(Method))}")
    if runs < 2:
        raise InputError(f"{runs} expert ({', '.join(settings.experts)}) is nothing to fuse; name at least two runs")
    if weights is None and method == "weighted_logits":
        raise InputError(f"weighted_logits needs weights, one a run ({runs}), such as {[round(1 / runs, 3)] * runs}")
    if weights is not None and method not in WEIGHTED:
        raise InputError(f"method {method} takes no weights ({weights}); choose {', '.join(WEIGHTED)}")
    if weights is not None and len(weights) != runs:
        raise InputError(f"{len(weights)} weights ({weights}) for {runs} runs; give one a run")
    if weights is not None and not (min(weights) >= 0 and abs(sum(weights) - 1) <= 1e-6):  # nor NaN
        raise InputError(f"weights {weights} sum to {sum(weights):g}; give numbers from 0 that sum to 1")
    if settings.top_k is not None and (method != "gate" or settings.top_k < 1):
        raise InputError(f"top_k {settings.top_k} with method {method}: it is of gate, and at least 1")
    if settings.rank < 1 or settings.route_after < 1 or settings.temperature <= 0:
        raise InputError(f"rank {settings.rank} and route_after {settings.route_after} must be at least 1, temperature "
                         f"{settings.temperature} above 0")
