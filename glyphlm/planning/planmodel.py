"""The model that a recipe is about, on the meta device: shapes without values, before anything of it is built."""

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from glyphlm.base.errors import InputError
from glyphlm.base.names import BUILD
from glyphlm.base.outputs import read_build
from glyphlm.base.progress import say
from glyphlm.composition.fusionsettings import check_settings as check_fusion
from glyphlm.experiments.recipe import Recipe
from glyphlm.modeling.fusion import Fusion, FusionConfig
from glyphlm.modeling.model import GPT, Substrate, SubstrateConfig
from glyphlm.substrate.build import SubstrateSettings, check_settings, substrate_config
from glyphlm.tokenizer.build import COMPACT_SIZE, TokenizerSettings
from glyphlm.tokenizer.layouts import LAYOUTS
from glyphlm.tokenizer.tokenizer import Tokenizer

CONFIG = "config.json"  # of a finished run


def planned_model(recipe: Recipe) -> GPT | Fusion:
    """The recipe's model on the meta device; a fused one with only what its method trains not frozen.

    Raises:
        InputError: the vocabulary is not known, widths do not fit, or the experts cannot be fused and trained.
    """
    try:
        with torch.device("meta"):
            return _fused(recipe) if recipe.fusion.experts else _single(recipe)
    except ValueError as error:
        raise InputError(str(error)) from None


def _single(recipe: Recipe) -> GPT:
    return GPT(recipe.model, Substrate(_substrate_config(recipe.substrate, recipe.tokenizer), recipe.model.d_model))


def _fused(recipe: Recipe) -> Fusion:
    from glyphlm.composition.fuse import experts_of
    from glyphlm.experiments.build_model import check_context, check_trained  # these load transformers

    settings = recipe.fusion
    check_trained(settings)
    check_fusion(settings)
    models = zip(settings.experts, _models_of_runs(recipe))
    experts = [expert.model for number, (run, model) in enumerate(models) for expert in experts_of(model, run, number)]
    for place, expert in enumerate(experts):
        same = (one.substrate for one in experts[:place] if _are_equal(one.substrate, expert.substrate))
        expert.substrate = next(same, expert.substrate)
    fusion = Fusion(FusionConfig(**{name: getattr(settings, name) for name in FusionConfig.__dataclass_fields__}), experts)
    check_context(fusion, recipe.model.block_size)
    return fusion


def _models_of_runs(recipe: Recipe) -> list[GPT | Fusion]:
    """The model of each expert's run; where that is not trained yet, the one that the recipe describes."""
    from glyphlm.modeling.hf import make_model
    from glyphlm.runs.folder import run_config

    runs, likeness = recipe.fusion.experts, None
    if missing := [run for run in runs if not (Path(run) / CONFIG).is_file()]:
        say(f"{', '.join(missing)}: no finished run yet; planned with model and substrate of the recipe")
        likeness = _single(recipe)
    models = [copy.deepcopy(likeness) if run in missing else make_model(run_config(run)) for run in runs]
    sizes = {run: model.vocab_size for run, model in zip(runs, models)}
    if len(set(sizes.values())) > 1:
        raise InputError(f"vocabularies differ: {', '.join(f'{run} has {size:,} ids' for run, size in sizes.items())}; fuse "
                         "runs that were trained with one tokenizer")
    return models


def _are_equal(one: Substrate, two: Substrate) -> bool:
    """Whether two experts hold the same codes, which are then stored once; tables that were trained differ."""
    named = {one.config.fingerprint, two.config.fingerprint} - {""}
    plain, other = (replace(substrate.config, fingerprint="") for substrate in (one, two))
    return len(named) < 2 and (plain, one.d_model) == (other, two.d_model) and not plain.trainable


def _substrate_config(settings: SubstrateSettings, tokenizer: TokenizerSettings) -> SubstrateConfig:
    if settings.path and (Path(settings.path) / CONFIG).is_file():
        from glyphlm.runs.folder import run_config  # loads transformers

        return SubstrateConfig(**run_config(settings.path).pairs[0]["substrate"])
    if settings.path and Path(settings.path).exists():
        return SubstrateConfig(**_built(settings.path, "substrate")["config"])
    if settings.path:
        say(f"{settings.path} does not exist yet: planned as kind {settings.kind}, width {settings.n_embed}")
    config = substrate_config(settings, vocabulary_size(tokenizer))
    check_settings(settings, config)
    return config


def _built(folder: str, made: str) -> dict[str, Any]:
    build = read_build(folder)
    if build.made != made:
        raise InputError(f"{folder} holds a {build.made}, not a {made}")
    return build.result


def vocabulary_size(settings: TokenizerSettings) -> int:
    """Number of ids of the tokenizer folder, or of the layout where it is not built yet.

    Raises:
        InputError: neither tells it.
    """
    if settings.path and (Path(settings.path) / BUILD).is_file():
        return _built(settings.path, "tokenizer")["vocab_size"]
    for folder in (settings.path, settings.base):
        if folder and Path(folder).exists():
            return Tokenizer.load(folder).vocab_size
    size = {name: layout.vocab_size for name, layout in LAYOUTS.items()} | {"compact": settings.vocab_size or COMPACT_SIZE}
    if settings.layout not in size:
        raise InputError(f"layout {settings.layout} has the ids of another tokenizer, and {settings.base} does not exist; "
                         "give tokenizer.base a folder that does")
    if settings.path:
        say(f"{settings.path} does not exist yet: planned with the {size[settings.layout]:,} ids of {settings.layout}")
    return size[settings.layout]
