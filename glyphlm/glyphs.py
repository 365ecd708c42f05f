"""Token strings + fonts -> bit pictures, drawn as the published builders do (arXiv 2507.04886, bvv241 notebooks).

Every character stands in its own cell, N characters make a strip, and the strip is squeezed to one square by taking
column floor((i + 0.5) N) for column i. Each code point is drawn once; augmentation and squeeze are then one constant
gather per token length. Shapes: V tokens, C code points, G tokens of one length, N characters of a token, S side in
pixels, P = S * S pixels in row-major order, K code points with ink outside their own cell (row 0 is empty).
"""

import io
import math
import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from glyphlm.errors import InputError
from glyphlm.fonts import FontChain, check_side, draw_character
from glyphlm.outputs import write_atomic

SEED = 42  # the published builders reset both generators to it for every token, so every token gets the same map
STRIP_BYTES = 1 << 26  # strips are composed in pieces of at most 64 MiB
CODE_POINT_BITS = 21
SHOWN, TILE = 64, (72, 80)  # glyph sheet: pictures of 64 pixels, tiles with room for a margin and a caption
EASY_SCRIPTS = ((0x0000, 0x024F), (0x0370, 0x052F), (0x0530, 0x058F))  # Latin to Extended-B; Greek, Cyrillic; Armenian


class Augmentation(NamedTuple):
    """Largest rotation in degrees, largest shift in pixels, share of pixels forced to ink."""

    rotation: float
    shift: int
    noise: float


EASY = {"published-2-3": Augmentation(4, 2, 0.01), "published-max": Augmentation(7, 3, 0.03)}
COMPLEX = Augmentation(0, 0, 0.001)  # tokens with a character outside EASY_SCRIPTS are only given noise


@dataclass(frozen=True)
class Drawing:
    """Pictures of V tokens: `bits_VP` uint8 {0,1}, 1 = ink, row-major; `missing` code points got placeholders."""

    bits_VP: np.ndarray
    missing: list[str]


@dataclass(frozen=True)
class _Cells:
    """Pictures of C code points, and the ink of K of them that falls into the cells before and after."""

    codes: dict[str, int]
    own_CSS: np.ndarray
    spill_C: np.ndarray
    before_KSS: np.ndarray
    after_KSS: np.ndarray


def draw_tokens(
    tokens: Sequence[str], fonts: FontChain, side: int, augment: str = "none"
) -> Drawing:
    """Draw V tokens: bits_VP (V, side * side).

    `augment` "none" draws upright and clean; "published-2-3" and "published-max" give the rotation, shift and noise of
    the published tables of these names, bit for bit with the same font.

    Raises:
        InputError: side or augment is unknown, the fonts have another size, or a token is empty.
    """
    _check_request(tokens, fonts, side, augment)
    cells, missing = _draw_cells(sorted(set().union(*tokens)), fonts)
    bits_VP = np.empty((len(tokens), side * side), np.uint8)
    for (length, easy), members in _groups(tokens, augment).items():
        source_P, noise_P = _gather(length, side, _augmentation(augment, easy))
        step = max(1, STRIP_BYTES // (length * side * side))
        for start in range(0, len(members), step):
            rows = members[start : start + step]
            strips_GX = _strips(cells, [tokens[row] for row in rows])
            # np.take is 6 times as fast here as strips_GX[:, source_P]
            bits_VP[rows] = np.take(strips_GX, source_P, axis=1) * (source_P >= 0) | noise_P
    return Drawing(bits_VP, missing)


def polar_order(side: int) -> np.ndarray:
    """The P pixels in the published bit order: by radius from the centre, angle, x, y. `bits_VP[:, order]` applies it.

    Raises:
        InputError: the side is not 32 or 64.
    """
    check_side(side)
    centre = side / 2
    pixels = ((x - centre, y - centre, x, y) for y in range(side) for x in range(side))
    ranked = sorted((math.hypot(dx, dy), math.atan2(dy, dx), x, y) for dx, dy, x, y in pixels)
    return np.array([y * side + x for _, _, x, y in ranked])


def glyph_sheet(bits_VP: np.ndarray, labels: Sequence[str], path: Path, columns: int = 16) -> None:
    """Write a PNG of the pictures as the model sees them, each with its label below; other scripts appear as hex codes.

    Raises:
        InputError: the pictures are not square, their number is not that of the labels, or there is none.
    """
    side = math.isqrt(bits_VP.shape[-1])
    if bits_VP.shape != (len(labels), side * side) or not len(labels) or columns < 1:
        raise InputError(
            f"cannot show pictures of shape {bits_VP.shape} with {len(labels)} labels in {columns} columns; "
            "give one square picture a row, as many labels, and at least 1 column"
        )
    width, height = min(columns, len(labels)), -(-len(labels) // columns)
    sheet = Image.new("L", (width * TILE[0], height * TILE[1]), 255)
    font = ImageFont.load_default(9).font_variant(layout_engine=ImageFont.Layout.BASIC)
    for index, (bits_P, label) in enumerate(zip(bits_VP, labels)):
        corner = (index % columns * TILE[0] + 4, index // columns * TILE[1] + 2)
        _draw_tile(sheet, corner, bits_P.reshape(side, side), _caption(label, font), font)
    png = io.BytesIO()
    sheet.save(png, "PNG")
    write_atomic(Path(path), png.getvalue())


def _check_request(tokens: Sequence[str], fonts: FontChain, side: int, augment: str) -> None:
    check_side(side)
    if fonts.side != side:
        raise InputError(f"the fonts were loaded for a side of {fonts.side}, not {side}; load them with side={side}")
    if augment not in ("none", *EASY):
        raise InputError(f"augment is {augment!r}; use one of none, {', '.join(EASY)}")
    if "" in tokens:
        raise InputError(f"token {list(tokens).index('')} of {len(tokens)} is empty and cannot be drawn; remove it")


def _draw_cells(characters: Sequence[str], fonts: FontChain) -> tuple[_Cells, list[str]]:
    """Draw each code point once; those without a glyph get placeholders and are listed."""
    side, missing = fonts.side, []
    own_CSS = np.empty((len(characters), side, side), np.uint8)
    spill_C = np.zeros(len(characters), np.int64)
    spilled = [np.zeros((side, 3 * side), bool)]
    for code, character in enumerate(characters):
        face = fonts.face_for(character)
        if face is None:
            missing.append(character)
            own_CSS[code] = _placeholder(ord(character), side)
            continue
        drawn = draw_character(character, face)
        own_CSS[code] = drawn[:, side : 2 * side]
        if drawn[:, :side].any() or drawn[:, 2 * side :].any():
            spill_C[code] = len(spilled)
            spilled.append(drawn)
    spilled_K = np.array(spilled)
    codes = {character: code for code, character in enumerate(characters)}
    return _Cells(codes, own_CSS, spill_C, spilled_K[:, :, :side], spilled_K[:, :, 2 * side :]), missing


def _placeholder(code_point: int, side: int) -> np.ndarray:
    """A frame around 7 x 3 blocks, one for each bit of the code point: two missing code points never look alike.

    Blocks are 4 x 8 pixels of 32, so every one of them still shows when 8 characters share a picture.
    """
    bits_B = [code_point >> bit & 1 for bit in reversed(range(CODE_POINT_BITS))]
    picture = np.zeros((32, 32), np.uint8)
    picture[:, 2:30] = 1
    picture[2:30, 4:28] = np.kron(np.reshape(bits_B, (7, 3)), np.ones((4, 8)))
    return np.kron(picture, np.ones((side // 32, side // 32), np.uint8))


def _groups(tokens: Sequence[str], augment: str) -> dict[tuple[int, bool], list[int]]:
    """Indices of the tokens that share one map: same length and, where it matters, same kind of script."""
    groups = defaultdict(list)
    for index, token in enumerate(tokens):
        groups[len(token), augment != "none" and _is_easy(token)].append(index)
    return groups


def _is_easy(token: str) -> bool:
    return all(any(first <= ord(character) <= last for first, last in EASY_SCRIPTS) for character in token)


def _augmentation(augment: str, easy: bool) -> Augmentation:
    if augment == "none":
        return Augmentation(0, 0, 0)
    return EASY[augment] if easy else COMPLEX


def _strips(cells: _Cells, tokens: Sequence[str]) -> np.ndarray:
    """G strips of N cells (G, N * S * S), cell by cell, with the ink that neighbours lend to each other."""
    codes_GN = np.array([[cells.codes[character] for character in token] for token in tokens])
    strips_GNSS = cells.own_CSS[codes_GN]
    spill_GN = cells.spill_C[codes_GN]
    if spill_GN.any():
        strips_GNSS[:, :-1] |= cells.before_KSS[spill_GN[:, 1:]]
        strips_GNSS[:, 1:] |= cells.after_KSS[spill_GN[:, :-1]]
    return strips_GNSS.reshape(len(tokens), -1)


def _gather(length: int, side: int, augmentation: Augmentation) -> tuple[np.ndarray, np.ndarray]:
    """Where each of the P pixels comes from in a strip of `length` cells (-1: from nowhere, white), and the noise.

    An image of pixel numbers takes the way of the published pictures. That way is rotation about the centre, then shift
    (what was rotated out of the strip is lost before it could be shifted back in), then noise on the whole strip, then
    the squeeze. The published blur changes no pixel after the threshold, so it is left out.
    """
    dice = random.Random(SEED)
    angle = dice.uniform(-augmentation.rotation, augmentation.rotation)
    dx, dy = (dice.randint(-augmentation.shift, augmentation.shift) for _ in range(2))
    numbers = np.arange(length * side * side, dtype=np.int32).reshape(length, side, side)
    strip = Image.fromarray(np.hstack(list(numbers)))
    strip = strip.rotate(angle, Image.Resampling.NEAREST, fillcolor=-1)
    strip = strip.transform(strip.size, Image.Transform.AFFINE, (1, 0, -dx, 0, 1, -dy), fillcolor=-1)
    noise = np.random.RandomState(SEED).rand(side, length * side) < augmentation.noise
    columns = (np.arange(side) * 2 + 1) * length // 2
    return np.asarray(strip)[:, columns].ravel(), noise[:, columns].ravel().astype(np.uint8)


def _draw_tile(
    sheet: Image.Image, corner: tuple[int, int], bits_SS: np.ndarray, caption: str, font: ImageFont.FreeTypeFont
) -> None:
    """One picture, dark on light grey, enlarged by whole pixels, and its caption below."""
    picture = Image.fromarray(np.where(bits_SS, 0, 235).astype(np.uint8))
    sheet.paste(picture.resize((SHOWN, SHOWN), Image.Resampling.NEAREST), corner)
    ImageDraw.Draw(sheet).text((corner[0], corner[1] + SHOWN + 1), caption, font=font, fill=0)


def _caption(label: str, font: ImageFont.FreeTypeFont) -> str:
    """The label where it is printable ASCII, else its code points in hex, cut to the width of a picture."""
    plain = label.isascii() and label.isprintable() and not label.isspace()
    caption = label if plain else " ".join(f"{ord(character):04X}" for character in label)
    return next(caption[:end] for end in range(len(caption), -1, -1) if font.getlength(caption[:end]) <= SHOWN)
