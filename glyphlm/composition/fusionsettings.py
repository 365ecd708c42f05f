"""Which runs become one model, and how: typed settings."""

from dataclasses import dataclass, field

from glyphlm.base.errors import InputError
from glyphlm.base.ranges import Range, check_values
from glyphlm.modeling.config import Method

TRAINED = ("gate", "head", "adapter")
WEIGHTED = ("weighted_logits", "mean_probs", "posterior")  # the methods that take weights
RANGES = {
    "top_k": Range(1, 1000, whole=True),
    "route_after": Range(1, 10**9, whole=True),
    "rank": Range(1, 10**6, whole=True),
    "temperature": Range(0, 1e6, above=True),
}


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

    def __post_init__(self) -> None:
        check_values(self, "fusion.", RANGES)
        if self.weights is not None and not (all(w >= 0 for w in self.weights) and abs(sum(self.weights) - 1) <= 1e-6):
            raise InputError(f"fusion.weights {self.weights} sum to {sum(self.weights):g}; give numbers from 0 that "
                             "sum to 1")
        if self.top_k is not None and self.method != "gate":
            raise InputError(f"fusion.top_k {self.top_k} applies only to method gate, not to {self.method}; remove it")


def check_settings(settings: FusionSettings) -> None:
    """Refuse a number of runs or of weights that the method cannot use.

    Raises:
        InputError: the value, the limit and the cure are named.
    """
    method, runs, weights = settings.method, len(settings.experts), settings.weights
    if runs < 2:
        raise InputError(f"{runs} expert ({', '.join(settings.experts)}) cannot be fused; name at least two runs")
    if weights is None and method == "weighted_logits":
        raise InputError(f"weighted_logits needs weights, one a run ({runs}), such as {[round(1 / runs, 3)] * runs}")
    if weights is not None and method not in WEIGHTED:
        raise InputError(f"method {method} takes no weights ({weights}); choose {', '.join(WEIGHTED)}")
    if weights is not None and len(weights) != runs:
        raise InputError(f"{len(weights)} weights ({weights}) for {runs} runs; give one a run")
