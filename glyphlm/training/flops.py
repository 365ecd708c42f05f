"""Cost of a model by part: parameters, and floating-point operations per token.

A multiplication and an addition count as two. Only matrix products are counted; norms, GELU and softmax are not. A head of
kind code is counted as in training, where it reads the digits of the target alone.
Attention scores are counted causal, T / 2 positions a token on average; torch's FlopCounterMode counts all T. A backward
pass costs twice the forward pass, less the gradients of frozen weights.
"""

from collections import Counter
from dataclasses import dataclass
from typing import Any, cast

from torch import nn

from glyphlm.modeling.fusion import Fusion
from glyphlm.modeling.heads import TiedHead
from glyphlm.modeling.model import GPT, count_parameters, trains
from glyphlm.modeling.substrate import Substrate

PARTS = ("substrate", "frozen", "attention", "scores", "mlp", "norms", "mixing", "head")
MATRICES = ("lift_ED", "affine_NE")  # buffers that codes are multiplied with


@dataclass(frozen=True)
class Flops:
    """Operations of one token in one part."""

    forward: int
    backward: int

    @property
    def total(self) -> int:
        """Both passes."""
        return self.forward + self.backward


def part_of(name: str) -> str:
    """The part of PARTS that a parameter, buffer or module belongs to, by its name; gates and adapters count as mixing."""
    if "norm" in name:
        return "norms"
    return next((part for part in ("substrate", "attention", "mlp", "head") if part in name), "mixing")


def parameters_by_part(model: GPT | Fusion) -> dict[str, dict[str, int]]:
    """Numbers of `trained` and `frozen` values of each part; together they are those of `count_parameters`."""
    parts = [part for part in PARTS if part not in ("frozen", "scores")]
    counts: dict[str, dict[str, int]] = {part: {"trained": 0, "frozen": 0} for part in parts}
    for name, values in [*model.named_parameters(), *model.named_buffers()]:
        if values.is_floating_point():
            counts[part_of(name)]["trained" if values.requires_grad else "frozen"] += values.numel()
    return counts


def parameters_in_copies(model: Fusion) -> int:
    """Number of values of the experts as complete models, each with its own copy of the substrate, as in published sizes."""
    parts = [model.head, *model.experts, *(model.substrates[read] for read in model.reads)]
    return sum(count_parameters(part)["total"] for part in parts)


def flops_per_token(model: GPT | Fusion, *, causal: bool = True, recompute: bool = False) -> dict[str, Flops]:
    """Operations per token of training, by part, in a context of `block_size` tokens.

    A frozen weight gets no gradient, and backpropagation ends at the lowest trained value; the part `frozen` is the forward
    pass of the blocks below that value.

    Args:
        causal: False counts scores of positions that the mask hides, as FlopCounterMode does.
        recompute: Count the second forward pass of the blocks, as the part `recompute`.
    """
    forward, backward = _count(model, model.config.block_size * (2 if causal else 4))
    flops = {part: Flops(forward[part], backward[part]) for part in PARTS if part != "norms"}
    if recompute:
        flops["recompute"] = Flops(0, sum(flops[part].forward for part in ("attention", "scores", "mlp")))
    return flops


def _count(model: GPT | Fusion, scores: int) -> tuple[Counter[str], Counter[str]]:
    forward, backward = Counter(), Counter()
    below = False  # whether anything trains here or below, so that the gradient is propagated this far
    frozen = {module for block in model.blocks[: model.frozen_depth] for module in block.modules()}
    for name, module in model.named_modules():  # in the order of the data
        if name.endswith("attention.out"):
            part, products = "frozen" if module in frozen else "scores", scores * int(cast(Any, module).in_features)
            forward[part] += products
            backward[part] += 2 * products * below
        if isinstance(module, nn.Linear):
            part, products = "frozen" if module in frozen else part_of(name), 2 * module.weight.numel()
            forward[part] += products
            # A gate reads the state of a frozen expert, not the output of the previous gate.
            backward[part] += products * ((below and not name.startswith("gates.")) + _is_trained(module, name))
        if isinstance(module, TiedHead):
            config = module.substrate.config
            forward["head"] += (products := 2 * config.vocab_size * config.n_embed)
            backward["head"] += products * (1 + trains(module.substrate))
        below |= any(values.requires_grad for values in module.parameters(recurse=False))
        if isinstance(module, Substrate):
            twice = 2 * _readers(model, module)
            products = {name: twice * values.numel() for name, values in module.named_buffers() if name in MATRICES}
            forward["substrate"] += sum(products.values())
            backward["substrate"] += products.get("lift_ED", 0) * below
    return forward, backward


def _readers(model: GPT | Fusion, substrate: Substrate) -> int:
    """Number of experts that read a substrate, each of which computes its codes anew."""
    return sum(model.substrates[read] is substrate for read in model.reads) if isinstance(model, Fusion) else 1


def _is_trained(matrix: nn.Linear, name: str) -> bool:
    """Whether the gradient of a matrix is computed; it is for a head with an adapter, which is merged before each step."""
    return matrix.weight.requires_grad or name == "head.base_layer"
