"""Scaling of initial values and learning rates with width and depth: what was tuned on a small model suits a large one.

Maximal update parametrization (muP; arXiv 2203.03466, table 8, for Adam) scales with the width, at a constant width of the
attention heads; CompleteP (arXiv 2505.01618) also with the depth. At a base shape both equal the standard one. Multipliers
of the forward pass are folded into initial values and learning rates (muP, lemma J.1), so model and files do not change.
"""

import torch
from torch import nn

from glyphlm.base.errors import InputError
from glyphlm.modeling.fusion import Fusion
from glyphlm.modeling.model import GPT
from glyphlm.training.settings import TrainSettings

INTO_STREAM = ("attention.out.weight", "mlp.down.weight", "mlp.down.bias")


def scales(model: nn.Module, kind: str, width: float, depth: float) -> dict[str, tuple[float, float]]:
    """Factors of the initial values and of the learning rate of each tensor for which they are not 1.

    Args:
        kind: standard, mup or completep.
        width: Width of the model over that of the base shape.
        depth: Number of its blocks over that of the base shape.
    """
    found = {}
    for name, values in model.named_parameters():
        start = rate = 1.0
        if kind != "standard" and values.dim() >= 2 and "lora_" not in name:
            if "blocks." in name:
                start, rate = width**-0.5, 1 / width
            elif name.startswith("head."):
                start, rate = 1 / width, 1 / width
        if kind == "completep" and name.endswith(INTO_STREAM):
            # A block counts 1 / depth; the initial values are divided by the root of the depth already.
            start, rate = start * depth**-0.5, rate / depth
        if (start, rate) != (1.0, 1.0):
            found[name] = start, rate
    return found


@torch.no_grad()
def scale_start(model: nn.Module, factors: dict[str, tuple[float, float]]) -> None:
    """Multiply the initial values."""
    for name, values in model.named_parameters():
        if name in factors:
            values.mul_(factors[name][0])


def scales_of(model: GPT | Fusion, settings: TrainSettings) -> dict[str, tuple[float, float]]:
    """`scales` of a model by its settings; none for a fusion, whose experts have shapes of their own.

    Raises:
        InputError: the model has a head for which there are no rules.
    """
    if settings.parametrization == "standard" or isinstance(model, Fusion):
        return {}
    if model.config.head.kind != "full":
        raise InputError(f"train.parametrization {settings.parametrization} is for model.head.kind full, not "
                         f"{model.config.head.kind}; set it to standard")
    shape = model.config
    return scales(model, settings.parametrization, shape.d_model / settings.base_width, shape.n_layer / settings.base_depth)
