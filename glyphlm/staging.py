"""run_growth(): a recipe with stages -> one run folder a stage, each grown out of the one before, and their controls.

Each stage, and each control, is a recipe like any other and is trained by the same run_recipe(): the settings.yaml of a
stage, given to `glyphlm train`, makes the stage again.
"""

from collections.abc import Iterator, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch

from glyphlm.arm import build_inputs, prepared_data, run_recipe
from glyphlm.errors import InputError
from glyphlm.flops import flops_per_token
from glyphlm.growth import GrowthSettings
from glyphlm.model import GPT, Substrate, SubstrateConfig
from glyphlm.parallel import joined
from glyphlm.recipe import GrowthRecipe, Recipe, Stage
from glyphlm.runfolder import load_run
from glyphlm.tokenizer import Tokenizer


def run_growth(recipe: GrowthRecipe, out: Path, command: str) -> list[Path]:
    """Train every stage into `out`/stage-1, stage-2 .., then the controls; their folders, in this order.

    The same call again goes on where it was stopped, inside a stage or between two, and with more stages than before it
    grows the model further.

    Raises:
        InputError: as `run_recipe`, there is no stage, or one would take layers away.
    """
    check_stages(recipe)
    with joined() as world:
        if world.size > 1 and world.is_main:
            with_inputs(recipe, out)  # the others wait, and find them done
        world.wait()
        recipe = with_inputs(recipe, out)
        summaries = {run: run_recipe(stage, run, command) for run, stage in stage_recipes(recipe, out)}
        controls = {out / f"monolithic-{kind}": control(recipe, kind, list(summaries.values())) for kind in recipe.controls}
        for run, monolithic in controls.items():
            run_recipe(monolithic, run, command)
    return [*summaries, *controls]


def check_stages(recipe: GrowthRecipe) -> None:
    """Refuse a list of stages that cannot be trained.

    Raises:
        InputError: with the stage and its value.
    """
    if not recipe.stages:
        raise InputError("the recipe has no stages; give stages: [{layers: 1, steps: 1000}, ..], or use glyphlm train")
    for number, stage in enumerate(recipe.stages, 1):
        least = 0 if number > 1 or recipe.growth.base else 1
        if stage.layers < least:
            raise InputError(f"stage {number} adds {stage.layers} layers; growth only adds, at least {least} here")
        if stage.steps is not None and stage.tokens is not None:
            raise InputError(f"stage {number} has steps {stage.steps} and tokens {stage.tokens:g}; give one of the two")
    if recipe.controls and (recipe.growth.base or any(stage.data for stage in recipe.stages)):
        raise InputError("controls train on the data of all stages from nothing; leave them out where the first stage has a "
                         "base, or a stage data of its own")


def with_inputs(recipe: GrowthRecipe, out: Path) -> GrowthRecipe:
    """The recipe with tokenizer, substrate and shards made and named, for all stages to share.

    A base brings its own tokenizer and substrate, where the recipe does not describe them.
    """
    if base := recipe.growth.base:
        tokenizer, substrate = (replace(part, path=base) if part == type(part)() else part
                                for part in (recipe.tokenizer, recipe.substrate))
        recipe = replace(recipe, tokenizer=tokenizer, substrate=substrate)
    inputs = out / "inputs"
    tokenizer, recipe = build_inputs(recipe, inputs)
    path = recipe.tokenizer.path or str(inputs / "tokenizer")
    stages = [_with_data(stage, tokenizer, inputs / f"stage-{number}") for number, stage in enumerate(recipe.stages, 1)]
    return replace(recipe, tokenizer=replace(recipe.tokenizer, path=path), stages=stages)


def _with_data(stage: Stage, tokenizer: Tokenizer, inputs: Path) -> Stage:
    return stage if stage.data is None else replace(stage, data=prepared_data(stage.data, tokenizer, inputs))


def stage_recipes(recipe: GrowthRecipe, out: Path) -> Iterator[tuple[Path, Recipe]]:
    """Each stage's run folder and its whole recipe; what is to be grown further must be there when the next is asked for."""
    base, depth = recipe.growth.base, base_depth(recipe)
    for number, stage in enumerate(recipe.stages, 1):
        depth += stage.layers
        run = out / f"stage-{number}"
        yield run, stage_recipe(recipe, stage, base, depth)
        base = str(run)


def base_depth(recipe: GrowthRecipe) -> int:
    """Number of blocks that the first stage is put on."""
    return load_run(recipe.growth.base)[0].config.num_hidden_layers if recipe.growth.base else 0


def stage_recipe(recipe: GrowthRecipe, stage: Stage, base: str | None, depth: int) -> Recipe:
    """The recipe of one stage: that of all, but for what the stage says."""
    train = _said(recipe.train, stage)
    if stage.steps is not None or stage.tokens is not None:
        train = replace(train, steps=stage.steps, tokens=stage.tokens)
    growth = replace(_said(recipe.growth, stage), base=base) if base else GrowthSettings()
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
    )


def _said(settings: Any, stage: Stage) -> Any:
    """`settings` with the values of the same name that the stage gives."""
    names = {field.name for field in fields(settings)} - {"steps", "tokens"}
    return replace(settings, **{name: value for name, value in vars(stage).items() if name in names and value is not None})


def control(recipe: GrowthRecipe, kind: str, stages: Sequence[dict[str, Any]]) -> Recipe:
    """The monolithic twin of the last stage: its shape, all of it trained at once, on the same data from the beginning.

    Args:
        kind: Whether it gets as many tokens as the `stages` (given by their summaries) together, or as many operations.
    """
    depth = stages[-1]["model"]["n_layer"]
    twin = stage_recipe(replace(recipe, growth=GrowthSettings()), Stage(), None, depth)
    steps = sum(stage["steps"] for stage in stages)
    if kind == "flops":
        with torch.device("meta"):
            model = GPT(twin.model, Substrate(SubstrateConfig(**stages[0]["substrate"]), twin.model.d_model))
        per_step = sum(part.total for part in flops_per_token(model, recompute=twin.train.recompute).values())
        per_step *= twin.train.batch_tokens
        steps = round(sum(stage["cost"]["flops_total"] for stage in stages) / per_step)
    return replace(twin, train=replace(twin.train, steps=steps, tokens=None, flat_after=None))
