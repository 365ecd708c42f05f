"""The pictures that the codes of a run were computed from: drawn again, and verified by recomputing the codes.

Shapes: V vocabulary, P pixels of a picture, E n_embed, S side of a picture.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
import torch

from glyphlm.base.errors import InputError
from glyphlm.base.names import SETTINGS
from glyphlm.base.records import read_yaml
from glyphlm.modeling.substrate import scale_rows
from glyphlm.pages.reader import Reader, as_base64
from glyphlm.substrate.build import draw_vocabulary, make_values
from glyphlm.substrate.codes import principal_axes
from glyphlm.substrate.fonts import load_fonts
from glyphlm.substrate.glyphs import LEGIBLE, draw_tokens, pixels_a_character
from glyphlm.substrate.settings import SubstrateSettings

GREYS = 15


@dataclass(frozen=True)
class Pictures:
    """Pictures of all tokens; `axes` (mean and axes) if the codes are projections, `note` is empty if unverified."""

    bits_VP: np.ndarray
    texts: list[str]
    axes: tuple[np.ndarray, np.ndarray] | None
    note: str

    @property
    def side(self) -> int:
        """Side S of a picture, in pixels."""
        return math.isqrt(self.bits_VP.shape[1])

    def packed(self, number: int) -> str:
        """The picture of a token as base64, 8 pixels per byte."""
        return as_base64(np.packbits(self.bits_VP[number]))

    def kept(self, number: int) -> str | None:
        """The part of the picture that the code retains, as base64: its projection on the axes, two grey pixels per byte."""
        if self.axes is None:
            return None
        mean_P, axes_PE = self.axes
        grey_P = mean_P + (self.bits_VP[number] - mean_P) @ axes_PE @ axes_PE.T
        level_P = np.rint(grey_P.clip(0, 1) * GREYS).astype(np.uint8)
        return as_base64(level_P[::2] << 4 | level_P[1::2])

    def squeezed(self, number: int) -> bool:
        """Whether the characters are too narrow to be legible."""
        return pixels_a_character(self.texts[number], self.side) < LEGIBLE


def find_pictures(readers: Sequence[Reader]) -> tuple[Pictures | None, str]:
    """Pictures of all tokens, and a sentence on their origin.

    They are drawn as the recipe of the first run of kind glyph says, else by the defaults, else as for the published tables:
    the first of these that gives the codes of the run.
    """
    tried = []
    for reader in [reader for reader in readers if reader.config.kind == "glyph"][:1]:
        for settings in _drawings(reader):
            try:
                found = _draw(reader, settings)
            except InputError as error:
                return None, f"No pictures: {error}."
            if found.note:
                return found, found.note
            tried.append(found)
    if tried:
        return tried[0], ("Pictures are drawn by the fonts of this machine. The codes are not those that come from them: "
                          "they were trained further, or drawn with another font or other settings.")
    return _plain_pictures(readers[0])


def _plain_pictures(reader: Reader) -> tuple[Pictures | None, str]:
    try:
        fonts, texts = load_fonts(None, 32), reader.tokenizer.pictured()
        bits_VP = draw_tokens(texts, fonts, 32).bits_VP
    except InputError as error:
        return None, f"No pictures: the codes of {reader.label} hold none, and {error}."
    note = (f"The {reader.words} of {reader.label} are not made from pictures; these are drawn with "
            f"{_names(fonts.paths)}, to recognize the tokens.")
    return Pictures(bits_VP, texts, None, note), note


def _drawings(reader: Reader) -> Iterable[SubstrateSettings]:
    """Settings that the pictures of a run may have been drawn with, the recorded ones first."""
    config, path = reader.config, reader.folder / SETTINGS
    recorded = (read_yaml(path).get("substrate") or {}) if path.is_file() else {}
    known = {field.name for field in fields(SubstrateSettings)} - {"path", "strict"}
    same = {name: getattr(config, name) for name in ("kind", "n_embed", "scale", "lift", "lift_seed")}
    own = SubstrateSettings(**{key: value for key, value in recorded.items() if key in known} | same)
    candidates = [own, SubstrateSettings(**same), SubstrateSettings(**same, augment="published")]
    return [one for number, one in enumerate(candidates) if one not in candidates[:number]]


def _draw(reader: Reader, settings: SubstrateSettings) -> Pictures:
    """The pictures, with axes and a note only if they give the codes of the run."""
    texts = reader.tokenizer.pictured(settings.spelling)
    fonts = load_fonts(settings.font or None, settings.side)
    bits_VP = draw_vocabulary(texts, fonts, settings).bits_VP
    axes = None
    if settings.pca and not settings.unique:
        axes = principal_axes(bits_VP, settings.n_embed)
        table_VE = scale_rows(torch.from_numpy((bits_VP - axes[0]) @ axes[1]), settings.scale)
    else:
        frozen = replace(reader.config, trainable=False)
        table_VE = make_values(frozen, settings, reader.tokenizer.fingerprint, bits_VP)[1]["table_VE"]
    if not torch.allclose(table_VE, reader.code_VE, atol=1e-4):  # LAPACK may round differently on another machine
        return Pictures(bits_VP, texts, None, "")
    note = (f"These are the pictures that the codes of {reader.label} were computed from: drawn again with "
            f"{_names(fonts.paths)}, {settings.side} × {settings.side} pixels, they give the same codes.")
    return Pictures(bits_VP, texts, axes, note)


def _names(paths: Iterable[Path]) -> str:
    return " and ".join(path.name for path in paths)
