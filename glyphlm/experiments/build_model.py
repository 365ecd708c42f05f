"""The initial model of a recipe: new, grown out of a run, or fused; and its start position in the data."""

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from glyphlm.base.errors import InputError
from glyphlm.base.tensors import load_tensors
from glyphlm.composition.fuse import build_fusion
from glyphlm.composition.growth import carried, grow
from glyphlm.composition.hidden_cache import HiddenCache
from glyphlm.composition.settings import TRAINED, FusionSettings
from glyphlm.data.batches import Batches, TokenText
from glyphlm.experiments.recipe import Recipe
from glyphlm.modeling.config import SubstrateConfig
from glyphlm.modeling.fusion import Fusion
from glyphlm.modeling.model import GPT
from glyphlm.runs.folder import load_run, read_summary, run_config, weights_sha256
from glyphlm.substrate.build import load_substrate
from glyphlm.tokenizer.tokenizer import Tokenizer
from glyphlm.training.checkpoint import OPTIMIZER, list_states
from glyphlm.training.parallel import world
from glyphlm.training.parametrization import scale_start, scales_of


def build_model(recipe: Recipe, tokenizer: Tokenizer) -> GPT | Fusion:
    """The model with its initial values, on the CPU; every path of the recipe must be filled in.

    Raises:
        InputError: vocabularies, substrates or widths do not fit, the base cannot be grown to this recipe's model, or the
            experts cannot be fused.
    """
    if recipe.fusion.experts:
        return _fused(recipe, tokenizer)
    assert recipe.substrate.path is not None
    substrate = load_substrate(recipe.substrate.path, recipe.model.d_model, tokenizer.fingerprint)
    if substrate.config.vocab_size != tokenizer.vocab_size:
        raise InputError(f"{recipe.substrate.path} has codes of {substrate.config.vocab_size:,} ids, the tokenizer "
                         f"{tokenizer.vocab_size:,}; build the substrate for this tokenizer")
    if recipe.growth.base:
        return _grown(recipe, tokenizer, substrate.config)
    model = GPT(recipe.model, substrate)
    model.init_weights(recipe.train.seed)
    scale_start(model, scales_of(model, recipe.train))
    return model


def _grown(recipe: Recipe, tokenizer: Tokenizer, substrate: SubstrateConfig) -> GPT:
    growth = recipe.growth
    run, vocabulary = load_run(growth.base or "")
    base = run.gpt
    assert isinstance(base, GPT)  # `stages.base_shape` refuses fused runs
    if vocabulary.fingerprint != tokenizer.fingerprint:
        raise InputError(f"{growth.base} has tokenizer {vocabulary.fingerprint[:12]}, the recipe "
                         f"{tokenizer.fingerprint[:12]}; a model keeps its vocabulary, so give the base as tokenizer.path")
    found = base.substrate.config
    if found.fingerprint != substrate.fingerprint:
        raise InputError(f"{growth.base} has a substrate {found.kind} {found.fingerprint[:12]}, the recipe {substrate.kind} "
                         f"{substrate.fingerprint[:12]}; a model keeps its substrate, so give the base as substrate.path")
    return grow(base, recipe.model, growth, recipe.train.seed, tokenizer.fingerprint,
                lambda model: scale_start(model, scales_of(model, recipe.train)))


def _fused(recipe: Recipe, tokenizer: Tokenizer) -> Fusion:
    check_trained(recipe.fusion)
    model, vocabulary = build_fusion(recipe.fusion, recipe.train.seed)
    if vocabulary.fingerprint != tokenizer.fingerprint:
        raise InputError(f"the experts have tokenizer {vocabulary.fingerprint[:12]}, the recipe "
                         f"{tokenizer.fingerprint[:12]}; leave tokenizer out, or give an expert as tokenizer.path")
    check_context(model, recipe.model.block_size)
    return model.train()


def check_trained(settings: FusionSettings) -> None:
    """Refuse a fusion method without trainable parameters.

    Raises:
        InputError: the methods that have some are listed.
    """
    if settings.method not in TRAINED:
        raise InputError(f"method {settings.method} has nothing to train; glyphlm fuse makes that model, or choose "
                         f"{', '.join(TRAINED)}")


def check_context(model: Fusion, block_size: int) -> None:
    """Refuse a context length that differs from that of the experts.

    Raises:
        InputError: both lengths are reported.
    """
    if model.config.block_size != block_size:
        raise InputError(f"the experts read {model.config.block_size} tokens at once, the recipe {block_size}; "
                         f"set model.block_size to {model.config.block_size}")


def go_on_from_base(recipe: Recipe, model: GPT, training: Sequence[TokenText], batches: Batches) -> None:
    """Start at the base's data position if the data are the same; open the frozen-activation cache if the recipe has one.

    Raises:
        InputError: no block is frozen, or the cache folder belongs to another model or other data.
    """
    growth, base = recipe.growth, Path(recipe.growth.base or "")
    before = read_summary(base) or {}
    if growth.continue_data and before.get("shards") == shards_read(training):
        batches.restore(before["position"])
    if growth.cache != "none":
        model.frozen_cache = _hidden_cache(recipe, model, training)


def moments_of_base(recipe: Recipe) -> dict[str, Tensor]:
    """The last optimizer moments of the base, under the names of the grown model; empty without growth.carry.

    Raises:
        InputError: its last checkpoint is missing or sharded.
    """
    growth = recipe.growth
    if not (growth.base and growth.carry):
        return {}
    states = list_states(Path(growth.base))
    path = states[-1] / OPTIMIZER if states else Path(growth.base) / "state"
    if not path.is_file():
        raise InputError(f"{path} does not exist, so there are no moments to go on with; set growth.carry to false")
    tensors = load_tensors(path)
    tensors.pop("rng", None)
    return carried(tensors, run_config(growth.base).model["n_layer"], recipe.model.n_layer, growth)


def _hidden_cache(recipe: Recipe, model: GPT, training: Sequence[TokenText]) -> HiddenCache:
    growth, config, depth = recipe.growth, model.config, model.frozen_depth
    if not depth:
        raise InputError(f"growth.cache {growth.cache} has nothing to keep: training changes even the lowest block; set "
                         "growth.cache to none")
    windows = sum(text.tokens // config.block_size for text in training)
    capacity = min(windows, int(growth.cache_gb * 1e9 / (4 * config.block_size * config.d_model)))
    made_from = {
        "base": weights_sha256(growth.base or ""),
        "frozen_blocks": depth,
        "precision": recipe.train.precision,
        "attention": recipe.train.attention,
        "shards": shards_read(training),
    }
    folder = None if growth.cache == "memory" else Path(growth.cache) / f"rank-{world().rank}"
    return HiddenCache(config.block_size, config.d_model, capacity, folder, made_from)


def shards_read(texts: Sequence[TokenText]) -> list[list[str]]:
    """The sha256 of every shard of each text: they identify the training data."""
    return [text.sha256 for text in texts]
