"""Sizes and choices of a model, as config.json records them. This file travels inside every run folder.

It does not import torch, so that `glyphlm train --help`, which lists these fields, starts quickly.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from types import UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

Kind = Literal["glyph", "token_bits", "affine_bits", "random_bits", "random_float", "learned", "given"]
Method = Literal[
    "mean_logits", "weighted_logits", "mean_probs", "max_confidence", "posterior", "router", "stitch", "gate", "head",
    "adapter",
]


# Far above every model, so that a mistyped number ends at once and not in a loop over a billion blocks.
LARGEST = {"d_model": 1 << 20, "n_layer": 1 << 14, "n_head": 1 << 16, "block_size": 1 << 27}


def check_fields(config: Any, least: Mapping[str, float], most: Mapping[str, float] | None = None) -> None:
    """Compare each field of a config, which may come from a file of others, with its type, its least and its largest value.

    Raises:
        ValueError: the field, its value and the allowed values are named.
    """
    for name, kind in get_type_hints(type(config)).items():
        value, options = getattr(config, name), get_args(kind) if isinstance(kind, UnionType) else (kind,)
        if not any(_is_a(value, option) for option in options):
            words = (word for option in options for word in get_args(option) or [getattr(option, "__name__", option)])
            raise ValueError(f"{name} {value!r} must be one of {', '.join(map(str, words))}")
        if name in least and value is not None and value < least[name]:
            raise ValueError(f"{name} {value} must be at least {least[name]:g}")
        if most and name in most and value is not None and value > most[name]:
            raise ValueError(f"{name} {value} must be at most {most[name]:,}")


def _is_a(value: Any, kind: Any) -> bool:
    """Whether `value` has the annotated type; True and NaN do not count as numbers."""
    if get_origin(kind) is Literal:
        return isinstance(value, str) and value in get_args(kind)
    if get_origin(kind) is list:
        return isinstance(value, list) and all(_is_a(part, *get_args(kind)) for part in value)
    if kind is float:
        return type(value) in (int, float) and math.isfinite(value)
    return type(value) is kind


@dataclass
class SubstrateConfig:
    """The input embeddings: the code of each id, and how it is lifted to width D.

    Args:
        vocab_size: Number of ids.
        n_embed: Width of a code.
        kind: The content. `token_bits` (binary digits of the id) and `affine_bits` (A digits + b modulo 2, A of full
            rank; arXiv 2605.09751) are rules computed from ids unless trainable; every other kind is a table [V, E].
        scale: l2 gives each code norm 1 (published), unit_rms norm sqrt(E), none leaves it.
        lift: repeat_interleave (each value; papers 1, 2), tile (the whole code; paper 3), orthogonal (a fixed matrix with
            orthonormal rows), none (E is D). All multiply the norm by sqrt(D / E).
        trainable: Whether training changes the table.
        seed: Of random kinds.
        lift_seed: Of the orthogonal matrix.
        shuffle_seed: Ids are permuted before they get their codes; of a rule this removes the order of code points.
        fingerprint: Identifies kind, vocabulary, parameters and initial values; growth and fusion compare it.
    """

    vocab_size: int
    n_embed: int
    kind: Kind = "glyph"
    scale: Literal["l2", "unit_rms", "none"] = "l2"
    lift: Literal["repeat_interleave", "tile", "orthogonal", "none"] = "repeat_interleave"
    trainable: bool = False
    seed: int = 1
    lift_seed: int = 1
    shuffle_seed: int | None = None
    fingerprint: str = ""

    def __post_init__(self) -> None:
        check_fields(self, {"vocab_size": 1, "n_embed": 1})

    @property
    def is_rule(self) -> bool:
        """Whether codes are computed from ids, with no table stored."""
        return self.kind in ("token_bits", "affine_bits") and not self.trainable

    @property
    def places(self) -> int:
        """Number of bits that distinguish all ids."""
        return max(1, (self.vocab_size - 1).bit_length())

    def check_lift(self, d_model: int) -> None:
        """Raise ValueError where a code cannot be lifted to width D."""
        given = f"n_embed {self.n_embed}"
        if self.lift == "none" and self.n_embed != d_model:
            raise ValueError(f"{given} is not d_model {d_model}, as lift none needs; choose another lift or width")
        if self.lift == "orthogonal" and self.n_embed > d_model:
            raise ValueError(f"{given} is more than d_model {d_model}, the most that lift orthogonal takes; choose less")
        if self.lift in ("repeat_interleave", "tile") and d_model % self.n_embed:
            raise ValueError(f"{given} does not divide d_model {d_model}: codes are lifted by repetition, so give a "
                             f"d_model that is a multiple of {self.n_embed}, or lift orthogonal")


@dataclass
class HeadConfig:
    """The head, which maps the final state to a distribution over the ids.

    Args:
        kind: full is a trained matrix [V, D]. tied gives each id the logit (M h) . code, over the codes of the substrate,
            with a trained M [E, D]. code gives the probability of the digits of the id's number, one after the other; no
            parameter of it grows with the vocabulary.
        digits: Of code: number of digits; each has about V^(1 / digits) values.
        width: Of code: of the network that computes a later digit from the state and the earlier digits.
        shortlist: Of code: ids with the lowest numbers that are values of the first digit themselves, such as the 2,048 most
            frequent ones; only the others have further digits.
        order: Of code: how ids are numbered. identity keeps them; frequency sorts them by their count in the training data;
            clusters places ids of similar codes side by side; shuffled is random (a control).
        seed: Of order shuffled.
    """

    kind: Literal["full", "tied", "code"] = "full"
    digits: int = 2
    width: int = 512
    shortlist: int = 0
    order: Literal["identity", "frequency", "clusters", "shuffled"] = "identity"
    seed: int = 1

    def __post_init__(self) -> None:
        check_fields(self, {"digits": 2, "width": 1, "shortlist": 0})
        for name, standard in (("digits", 2), ("width", 512), ("shortlist", 0), ("order", "identity"), ("seed", 1)):
            applies = self.kind == "code" and (name != "seed" or self.order == "shuffled")
            if not applies and (value := getattr(self, name)) != standard:
                needed = "order shuffled of kind code" if name == "seed" else "kind code"
                raise ValueError(f"head.{name} {value} applies only to {needed}, not to {self.kind}; leave it out")

    def check_vocabulary(self, vocab_size: int) -> None:
        """Check the shortlist against the number of ids.

        Raises:
            ValueError: no id would be left for the digits.
        """
        if self.shortlist >= vocab_size:
            raise ValueError(f"head.shortlist {self.shortlist} must be less than the {vocab_size} ids; give a smaller one")


@dataclass
class ModelConfig:
    """The shape of the transformer.

    Args:
        d_model: Width D of the residual stream.
        n_layer: Number of blocks.
        n_head: Attention heads a block; their width d_model / n_head must be even.
        block_size: Longest context in tokens.
        head_bias: A bias for each id in the head. True in the published models; false can be exported as GPT-NeoX.
        activation: Exact GELU, or its tanh approximation.
        rope_base: Base of the rotary frequencies.
        norm_eps: Epsilon of the LayerNorms.
        head: The head, which maps the final state to a distribution over the ids.
    """

    d_model: int = 256
    n_layer: int = 4
    n_head: int = 4
    block_size: int = 256
    head_bias: bool = False
    activation: Literal["gelu", "gelu_tanh"] = "gelu"
    rope_base: float = 10000.0
    norm_eps: float = 1e-5
    head: HeadConfig = field(default_factory=HeadConfig)

    def __post_init__(self) -> None:
        least = dict.fromkeys(("d_model", "n_head", "block_size", "rope_base"), 1)
        check_fields(self, least | {"n_layer": 0, "norm_eps": 0}, LARGEST)
        if self.d_model % (2 * self.n_head):
            fitting = [n for n in range(1, self.d_model // 2 + 1) if self.d_model % (2 * n) == 0]
            raise ValueError(f"d_model {self.d_model} does not split into {self.n_head} heads of even width; "
                             f"n_head can be {', '.join(map(str, fitting[-8:]))}")


def model_fields(config: Any) -> dict[str, Any]:
    """The fields of a shape, without a full head, as in files of versions that had no other head."""
    fields = asdict(config)
    if fields.get("head") == asdict(HeadConfig()):
        del fields["head"]
    return fields


@dataclass
class FusionConfig:
    """How several experts become one model.

    Args:
        method: mean_logits, weighted_logits, gate, head and adapter mix logits; mean_probs and posterior mix probabilities;
            max_confidence and router choose one expert. mixing.py has the formulas and their sources. stitch continues
            the hidden states of the first expert in the blocks of the second.
        weights: Weights of the experts, in their order; by default equal.
        top_k: Of gate: experts that still run after the first `route_after` tokens; by default all do.
        route_after: Tokens of a text that all experts read before top_k of them, or one by a router, are chosen.
        rank: Of adapter.
        temperature: Of posterior: above 1 the weights follow the text more slowly.
        memory: Of posterior: tokens after which the evidence of earlier ones counts 1/e; by default it never fades.
        reset: Of posterior: probability per token that the text switches to another expert.
        routers: Of router: the last so many models are routers, which only choose; each expert has one.
        segment: Of router: tokens after which an expert is chosen again; by default one reads the whole text.
    """

    method: Method = "mean_logits"
    weights: list[float] | None = None
    top_k: int | None = None
    route_after: int = 32
    rank: int = 16
    temperature: float = 1.0
    memory: float | None = None
    reset: float = 0.0
    routers: int = 0
    segment: int | None = None

    def __post_init__(self) -> None:
        least = {"top_k": 1, "route_after": 1, "rank": 1, "reset": 0, "routers": 0, "segment": 2}
        check_fields(self, least, {"rank": 1 << 20, "reset": 0.999})
        for name in ("temperature", "memory"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ValueError(f"{name} {value} must be above 0")
        if self.weights is not None and not (self.weights and min(self.weights) >= 0 < sum(self.weights)):
            raise ValueError(f"weights {self.weights} must be at least 0, and some above it")
        for name, method in (("top_k", "gate"), ("memory", "posterior"), ("reset", "posterior"), ("segment", "router")):
            if getattr(self, name) and self.method != method:
                raise ValueError(f"{name} {getattr(self, name)} applies only to method {method}, not to {self.method}; "
                                 "remove it")
        if (self.routers > 0) != (self.method == "router"):
            raise ValueError(f"routers {self.routers} do not fit method {self.method}: router needs one for each expert, "
                             "other methods none")
        if self.segment is not None and self.segment <= self.route_after:
            raise ValueError(f"segment {self.segment} must be longer than route_after {self.route_after}")

    def check_experts(self, models: int) -> None:
        """Check the number of `models`, experts and routers together, against the method.

        Raises:
            ValueError: there are too few or too many, or not as many as weights or routers.
        """
        experts = models - self.routers
        if self.method == "stitch" and models != 2:
            raise ValueError(f"stitch puts the upper blocks of one model on the lower ones of another: give 2, not {models}")
        if self.routers and self.routers != experts:
            raise ValueError(f"{self.routers} routers do not fit {experts} experts; give each expert one")
        if self.weights is not None and len(self.weights) != experts:
            raise ValueError(f"weights {self.weights} do not fit {experts} experts; give each expert one")
        if self.top_k is not None and self.top_k > experts:
            raise ValueError(f"top_k {self.top_k} is more than the {experts} experts; give 1 to {experts}")

    @property
    def records(self) -> int:
        """Layers of the cache that hold what the method remembers of earlier positions, instead of keys and values."""
        return int(self.method in ("posterior", "router") or self.top_k is not None)
