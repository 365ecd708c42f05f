"""A recipe with stages -> the complete recipe of each stage; and the base run of a recipe."""

from dataclasses import fields, replace
from pathlib import Path
from typing import Any, TypeVar

from glyphlm.base.errors import InputError
from glyphlm.composition.settings import GrowthSettings
from glyphlm.experiments.recipe import GrowthRecipe, Recipe, Stage
from glyphlm.modeling.config import ModelConfig

AnyRecipe = TypeVar("AnyRecipe", bound=Recipe)


def check_stages(recipe: GrowthRecipe) -> None:
    """Refuse a list of stages that cannot be trained.

    Raises:
        InputError: with the stage and its value.
    """
    if not recipe.stages:
        raise InputError("the recipe has no stages; give stages: [{layers: 1, steps: 1000}, ..], or use glyphlm train")
    if recipe.fusion.experts:
        raise InputError(f"a model is fused or grown, not both; leave out stages or fusion.experts {recipe.fusion.experts}")
    base_shape(recipe)  # refuses what cannot be grown
    for number, stage in enumerate(recipe.stages, 1):
        if stage.layers < 0:
            raise InputError(f"stage {number} adds {stage.layers} layers; growth only adds, at least 0")
        if stage.steps is not None and stage.tokens is not None:
            raise InputError(f"stage {number} has steps {stage.steps} and tokens {stage.tokens:g}; give one of the two")
    if recipe.controls and (recipe.growth.base or any(stage.data for stage in recipe.stages)):
        raise InputError("controls train a new model on the data of all stages; leave them out where the first stage has a "
                         "base, or a stage data of its own")


def base_shape(recipe: Recipe) -> ModelConfig | None:
    """The shape of the run that the recipe is grown out of; None where the model is new.

    Raises:
        InputError: that run is not finished, or is fused.
    """
    base = recipe.growth.base
    if base is None:
        return None
    from glyphlm.runs.folder import read_summary, run_config  # loads transformers

    config = run_config(base)
    if config.fusion is not None:
        experts = ((read_summary(Path(base)) or {}).get("fusion") or {}).get("experts", [])
        named = f": {', '.join(experts)}" if experts else ""
        raise InputError(f"growth.base {base} is fused of {len(config.experts or [])} experts, and growth adds blocks to a "
                         f"single model; name one of its experts{named}")
    return config.shapes()[0][0]


def with_parts_of_base(recipe: AnyRecipe) -> AnyRecipe:
    """The recipe with tokenizer and substrate of its base, where it does not describe its own."""
    base, parts = recipe.growth.base, (recipe.tokenizer, recipe.substrate)
    if base is None:
        return recipe
    tokenizer, substrate = (replace(part, path=base) if part == type(part)() else part for part in parts)
    return replace(recipe, tokenizer=tokenizer, substrate=substrate)


def stage_recipe(recipe: GrowthRecipe, stage: Stage, base: str | None, depth: int) -> Recipe:
    """The recipe of one stage, which replaces values of the recipe of all stages."""
    train = _overridden(recipe.train, stage)
    if stage.steps is not None or stage.tokens is not None:
        train = replace(train, steps=stage.steps, tokens=stage.tokens)
    growth = replace(_overridden(recipe.growth, stage), base=base) if base else GrowthSettings()
    if stage.lora_rank is not None and base:
        growth = replace(growth, lora=replace(growth.lora, rank=stage.lora_rank))
    # A table that is trained in the first stage is frozen from then on: the substrate of later ones is that of the base.
    follows = base and base != recipe.growth.base
    return Recipe(
        tokenizer=recipe.tokenizer,
        substrate=replace(recipe.substrate, path=base) if follows else recipe.substrate,
        model=replace(recipe.model, n_layer=depth),
        data=stage.data or recipe.data,
        validation=recipe.validation,
        prompts=recipe.prompts,
        train=replace(train, validate_first=bool(base)),
        growth=growth,
        head_start="random" if base else recipe.head_start,
    )


def _overridden(settings: Any, stage: Stage) -> Any:
    """`settings` with the values of the same name that the stage gives."""
    names = {field.name for field in fields(settings)} - {"steps", "tokens"}
    return replace(settings, **{name: value for name, value in vars(stage).items() if name in names and value is not None})
