"""Vocabulary -> the codes below the first block, as a folder that models share: kind, scale, fingerprint, table.

Kinds: `glyph` (pictures of the tokens, PCA; arXiv 2507.04886), `token_bits` (binary id, computed in the model),
`learned` (random start, for the trainable twin). Any table can be frozen or trainable.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from glyphlm.errors import InputError
from glyphlm.fonts import FontChain, load_fonts
from glyphlm.glyphs import Drawing, draw_tokens, glyph_sheet
from glyphlm.layouts import BYTES
from glyphlm.model import Substrate, SubstrateConfig, scale_rows
from glyphlm.outputs import Build, read_build, sha256_file
from glyphlm.progress import say
from glyphlm.tensors import load_tensors, save_tensors
from glyphlm.tokenizer import Tokenizer

TABLE = "substrate.safetensors"
SHEET = "glyphs.png"
SHEET_ROWS = 256  # pictures on the sheet: 16 x 16 are legible on one screen


@dataclass
class SubstrateSettings:
    """Which substrate.

    Args:
        path: Folder of a substrate that exists; without it one is built.
        kind: Pictures of the tokens, bits of the id, or a random start that training shapes.
        n_embed: Width of a code; d_model must be a multiple of it.
        scale: Norm of a code: 1 (l2, as published), sqrt(n_embed) (unit_rms), or as it comes (none).
        lift: How a code narrower than d_model is repeated: each value (papers 1, 2) or the whole code (paper 3).
        trainable: Whether training changes the table.
        side: Canvas of a glyph in pixels, 32 or 64.
        font: Font files in order of preference; by default the system's GNU Unifont.
        strict: Stop where a character is in no font, instead of drawing a placeholder.
        seed: Of the random start of kind learned.
    """

    path: str | None = None
    kind: Literal["glyph", "token_bits", "learned"] = "glyph"
    n_embed: int = 256
    scale: Literal["l2", "unit_rms", "none"] = "l2"
    lift: Literal["repeat_interleave", "tile"] = "repeat_interleave"
    trainable: bool = False
    side: int = 32
    font: list[str] = field(default_factory=list)
    strict: bool = False
    seed: int = 1


def build_substrate(tokenizer: Tokenizer, settings: SubstrateSettings, out: Path) -> SubstrateConfig:
    """Make the codes of every token and write the substrate folder `out`; found done, it is only read.

    Raises:
        InputError: codes do not fit the vocabulary or the canvas, a font is missing, or `out` holds something else.
    """
    check_width(settings, tokenizer.vocab_size)
    kept = {key: value for key, value in asdict(settings).items() if key not in ("path", "strict")}
    fonts = load_fonts(settings.font or None, settings.side) if settings.kind == "glyph" else None
    inputs = {str(path): sha256_file(path) for path in fonts.paths} if fonts else {}
    build = Build("substrate", kept, {"tokenizer": tokenizer.fingerprint, **inputs})
    if build.is_done(out):
        check_drawn(build.result["missing"], settings.strict)
        return SubstrateConfig(**build.result["config"])
    drawing = draw_vocabulary(tokenizer, fonts) if fonts else None
    missing = [ord(character) for character in drawing.missing] if drawing else []
    check_drawn(missing, settings.strict)
    table_VE = _table(drawing, settings, tokenizer.vocab_size)
    config = SubstrateConfig(
        vocab_size=tokenizer.vocab_size, n_embed=settings.n_embed, kind=settings.kind, scale=settings.scale,
        lift=settings.lift, trainable=settings.trainable, fingerprint=fingerprint(settings, tokenizer, table_VE),
    )
    with build.folder(out) as partial:
        if table_VE is not None:
            save_tensors({"table_VE": table_VE}, partial / TABLE)
        if drawing is not None:
            _write_sheet(drawing, tokenizer, partial / SHEET)
        build.result = {"config": asdict(config), "missing": missing}
    say(f"{out}: {settings.kind}, {config.vocab_size:,} codes of width {config.n_embed}, {config.fingerprint[:12]}")
    return config


def load_substrate(folder: str | Path, d_model: int, tokenizer_fingerprint: str | None = None) -> Substrate:
    """The module of the substrate folder, lifted to `d_model`, holding its table.

    Raises:
        InputError: the folder is missing or damaged, was made for another tokenizer than the one named, or its width
            does not divide `d_model`.
    """
    folder = Path(folder)
    build = read_build(folder)
    if build.made != "substrate":
        raise InputError(f"{folder} holds a {build.made}, not a substrate")
    made_for = build.inputs["tokenizer"]
    if tokenizer_fingerprint not in (None, made_for):
        raise InputError(f"{folder} was made for tokenizer {made_for[:12]}, the recipe's tokenizer is "
                         f"{tokenizer_fingerprint[:12]}; build the substrate for this tokenizer")
    config = SubstrateConfig(**build.result["config"])
    try:
        substrate = Substrate(config, d_model)
    except ValueError as error:
        raise InputError(str(error)) from None
    if not config.is_rule:
        with torch.no_grad():
            substrate.table_VE.copy_(read_table(folder / TABLE, config))
    return substrate


def read_table(path: Path, config: SubstrateConfig) -> Tensor:
    """The stored table, float32 [V, E].

    Raises:
        InputError: the file is missing, damaged or of another shape.
    """
    tensors, expected = load_tensors(path), (config.vocab_size, config.n_embed)
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if shapes != {"table_VE": expected}:
        raise InputError(f"{path} holds {shapes}, not a table_VE of shape {expected}; build the substrate again")
    return tensors["table_VE"]


def check_width(settings: SubstrateSettings, vocab_size: int) -> None:
    """Refuse a width that the kind cannot have.

    Raises:
        InputError: more principal components than pixels or tokens, or fewer bits than the vocabulary needs.
    """
    if settings.kind == "glyph" and settings.n_embed > min(settings.side**2, vocab_size):
        raise InputError(f"n_embed {settings.n_embed} is more than {settings.side} x {settings.side} pixels of "
                         f"{vocab_size} tokens have components; at most {min(settings.side**2, vocab_size)}")
    needed = (vocab_size - 1).bit_length()
    if settings.kind == "token_bits" and settings.n_embed < needed:
        raise InputError(f"n_embed {settings.n_embed} bits cannot tell {vocab_size} ids apart; at least {needed}")
    if settings.kind == "token_bits" and settings.trainable:
        raise InputError("token_bits is a rule without a table, so it cannot be trainable; use kind learned or glyph")
    if settings.n_embed < 1:
        raise InputError(f"n_embed {settings.n_embed} must be positive")


def fingerprint(settings: SubstrateSettings, tokenizer: Tokenizer, table_VE: Tensor | None) -> str:
    """sha256 of kind, vocabulary, how codes are scaled and lifted, and the float32 bytes of the table (or the rule)."""
    rule = [settings.kind, tokenizer.fingerprint, settings.n_embed, settings.scale, settings.lift]
    digest = hashlib.sha256(json.dumps(rule).encode())
    if table_VE is not None:
        digest.update(table_VE.numpy().tobytes())
    return digest.hexdigest()


def draw_vocabulary(tokenizer: Tokenizer, fonts: FontChain) -> Drawing:
    """Pictures of every token; byte tokens are drawn as their two hexadecimal digits."""
    return draw_tokens([_legible(token) for token in tokenizer.tokens], fonts, fonts.side)


def check_drawn(missing: Sequence[int], strict: bool) -> None:
    """Say which code points are in no font and got placeholders.

    Raises:
        InputError: there are some, and `strict` is set.
    """
    if not missing:
        return
    names = ", ".join(f"U+{code_point:04X}" for code_point in missing[:10])
    message = f"{len(missing)} of the characters are in no font (first: {names})"
    if strict:
        raise InputError(f"{message}; add a font that has them with --font, or go on without --strict")
    say(f"{message}; each gets a placeholder of its own")


def _legible(token: str) -> str:
    return token[3:5] if token in BYTES else token


def _table(drawing: Drawing | None, settings: SubstrateSettings, vocab_size: int) -> Tensor | None:
    if settings.kind == "token_bits":
        return None
    if drawing is None:
        generator = torch.Generator().manual_seed(settings.seed)
        code_VE = torch.randn(vocab_size, settings.n_embed, generator=generator)
    else:
        code_VE = principal_components(torch.from_numpy(drawing.bits_VP), settings.n_embed)
    return scale_rows(code_VE, settings.scale).contiguous()


def principal_components(bits_VP: Tensor, n_embed: int) -> Tensor:
    """The first `n_embed` principal components of the pictures, float32 [V, n_embed] (PCA without whitening).

    Each component's sign is fixed so that its largest entry is positive; eigenvectors leave it open.
    """
    x_VP = bits_VP.float()
    mean_P = x_VP.mean(0)
    # Counts of shared ink are integers below 2^24, so the float32 product is exact; the rest is float64.
    together_PP = (x_VP.T @ x_VP).double()
    covariance_PP = together_PP / len(x_VP) - torch.outer(mean_P.double(), mean_P.double())
    axes_PE = torch.linalg.eigh(covariance_PP).eigenvectors.flip(1)[:, :n_embed]
    largest_E = axes_PE.abs().argmax(0)
    axes_PE = axes_PE * axes_PE[largest_E, torch.arange(axes_PE.shape[1])].sign()
    return (x_VP - mean_P) @ axes_PE.float()


def _write_sheet(drawing: Drawing, tokenizer: Tokenizer, path: Path) -> None:
    shown = sheet_ids(tokenizer.tokens)
    glyph_sheet(drawing.bits_VP[shown], [_legible(tokenizer.tokens[number]) for number in shown], path)


def sheet_ids(tokens: Sequence[str]) -> np.ndarray:
    """Ids for the sheet, spread evenly over the tokens that are not bytes."""
    drawn = [number for number, token in enumerate(tokens) if token not in BYTES]
    picks = np.linspace(0, len(drawn) - 1, min(SHEET_ROWS, len(drawn))).round().astype(int)
    return np.array(drawn)[picks]
