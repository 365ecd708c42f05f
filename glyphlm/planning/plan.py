"""The cost of a recipe before anything is built: parameters, memory, operations, time, money, and options that save."""

from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from glyphlm.base.errors import InputError
from glyphlm.base.names import BUILD, CONFIG
from glyphlm.base.outputs import read_build
from glyphlm.base.progress import say
from glyphlm.composition.growth import check_growth, choose_trained, places_of_old
from glyphlm.experiments.recipe import GrowthRecipe, Recipe
from glyphlm.experiments.stages import base_shape, check_stages, stage_recipe, with_parts_of_base
from glyphlm.modeling.config import HeadConfig, ModelConfig, SubstrateConfig, model_fields
from glyphlm.modeling.fusion import Fusion
from glyphlm.modeling.model import GPT, trains
from glyphlm.modeling.substrate import Substrate
from glyphlm.planning.machines import Machine, Pace, choose_machine, seconds_on_gpu
from glyphlm.planning.memory import Load, largest_rows, load_of, memory_by_part, peak_bytes, traffic_bytes
from glyphlm.planning.settings import PlanSettings
from glyphlm.substrate.build import check_settings, substrate_config
from glyphlm.substrate.settings import SubstrateSettings
from glyphlm.tokenizer.layouts import LAYOUTS
from glyphlm.tokenizer.settings import COMPACT_SIZE, TokenizerSettings
from glyphlm.tokenizer.tokenizer import Tokenizer
from glyphlm.training.flops import Flops, flops_per_token, parameters_by_part, parameters_in_copies
from glyphlm.training.settings import TrainSettings, batch_rows, count_steps

# Bytes beside tensors: Python with its libraries (measured), and CUDA's context with its own (assumed).
ON_CPU, ON_GPU = 500_000_000, 1_000_000_000
MEASURABLE = 0.7  # share of this machine's memory that a measurement may take
LARGE = 1 << 14  # ids from which on a head without a matrix of them is offered
ON_CPU_USE = 0.4  # share of the rate of products that training reaches on a CPU


def make_plans(recipe: GrowthRecipe, settings: PlanSettings) -> list[dict[str, Any]]:
    """The plan of each stage, or of the one training of a recipe without stages.

    Raises:
        InputError: as `make_plan` and `check_stages`.
    """
    recipe, before, plans = with_parts_of_base(recipe), base_shape(recipe), []
    if not recipe.stages:
        return [make_plan(recipe, settings, before)]
    check_stages(recipe)
    for number, stage in enumerate(recipe.stages, 1):
        depth = stage.layers + (before.n_layer if before else 0)
        planned = stage_recipe(recipe, stage, f"stage-{number - 1}" if before else None, depth)
        kept = recipe.substrate.trainable and (not before or planned.growth.blocks == "all")
        planned = replace(planned, substrate=replace(recipe.substrate, trainable=kept))
        plans.append(make_plan(planned, settings, before, timed=False) | {"stage": number})
        before = planned.model
    return plans


def make_plan(
    recipe: Recipe, settings: PlanSettings | None = None, before: ModelConfig | None = None, timed: bool = True
) -> dict[str, Any]:
    """The plan of a recipe, as JSON: bytes, seconds and operations. Only models that are timed are allocated.

    Args:
        before: The shape of the model that it is grown out of.
        timed: Whether steps may be timed, if the settings allow measurements.

    Raises:
        InputError: the recipe contradicts itself, its vocabulary is not known, or the machine cannot be used; and as
            `planned_model` and `check_growth`.
    """
    settings, rows = settings or PlanSettings(), batch_rows(recipe.train, recipe.model.block_size)
    if settings.gpus > rows:
        raise InputError(f"--gpus {settings.gpus} is more than the {rows} sequences of a step; raise train.batch_tokens")
    model = planned_model(recipe)
    if before:
        assert isinstance(model, GPT)  # a recipe with a base fuses nothing
        check_growth(before, recipe.model, recipe.growth)
        old = places_of_old(before.n_layer, recipe.model.n_layer, recipe.growth.place)
        choose_trained(model, old, recipe.growth, recipe.train.seed)
    train = replace(recipe.train, parallel=settings.parallel or recipe.train.parallel)
    machine, train = choose_machine(train, model.substrate.d_model, settings.gpu, settings.gpus, settings.measure)
    load = load_of(train, model.config.block_size, rows, machine.count)
    flops = flops_per_token(model, recompute=load.recompute)
    return {
        "model": model_fields(model.config) | {"vocab_size": model.vocab_size},
        "substrate": asdict(model.substrate.config) | {"trainable": trains(model.substrate)},
        "fusion": _describe_fusion(model) if isinstance(model, Fusion) else None,
        "train": {"steps": count_steps(train), "batch_tokens": train.batch_tokens, **asdict(load)},
        "machine": asdict(machine),
        "parameters": parameters_by_part(model),
        "memory": _memory(model, load, machine),
        "flops_per_token": {part: asdict(found) for part, found in flops.items()},
        "forecast": forecast(model, train, machine, flops, settings, timed and before is None),
        "savings": [] if before else list(savings(model, load)),
    }


def _describe_fusion(model: Fusion) -> dict[str, Any]:
    return {
        "method": model.fusion.method,
        "experts": [model_fields(expert.config) for expert in model.experts],
        "substrates": len(model.substrates),
        "parameters_in_copies": parameters_in_copies(model),
    }


def _memory(model: GPT | Fusion, load: Load, machine: Machine) -> dict[str, Any]:
    overhead = ON_CPU if machine.name == "cpu" else ON_GPU
    return {
        "parts": memory_by_part(model, load) | {"beside tensors": overhead},
        "peak": peak_bytes(model, load) + overhead,
        "limit": machine.memory,
        "largest_micro_batch_tokens": largest_rows(model, load, machine.memory - overhead) * model.config.block_size,
        "sent_per_step": traffic_bytes(model, load),
    }


def forecast(
    model: GPT | Fusion, train: TrainSettings, machine: Machine, flops: dict[str, Flops], settings: PlanSettings, timed: bool
) -> dict[str, Any]:
    """Seconds of a step, of training and of validation (at most: held-out text may be shorter); GPU-hours and cost."""
    total, forward = sum(part.total for part in flops.values()), sum(part.forward for part in flops.values())
    pace = None
    if timed and settings.measure and machine.here and isinstance(model, GPT):
        pace = _measured(model, train, machine, flops, machine.rate * (settings.mfu or ON_CPU_USE))
    pace = pace or _computed(model, train, machine, total, settings.mfu)
    steps, of_token = count_steps(train), (pace.step - pace.update) / train.batch_tokens * machine.count
    validations = -(-steps // train.validate_every)
    validation = validations * train.validation_tokens * of_token * forward / total
    hours = (steps * pace.step + validation) / 3600 * machine.count
    return {
        "how": pace.how,
        "step_seconds": pace.step,
        "tokens_per_second": train.batch_tokens / pace.step,
        "share_of_rate": train.batch_tokens * total / pace.step / machine.rate / machine.count,
        "training_seconds": steps * pace.step,
        "validation_seconds": validation,
        "device_hours": hours,
        "cost": None if settings.price_per_hour is None else hours * settings.price_per_hour,
    }


def _measured(model: GPT, train: TrainSettings, machine: Machine, flops: dict[str, Flops], reached: float) -> Pace | None:
    from glyphlm.planning.timing import measure  # loads all that training needs

    seconds = {part: found.total * model.config.block_size / reached for part, found in flops.items()}
    outside = sum(seconds.pop(part) for part in ("substrate", "head"))
    return measure(model, train, (outside, sum(seconds.values()) / model.config.n_layer), int(MEASURABLE * machine.memory))


def _computed(model: GPT | Fusion, train: TrainSettings, machine: Machine, flops: int, mfu: float | None) -> Pace:
    """The pace from an assumed share of the peak rate; of a GPU from measurements on another GPU."""
    if mfu is None and machine.name != "cpu" and machine.bandwidth:
        load = load_of(train, model.config.block_size, batch_rows(train, model.config.block_size), machine.count)
        how = f"computed: as measured on an H200, scaled to {machine.rate / 1e12:,.3g} TFLOP/s and its memory"
        return Pace(*seconds_on_gpu(model, load, flops, machine, bool(train.compile)), how)
    peak = "the rate of matrix products here" if machine.here else "the data sheet's rate"
    if machine.here and not machine.measured:
        peak = "an assumed rate (--measure finds this machine's)"
    use = mfu or ON_CPU_USE
    seconds = train.batch_tokens * flops / (machine.rate * use) / machine.count
    return Pace(seconds, 0.0, f"computed: {use:.0%} of {peak}, {machine.rate / 1e12:,.3g} TFLOP/s")


def savings(model: GPT | Fusion, load: Load) -> Iterator[dict[str, Any]]:
    """Savings of each option that is not used yet: bytes on one device, and operations per token (below 0: costs)."""
    peak, flops = peak_bytes(model, load), _operations(model, load)
    for option, other_model, other_load in _options(model, load):
        yield {
            "option": option,
            "bytes": peak - peak_bytes(other_model, other_load),
            "flops_per_token": flops - _operations(other_model, other_load),
        }


def _operations(model: GPT | Fusion, load: Load) -> int:
    return sum(part.total for part in flops_per_token(model, recompute=load.recompute).values())


def _options(model: GPT | Fusion, load: Load) -> Iterator[tuple[str, GPT | Fusion, Load]]:
    substrate, gpus = model.substrate.config, load.gpus if load.gpus > 1 else 8
    if not load.bf16:
        yield "--train.precision bf16", model, replace(load, bf16=True)
    if not load.recompute and model.frozen_depth < len(model.blocks):
        yield "--train.recompute true", model, replace(load, recompute=True)
    if load.rows > 1:
        halved = replace(load, rows=load.rows // 2, passes=2 * load.passes)
        yield f"--train.micro_batch_tokens {halved.rows * model.config.block_size}", model, halved
    if not (load.sharded or load.heap):
        yield f"--train.parallel fsdp2 on {gpus} GPUs", model, replace(load, gpus=gpus, parallel="fsdp2")
    if isinstance(model, Fusion):
        return
    if substrate.trainable:
        yield "--substrate.trainable false", _with(model, replace(substrate, trainable=False)), load
    if not substrate.is_rule and substrate.places <= model.config.d_model:
        rule = replace(substrate, kind="token_bits", trainable=False, n_embed=model.config.d_model, lift="none")
        yield "bits of the id instead of a table", _with(model, rule), load
    if model.config.head.kind == "full" and substrate.vocab_size >= LARGE:
        yield "--model.head.kind code", _with(model, substrate, HeadConfig("code")), load
    if (half := substrate.vocab_size // 2) > model.config.head.shortlist:
        yield f"a vocabulary of {half:,} ids", _with(model, replace(substrate, vocab_size=half)), load


def _with(model: GPT, config: SubstrateConfig, head: HeadConfig | None = None) -> GPT:
    with torch.device("meta"):
        return GPT(replace(model.config, head=head or model.config.head), Substrate(config, model.config.d_model))


def planned_model(recipe: Recipe) -> GPT | Fusion:
    """The recipe's model on the meta device (shapes without values), with frozen parameters as in training.

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
    from glyphlm.composition.fuse import assemble
    from glyphlm.experiments.build_model import check_context, check_trained  # these load transformers

    check_trained(recipe.fusion)
    recipe.fusion.check_runs()
    fusion = assemble(recipe.fusion, _models_of_runs(recipe))
    check_context(fusion, recipe.model.block_size)
    return fusion


def _models_of_runs(recipe: Recipe) -> list[GPT | Fusion]:
    """The model of each expert's run; of runs that are not trained yet the one that the recipe describes."""
    from glyphlm.modeling.assembly import make_model
    from glyphlm.runs.folder import run_config

    runs = recipe.fusion.experts
    missing = {run for run in runs if not (Path(run) / CONFIG).is_file()}
    if missing:
        say(f"{', '.join(sorted(missing))}: no finished run yet; planned with model and substrate of the recipe")
    configs = {run: run_config(run) for run in runs if run not in missing}
    models = [_single(recipe) if run in missing else make_model(configs[run].pairs, configs[run].fusion) for run in runs]
    sizes = {run: model.vocab_size for run, model in zip(runs, models)}
    if len(set(sizes.values())) > 1:
        raise InputError(f"vocabularies differ: {', '.join(f'{run} has {size:,} ids' for run, size in sizes.items())}; fuse "
                         "runs that were trained with one tokenizer")
    known = [model.substrate.config for run, model in zip(runs, models) if run not in missing]
    for run, model in zip(runs, models):
        if run in missing:  # its codes will be those of a run with the same settings
            same = (config for config in known if replace(config, fingerprint="") == model.substrate.config)
            model.substrate.config = next(same, model.substrate.config)
    return models


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
    build = read_build(Path(folder))
    if build.made != made:
        raise InputError(f"{folder} holds a {build.made}, not a {made}")
    return build.result


def vocabulary_size(settings: TokenizerSettings) -> int:
    """Number of ids of the tokenizer folder or, if it is not built yet, of the layout.

    Raises:
        InputError: neither has a known size.
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
