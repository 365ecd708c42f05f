"""run_recipe(): one recipe -> one run folder, every stage in order, each skipped where it is done."""

import hashlib
import json
import math
import platform
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from glyphlm.base.devices import local_device
from glyphlm.base.errors import InputError
from glyphlm.base.outputs import first_difference, write_atomic
from glyphlm.base.progress import say
from glyphlm.base.records import read_json_lines, to_json, to_lines
from glyphlm.composition.fuse import describe_fusion
from glyphlm.data.batches import (
    Batch,
    Batches,
    Source,
    TokenText,
    open_training,
    unigram_bits_per_byte,
    validation_batches,
)
from glyphlm.data.shards import prepare, prepare_examples
from glyphlm.experiments.build_model import build_model, go_on_from_base, shards_read
from glyphlm.experiments.recipe import Recipe, read_settings, resolve, settings_text
from glyphlm.experiments.stages import base_shape, with_parts_of_base
from glyphlm.modeling.fusion import Fusion
from glyphlm.modeling.model import GPT, count_parameters
from glyphlm.runs.adapters import ADAPTER, adapted, detach_adapters, merge_adapters
from glyphlm.runs.card import write_card
from glyphlm.runs.folder import describe_model, export_model, read_summary, weights_sha256, write_summary
from glyphlm.runs.generate import Sampling, generate
from glyphlm.substrate.build import SHEET, build_substrate
from glyphlm.tokenizer.build import build_tokenizer
from glyphlm.tokenizer.tokenizer import Tokenizer
from glyphlm.training.checkpoint import TrainState, list_states, load_state
from glyphlm.training.flops import flops_per_token
from glyphlm.training.loop import METRICS, train
from glyphlm.training.objective import Objective
from glyphlm.training.parallel import is_sharded, joined
from glyphlm.training.settings import batch_rows, micro_batch_rows

SETTINGS, INPUTS = "settings.yaml", "inputs.json"
PACKAGES = ("glyphlm", "torch", "transformers", "tokenizers", "numpy", "pillow")


@dataclass
class Arm:
    """A recipe whose stages all exist, opened: ready to train."""

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
    """Train the arm into the run folder `out` and return its summary.

    Stages that have no path in the recipe are built under `out`/inputs. The same call again goes on where it was
    stopped, and finds a finished run done. `command` is what a reader types to repeat it. With `dry_run` everything up
    to the first step is checked, one loss is computed, and nothing is trained. Started by torchrun, all processes train
    together; the first one does the rest.

    Raises:
        InputError: the recipe contradicts itself or its inputs, or `out` holds another run.
    """
    with joined() as world:
        if world.is_main:
            recipe = claim(out, recipe)
            if world.size > 1 and read_summary(out) is None:
                build_inputs(recipe, out / "inputs")  # the others wait, and find them done
        world.wait()
        recipe, summary = claim(out, recipe), read_summary(out)
        if summary is not None:
            say(f"{out} is done already: {told(summary)}")
            return summary
        arm = open_arm(recipe, out)
        if world.is_main:
            pin_inputs(arm, out)
        if dry_run:
            return try_out(arm, out)
        summary = describe_arm(arm, command)
        validation = arm.validation if arm.held_out else None
        state = train(arm.model, arm.batches, arm.recipe.train, out, validation)
        if world.is_main:
            finish(arm, state, summary, out)
        world.wait()
        return read_summary(out)


def try_out(arm: Arm, out: Path) -> dict[str, Any]:
    """The loss of the first micro-batch; weights and checkpoints stay untouched."""
    rows = micro_batch_rows(arm.recipe.train, arm.recipe.model.block_size)
    x_BT, y_BT = (ids_BT[:rows].to(arm.model.device) for ids_BT in next(arm.batches))
    loss = float(Objective(arm.model, torch.float32)(x_BT, y_BT).mean())
    uniform = math.log(arm.tokenizer.vocab_size)
    say(f"{out}: all inputs fit; loss {loss:.3f} before training (a uniform guess: {uniform:.3f})")
    return {"loss": loss}


def finish(arm: Arm, state: TrainState, before: dict[str, Any], out: Path) -> None:
    """Complete the run folder of a trained arm: weights, card, samples, summary."""
    if is_sharded(arm.model):
        arm = replace(arm, model=build_model(arm.recipe, arm.tokenizer))
        load_state(out, arm.model)
    summary = before | describe_training(arm, state, out)
    if arm.recipe.growth.lora.apart and adapted(arm.model):
        detach_adapters(arm.model, out / ADAPTER)
    merge_adapters(arm.model)
    export_model(arm.model, arm.tokenizer, out)
    write_samples(arm, out)
    sheet = Path(arm.recipe.substrate.path or "") / SHEET
    if sheet.exists():
        shutil.copyfile(sheet, out / SHEET)
    write_card(out, summary)
    write_summary(out, summary)
    say(f"{out}: {told(summary)}")


def claim(out: Path, recipe: Recipe) -> Recipe:
    """Make `out` this recipe's folder, or make sure that it is; the recipe comes back resolved.

    Raises:
        InputError: the recipe contradicts itself, or `out` holds something that is no run, or another run (the first
            difference is named). A run that was refused before its first step holds nothing and is replaced.
    """
    path = out / SETTINGS
    if not path.exists() and out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out} holds something that is no run; choose another --out")
    recorded = read_settings(path) if path.exists() else None
    recipe = resolve(recipe, recorded)
    difference = first_difference(recorded, asdict(recipe)) if recorded else None
    if difference and has_begun(out):
        raise InputError(f"{out} was trained with other settings: {difference}; choose another --out or remove {out}")
    if difference or recorded is None:
        out.mkdir(parents=True, exist_ok=True)
        write_atomic(path, settings_text(recipe))
    return recipe


def has_begun(out: Path) -> bool:
    """Whether any step was trained in `out`."""
    return (out / METRICS).exists() or bool(list_states(out))


def pin_inputs(arm: Arm, out: Path) -> None:
    """Write down what the run is made from, or make sure that it goes on with the same.

    Raises:
        InputError: tokenizer, substrate or shards were made anew since the first step; the first difference is named.
    """
    path = out / INPUTS
    inputs = {
        "tokenizer": arm.tokenizer.fingerprint,
        "substrate": arm.model.substrate.config.fingerprint,
        "shards": {str(text.folder): text.sha256 for text in arm.training},
    }
    made_of = [arm.recipe.growth.base] if arm.recipe.growth.base else arm.recipe.fusion.experts
    if made_of:
        inputs["runs"] = {run: weights_sha256(run) for run in made_of}
    difference = first_difference(json.loads(path.read_text(encoding="utf-8")), inputs) if path.exists() else None
    if difference and has_begun(out):
        raise InputError(f"{out} was begun with other inputs: {difference}; choose another --out or remove {out}")
    if difference or not path.exists():
        write_atomic(path, to_json(inputs))


def open_arm(recipe: Recipe, out: Path) -> Arm:
    """Build the stages that the recipe describes but does not name, and open all of them.

    Raises:
        InputError: text is bad, or vocabularies, widths or sizes do not fit each other.
    """
    tokenizer, recipe = build_inputs(recipe, out / "inputs")
    model = build_model(recipe, tokenizer)
    training, weights = open_training(recipe.data, tokenizer)
    rows = batch_rows(recipe.train, recipe.model.block_size)
    answers_only = [source.loss == "answers" for source in recipe.data]
    same_windows = recipe.growth.cache != "none"
    batches = Batches(training, weights, recipe.model.block_size, rows, recipe.train.seed, answers_only, same_windows)
    folders = recipe.validation or [source.shards for source in recipe.data]
    held_out = [TokenText(folder, "validation", tokenizer.fingerprint) for folder in folders]
    held_out = [text for text in held_out if text.tokens > 1]
    if recipe.growth.base:
        go_on_from_base(recipe, model, training, batches)
    return Arm(recipe, tokenizer, model.to(local_device(recipe.train.device)), training, batches, held_out)


def build_inputs(recipe: Recipe, inputs: Path) -> tuple[Tokenizer, Recipe]:
    """The tokenizer, and the recipe with every path filled in; a grown model has its base's, a fused one its experts'.

    Raises:
        InputError: as `stages.base_shape`, before any text is read, or text is bad.
    """
    base_shape(recipe)
    recipe = with_parts_of_base(recipe)
    if recipe.fusion.experts:
        tokenizer = Tokenizer.load(recipe.tokenizer.path or recipe.fusion.experts[0])
        return tokenizer, replace(recipe, data=prepared_data(recipe.data, tokenizer, inputs))
    if recipe.tokenizer.path:
        tokenizer = Tokenizer.load(recipe.tokenizer.path)
    else:
        texts = [text for source in recipe.data for text in source.texts]
        tokenizer = build_tokenizer(texts, recipe.tokenizer, inputs / "tokenizer")
    substrate = recipe.substrate
    if not substrate.path:
        build_substrate(tokenizer, substrate, inputs / "substrate")
        substrate = replace(substrate, path=str(inputs / "substrate"))
    return tokenizer, replace(recipe, substrate=substrate, data=prepared_data(recipe.data, tokenizer, inputs))


def prepared_data(sources: Sequence[Source], tokenizer: Tokenizer, inputs: Path) -> list[Source]:
    """The sources as shards, those that are text or examples under `inputs`."""
    return [prepared(source, tokenizer, inputs / f"shards-{number}") for number, source in enumerate(sources)]


def prepared(source: Source, tokenizer: Tokenizer, folder: Path) -> Source:
    """The source as shards; its text or its examples are tokenized into `folder` where they are not."""
    if source.shards:
        return source
    if source.sft:
        prepare_examples(tokenizer, source.sft, folder)
    else:
        prepare(tokenizer, source.texts, folder, jobs=0)
    return replace(source, shards=str(folder), text=None, sft=None)


def describe_arm(arm: Arm, command: str) -> dict[str, Any]:
    """What is known before training: name, sizes, fingerprints, digest of the initial values, versions."""
    settings = arm.recipe.train
    return {
        "command": command,
        **describe_model(arm.model, arm.tokenizer),
        "init": initial_digest(arm.model),
        "precision": settings.precision,
        "device": settings.device,
        "seed": settings.seed,
        "growth": asdict(arm.recipe.growth) if arm.recipe.growth.base else None,
        "fusion": describe_fusion(arm.model, arm.recipe.fusion) if arm.recipe.fusion.experts else None,
        "versions": {"python": platform.python_version()} | {name: version(name) for name in PACKAGES},
    }


def describe_training(arm: Arm, state: TrainState, out: Path) -> dict[str, Any]:
    """What came out: amounts, speed, bits per byte next to the unigram floor, digest of the batches."""
    last = {row["split"]: row for row in read_json_lines(out / METRICS)}
    train, validation = last.get("train", {}), last.get("validation", {})
    floor = unigram_bits_per_byte(arm.training, arm.validation()) if arm.held_out else None
    return {
        "name": out.name,
        "tokens": state.tokens,
        "steps": state.step,
        "skipped": state.skipped,
        "epochs": arm.batches.epochs,
        "shards": shards_read(arm.training),
        "position": arm.batches.state(),
        "cost": describe_cost(arm, state),
        "seconds": round(state.seconds, 1),
        "tokens_per_second": round(state.tokens / max(state.seconds, 1e-9), 1),
        "mfu": train.get("mfu"),
        "data_order": arm.batches.digest,
        "bits_per_byte": {"train": train.get("bits_per_byte"), "validation": validation.get("bits_per_byte")},
        "unigram_bits_per_byte": {"validation": floor},
    }


def describe_cost(arm: Arm, state: TrainState) -> dict[str, Any]:
    """Floating-point operations of the run by part, both passes; those of frozen blocks only where they were computed."""
    parts = flops_per_token(arm.model, recompute=arm.recipe.train.recompute)
    flops = {part: found.total * (state.tokens - (state.cached if part == "frozen" else 0)) for part, found in parts.items()}
    trained = count_parameters(arm.model)["trained"]
    return {"flops": flops, "flops_total": sum(flops.values()), "cached_tokens": state.cached,
            "trained": trained, "optimizer_bytes": 8 * trained, "seconds": round(state.seconds, 1)}


def write_samples(arm: Arm, out: Path) -> None:
    """samples.jsonl: how the run folder, loaded as anybody loads it, continues the prompts of the recipe."""
    sampling = Sampling(max_new_tokens=min(100, arm.recipe.model.block_size))
    texts = generate(out, arm.recipe.prompts, sampling) if arm.recipe.prompts else []
    rows = [{"prompt": prompt, "text": text, "settings": sampling.describe()}
            for prompt, text in zip(arm.recipe.prompts, texts)]
    write_atomic(out / "samples.jsonl", to_lines(rows))


def initial_digest(model: GPT | Fusion) -> str:
    """sha256 of the values of every tensor that twins have in common: all but the substrate's."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        if not name.startswith(("substrate.", "substrates.")):
            digest.update(name.encode() + tensor.cpu().numpy().tobytes())
    return digest.hexdigest()


def told(summary: dict[str, Any]) -> str:
    """The result in half a line."""
    reached, floor = summary["bits_per_byte"]["validation"], summary["unigram_bits_per_byte"]["validation"]
    if reached is None:
        return f"{summary['steps']} steps, nothing held out"
    return f"{reached:.3f} bits per byte on held-out text (a unigram model: {floor:.3f})"
