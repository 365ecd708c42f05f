"""Fusion of run folders: runs of one vocabulary, or of any by bytes -> one fused model, and its run folder."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch
from torch import nn

from glyphlm.base.errors import InputError
from glyphlm.base.names import SETTINGS, SUMMARY
from glyphlm.base.outputs import Build, found_build, one_writer
from glyphlm.base.progress import say
from glyphlm.base.records import read_json, to_json
from glyphlm.composition.dock import describe_docked, dock, expert_digest
from glyphlm.composition.settings import TRAINED, FusionSettings
from glyphlm.modeling.fusion import Fusion
from glyphlm.modeling.model import GPT
from glyphlm.modeling.stitching import Stitched, make_fusion
from glyphlm.modeling.substrate import Substrate
from glyphlm.runs.card import write_card
from glyphlm.runs.folder import describe_model, export_model, load_run, weights_sha256, write_summary
from glyphlm.tokenizer.tokenizer import Tokenizer


@dataclass
class Expert:
    """One of the models to be fused.

    Args:
        name: Its run folder; of an expert of a fused run, with its number there.
        share: Its share of the weight of that run.
        run: Number of that run.
    """

    name: str
    model: GPT
    share: float
    run: int


def fuse(settings: FusionSettings, out: Path, command: str = "") -> dict[str, Any]:
    """Fuse finished runs, without training, into the run folder `out` and return its summary; a finished one is only read.

    Raises:
        InputError: settings contradict each other, a run is damaged, runs do not fit each other, or `out` holds something
            else.
    """
    if settings.method in TRAINED and settings.method != "stitch":
        raise InputError(f"method {settings.method} is trained: name it in a recipe (fusion: {{experts: [...], method: "
                         f"{settings.method}}}) and run glyphlm train")
    settings.check_runs()
    build = _build(settings, out)
    with one_writer(out):
        if build.is_done(out):
            say(f"{out} is done already")
        else:
            with build.folder(out) as partial:
                summary = {"name": out.name, "command": command, **_write_fusion(settings, partial)}
                (partial / SETTINGS).write_text(to_json(settings.described()), encoding="utf-8")  # JSON is YAML
                write_card(partial, summary)
                write_summary(partial, summary)
            made = f"{len(summary['fusion']['weights'])} experts, {settings.method}" if "fusion" in summary else "one expert"
            say(f"{out}: {made}, {summary['parameters']['total']:,} parameters")
        return read_json(out / SUMMARY)


def _build(settings: FusionSettings, out: Path) -> Build:
    """The inputs of `out`. If it was made from the same experts, moved since, it keeps the names that they had."""
    digest = expert_digest if settings.level == "bytes" else weights_sha256
    found, names = found_build(out), list(settings.experts)
    digests, routers = [digest(run) for run in names], {run: digest(run) for run in settings.routers}
    was = found.settings.get("experts") if found else None
    if found and isinstance(was, list) and [found.inputs.get(str(name)) for name in was] == digests:
        names = was
    return Build("fusion", settings.described() | {"experts": names}, dict(zip(names, digests)) | routers)


def _write_fusion(settings: FusionSettings, partial: Path) -> dict[str, Any]:
    """Write model and tokenizer of a fusion that is not trained into the folder `partial`; its summary fields."""
    if settings.level == "bytes":
        return describe_untrained(describe_docked(*dock(settings, partial), settings))
    models, tokenizer = _load(settings)
    experts = _chosen_experts(settings, models)
    if len(experts) == 1:
        model, described = experts[0].model, {"taken_from": {"experts": settings.experts, "without": settings.without}}
    else:
        model = _join(settings, experts)
        if isinstance(model, Stitched) and model.map.in_features != model.map.out_features:
            raise InputError(f"{settings.experts[0]} is {model.map.in_features} wide, {settings.experts[1]} "
                             f"{model.map.out_features}, so the map between them has to be trained: name the runs in a "
                             "recipe (fusion: {experts: [...], method: stitch}) and run glyphlm train")
        model.init_weights(1)
        model.requires_grad_(False)
        described = {"fusion": describe_fusion(model, settings)}
    export_model(model, tokenizer, partial)
    return describe_untrained({**described, **describe_model(model, tokenizer)})


def build_fusion(settings: FusionSettings, seed: int = 1) -> tuple[Fusion, Tokenizer]:
    """The fused model before any training, on the CPU, with only the trained part of its method not frozen; its tokenizer.

    Raises:
        InputError: settings contradict each other, a run is damaged, or runs do not fit each other.
    """
    models, tokenizer = _load(settings)
    fusion = assemble(settings, models)
    fusion.init_weights(seed)
    return fusion.eval(), tokenizer


def _load(settings: FusionSettings) -> tuple[list[GPT | Fusion], Tokenizer]:
    settings.check_runs()
    runs = [*settings.experts, *settings.routers]
    loaded = [load_run(run) for run in runs]
    _check_vocabularies(runs, [tokenizer for _, tokenizer in loaded])
    return [model.gpt for model, _ in loaded], loaded[0][1]


def assemble(settings: FusionSettings, models: Sequence[GPT | Fusion]) -> Fusion:
    """The fused model of the models of `settings.experts`, in that order; added parameters are not initialized.

    A plan calls this with models on the meta device, whose frozen codes are equal if their fingerprints are.

    Raises:
        InputError: models do not fit each other, or an expert that is left out does not exist.
    """
    return _join(settings, _chosen_experts(settings, models))


def _chosen_experts(settings: FusionSettings, models: Sequence[GPT | Fusion]) -> list[Expert]:
    """The experts of all models, without those that are left out."""
    experts = [expert for number, (run, model) in enumerate(zip([*settings.experts, *settings.routers], models))
               for expert in _experts_of(model, run, number)]
    return [experts[number] for number in settings.kept(len(experts))]


def _join(settings: FusionSettings, experts: Sequence[Expert]) -> Fusion:
    _share_substrates(experts, settings.allow_different_substrates)
    weights = settings.weights and [settings.weights[expert.run] * expert.share for expert in experts]
    config = settings.config(weights and [weight / sum(weights) for weight in weights])
    models = [expert.model for expert in experts]
    try:
        config.check_experts(len(models))
    except ValueError as error:
        raise InputError(f"the runs {', '.join(settings.experts)} cannot be fused: {error}") from None
    if settings.method == "stitch":
        _cut_in_two(models[0], models[1], settings.cut)
    return make_fusion(config, models)


def _cut_in_two(lower: GPT, upper: GPT, cut: int | None) -> None:
    """Reduce the first model to its lower `cut` blocks, and the second to those above the same share of its depth."""
    depth, other = lower.config.n_layer, upper.config.n_layer
    cut = max(1, depth // 2) if cut is None else cut
    above = round(other * cut / depth) if depth else other
    if not (1 <= cut <= depth and above < other):
        raise InputError(f"cut {cut} does not leave blocks of both runs, which have {depth} and {other}; give 1 to "
                         f"{max(1, depth - 1)}, and runs of at least 2 blocks")
    for model, kept in ((lower, slice(0, cut)), (upper, slice(above, other))):
        blocks: Any = nn.ModuleList(list(model.blocks)[kept])
        for number, block in enumerate(blocks):
            block.attention.layer = number
        model.blocks, model.config = blocks, replace(model.config, n_layer=len(blocks))


def _check_vocabularies(runs: Sequence[str], tokenizers: Sequence[Tokenizer]) -> None:
    """Refuse runs of different vocabularies; the first id that differs is named, with both tokens."""
    first, name = tokenizers[0], runs[0]
    for run, other in zip(runs[1:], tokenizers[1:]):
        if other.fingerprint == first.fingerprint:
            continue
        pairs = enumerate(zip_longest(first.tokens, other.tokens))
        number, (one, two) = next(((i, pair) for i, pair in pairs if pair[0] != pair[1]), (None, ("", "")))
        where = f"id {number} is {one!r} in {name}, {two!r} in {run}"
        if number is None:
            where = f"{name} and {run} merge otherwise ({first.fingerprint[:12]}, {other.fingerprint[:12]})"
        raise InputError(f"vocabularies differ: {where}; fuse runs that were trained with one tokenizer, or add "
                         "--level bytes")


def _experts_of(model: GPT | Fusion, run: str, number: int) -> list[Expert]:
    """The model of a run, or the experts that it was fused from, each with its own columns of the head."""
    if isinstance(model, GPT):
        return [Expert(run, model, 1.0, number)]
    if model.fusion.method in ("gate", "adapter", "stitch"):
        raise InputError(f"{run} has a trained {model.fusion.method}, which would be lost; name its experts instead")
    if model.fusion.routers:
        raise InputError(f"{run} has {model.fusion.routers} routers, which belong to its experts; name the runs instead")
    return [Expert(f"{run}, expert {place}", expert, share, number)
            for place, (expert, share) in enumerate(zip(_taken_apart(model), model.weights), start=1)]


def _taken_apart(fusion: Fusion) -> list[GPT]:
    """The experts as separate models, with their parts of a trained head; `fusion` is unusable afterwards."""
    for expert, read in zip(fusion.experts, fusion.reads):
        expert.substrate = fusion.substrates[read]
    if not fusion.joined:
        for expert, head in zip(fusion.experts, fusion.head):
            expert.head = head
        return list(fusion.experts)
    for expert, (weight_VD, bias_V) in zip(fusion.experts, fusion.head.of_experts()):
        # An expert that had no bias has one if training has moved it from 0.
        if bias_V is not None and not (expert.config.head_bias or bias_V.is_meta or bool(bias_V.any())):
            bias_V = None
        expert.config = replace(expert.config, head_bias=bias_V is not None)
        expert.head = nn.Linear(*weight_VD.shape[::-1], bias=bias_V is not None, device="meta")
        expert.head.weight = nn.Parameter(weight_VD.detach().clone())
        if bias_V is not None:
            expert.head.bias = nn.Parameter(bias_V.detach().clone())
    return list(fusion.experts)


def _share_substrates(experts: Sequence[Expert], allow_different: bool) -> None:
    """Let experts whose substrates are equal, and lifted to the same width, hold one module."""
    first = experts[0]
    for place, expert in enumerate(experts):
        if not allow_different and not _same_codes(first.model.substrate, expert.model.substrate):
            raise InputError(f"substrates differ: {_named(first)}, {_named(expert)}; logits need only the vocabulary, so to "
                             "fuse these all the same add --allow-different-substrates")
        for earlier in experts[:place]:
            one, two = earlier.model.substrate, expert.model.substrate
            if (one.config, one.d_model) == (two.config, two.d_model) and _same_codes(one, two):
                expert.model.substrate = one


def _same_codes(one: Substrate, two: Substrate) -> bool:
    """Whether every id has the same code. Trained tables are compared by value; without values (meta) they differ."""
    tensors, others = (
        {name: values for name, values in substrate.state_dict().items() if name != "lift_ED"} for substrate in (one, two)
    )
    same_rule = one.config.fingerprint == two.config.fingerprint and tensors.keys() == others.keys()
    if any(values.is_meta for values in [*tensors.values(), *others.values()]):
        return same_rule and not one.config.trainable
    return same_rule and all(torch.equal(values, others[name]) for name, values in tensors.items())


def _named(expert: Expert) -> str:
    config = expert.model.substrate.config
    trained = " before it was trained" if config.trainable else ""
    return f"{expert.name} has {config.kind} {config.fingerprint[:12]}{trained}"


def describe_untrained(described: dict[str, Any]) -> dict[str, Any]:
    """The summary of a fused model that was not trained."""
    return described | {"tokens": 0, "steps": 0, "bits_per_byte": {"train": None, "validation": None},
                        "unigram_bits_per_byte": {"validation": None}}


def describe_fusion(model: Fusion, settings: FusionSettings) -> dict[str, Any]:
    """Summary fields: method, experts in order with their weights, number of substrates, settings."""
    return {"method": settings.method, "experts": list(settings.experts), "weights": model.weights,
            "substrates": len(model.substrates), "settings": asdict(model.fusion)}
