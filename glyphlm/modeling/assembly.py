"""Builds the model that config.json describes, without its weights. This file travels inside every run folder."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from typing import Any, TypeVar

from .config import FusionConfig, HeadConfig, ModelConfig, SubstrateConfig
from .fusion import Fusion
from .model import GPT
from .stitching import make_fusion
from .substrate import Substrate

Shape = tuple[ModelConfig, SubstrateConfig, int]
Config = TypeVar("Config", ModelConfig, HeadConfig, SubstrateConfig, FusionConfig)


def shapes_of(pairs: Sequence[Any], fusion: Mapping[str, Any] | None) -> list[Shape]:
    """Sizes of each expert, and the number of the first one that reads the same substrate.

    Args:
        pairs: `model` and `substrate` of each expert, the one pair of a single model; a number stands for the substrate of
            an earlier expert.
        fusion: The fields of FusionConfig, or None of a single model.

    Raises:
        ValueError: a key is unknown or missing, or a value is not allowed.
    """
    found: list[Shape] = []
    if not isinstance(pairs, list) or not pairs:
        raise ValueError("config.json has fusion without a list of experts")
    for number, pair in enumerate(pairs):
        if not isinstance(pair, dict) or pair.keys() != {"model", "substrate"}:
            raise ValueError(f"expert {number} of config.json must have model and substrate")
        model, first = _make(ModelConfig, pair["model"]), pair["substrate"]
        if not isinstance(first, int):
            found.append((model, _make(SubstrateConfig, first), number))
        elif first not in range(number) or (found[first][2], found[first][0].d_model) != (first, model.d_model):
            raise ValueError(f"expert {number} of config.json reads the substrate of expert {first}, which must be an "
                             "earlier one with a substrate of its own and the same d_model")
        else:
            found.append((model, found[first][1], first))
    if fusion is not None:
        _make(FusionConfig, fusion)
    return found


def make_model(pairs: Sequence[Any], fusion: Mapping[str, Any] | None) -> GPT | Fusion:
    """The model of these sizes; arguments and errors as those of `shapes_of`."""
    substrates, experts = {}, []
    for number, (model, substrate, first) in enumerate(shapes_of(pairs, fusion)):
        if first == number:
            substrates[first] = Substrate(substrate, model.d_model)
        experts.append(GPT(model, substrates[first]))
    return experts[0] if fusion is None else make_fusion(FusionConfig(**fusion), experts)


def count_blocks(names: Iterable[str]) -> int:
    """Number of blocks among tensors of these names."""
    parts = (name.partition(".blocks.") for name in names if ".blocks." in name)
    return len({before + after.partition(".")[0] for before, _, after in parts})


def _make(kind: type[Config], values: Any) -> Config:
    """The dataclass with the values of a part of config.json.

    Raises:
        ValueError: a key is unknown or missing, or a value is not allowed.
    """
    if not isinstance(values, dict):
        raise ValueError(f"config.json holds {values!r} where the fields of {kind.__name__} are expected")
    unknown = sorted(map(str, values.keys() - {field.name for field in fields(kind)}))
    if unknown:
        raise ValueError(f"config.json has unknown keys of {kind.__name__}: {', '.join(unknown)}; remove them")
    if "head" in values:
        values = values | {"head": _make(HeadConfig, values["head"])}
    try:
        return kind(**values)
    except TypeError as error:  # a missing one
        raise ValueError(f"config.json: {error}") from None
