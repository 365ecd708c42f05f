"""Vocabulary -> the codes below the first block, as a folder that models share: kind, scale, lift, fingerprint, values.

Kinds: `glyph` (pictures of the tokens, PCA; arXiv 2507.04886), `token_bits` and `affine_bits` (binary id, computed in the
model; arXiv 2605.09751), `random_bits`, `random_float`, `learned` (random start, for the trainable twin), `given` (a
table from a file). Codes of each kind are frozen, or are the initial values of training.
"""

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from glyphlm.base.errors import InputError
from glyphlm.base.names import CONFIG, WEIGHTS
from glyphlm.base.outputs import Build, one_writer, read_build, sha256_file
from glyphlm.base.progress import say
from glyphlm.base.records import read_json, to_json
from glyphlm.base.tensors import load_ending, load_tensors, save_tensors
from glyphlm.modeling.config import SubstrateConfig
from glyphlm.modeling.substrate import Substrate
from glyphlm.substrate.codes import (
    all_codes,
    centred,
    check_tensors,
    expected_shapes,
    fingerprint,
    orthonormal_rows,
    principal_axes,
    principal_components,
    put_id_bits,
    random_bits,
    read_table,
    rule_tensors,
    scale_table,
    shuffled_ids,
)
from glyphlm.substrate.fonts import FontChain, load_fonts
from glyphlm.substrate.glyphs import Drawing, draw_tokens, glyph_sheet, polar_order
from glyphlm.substrate.settings import OPTIONS, SubstrateSettings
from glyphlm.tokenizer.layouts import BYTES
from glyphlm.tokenizer.tokenizer import Tokenizer

TABLE, TOKENS, SHEET = "substrate.safetensors", "tokens.json", "glyphs.png"
TENSORS = ("table_VE", "shuffled_V", "affine_NE", "offset_E")  # names of the stored tensors
SHEET_ROWS = 256  # pictures on the sheet: 16 x 16 are legible on one screen
FLOAT_BITS = 1024  # width of the random bits that random_float is projected from


def build_substrate(tokenizer: Tokenizer, settings: SubstrateSettings, out: Path) -> SubstrateConfig:
    """Make the codes of every token and write the substrate folder `out`; a finished one is only read.

    Raises:
        InputError: options contradict each other, codes do not fit the vocabulary or the canvas, a font or file is
            missing or bad, or `out` holds something else.
    """
    config = substrate_config(settings, tokenizer.vocab_size)
    check_settings(settings, config)
    fonts = load_fonts(settings.font or None, settings.side) if settings.kind == "glyph" else None
    files = fonts.paths if fonts else [Path(settings.file)] if settings.file else []
    kept = {key: value for key, value in asdict(settings).items() if key not in ("path", "file", "strict")}
    build = Build("substrate", kept, {"tokenizer": tokenizer.fingerprint, **_digests(files)})
    with one_writer(out):
        if build.is_done(out):
            _check_drawn(build.result.get("missing", []), settings)
            return _recorded_config(out, build)
        pictured = tokenizer.pictured(settings.spelling)
        drawing = draw_vocabulary(pictured, fonts, settings) if fonts else Drawing(np.empty((0, 1), np.uint8), [])
        missing = [ord(character) for character in drawing.missing]
        _check_drawn(missing, settings)
        config, tensors = make_values(config, settings, tokenizer.fingerprint, drawing.bits_VP)
        with build.folder(out) as partial:
            if tensors:
                save_tensors(tensors, partial / TABLE)
            (partial / TOKENS).write_text(to_json(pictured), encoding="utf-8")
            if fonts:
                shown = sheet_ids(tokenizer.tokens)
                glyph_sheet(drawing.bits_VP[shown], [pictured[number] for number in shown], partial / SHEET, fonts)
            build.result = {"config": asdict(config), "missing": missing, "blank": blank_ids(drawing, pictured, fonts)}
        say(f"{out}: {settings.kind}, {config.vocab_size:,} codes of width {config.n_embed}, {config.fingerprint[:12]}")
        return config


def load_substrate(folder: str | Path, d_model: int, tokenizer_fingerprint: str | None = None) -> Substrate:
    """The module of the substrate folder, or run folder, lifted to `d_model`, holding its values.

    Raises:
        InputError: the folder is missing or damaged, was made for another tokenizer than the one named, or its codes
            cannot be lifted to `d_model`.
    """
    if (Path(folder) / WEIGHTS).exists():
        made_for, config, tensors = read_run_codes(Path(folder))
    else:
        build, config, tensors = read_substrate(folder)
        made_for = build.inputs["tokenizer"]
    if tokenizer_fingerprint not in (None, made_for):
        raise InputError(f"{folder} was made for tokenizer {made_for[:12]}, the recipe's tokenizer is "
                         f"{tokenizer_fingerprint[:12]}; build the substrate for this tokenizer")
    try:
        substrate = Substrate(config, d_model)
    except ValueError as error:
        raise InputError(str(error)) from None
    if config.lift == "orthogonal":
        tensors["lift_ED"] = orthonormal_rows(config.n_embed, d_model, config.lift_seed)
    substrate.load_state_dict(tensors)
    return substrate


def read_substrate(folder: str | Path) -> tuple[Build, SubstrateConfig, dict[str, Tensor]]:
    """The config of a substrate folder, and its stored tensors (none for a rule without parameters).

    Raises:
        InputError: the folder is missing, something else, or damaged.
    """
    folder = Path(folder)
    build = read_build(folder)
    if build.made != "substrate":
        raise InputError(f"{folder} holds a {build.made}, not a substrate")
    config = _recorded_config(folder, build)
    tensors = load_tensors(folder / TABLE) if expected_shapes(config) else {}
    check_tensors(folder / TABLE, config, tensors)
    as_made = not (config.trainable and replace(config, trainable=False).is_rule)  # else the table of a rule is stored
    if as_made and fingerprint(config, build.inputs.get("tokenizer", ""), tensors) != config.fingerprint:
        raise InputError(f"{folder} holds other codes than it was built with ({config.fingerprint[:12]}); build it again")
    return build, config, tensors


def _recorded_config(folder: Path, build: Build) -> SubstrateConfig:
    """The config that a build.json records."""
    try:
        return SubstrateConfig(**build.result["config"])
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{folder}/build.json is damaged (result.config: {error}); build it again") from None


def read_run_codes(run: Path) -> tuple[str, SubstrateConfig, dict[str, Tensor]]:
    """The fingerprint of a run's tokenizer, and its codes as they are after training.

    Raises:
        InputError: the folder is damaged, or its model reads more than one substrate.
    """
    try:
        recorded = read_json(run / CONFIG)
        made_for, config = recorded["tokenizer_fingerprint"], SubstrateConfig(**recorded["substrate"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{run}/config.json does not describe a single substrate ({error}); give a trained run or "
                         "a substrate folder") from None
    found = load_ending(run / WEIGHTS, [f"substrate.{name}" for name in TENSORS])
    tensors = {name.rpartition(".")[2]: tensor for name, tensor in found.items()}
    if len(tensors) < len(found):
        raise InputError(f"{run / WEIGHTS} holds more than one substrate ({', '.join(sorted(found))}); give one of the runs "
                         "that it was made from")
    check_tensors(run / WEIGHTS, config, tensors)
    return made_for, config, tensors


def substrate_config(settings: SubstrateSettings, vocab_size: int) -> SubstrateConfig:
    """The substrate's part of the model's config, without the fingerprint."""
    return SubstrateConfig(
        vocab_size=vocab_size, n_embed=settings.n_embed, kind=settings.kind, scale=settings.scale, lift=settings.lift,
        trainable=settings.trainable, seed=settings.seed, lift_seed=settings.lift_seed, shuffle_seed=settings.shuffle_seed,
    )


def check_settings(settings: SubstrateSettings, config: SubstrateConfig) -> None:
    """Refuse options that do not apply to the kind, and widths that it cannot have.

    Raises:
        InputError: with the option, its value and what would work.
    """
    for name, kinds in OPTIONS.items():
        value = getattr(settings, name)
        if value != getattr(SubstrateSettings, name) and settings.kind not in kinds:
            raise InputError(f"{name} {value} applies only to kinds {', '.join(kinds)}, not to {settings.kind}; remove it")
    if settings.lift_seed != SubstrateSettings.lift_seed and settings.lift != "orthogonal":
        raise InputError(f"lift_seed {settings.lift_seed} applies only to lift orthogonal, not to {settings.lift}; "
                         "remove it")
    if settings.std is not None and settings.scale != "none":
        raise InputError(f"std {settings.std:g} applies only to scale none, not to {settings.scale}, which sets the norm of "
                         "each code; give --scale none, or remove it")
    if settings.kind == "given" and not settings.file:
        raise InputError("kind given needs a table; name it with --file TABLE.pt, .safetensors or .npy")
    _check_width(settings, config)


def _check_width(settings: SubstrateSettings, config: SubstrateConfig) -> None:
    width, ids, pixels = settings.n_embed, config.vocab_size, settings.side**2
    if not settings.pca and width != pixels:
        raise InputError(f"n_embed {width} is not {settings.side} x {settings.side}; without PCA it must be {pixels}")
    if settings.kind == "glyph" and settings.pca and width > min(pixels, ids):
        raise InputError(f"n_embed {width} is more than {settings.side} x {settings.side} pixels of {ids} tokens have "
                         f"components; at most {min(pixels, ids)}")
    if settings.kind == "random_float" and width > ids:
        raise InputError(f"n_embed {width} is more than random codes of {ids} tokens have components; at most {ids}")
    if settings.kind.endswith("_bits") and width < config.places:
        raise InputError(f"n_embed {width} bits cannot distinguish {ids} ids; give at least {config.places}")
    if settings.unique and width <= config.places:
        raise InputError(f"n_embed {width} leaves no columns besides the {config.places} bits that distinguish {ids} ids; "
                         f"give at least {config.places + 1}")


def make_values(
    config: SubstrateConfig, settings: SubstrateSettings, tokenizer_fingerprint: str, bits_VP: np.ndarray
) -> tuple[SubstrateConfig, dict[str, Tensor]]:
    """The config with its fingerprint, and the tensors to store: a table, or the parameters of a rule.

    Training changes neither values nor fingerprint: a trainable rule is stored as the table that it gives.
    """
    rule = replace(config, trainable=False)
    tensors = rule_tensors(rule) if rule.is_rule else {"table_VE": _table(config, settings, bits_VP)}
    named = replace(config, fingerprint=fingerprint(config, tokenizer_fingerprint, tensors))
    return named, {"table_VE": all_codes(rule, tensors)} if rule.is_rule and config.trainable else tensors


def _table(config: SubstrateConfig, settings: SubstrateSettings, bits_VP: np.ndarray) -> Tensor:
    table_VE = _content(config, settings, bits_VP)
    if config.shuffle_seed is not None:
        table_VE = table_VE[shuffled_ids(config.vocab_size, config.shuffle_seed)]
    if settings.unique:
        put_id_bits(table_VE, config.places, config.scale)
    else:
        scale_table(table_VE, config.scale)
    return table_VE


def _content(config: SubstrateConfig, settings: SubstrateSettings, bits_VP: np.ndarray) -> Tensor:
    """Codes of the kinds that are tables, before they are scaled."""
    ids, width, seed = config.vocab_size, config.n_embed, config.seed
    match config.kind:
        case "glyph" if settings.pca:
            return principal_components(bits_VP, width)
        case "glyph":
            order_P = np.arange(width) if settings.augment == "none" else polar_order(settings.side)
            return centred(bits_VP, order_P)
        case "random_bits":
            return torch.from_numpy(random_bits(ids, width, config.places, seed)).float()
        case "random_float":
            return principal_components(random_bits(ids, max(width, FLOAT_BITS), config.places, seed), width)
        case "given":
            return read_table(Path(str(settings.file)), ids, width)
    return torch.randn(ids, width, generator=torch.Generator().manual_seed(seed)) * (settings.std or 1.0)


def more_glyph_codes(
    config: SubstrateConfig, settings: SubstrateSettings, bits_VP: np.ndarray, new_UP: np.ndarray
) -> tuple[Tensor, Tensor]:
    """The codes of a vocabulary as they were built, and those of more tokens by the same axes, [V, E] and [U, E].

    Bits of the id (`unique`) are for new ids the lowest ones that there are columns for.
    """
    places = max(1, (len(bits_VP) - 1).bit_length())
    old = replace(config, vocab_size=len(bits_VP))
    codes_VE, width = _table(old, settings, bits_VP), config.n_embed
    if settings.pca:
        mean_P, axes_PE = principal_axes(bits_VP, width)
        new_UE = torch.from_numpy((new_UP - mean_P) @ axes_PE)
    else:
        order_P = np.arange(width) if settings.augment == "none" else polar_order(settings.side)
        new_UE = torch.from_numpy((new_UP - bits_VP.mean(0, dtype=np.float64)).astype(np.float32)[:, order_P])
    if settings.unique:
        scale_table(new_UE[:, :-places], config.scale)
        # The bits are as large as in the row of the first id, whose norm is known.
        content_VE = _content(old, settings, bits_VP)[:, :-places].contiguous()
        scale_table(content_VE, config.scale)
        amplitude = float(content_VE.double().square().mean().sqrt()) or 1.0
        ids_U = torch.arange(len(bits_VP), len(bits_VP) + len(new_UP))
        new_UE[:, -places:] = ((ids_U[:, None] >> torch.arange(places) & 1) * 2 - 1) * amplitude
    scale_table(new_UE, config.scale)
    return codes_VE, new_UE


def _digests(files: Sequence[Path]) -> dict[str, str]:
    for path in files:
        if not path.is_file():
            raise InputError(f"{path} does not exist; name a file that does")
    return {str(path): sha256_file(path) for path in files}


def draw_vocabulary(pictured: Sequence[str], fonts: FontChain, settings: SubstrateSettings) -> Drawing:
    """Pictures of every token, drawn by the settings."""
    published = "published-2-3" if len(pictured) == 1 << 16 else "published-max"
    augment = published if settings.augment == "published" else "none"
    return draw_tokens(pictured, fonts, settings.side, augment, "drawing glyphs")


def _check_drawn(missing: Sequence[int], settings: SubstrateSettings) -> None:
    """Report code points that are in no font."""
    if not missing:
        return
    names = ", ".join(f"U+{code_point:04X}" for code_point in missing[:10])
    message = f"{len(missing)} of the characters are in no font (first: {names})"
    if settings.strict:
        raise InputError(f"{message}; add a font that has them with --font, or go on without --strict")
    published = settings.augment == "published"
    say(f"{message}; {'all are drawn alike, as published' if published else 'each gets a placeholder of its own'}")


def blank_ids(drawing: Drawing, pictured: Sequence[str], fonts: FontChain | None) -> list[int]:
    """Ids of tokens whose picture is blank; the published noise, at most 4% of a picture, does not count as ink."""
    sparse = np.flatnonzero(drawing.bits_VP.mean(1) < 0.05)
    if not len(sparse) or not fonts:
        return []
    bare = draw_tokens([pictured[number] for number in sparse.tolist()], fonts, fonts.side)
    return sparse[~bare.bits_VP.any(1)].tolist()


def sheet_ids(tokens: Sequence[str]) -> np.ndarray:
    """Ids for the sheet, spread evenly over the tokens that are not bytes."""
    drawn = [number for number, token in enumerate(tokens) if token not in BYTES]
    picks = np.linspace(0, len(drawn) - 1, min(SHEET_ROWS, len(drawn))).round().astype(int)
    return np.array(drawn)[picks]
