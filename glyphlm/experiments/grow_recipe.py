"""run_growth(): a recipe with stages -> one run folder per stage, each grown out of the previous one, and their controls.

Each stage and each control is a recipe like any other, trained by run_recipe(): `glyphlm train` on the settings.yaml of a
stage trains that stage again.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from glyphlm.base.names import MADE_INPUTS
from glyphlm.base.outputs import one_writer
from glyphlm.composition.settings import GrowthSettings
from glyphlm.experiments.recipe import GrowthRecipe, Recipe, Stage
from glyphlm.experiments.resume import has_begun
from glyphlm.experiments.stages import base_shape, check_stages, stage_recipe
from glyphlm.experiments.train_recipe import build_inputs, device_of, prepared_data, run_recipe
from glyphlm.modeling.config import SubstrateConfig
from glyphlm.modeling.model import GPT
from glyphlm.modeling.substrate import Substrate
from glyphlm.training.flops import flops_per_token
from glyphlm.training.parallel import joined


def run_growth(recipe: GrowthRecipe, out: Path, command: str) -> list[Path]:
    """Train every stage into `out`/stage-1, stage-2 .., then the controls; their folders, in this order.

    Repeating the call resumes a stopped run, inside a stage or between two, and with more stages than before it
    grows the model further.

    Raises:
        InputError: as `run_recipe`, there is no stage, or one would remove layers.
    """
    check_stages(recipe)
    with joined(device_of(recipe, out / "stage-1")) as world, one_writer(out):
        if world.size > 1 and world.is_main:
            _with_inputs(recipe, out)  # the others wait, and read them
        world.wait()
        recipe = _with_inputs(recipe, out)
        summaries = {run: run_recipe(stage, run, command) for run, stage in stage_recipes(recipe, out)}
        controls = {out / f"monolithic-{kind}": control(recipe, kind, list(summaries.values())) for kind in recipe.controls}
        for run, monolithic in controls.items():
            run_recipe(monolithic, run, command)
    return [*summaries, *controls]


def _with_inputs(recipe: GrowthRecipe, out: Path) -> GrowthRecipe:
    """The recipe with tokenizer, substrate and shards made and named, for all stages to share."""
    inputs, begun = out / MADE_INPUTS, any(has_begun(run) for run in out.glob("stage-*"))
    tokenizer, recipe = build_inputs(recipe, inputs, begun)
    path = recipe.tokenizer.path or str(inputs / "tokenizer")
    stages = [replace(stage, data=prepared_data(stage.data, tokenizer, inputs / f"stage-{number}", begun)) if stage.data
              else stage for number, stage in enumerate(recipe.stages, 1)]
    return replace(recipe, tokenizer=replace(recipe.tokenizer, path=path), stages=stages)


def stage_recipes(recipe: GrowthRecipe, out: Path) -> Iterator[tuple[Path, Recipe]]:
    """Run folder and complete recipe of each stage; a stage must be trained before the next is taken."""
    base, shape = recipe.growth.base, base_shape(recipe)
    depth = shape.n_layer if shape else 0
    for number, stage in enumerate(recipe.stages, 1):
        depth += stage.layers
        run = out / f"stage-{number}"
        yield run, stage_recipe(recipe, stage, base, depth)
        base = str(run)


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
