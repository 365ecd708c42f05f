"""A mapped checkpoint -> our model: what shapes cannot show is decided by settings.

Shapes: V vocabulary, D d_model, E width of a code, N places of an id.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from glyphlm.base.errors import InputError
from glyphlm.base.tensors import load_foreign
from glyphlm.interop.checkpoint_files import Sizes
from glyphlm.interop.importblock import listed
from glyphlm.interop.tensor_map import Mapped
from glyphlm.modeling.model import GPT, ModelConfig, Substrate, SubstrateConfig
from glyphlm.substrate.codes import all_codes, fingerprint
from glyphlm.tokenizer.tokenizer import Tokenizer


@dataclass
class ImportSettings:
    """What the shapes of a checkpoint cannot show; the defaults are the likely reading of the published models.

    Args:
        rotation: Rotary positions turn channel i with i + K/2 (half), or 2 i with 2 i + 1 (interleaved).
        activation: Exact GELU, or its tanh approximation.
        norm_eps: Epsilon of the LayerNorms.
        rope_base: Base of the rotary frequencies.
        fused: Order of the rows where q, k and v are one matrix: all of q, then k, then v (stacked), or head by head.
        lift: How codes narrower than d_model are widened; auto: tile for binary codes (paper 3), else repeat_interleave.
        rule: The code of an id where no table is stored: bits of the id (token_bits), or their affine map that the files
            hold (affine_bits); auto takes the map, or refuses.
        bit_order: The first of these bits is the lowest, or the highest.
        affine_side: The map is matrix times bits (columns), or bits times matrix (rows).
        signed: These codes are -1 and 1 instead of 0 and 1.
        codes: A file with the table [vocab_size, n_embed], where the checkpoint's own code made it.
        trainable: Whether further training changes the table, as in the published unfrozen twins.
        tokenizer: Folder of the tokenizer, where the checkpoint has none.
        weights: The file of weights, where it is not clear which.
        revision: Of a Hub repository: branch, tag or commit.
    """

    rotation: Literal["half", "interleaved"] = "half"
    activation: Literal["gelu", "gelu_tanh"] = "gelu"
    norm_eps: float = 1e-5
    rope_base: float = 10000.0
    fused: Literal["stacked", "per_head"] = "stacked"
    lift: Literal["auto", "repeat_interleave", "tile"] = "auto"
    rule: Literal["auto", "token_bits", "affine_bits"] = "auto"
    bit_order: Literal["low", "high"] = "low"
    affine_side: Literal["columns", "rows"] = "columns"
    signed: bool = False
    codes: str | None = None
    trainable: bool = False
    tokenizer: str | None = None
    weights: str | None = None
    revision: str | None = None


@dataclass
class Published:
    """A checkpoint, read: everything but what the settings decide."""

    source: str
    sizes: Sizes
    model_type: str
    experts: list[Mapped]
    tokenizer: Tokenizer
    sha256: dict[str, str]


def build_model(published: Published, mapped: Mapped, settings: ImportSettings) -> GPT:
    """Our model over the tensors of the file, which are taken over, not copied, where that is possible.

    Raises:
        InputError: shapes are not those that the sizes give, or the codes cannot be told.
    """
    sizes = published.sizes
    config, codes = build_codes(published, mapped, settings)
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
    return torch.cat([half_split(q, n_head), half_split(k, n_head), v])


def half_split(rows_DD: Tensor, n_head: int) -> Tensor:
    """q or k of a model that turns channel 2 i with 2 i + 1, in the order in which ours turns i with i + K/2.

    q . k is the same: both orders belong to the same pairs and angles.
    """
    return rows_DD.unflatten(0, (n_head, -1, 2)).transpose(1, 2).flatten(0, 2)


def build_codes(published: Published, mapped: Mapped, settings: ImportSettings) -> tuple[SubstrateConfig, dict[str, Tensor]]:
    """The substrate and its tensors: the table that is stored or given, or a rule over the bits of the id.

    Raises:
        InputError: there is no one table and no rule.
    """
    sizes, tables = published.sizes, stored_tables(published, mapped, settings)
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


def stored_tables(published: Published, mapped: Mapped, settings: ImportSettings) -> list[Tensor]:
    """The tables [V, E] of the checkpoint, or the one that the settings name.

    Raises:
        InputError: a named table does not fit.
    """
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
    """Codes from bits of the id; bits from the highest on are an affine map, too, and signed ones a table."""
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
                         "with --codes FILE, or say that codes are the bits of the id with --rule token_bits")
    affine_NE = affine_EN if settings.affine_side == "rows" else affine_EN.T
    affine_NE = affine_NE.flip(0) if settings.bit_order == "high" else affine_NE
    codes = {"affine_NE": affine_NE.to(torch.uint8).contiguous(), "offset_E": offset_E.to(torch.uint8)}
    if settings.signed:
        return _describe(published, settings, "given", places), {"table_VE": all_codes(config, codes) * 2 - 1}
    return config, codes


def _describe(published: Published, settings: ImportSettings, kind: str, n_embed: int) -> SubstrateConfig:
    binary = kind == "affine_bits" or "binary" in published.model_type
    likely = "tile" if binary or settings.signed else "repeat_interleave"
    lift = likely if settings.lift == "auto" else settings.lift
    lift = "none" if n_embed == published.sizes.d_model else lift
    return SubstrateConfig(published.sizes.vocab_size, n_embed, kind, scale="none", lift=lift)
