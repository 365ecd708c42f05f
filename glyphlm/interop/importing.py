"""A published checkpoint -> a run folder; and the loss of a text under what shapes cannot show."""

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from glyphlm.base.errors import InputError
from glyphlm.base.hub import fetch
from glyphlm.base.outputs import Build
from glyphlm.base.progress import say
from glyphlm.base.records import to_json
from glyphlm.composition.fuse import fuse
from glyphlm.composition.fusionsettings import FusionSettings
from glyphlm.interop.checkpoint_files import digests, read_config, read_sizes, read_tokenizer, read_weights, weight_files
from glyphlm.interop.import_model import ImportSettings, Published, build_codes, build_model, stored_tables
from glyphlm.interop.tensor_map import Mapped, map_experts
from glyphlm.modeling.model import GPT
from glyphlm.runs.card import write_card
from glyphlm.runs.folder import describe_model, export_model, read_summary, write_summary

HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")


def import_checkpoint(src: str, out: Path, settings: ImportSettings, command: str = "") -> dict[str, Any]:
    """Make the run folder `out` from the folder or Hub repository `src`, and return its summary. No code of it is run.

    Of a fused model each expert becomes a run, OUT-expert-N, and `out` their fusion by mean logits.

    Raises:
        InputError: files are damaged or missing, tensors are left over or cannot be mapped, or `out` holds something else.
    """
    published = open_published(src, settings)
    if len(published.experts) == 1:
        return _import_expert(published, 0, out, settings, command)
    runs = [out.with_name(f"{out.name}-expert-{number}") for number in range(len(published.experts))]
    for number, run in enumerate(runs):
        _import_expert(published, number, run, settings, command)
    return fuse(FusionSettings([str(run) for run in runs], allow_different_substrates=True), out, command)


def open_published(src: str, settings: ImportSettings) -> Published:
    """Read config, tokenizer and weights of a folder or Hub repository, and find our parts in them.

    Raises:
        InputError: as `import_checkpoint`.
    """
    folder = Path(src)
    if not folder.is_dir():
        if not HUB_NAME.fullmatch(src):
            raise InputError(f"{src} is neither a folder nor a name of the Hub such as OWNER/MODEL")
        folder = fetch(src, settings.revision)
    config = read_config(folder)
    sizes = read_sizes(folder, config)
    tokenizer = read_tokenizer(Path(settings.tokenizer or folder), config, sizes.vocab_size)
    files = weight_files(folder, settings.weights)
    try:
        experts = map_experts(read_weights(files), sizes, settings.rope_base)
    except InputError as error:
        raise InputError(f"{src}: {error}") from None
    sha256 = digests([folder / "config.json", *files])
    return Published(src, sizes, str(config.get("model_type")), experts, tokenizer, sha256)


def _import_expert(
    published: Published, number: int, out: Path, settings: ImportSettings, command: str
) -> dict[str, Any]:
    made_from = {**published.sha256, "tokenizer": published.tokenizer.fingerprint, "expert": number}
    build = Build("import", asdict(settings), made_from)
    if build.is_done(out):
        say(f"{out} is done already")
        return read_summary(out)
    mapped = published.experts[number]
    if published.model_type == "gpt_neox" and mapped.fused and settings.fused != "per_head":
        raise InputError(f"{published.source}/config.json says gpt_neox, which stores q, k and v head by head, not "
                         f"{settings.fused}; give --fused per_head")
    model = build_model(published, mapped, settings)
    with build.folder(out) as partial:
        export_model(model, published.tokenizer, partial)
        shape = {"model": asdict(model.config), "substrate": asdict(model.substrate.config)}
        (partial / "settings.yaml").write_text(to_json(shape), encoding="utf-8")  # JSON is YAML; the rest is not known
        summary = _summary(published, mapped, model, settings) | {"name": out.name, "command": command}
        write_summary(partial, summary)
        write_card(partial, summary)
    for note in mapped.notes:
        say(f"{out}: {note}")
    say(f"{out}: {summary['parameters']['total']:,} values in {model.config.n_layer} blocks, of {published.source}")
    return summary


def _summary(published: Published, mapped: Mapped, model: GPT, settings: ImportSettings) -> dict[str, Any]:
    """Of training nothing is known."""
    unknown = {"train": None, "validation": None}
    return {
        "imported": {"source": published.source, "sha256": published.sha256, "notes": mapped.notes, **asdict(settings)},
        **describe_model(model, published.tokenizer),
        "tokens": None,
        "steps": None,
        "bits_per_byte": unknown,
        "unigram_bits_per_byte": unknown,
    }


def check(src: str, text: str, settings: ImportSettings) -> list[dict[str, Any]]:
    """The loss of `text`, in nats a token, under each candidate for what shapes cannot show; the likeliest first.

    Raises:
        InputError: as `import_checkpoint`, or the text is shorter than two tokens.
    """
    published = open_published(src, settings)
    ids = published.tokenizer.encode(text)[: published.sizes.block_size]
    if len(ids) < 2:
        raise InputError(f"--check {text!r} is {len(ids)} tokens long; give a sentence")
    rows = []
    for chosen in candidates(published, settings):
        models = [build_model(published, mapped, replace(settings, **chosen)) for mapped in published.experts]
        rows.append({"loss": loss_of(models, torch.tensor([ids])), **chosen})
    return sorted(rows, key=lambda row: row["loss"])


def candidates(published: Published, settings: ImportSettings) -> Iterator[dict[str, Any]]:
    """Every combination of the settings that this checkpoint leaves open."""
    opened = {"rotation": ("half", "interleaved"), "activation": ("gelu", "gelu_tanh"), "norm_eps": (1e-5, 1e-6)}
    found = published.experts[0]
    config, _ = build_codes(published, found, settings)
    if found.fused:
        opened["fused"] = ("stacked", "per_head")
    if config.n_embed < published.sizes.d_model:
        opened["lift"] = ("repeat_interleave", "tile")
    if not stored_tables(published, found, settings):
        opened |= {"bit_order": ("low", "high"), "signed": (False, True)}
        opened |= {"affine_side": ("columns", "rows")} if found.codes else {}
    for values in itertools.product(*opened.values()):
        yield dict(zip(opened, values))


@torch.no_grad()
def loss_of(models: Sequence[GPT], ids_BT: Tensor) -> float:
    """Nats a token of the text under the mean of the models' logits."""
    logits_BTV = sum(model.eval()(ids_BT) for model in models) / len(models)
    return float(F.cross_entropy(logits_BTV[0, :-1], ids_BT[0, 1:]))


def candidates_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows of `check`, one a line."""
    lines = (f"{row['loss']:9.4f}  " + "  ".join(f"{name} {value}" for name, value in row.items() if name != "loss")
             for row in rows)
    return "\n".join(["loss in nats a token, the likeliest reading first:", *lines])
