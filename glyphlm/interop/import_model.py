"""A published checkpoint -> a run folder; settings hold what shapes cannot show, and can be compared by the loss of a text.

Shapes: V vocabulary, D d_model, E width of a code, N binary places of an id.
"""

import itertools
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from glyphlm.base.errors import InputError
from glyphlm.base.names import BUILD, CONFIG, MADE_INPUTS, SETTINGS, STATES, SUMMARY
from glyphlm.base.outputs import Build, one_writer
from glyphlm.base.progress import say
from glyphlm.base.records import read_json, to_json
from glyphlm.base.tensors import load_foreign
from glyphlm.composition.fuse import fuse
from glyphlm.composition.settings import FusionSettings
from glyphlm.interop.checkpoint_files import (
    Sizes,
    digests,
    listed,
    read_config,
    read_sizes,
    read_tokenizer,
    read_weights,
    source_folder,
    weight_files,
)
from glyphlm.interop.settings import ImportSettings
from glyphlm.interop.tensor_map import Mapped, map_experts
from glyphlm.modeling.config import Kind, ModelConfig, SubstrateConfig
from glyphlm.modeling.model import GPT, count_parameters
from glyphlm.modeling.substrate import Substrate
from glyphlm.runs.card import write_card
from glyphlm.runs.folder import KINDS, describe_model, export_model, load_run, read_summary, weights_sha256, write_summary
from glyphlm.substrate.codes import all_codes, fingerprint
from glyphlm.tokenizer.tokenizer import Tokenizer


@dataclass
class Published:
    """A checkpoint that has been read, before settings are applied."""

    source: str
    sizes: Sizes
    model_type: str
    experts: list[Mapped]
    tokenizer: Tokenizer
    sha256: dict[str, str]


def _build_model(published: Published, mapped: Mapped, settings: ImportSettings) -> GPT:
    """Our model with the tensors of the file, which are shared, not copied, where that is possible."""
    sizes = published.sizes
    config, codes = _build_codes(published, mapped, settings)
    try:
        shape = ModelConfig(
            sizes.d_model, sizes.n_layer, sizes.n_head, sizes.block_size, "head.bias" in mapped.tensors,
            settings.activation, settings.rope_base, settings.norm_eps,
        )
        with torch.device("meta"):
            model = GPT(shape, Substrate(config, sizes.d_model))
    except ValueError as error:
        raise InputError(f"{published.source}: {error}") from None
    tensors = {name: tensor.float().contiguous() for name, tensor in mapped.tensors.items()}
    for name in [name for name in tensors if name.endswith("attention.qkv.weight")]:
        tensors[name] = _ours(tensors[name], sizes.n_head, mapped.fused and settings.fused == "per_head", settings.rotation)
    tensors |= {f"substrate.{name}": tensor for name, tensor in codes.items()}
    expected = model.state_dict()
    wrong = [name for name, tensor in expected.items() if name not in tensors or tensors[name].shape != tensor.shape]
    if wrong or tensors.keys() != expected.keys():
        raise InputError(f"{published.source}: missing or of another shape than config.json says: {listed(wrong)}")
    model.load_state_dict(tensors, assign=True)
    return model


def _ours(qkv: Tensor, n_head: int, per_head: bool, rotation: str) -> Tensor:
    """q, k and v [3 D, D] stacked, and in the order in which our blocks rotate."""
    if per_head:
        qkv = qkv.unflatten(0, (n_head, 3, -1)).transpose(0, 1).flatten(0, 2)
    if rotation == "half":
        return qkv
    q, k, v = qkv.chunk(3)
    return torch.cat([_half_split(q, n_head), _half_split(k, n_head), v])


def _half_split(rows_DD: Tensor, n_head: int) -> Tensor:
    """q or k of a model that turns channel 2 i with 2 i + 1, in the order in which ours turns i with i + K/2.

    q . k is the same: both orders belong to the same pairs and angles.
    """
    return rows_DD.unflatten(0, (n_head, -1, 2)).transpose(1, 2).flatten(0, 2)


def _build_codes(
    published: Published, mapped: Mapped, settings: ImportSettings
) -> tuple[SubstrateConfig, dict[str, Tensor]]:
    """The substrate and its tensors: the table that is stored or given, or a rule over the bits of the id."""
    sizes, tables = published.sizes, _stored_tables(published, mapped, settings)
    if len(tables) > 1:
        raise InputError(f"{published.source}: {len(tables)} tables of {sizes.vocab_size} codes "
                         f"({listed(str(tuple(table.shape)) for table in tables)}), and one can be used")
    if not settings.codes and 0 < len(tables) < len(mapped.codes):
        raise InputError(f"{published.source} stores a table and also what looks like an affine map of codes; give the "
                         "codes that its blocks read with --codes FILE")
    if tables:
        config = _describe(published, settings, "given", tables[0].shape[1])
        codes = {"table_VE": tables[0].float().contiguous()}
    else:
        config, codes = _rule(published, mapped, settings)
    config = replace(config, trainable=settings.trainable and "table_VE" in codes)
    return replace(config, fingerprint=fingerprint(config, published.tokenizer.fingerprint, codes)), codes


def _stored_tables(published: Published, mapped: Mapped, settings: ImportSettings) -> list[Tensor]:
    """The tables [V, E] of the checkpoint, or the one that the settings name."""
    stored = [code for code in mapped.codes if code.shape[0] == published.sizes.vocab_size]
    if not settings.codes:
        return stored
    table, rows = load_foreign(Path(settings.codes)), published.sizes.vocab_size
    if stored and len(stored) == len(mapped.codes):
        raise InputError(f"{published.source} has a table of its own; leave --codes {settings.codes} out")
    if table.dim() != 2 or table.shape[0] != rows or not table.shape[1] or published.sizes.d_model % table.shape[1]:
        raise InputError(f"{settings.codes} holds {tuple(table.shape)}, but the model needs {rows} codes whose width "
                         f"divides {published.sizes.d_model}")
    if not bool(table.isfinite().all()):
        raise InputError(f"{settings.codes} holds NaN or infinity; give finite numbers")
    return [table]


def _rule(published: Published, mapped: Mapped, settings: ImportSettings) -> tuple[SubstrateConfig, dict[str, Tensor]]:
    """Codes from bits of the id. Bits in descending order are written as an affine map, signed bits as a table."""
    places = (published.sizes.vocab_size - 1).bit_length()
    config = _describe(published, settings, "affine_bits", places)
    if published.sizes.d_model % places:
        raise InputError(f"{published.source} stores no table, and {places} bits do not divide d_model "
                         f"{published.sizes.d_model}; give the codes with --codes FILE")
    parts = sorted(mapped.codes, key=lambda part: part.dim())
    if settings.rule == "token_bits" and not parts:
        offset_E, affine_EN = torch.zeros(places), torch.eye(places)
    elif settings.rule != "token_bits" and [part.dim() for part in parts] == [1, 2]:
        offset_E, affine_EN = parts
    else:
        raise InputError(f"{published.source} stores no table, and its affine parts are {len(parts)} of 2; give the table "
                         "with --codes FILE, or give --rule token_bits if codes are the bits of the id")
    affine_NE = affine_EN if settings.affine_side == "rows" else affine_EN.T
    affine_NE = affine_NE.flip(0) if settings.bit_order == "high" else affine_NE
    codes = {"affine_NE": affine_NE.to(torch.uint8).contiguous(), "offset_E": offset_E.to(torch.uint8)}
    if settings.signed:
        return _describe(published, settings, "given", places), {"table_VE": all_codes(config, codes) * 2 - 1}
    return config, codes


def _describe(published: Published, settings: ImportSettings, kind: Kind, n_embed: int) -> SubstrateConfig:
    binary = kind == "affine_bits" or "binary" in published.model_type
    likely = "tile" if binary or settings.signed else "repeat_interleave"
    lift = likely if settings.lift == "auto" else settings.lift
    lift = "none" if n_embed == published.sizes.d_model else lift
    return SubstrateConfig(published.sizes.vocab_size, n_embed, kind, scale="none", lift=lift)


# Of transformers -> ours.
ACTIVATIONS = {"gelu": "gelu", **dict.fromkeys(("gelu_new", "gelu_fast", "gelu_pytorch_tanh"), "gelu_tanh")}
UNKNOWN = {"tokens": None, "steps": None,  # fields of a summary
           **{name: {"train": None, "validation": None} for name in ("bits_per_byte", "unigram_bits_per_byte")}}


def import_checkpoint(src: str, out: Path, settings: ImportSettings, command: str = "") -> dict[str, Any]:
    """Make the run folder `out` from the folder or Hub repository `src`, and return its summary. No code of it is run.

    Of a fused model each expert becomes a run, OUT-expert-N, and `out` their fusion by mean logits.

    Raises:
        InputError: files are damaged or missing, tensors are left over or cannot be mapped, or `out` holds something else.
    """
    folder = source_folder(src, settings.revision)
    with one_writer(out):
        if _is_ours(folder):
            return _copy_run(folder, out)
        settings = _with_config(settings, folder)
        published = _open_published(src, settings)
        if len(published.experts) == 1:
            return _import_expert(published, 0, out, settings, command)
        runs = [out.with_name(f"{out.name}-expert-{number}") for number in range(len(published.experts))]
        for number, run in enumerate(runs):
            _import_expert(published, number, run, settings, command)
        return fuse(FusionSettings([str(run) for run in runs], allow_different_substrates=True), out, command)


def _is_ours(folder: Path) -> bool:
    """Whether a folder holds a run."""
    return str(read_config(folder).get("model_type")) in KINDS


def _copy_run(folder: Path, out: Path) -> dict[str, Any]:
    """Copy a run of ours without its checkpoints, after loading it as a check."""
    build = Build("import", {}, {"weights": weights_sha256(folder)})
    if build.is_done(out):
        say(f"{out} is done already")
    else:
        model, tokenizer = load_run(folder)
        with build.folder(out) as partial:
            left_out = shutil.ignore_patterns(STATES, MADE_INPUTS, ".*", BUILD)
            shutil.copytree(folder, partial, ignore=left_out, dirs_exist_ok=True)
            if read_summary(partial) is None:
                known = {"name": out.name, "command": f"glyphlm import {folder}", **describe_model(model.gpt, tokenizer)}
                write_summary(partial, known | UNKNOWN)
        say(f"{out}: a run of ours, copied without its checkpoints")
    return read_json(out / SUMMARY)


def _with_config(settings: ImportSettings, folder: Path) -> ImportSettings:
    """The settings, with the values of config.json of a GPT-NeoX folder in place of defaults."""
    config = read_config(folder)
    if config.get("model_type") != "gpt_neox":
        return replace(settings, fused="stacked") if settings.fused == "auto" else settings
    where, rope = folder / CONFIG, config.get("rope_parameters") or {}
    if config.get("use_parallel_residual", True):
        raise InputError(f"{where} has use_parallel_residual true, and our blocks are sequential; import another model")
    if (part := config.get("rotary_pct", rope.get("partial_rotary_factor", 0.25))) != 1:
        raise InputError(f"{where} has rotary_pct {part}, and our blocks turn all channels (1.0); import another model")
    found = {
        "fused": "per_head", "rotation": "half", "norm_eps": config.get("layer_norm_eps", 1e-5),
        "activation": ACTIVATIONS.get(config.get("hidden_act", "gelu")),
        "rope_base": float(rope.get("rope_theta", config.get("rotary_emb_base", 10000))),
    }
    for name, value in found.items():
        given, default = getattr(settings, name), ImportSettings.__dataclass_fields__[name].default
        if value is None or given not in (default, value):
            raise InputError(f"{where} has {value or config.get('hidden_act')!r} for {name}, not {given}; leave it out")
    return replace(settings, **found)


def _open_published(src: str, settings: ImportSettings) -> Published:
    """Read config, tokenizer and weights of a folder or Hub repository, and find our parts in them."""
    folder = source_folder(src, settings.revision)
    config = read_config(folder)
    sizes = read_sizes(folder, config)
    tokenizer = read_tokenizer(Path(settings.tokenizer or folder), config, sizes.vocab_size)
    files = weight_files(folder, settings.weights)
    try:
        experts = map_experts(read_weights(files), sizes, settings.rope_base)
    except InputError as error:
        raise InputError(f"{src}: {error}") from None
    sha256 = digests([folder / CONFIG, *files])
    return Published(src, sizes, str(config.get("model_type")), experts, tokenizer, sha256)


def _import_expert(published: Published, number: int, out: Path, settings: ImportSettings, command: str) -> dict[str, Any]:
    made_from = {**published.sha256, "tokenizer": published.tokenizer.fingerprint, "expert": number}
    build = Build("import", asdict(settings), made_from)
    if build.is_done(out) and (summary := read_summary(out)):
        say(f"{out} is done already")
        return summary
    mapped = published.experts[number]
    model = _build_model(published, mapped, settings)
    with build.folder(out) as partial:
        export_model(model, published.tokenizer, partial)
        shape = {"model": asdict(model.config), "substrate": asdict(model.substrate.config)}
        (partial / SETTINGS).write_text(to_json(shape), encoding="utf-8")  # JSON is YAML; the rest is not known
        origin = {"source": published.source, "sha256": published.sha256, "notes": mapped.notes, **asdict(settings)}
        summary = {"name": out.name, "command": command, "imported": origin,
                   **describe_model(model, published.tokenizer), **UNKNOWN}  # what training would give is not known
        write_summary(partial, summary)
        write_card(partial, summary)
    total = count_parameters(model)["total"]
    for note in mapped.notes:
        say(f"{out}: {note}")
    say(f"{out}: {total:,} values in {model.config.n_layer} blocks, of {published.source}")
    return summary


def check(src: str, text: str, settings: ImportSettings) -> list[dict[str, Any]]:
    """The loss of `text`, in nats a token, under each candidate for what shapes cannot show; the likeliest first.

    Raises:
        InputError: as `import_checkpoint`, the text is shorter than two tokens, or nothing is open because it is a run.
    """
    folder = source_folder(src, settings.revision)
    if _is_ours(folder):
        raise InputError(f"{src} is a run of glyphlm, so --check has nothing to compare; import it with --out alone")
    settings = _with_config(settings, folder)
    published = _open_published(src, settings)
    ids = published.tokenizer.encode(text)[: published.sizes.block_size]
    if len(ids) < 2:
        raise InputError(f"--check {text!r} is {len(ids)} tokens long; give a sentence")
    rows = []
    for chosen in _readings(published, settings):
        models = [_build_model(published, mapped, replace(settings, **chosen)) for mapped in published.experts]
        rows.append({"loss": _loss_of(models, torch.tensor([ids])), **chosen})
    return sorted(rows, key=lambda row: row["loss"])


def _readings(published: Published, settings: ImportSettings) -> Iterator[dict[str, Any]]:
    """Every combination of the settings that this checkpoint leaves open."""
    opened = {"rotation": ("half", "interleaved"), "activation": ("gelu", "gelu_tanh"), "norm_eps": (1e-5, 1e-6)}
    found = published.experts[0]
    config, _ = _build_codes(published, found, settings)
    if found.fused:
        opened["fused"] = ("stacked", "per_head")
    if config.n_embed < published.sizes.d_model:
        opened["lift"] = ("repeat_interleave", "tile")
    if not _stored_tables(published, found, settings):
        opened |= {"bit_order": ("low", "high"), "signed": (False, True)}
        opened |= {"affine_side": ("columns", "rows")} if found.codes else {}
    for values in itertools.product(*opened.values()):
        yield dict(zip(opened, values))


@torch.no_grad()
def _loss_of(models: Sequence[GPT], ids_BT: Tensor) -> float:
    """Loss of the text, in nats a token, under the mean of the models' logits."""
    logits_BTV = torch.stack([model.eval()(ids_BT) for model in models]).mean(0)
    return float(F.cross_entropy(logits_BTV[0, :-1], ids_BT[0, 1:]))


def readings_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows of `check`, one a line."""
    lines = (f"{row['loss']:9.4f}  " + "  ".join(f"{name} {value}" for name, value in row.items() if name != "loss")
             for row in rows)
    return "\n".join(["loss in nats a token, the likeliest reading first:", *lines])
