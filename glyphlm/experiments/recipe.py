"""A recipe says the whole of an arm: tokenizer, substrate, data, model, training."""

import argparse
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import jsonargparse
import yaml

from glyphlm.base.devices import resolve_device, resolve_precision
from glyphlm.base.errors import InputError
from glyphlm.composition.fusionsettings import FusionSettings
from glyphlm.composition.growth import GrowthSettings
from glyphlm.data.batches import Source
from glyphlm.modeling.model import ModelConfig
from glyphlm.substrate.build import SubstrateSettings
from glyphlm.tokenizer.build import TokenizerSettings
from glyphlm.training.settings import TrainSettings, batch_rows, count_steps


@dataclass
class Recipe:
    """One arm.

    Args:
        tokenizer: A folder (path), or a layout to build on the text of the data.
        substrate: A folder (path), or a kind to build.
        model: The shape of the transformer.
        data: Training sources, each shards (a folder of glyphlm prepare), text (files, folders, hf:NAME) or sft
            (NAME=PATH of supervised examples), with weight or epochs.
        validation: Shard folders to validate on; by default what the data sources hold out.
        prompts: Texts that the trained model continues, for samples.jsonl and the report.
        train: How to train.
        growth: The run that the model is grown out of, and how.
        fusion: The runs that it is fused from, and what of it trains; model, tokenizer and substrate are then theirs.
    """

    tokenizer: TokenizerSettings = field(default_factory=TokenizerSettings)
    substrate: SubstrateSettings = field(default_factory=SubstrateSettings)
    model: ModelConfig = field(default_factory=ModelConfig)
    data: list[Source] = field(default_factory=list)
    validation: list[str] = field(default_factory=list)
    prompts: list[str] = field(default_factory=list)
    train: TrainSettings = field(default_factory=TrainSettings)
    growth: GrowthSettings = field(default_factory=GrowthSettings)
    fusion: FusionSettings = field(default_factory=FusionSettings)


@dataclass
class Stage:
    """One stage of growth; what it does not say is as in `train`, `growth` and `data` of the recipe.

    Args:
        layers: Blocks to add; 0 trains adapters, head and norm alone.
        steps: As train.steps.
        tokens: As train.tokens.
        lr: As train.lr.
        schedule: As train.schedule.
        flat_after: As train.flat_after.
        start: As growth.start.
        blocks: As growth.blocks.
        head: As growth.head.
        lora_rank: As growth.lora.rank.
        data: As data of the recipe.
    """

    layers: int = 1
    steps: int | None = None
    tokens: float | None = None
    lr: float | None = None
    schedule: Literal["cosine", "wsd", "constant"] | None = None
    flat_after: int | None = None
    start: Literal["random", "zero", "copy", "stack"] | None = None
    blocks: Literal["new", "all"] | None = None
    head: Literal["full", "low_rank", "frozen"] | None = None
    lora_rank: int | None = None
    data: list[Source] | None = None


@dataclass
class GrowthRecipe(Recipe):
    """A recipe with stages.

    Args:
        stages: From the first to the last; they set model.n_layer.
        controls: Models of the final depth, trained at once, all of them: with as many tokens as all stages together, or
            with as many floating-point operations.
    """

    stages: list[Stage] = field(default_factory=list)
    controls: list[Literal["tokens", "flops"]] = field(default_factory=list)


def resolve(recipe: Recipe, recorded: dict[str, Any] | None = None) -> Recipe:
    """The recipe with `auto` settings decided for this machine, or as `recorded` when the run was begun.

    Raises:
        InputError: settings are out of range or have no say, or a data source is not one of shards, text and sft.
    """
    for source in recipe.data:
        if sum(map(bool, (source.shards, source.text, source.sft))) != 1:
            raise InputError(f"a data source needs shards, text or sft, one of them (shards: {source.shards}, "
                             f"text: {source.text}, sft: {source.sft})")
        if source.weight is not None and source.epochs is not None:
            raise InputError(f"a data source has weight {source.weight} and epochs {source.epochs}; give one of the two")
    if recipe.growth.base is None and recipe.growth != GrowthSettings():
        raise InputError("growth says how a model is grown out of another; name that run as growth.base")
    if recipe.fusion.experts and recipe.growth.base:
        raise InputError(f"a model is fused or grown, not both; leave out fusion.experts {recipe.fusion.experts} or "
                         f"growth.base {recipe.growth.base}")
    if not recipe.fusion.experts and recipe.fusion != FusionSettings():
        raise InputError("fusion says how runs become one model; name them as fusion.experts")
    count_steps(recipe.train)
    batch_rows(recipe.train, recipe.model.block_size)
    before = (recorded or {}).get("train", {})
    device, precision = (
        before.get(name, "auto") if value == "auto" else value
        for name, value in (("device", recipe.train.device), ("precision", recipe.train.precision))
    )
    device = resolve_device(device)
    precision = resolve_precision(precision, device)
    return replace(recipe, train=replace(recipe.train, device=device, precision=precision))


def load_recipe(
    source: str | Path | Mapping[str, Any],
    profile: str | None = None,
    overrides: Iterable[Mapping[str, Any]] = (),
    kind: type[Recipe] = GrowthRecipe,
) -> Any:
    """The recipe of a file, or of nested dictionaries, with each of `overrides` laid over it in turn.

    Args:
        profile: One of the profiles of the file.
        overrides: Parts of a recipe; a key may be dotted, such as train.lr.
        kind: Recipe, or GrowthRecipe, which also has stages and controls.

    Raises:
        InputError: as `recipe_text`, or a key or value is unknown or of the wrong type.
    """
    values = dict(source) if isinstance(source, Mapping) else yaml.safe_load(recipe_text(Path(source), profile))
    for override in overrides:
        for name, value in override.items():
            for part in reversed(name.split(".")):
                value = {part: value}
            values = _laid_over(values, value)
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(kind)
    try:
        return kind(**parser.instantiate(parser.parse_object(values)))
    except (argparse.ArgumentError, jsonargparse.ArgumentError, ValueError) as error:
        raise InputError(f"the recipe cannot be read: {error}") from None


def recipe_text(path: Path, profile: str | None) -> str:
    """The YAML of a recipe file with one of its `profiles` laid over it, or with none.

    A profile is a part of a recipe: its values replace those of the same name, lists as a whole.

    Raises:
        InputError: the file does not exist or is damaged, or has no such profile.
    """
    if not path.is_file():
        raise InputError(f"{path} does not exist; give the recipe's YAML file")
    try:
        recipe = yaml.safe_load(path.read_text(encoding="utf-8"))
        profiles = recipe.pop("profiles", {})
    except (yaml.YAMLError, UnicodeDecodeError, AttributeError) as error:
        raise InputError(f"{path} is no recipe ({' '.join(str(error).split())})") from None
    if profile not in (None, *profiles):
        raise InputError(f"{path} has no profile {profile!r}; it has {', '.join(profiles) or 'none'}")
    return yaml.safe_dump(_laid_over(recipe, profiles[profile]) if profile else recipe, sort_keys=False, allow_unicode=True)


def _laid_over(below: Any, above: Any) -> Any:
    if not (isinstance(below, dict) and isinstance(above, dict)):
        return above
    return below | {key: _laid_over(below.get(key), value) for key, value in above.items()}


def settings_text(recipe: Recipe) -> str:
    """The resolved recipe as YAML."""
    return yaml.safe_dump(asdict(recipe), sort_keys=False, allow_unicode=True)


def read_settings(path: Path) -> dict[str, Any]:
    """The resolved recipe of a run, as nested dictionaries.

    Raises:
        InputError: the file is damaged.
    """
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise InputError(f"{path} is damaged ({' '.join(str(error).split())}); choose another --out") from None
