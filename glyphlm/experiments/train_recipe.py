"""run_recipe(): one recipe -> one run folder; finished steps are skipped."""

import hashlib
import math
import platform
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import torch

from glyphlm.base.devices import local_device
from glyphlm.base.errors import InputError
from glyphlm.base.names import GLYPH_SHEET, MADE_INPUTS, METRICS, SAMPLES, SETTINGS
from glyphlm.base.outputs import OtherWork, one_writer, write_atomic
from glyphlm.base.progress import say
from glyphlm.base.records import read_json_lines, to_lines
from glyphlm.composition.fuse import describe_fusion
from glyphlm.data.batches import (
    Batch,
    Batches,
    TokenText,
    open_training,
    open_validation,
    unigram_bits_per_byte,
    validation_batches,
)
from glyphlm.data.exclusion import Exclusion
from glyphlm.data.shards import prepare, prepare_examples
from glyphlm.data.source import Source
from glyphlm.experiments.build_model import build_model, go_on_from_base, moments_of_base, shards_read
from glyphlm.experiments.recipe import Recipe
from glyphlm.experiments.resume import has_begun, pin_inputs, read_settings, record_settings
from glyphlm.experiments.stages import AnyRecipe, base_shape, with_parts_of_base
from glyphlm.experiments.zero_start import solve_head
from glyphlm.modeling.fusion import Fusion
from glyphlm.modeling.heads import CodeHead
from glyphlm.modeling.model import GPT, count_parameters
from glyphlm.runs.adapters import ADAPTER, adapted, detach_adapters, merge_adapters
from glyphlm.runs.card import write_card
from glyphlm.runs.chat import TEMPLATE
from glyphlm.runs.folder import describe_model, export_model, read_summary, weights_sha256, write_summary
from glyphlm.runs.generate import generate
from glyphlm.runs.sampling import Sampling
from glyphlm.substrate.build import build_substrate, substrate_config
from glyphlm.substrate.numbering import number_ids
from glyphlm.tokenizer.build import build_tokenizer
from glyphlm.tokenizer.tokenizer import Tokenizer
from glyphlm.training.checkpoint import TrainState, load_state
from glyphlm.training.flops import flops_per_token
from glyphlm.training.loop import train
from glyphlm.training.loss import Objective
from glyphlm.training.parallel import is_sharded, joined
from glyphlm.training.settings import batch_rows, count_steps, micro_batch_rows
from glyphlm.training.trackers import load_trackers

Made = TypeVar("Made")
PACKAGES = ("glyphlm", "torch", "transformers", "tokenizers", "numpy", "pillow")


@dataclass
class OpenedRecipe:
    """A recipe whose inputs all exist, opened: ready to train."""

    recipe: Recipe
    tokenizer: Tokenizer
    model: GPT | Fusion
    training: list[TokenText]
    batches: Batches
    held_out: list[TokenText]

    def validation(self) -> Iterator[Batch]:
        """A pass over at most `validation_tokens` of the held-out text."""
        settings, block_size = self.recipe.train, self.recipe.model.block_size
        limit = settings.validation_tokens // len(self.held_out)
        return validation_batches(self.held_out, block_size, micro_batch_rows(settings, block_size), limit)


def run_recipe(recipe: Recipe, out: Path, command: str, dry_run: bool = False) -> dict[str, Any]:
    """Train the model of a recipe into the run folder `out` and return its summary.

    Inputs that have no path in the recipe are built under `out`/inputs. The same call resumes a stopped run and skips a
    finished one. Started by torchrun, all processes train together; the first one does the rest.

    Args:
        command: The command line, recorded for repeating the run.
        dry_run: Check everything up to the first step, compute one loss, and train nothing.

    Raises:
        InputError: the recipe contradicts itself or its inputs, or `out` holds another run.
    """
    with joined(device_of(recipe, out)) as world, one_writer(out):
        if world.is_main:
            recipe, _ = record_settings(out, recipe)
            if world.size > 1 and read_summary(out) is None:
                build_inputs(recipe, out / MADE_INPUTS, has_begun(out))  # the others wait, and read them
        world.wait()
        (recipe, same), summary = record_settings(out, recipe), read_summary(out)
        if summary is not None and same:
            say(f"{out} is done already: {result_line(summary)}")
            return summary
        opened = _open_recipe(recipe, out)
        if world.is_main:
            pin_inputs(out, recipe, _digests_of(opened))
        if summary is not None:
            say(f"{out} is done already, with these inputs: {result_line(summary)}")
            return summary
        if dry_run:
            return _try_out(opened, out)
        summary = _describe_start(opened, command)
        validation = opened.validation if opened.held_out else None
        moments = moments_of_base(opened.recipe)
        state = train(opened.model, opened.batches, opened.recipe.train, out, validation, moments=moments)
        if world.is_main:
            _finish(opened, state, summary, out)
        world.wait()
        return read_summary(out) or {}


def device_of(recipe: Recipe, out: Path) -> str:
    """The device of training; for `auto` the one on which the run in `out` was begun, if any."""
    begun = recipe.train.device == "auto" and (out / SETTINGS).exists()
    return read_settings(out).train.device if begun else recipe.train.device


def _try_out(opened: OpenedRecipe, out: Path) -> dict[str, Any]:
    """The loss of the first micro-batch; weights and checkpoints stay untouched."""
    load_trackers(opened.recipe.train.trackers)
    rows = micro_batch_rows(opened.recipe.train, opened.recipe.model.block_size)
    x_BT, y_BT = (ids_BT[:rows].to(opened.model.device) for ids_BT in next(opened.batches))
    loss = float(Objective(opened.model, torch.float32)(x_BT, y_BT).mean())
    uniform = math.log(opened.tokenizer.vocab_size)
    say(f"{out}: all inputs fit; loss {loss:.3f} before training (a uniform guess: {uniform:.3f})")
    return {"loss": loss}


def _finish(opened: OpenedRecipe, state: TrainState, before: dict[str, Any], out: Path) -> None:
    """Complete the run folder of a trained model: weights, card, samples, summary."""
    if is_sharded(opened.model):
        opened = replace(opened, model=build_model(opened.recipe, opened.tokenizer))
        load_state(out, opened.model, alone=True)
    summary = before | _describe_training(opened, state, out)
    if isinstance(opened.model, GPT) and opened.recipe.growth.lora.apart and adapted(opened.model):
        detach_adapters(opened.model, out / ADAPTER)
    merge_adapters(opened.model)
    has_examples = any(next(text.folder.glob("*.answers"), None) for text in opened.training)
    tokenizer = opened.tokenizer.with_chat_template(TEMPLATE) if has_examples else opened.tokenizer
    export_model(opened.model, tokenizer, out)
    _write_samples(opened, out)
    sheet = Path(opened.recipe.substrate.path or "") / GLYPH_SHEET
    if sheet.exists():
        shutil.copyfile(sheet, out / GLYPH_SHEET)
    write_card(out, summary)
    write_summary(out, summary)
    say(f"{out}: {result_line(summary)}")


def _digests_of(opened: OpenedRecipe) -> dict[str, Any]:
    """Digests of the inputs of a run, independent of their paths."""
    recipe = opened.recipe
    made_of = [recipe.growth.base] if recipe.growth.base else recipe.fusion.experts
    return {
        "tokenizer": opened.tokenizer.fingerprint,
        "substrate": opened.model.substrate.config.fingerprint,
        "shards": shards_read(opened.training),
        "validation": shards_read(opened.held_out),
        **({"runs": [weights_sha256(run) for run in made_of]} if made_of else {}),
    }


def _open_recipe(recipe: Recipe, out: Path) -> OpenedRecipe:
    """Build the inputs that have no path in the recipe, and open all inputs."""
    tokenizer, recipe = build_inputs(recipe, out / MADE_INPUTS, has_begun(out))
    model = build_model(recipe, tokenizer)
    training, weights = open_training(recipe.data, tokenizer)
    rows = batch_rows(recipe.train, recipe.model.block_size)
    answers_only = [source.loss == "answers" for source in recipe.data]
    same_windows = recipe.growth.cache != "none"
    batches = Batches(training, weights, recipe.model.block_size, rows, recipe.train.seed, answers_only, same_windows)
    folders = recipe.validation or [source.shards or "" for source in recipe.data]
    held_out = open_validation(folders, tokenizer)
    if isinstance(model, GPT) and recipe.head_start == "solved" and not has_begun(out):
        solve_head(model, training, count_steps(recipe.train) * recipe.train.batch_tokens)
    if isinstance(model, GPT) and recipe.growth.base:
        go_on_from_base(recipe, model, training, batches)
    elif isinstance(model.head, CodeHead):
        counts_V = sum(torch.from_numpy(text.count_ids()) for text in training)
        number_ids(model.head, model.substrate, torch.as_tensor(counts_V))
    return OpenedRecipe(recipe, tokenizer, model.to(local_device(recipe.train.device)), training, batches, held_out)


def build_inputs(recipe: AnyRecipe, inputs: Path, begun: bool) -> tuple[Tokenizer, AnyRecipe]:
    """The tokenizer, and the recipe with every path filled in: those of the base for growth, of the experts for a fusion.

    Before the first step (not `begun`), inputs that an earlier, refused recipe left in `inputs` are made again.

    Raises:
        InputError: as `stages.base_shape`, before any text is read, or text is bad or a width does not fit.
    """
    base_shape(recipe)
    recipe = with_parts_of_base(recipe)
    if recipe.fusion.experts:
        tokenizer = Tokenizer.load(recipe.tokenizer.path or recipe.fusion.experts[0])
        return tokenizer, replace(recipe, data=prepared_data(recipe.data, tokenizer, inputs, begun))
    if recipe.tokenizer.path:
        tokenizer = Tokenizer.load(recipe.tokenizer.path)
    else:
        texts, folder = [text for source in recipe.data for text in source.texts], inputs / "tokenizer"
        tokenizer = _made(folder, begun, lambda: build_tokenizer(texts, recipe.tokenizer, folder))
    substrate = recipe.substrate
    try:
        recipe.model.head.check_vocabulary(tokenizer.vocab_size)
        if not substrate.path:
            substrate_config(substrate, tokenizer.vocab_size).check_lift(recipe.model.d_model)
    except ValueError as error:
        raise InputError(str(error)) from None
    if not substrate.path:
        folder = inputs / "substrate"
        _made(folder, begun, lambda: build_substrate(tokenizer, recipe.substrate, folder))
        substrate = replace(substrate, path=str(folder))
    return tokenizer, replace(recipe, substrate=substrate, data=prepared_data(recipe.data, tokenizer, inputs, begun))


def _made(folder: Path, begun: bool, make: Callable[[], Made]) -> Made:
    try:
        return make()
    except OtherWork:
        if begun:
            raise
        say(f"{folder} is of an earlier recipe and is made again")
        shutil.rmtree(folder)
        return make()


def prepared_data(sources: Sequence[Source], tokenizer: Tokenizer, inputs: Path, begun: bool) -> list[Source]:
    """The sources as shards; those of text or examples are tokenized into folders under `inputs`."""
    return [_prepared(source, tokenizer, inputs / f"shards-{number}", begun) for number, source in enumerate(sources)]


def _prepared(source: Source, tokenizer: Tokenizer, folder: Path, begun: bool) -> Source:
    if source.shards:
        return source
    if source.sft:
        _made(folder, begun, lambda: prepare_examples(tokenizer, source.sft or [], folder))
    else:
        exclusion = Exclusion.of(source.exclude, source.excluding)
        _made(folder, begun, lambda: prepare(tokenizer, source.texts, folder, jobs=0, exclusion=exclusion))
    return replace(source, shards=str(folder), text=None, sft=None, exclude=None)


def _describe_start(opened: OpenedRecipe, command: str) -> dict[str, Any]:
    """Summary fields known before training: name, sizes, fingerprints, digest of the initial values, versions."""
    settings = opened.recipe.train
    return {
        "command": command,
        **describe_model(opened.model, opened.tokenizer),
        "init": initial_digest(opened.model),
        "precision": settings.precision,
        "device": settings.device,
        "seed": settings.seed,
        "growth": asdict(opened.recipe.growth) if opened.recipe.growth.base else None,
        "fusion": describe_fusion(opened.model, opened.recipe.fusion) if isinstance(opened.model, Fusion) else None,
        "versions": {"python": platform.python_version()} | {name: version(name) for name in PACKAGES},
    }


def _describe_training(opened: OpenedRecipe, state: TrainState, out: Path) -> dict[str, Any]:
    """Summary fields of the results: amounts, speed, bits per byte and the unigram baseline, digest of the batches."""
    last = {row["split"]: row for row in read_json_lines(out / METRICS)}
    train, validation = last.get("train", {}), last.get("validation", {})
    floor = unigram_bits_per_byte(opened.training, opened.validation()) if opened.held_out else None
    return {
        "name": out.name,
        "tokens": state.tokens,
        "steps": state.step,
        "skipped": state.skipped,
        "clipped": state.clipped_share(state.step),
        "epochs": opened.batches.epochs,
        "shards": shards_read(opened.training),
        "position": opened.batches.state(),
        "cost": _describe_cost(opened, state),
        "seconds": round(state.seconds, 1),
        "tokens_per_second": round(state.tokens / max(state.seconds, 1e-9), 1),
        "mfu": train.get("mfu"),
        "data_order": opened.batches.digest,
        "bits_per_byte": {"train": train.get("bits_per_byte"), "validation": validation.get("bits_per_byte")},
        "unigram_bits_per_byte": {"validation": floor},
    }


def _describe_cost(opened: OpenedRecipe, state: TrainState) -> dict[str, Any]:
    """Floating-point operations of the run by part, both passes; those of frozen blocks only where they were computed."""
    parts = flops_per_token(opened.model, recompute=opened.recipe.train.recompute)
    flops = {part: found.total * (state.tokens - (state.cached if part == "frozen" else 0)) for part, found in parts.items()}
    trained = count_parameters(opened.model)["trained"]
    return {"flops": flops, "flops_total": sum(flops.values()), "cached_tokens": state.cached,
            "trained": trained, "optimizer_bytes": 8 * trained, "seconds": round(state.seconds, 1)}


def _write_samples(opened: OpenedRecipe, out: Path) -> None:
    """Write samples.jsonl: continuations of the recipe's prompts by the model as loaded from the run folder."""
    sampling = Sampling(max_new_tokens=min(100, opened.recipe.model.block_size))
    texts = generate(out, opened.recipe.prompts, sampling) if opened.recipe.prompts else []
    rows = [{"prompt": prompt, "text": text, "settings": sampling.describe()}
            for prompt, text in zip(opened.recipe.prompts, texts)]
    write_atomic(out / SAMPLES, to_lines(rows))


def initial_digest(model: GPT | Fusion) -> str:
    """sha256 of the values of all tensors but those of the substrate: equal for twins, before training."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        if not name.startswith(("substrate.", "substrates.")):
            digest.update(name.encode() + tensor.cpu().numpy().tobytes())
    return digest.hexdigest()


def result_line(summary: dict[str, Any]) -> str:
    """The result as a short phrase."""
    reached, floor = summary["bits_per_byte"]["validation"], summary["unigram_bits_per_byte"]["validation"]
    if reached is None:
        return f"{summary['steps']} steps, nothing held out"
    return f"{reached:.3f} bits per byte on held-out text (a unigram model: {floor:.3f})"
