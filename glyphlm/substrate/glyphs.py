"""Token strings + fonts -> bit pictures, drawn as the published builders do (arXiv 2507.04886, bvv241 notebooks).

Every character stands in its own cell, N characters make a strip, and the strip is squeezed to one square by taking
column floor((i + 0.5) N) for column i. Each code point is drawn once; augmentation and squeeze are then one constant
gather per token length. Shapes: V tokens, C code points, G tokens of one length, N characters of a token, S side in
pixels, P = S * S pixels in row-major order, Q = P / 8 bytes of 8 pixels each.
"""

import io
import math
import random
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from glyphlm.base.errors import InputError
from glyphlm.base.outputs import write_atomic
from glyphlm.base.progress import Meter, meter
from glyphlm.substrate.fonts import FontChain, check_side, draw_characters

SEED = 42  # the published builders reset both generators to it for every token, so every token gets the same map
STRIP_BYTES = 1 << 20  # strips are composed in pieces of at most 1 MiB, which stay in the cache
DRAWN_AT_ONCE = 64  # code points
CODE_POINT_BITS = 21
SHOWN, TILE = 64, (72, 88)  # glyph sheet: pictures of 64 pixels, tiles with room for a margin and a caption
CAPTION = 16  # pixels; the size at which Unifont is drawn without grey edges
LEGIBLE = 4  # pixels a character below which a squeezed picture cannot be read: strokes of Unifont are 2 of 32 wide
EASY_SCRIPTS = re.compile(r"[\u0000-\u024F\u0370-\u058F]*")  # Latin to Extended-B; Greek, Cyrillic, Armenian


class Augmentation(NamedTuple):
    """Largest rotation in degrees, largest shift in pixels, share of pixels forced to ink."""

    rotation: float
    shift: int
    noise: float


EASY = {"published-2-3": Augmentation(4, 2, 0.01), "published-max": Augmentation(7, 3, 0.03)}
COMPLEX = Augmentation(0, 0, 0.001)  # tokens with a character outside EASY_SCRIPTS are only given noise


@dataclass(frozen=True)
class Drawing:
    """Pictures of V tokens: `bits_VP` uint8 {0,1}, 1 = ink, row-major; `missing` code points are in no font."""

    bits_VP: np.ndarray
    missing: list[str]


class _Cells(NamedTuple):
    """Packed pictures of C code points: the ink in the cell before, in their own and in the one after."""

    codes: dict[str, int]
    before_CQ: np.ndarray
    own_CQ: np.ndarray
    after_CQ: np.ndarray


def draw_tokens(
    tokens: Sequence[str], fonts: FontChain, side: int, augment: str = "none", title: str | None = None
) -> Drawing:
    """Draw V tokens: bits_VP (V, side * side).

    `augment` "none" draws upright and clean; "published-2-3" and "published-max" give the rotation, shift and noise of
    the published tables of these names, bit for bit with the same font. A code point that is in no font gets a
    placeholder of its own; in the published tables it is the first font's .notdef glyph, as it was there. A progress bar is
    shown under `title`.

    Raises:
        InputError: side or augment is unknown, the fonts have another size, one is damaged, or a token is empty.
    """
    _check_request(tokens, fonts, side, augment)
    characters = sorted(set().union(*tokens))
    bits_VP = np.empty((len(tokens), side * side), np.uint8)
    with meter(title, len(characters) + len(tokens)) as bar:
        cells, missing = _draw_cells(characters, fonts, augment == "none", bar)
        for (length, easy), members in _groups(tokens, augment).items():
            source_P, noise_P = _gather(length, side, _augmentation(augment, easy))
            step = max(1, STRIP_BYTES // (length * side * side))
            for start in range(0, len(members), step):
                rows = members[start : start + step]
                strips_GX = _strips(cells, [tokens[row] for row in rows])
                # np.take is 6 times as fast here as strips_GX[:, source_P]
                bits_GP = np.take(strips_GX, source_P, axis=1)
                bits_GP |= noise_P
                bits_VP[rows] = bits_GP
                bar.advance(len(rows))
    return Drawing(bits_VP, missing)


def pixels_a_character(token: str, side: int) -> float:
    """Width of a character in the picture of a token, whose characters share `side` pixels."""
    return side / len(token)


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


def glyph_sheet(bits_VP: np.ndarray, labels: Sequence[str], path: Path, fonts: FontChain, columns: int = 16) -> None:
    """Write a PNG of the pictures as the model sees them, each with its label below in the same fonts, 16 pixels high.

    Between the two stands a dotted line where the characters are squeezed too narrow to be read.

    Raises:
        InputError: the pictures are not square, their number differs from that of the labels, or is 0.
    """
    side = math.isqrt(bits_VP.shape[-1])
    if bits_VP.shape != (len(labels), side * side) or not len(labels) or columns < 1:
        raise InputError(
            f"cannot show pictures of shape {bits_VP.shape} with {len(labels)} labels in {columns} columns; "
            "give one square picture a row, as many labels, and at least 1 column"
        )
    width, height = min(columns, len(labels)), -(-len(labels) // columns)
    sheet = Image.new("L", (width * TILE[0], height * TILE[1]), 255)
    pen, faces = ImageDraw.Draw(sheet), [face.font_variant(size=CAPTION) for face in fonts.faces]
    for index, (bits_P, label) in enumerate(zip(bits_VP, labels)):
        corner = (index % columns * TILE[0] + 4, index // columns * TILE[1] + 2)
        picture = Image.fromarray(np.where(bits_P.reshape(side, side), 0, 235).astype(np.uint8))
        sheet.paste(picture.resize((SHOWN, SHOWN), Image.Resampling.NEAREST), corner)
        if pixels_a_character(label, side) < LEGIBLE:
            pen.point([(corner[0] + x, corner[1] + SHOWN + y) for x in range(0, SHOWN, 3) for y in (0, 1)], 0)
        _write_caption(pen, (corner[0], corner[1] + SHOWN + 2), label, list(zip(fonts.code_points, faces)))
    png = io.BytesIO()
    sheet.save(png, "PNG")
    write_atomic(Path(path), png.getvalue())


def _write_caption(
    pen: ImageDraw.ImageDraw, corner: tuple[int, int], label: str, faces: Sequence[tuple[frozenset[int], Any]]
) -> None:
    """The label, as far as a picture is wide; a character that is in no font as its code point."""
    x, end, plain = float(corner[0]), corner[0] + SHOWN, ImageFont.load_default(9)
    for place, character in enumerate(map(_visible, label)):
        face = next((face for known, face in faces if ord(character) in known), None)
        text = character if face else f"{ord(character):04X}"
        more = 0 if place == len(label) - 1 else 8  # room for the ellipsis
        if x + (face or plain).getlength(text) + more > end:
            pen.text((x, corner[1] + 4), "...", font=plain, fill=0)
            return
        pen.text((x, corner[1] + 4 * (face is None)), text, font=face or plain, fill=0)
        x += (face or plain).getlength(text)


def _visible(character: str) -> str:
    """A sign for a space or a control character."""
    return chr(0x2400 + ord(character)) if character <= " " else character


def _check_request(tokens: Sequence[str], fonts: FontChain, side: int, augment: str) -> None:
    check_side(side)
    if fonts.side != side:
        raise InputError(f"the fonts were loaded for a side of {fonts.side}, not {side}; load them with side={side}")
    if augment not in ("none", *EASY):
        raise InputError(f"augment is {augment!r}; use one of none, {', '.join(EASY)}")
    if "" in tokens:
        raise InputError(f"token {list(tokens).index('')} of {len(tokens)} is empty and cannot be drawn; remove it")


def _draw_cells(characters: Sequence[str], fonts: FontChain, placeholders: bool, bar: Meter) -> tuple[_Cells, list[str]]:
    """Draw each code point once; those in no font are listed, and get placeholders or the first font's .notdef glyph."""
    codes = {character: code for code, character in enumerate(characters)}
    faces = [fonts.face_for(character) for character in characters]
    missing = [character for character, face in zip(characters, faces) if face is None]
    faces = faces if placeholders else [face or fonts.faces[0] for face in faces]
    cells_3CQ = np.empty((3, len(characters), fonts.side**2 // 8), np.uint8)
    for start in range(0, len(characters), DRAWN_AT_ONCE):
        piece = slice(start, start + DRAWN_AT_ONCE)
        cells_3CQ[:, piece] = draw_characters(characters[piece], faces[piece], fonts.side)
        bar.advance(len(characters[piece]))
    for character in missing if placeholders else ():
        cells_3CQ[1, codes[character]] = np.packbits(_placeholder(ord(character), fonts.side))
    return _Cells(codes, *cells_3CQ), missing


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
        groups[len(token), augment != "none" and bool(EASY_SCRIPTS.fullmatch(token))].append(index)
    return groups


def _augmentation(augment: str, easy: bool) -> Augmentation:
    if augment == "none":
        return Augmentation(0, 0, 0)
    return EASY[augment] if easy else COMPLEX


def _strips(cells: _Cells, tokens: Sequence[str]) -> np.ndarray:
    """G strips of N cells, cell by cell, with the ink that overlaps from neighbouring cells, and a white pixel at the end.

    Shape (G, N * S * S + 1).
    """
    codes_GN = np.array([[cells.codes[character] for character in token] for token in tokens])
    strips_GNQ = cells.own_CQ[codes_GN]
    strips_GNQ[:, :-1] |= cells.before_CQ[codes_GN[:, 1:]]
    strips_GNQ[:, 1:] |= cells.after_CQ[codes_GN[:, :-1]]
    return np.unpackbits(strips_GNQ.reshape(len(tokens), -1), axis=1, count=8 * strips_GNQ[0].size + 1)


def _gather(length: int, side: int, augmentation: Augmentation) -> tuple[np.ndarray, np.ndarray]:
    """Where each of the P pixels comes from in a strip of `length` cells (-1: its end, white), and the noise.

    An image of pixel numbers is transformed as the published pictures are: rotation about the centre, then shift
    (what was rotated out of the strip is lost before it could be shifted back in), then noise on the whole strip, then
    the squeeze. The published blur changes no pixel after the threshold, so it is left out.
    """
    rng = random.Random(SEED)
    angle = rng.uniform(-augmentation.rotation, augmentation.rotation)
    dx, dy = (rng.randint(-augmentation.shift, augmentation.shift) for _ in range(2))
    numbers = np.arange(length * side * side, dtype=np.int32).reshape(length, side, side)
    strip = Image.fromarray(np.hstack(list(numbers)))
    strip = strip.rotate(angle, Image.Resampling.NEAREST, fillcolor=-1)
    strip = strip.transform(strip.size, Image.Transform.AFFINE, (1, 0, -dx, 0, 1, -dy), fillcolor=-1)
    noise = np.random.RandomState(SEED).rand(side, length * side) < augmentation.noise
    columns = (np.arange(side) * 2 + 1) * length // 2
    return np.asarray(strip)[:, columns].ravel(), noise[:, columns].ravel().astype(np.uint8)
