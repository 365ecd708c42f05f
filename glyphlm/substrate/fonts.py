"""Font files -> the pixels of characters.

The first font of a chain whose character map has the code point draws it. GNU Unifont has every assigned code point and
is the font of arXiv 2507.04886. Shapes: C characters, S side of a cell in pixels; a drawn character is S x 3S, its own
cell in the middle, because the published builder cuts marks and wide characters only at the edge of the whole strip.
"""

import importlib.util
import os
import re
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import freetype
import numpy as np
from PIL import Image, ImageFont

from glyphlm.base.errors import InputError
from glyphlm.substrate.settings import SIDES

SURROGATES = frozenset(range(0xD800, 0xE000))  # halves of UTF-16 pairs, not characters: never drawn
INK_FROM = 128  # pixels that the outline covers by half or more are ink
DAMAGE = (OSError, freetype.FT_Exception)
FOLDERS = (
    "/usr/share/fonts",
    "/usr/local/share/fonts",
    "~/.local/share/fonts",
    "~/.fonts",
    "~/Library/Fonts",
    "/Library/Fonts",
    "/System/Library/Fonts",
    "/opt/homebrew/share/fonts",
    "C:/Windows/Fonts",
    "~/AppData/Local/Microsoft/Windows/Fonts",
)
NO_GLYPHS = re.compile("lastresort|blank|tofu", re.IGNORECASE)  # the same box for every character
UNIFONT = r"unifont(-[\d.]+)?\.(otf|ttf)"
UNIFONT_UPPER = r"unifont_upper(-[\d.]+)?\.(otf|ttf)"


@dataclass(frozen=True)
class FontChain:
    """Fonts in order of preference: the first whose character map has the code point draws it."""

    side: int
    paths: tuple[Path, ...]
    faces: tuple[ImageFont.FreeTypeFont, ...]
    code_points: tuple[frozenset[int], ...]

    def face_for(self, character: str) -> ImageFont.FreeTypeFont | None:
        """The font that draws `character`, or None where no font of the chain has it."""
        code_point = ord(character)
        return next((face for face, known in zip(self.faces, self.code_points) if code_point in known), None)


def load_fonts(paths: Sequence[str | Path] | None, side: int) -> FontChain:
    """Open TrueType or OpenType fonts at a size of `side` pixels.

    `paths` None means the files in the environment variable GLYPHLM_FONT, or else the GNU Unifont of the system.

    Raises:
        InputError: the side is not 32 or 64, a file is missing or is not a font, or Unifont is not installed.
    """
    check_side(side)
    found = [Path(path) for path in paths or _named_by_environment() or _system_unifont()]
    faces, code_points = zip(*(_open(path, side) for path in found))
    return FontChain(side, tuple(found), faces, code_points)


def unifont_or_others(characters: Collection[str]) -> tuple[list[Path], int]:
    """GNU Unifont, or the fonts named in GLYPHLM_FONT; without them the fewest fonts of this system that have the
    `characters`, the one with the most of them first. Also how many of the characters they lack.

    DejaVu, which comes with matplotlib, is the last resort.

    Raises:
        InputError: no font is installed.
    """
    try:
        chain = load_fonts(None, SIDES[0])
        return list(chain.paths), sum(chain.face_for(character) is None for character in characters)
    except InputError:
        if _named_by_environment():
            raise
    bundled = importlib.util.find_spec("matplotlib")
    places = (bundled and bundled.submodule_search_locations) or []
    folders = [*FOLDERS, *(f"{place}/mpl-data/fonts/ttf" for place in places)]
    known, missing, chosen = _fonts_in(folders), {ord(character) for character in characters}, []
    while known and (best := max(known, key=lambda path: len(known[path] & missing))) and known[best] & missing:
        chosen.append(best)
        missing -= known.pop(best)
    if not chosen:
        raise InputError("no font is installed that has any of the characters; install GNU Unifont (Debian: fonts-unifont), "
                         "or the extra report, whose DejaVu lacks Chinese, or name a file with --font FILE")
    return chosen, len(missing)


def _fonts_in(folders: Sequence[str]) -> dict[Path, frozenset[int]]:
    """Code points of every outline font below the folders, short names (regular faces) first; without damaged files."""
    found = {}
    for folder in folders:
        for path in sorted(Path(folder).expanduser().rglob("*"), key=lambda path: (len(path.name), path)):
            if path.suffix.lower() in (".ttf", ".otf", ".ttc") and path.is_file() and not NO_GLYPHS.search(path.name):
                with suppress(InputError):
                    found[path] = _open(path, SIDES[0])[1]
    return found


def check_side(side: int) -> None:
    """Refuse a picture side other than 32 and 64."""
    if side not in SIDES:
        raise InputError(f"a glyph picture of {side} x {side} pixels is not supported; use a side of 32 or 64")


def draw_characters(characters: Sequence[str], faces: Sequence[ImageFont.FreeTypeFont | None], side: int) -> np.ndarray:
    """Draw C characters, each with its face: the ink before, in and after its cell, packed, uint8 (3, C, S * S / 8).

    The published rule (arXiv 2507.04886, builder notebooks): the box of the character's drawing is centred in height;
    in width its size is centred but its left bearing stays, so a combining mark (bearing -12, width 12 at side 32)
    stands a bearing further left and may reach into the cell before it. A newline draws nothing, nor does a face that
    is None; a character that its face lacks is drawn as the face's .notdef glyph.

    Raises:
        InputError: a font is damaged.
    """
    canvas = Image.new("L", (len(characters) * 3 * side, side))
    for index, (character, face) in enumerate(zip(characters, faces)):
        if face is None or character == "\n":
            continue
        mask, bearing = _mask(character, face)
        left, top = side + (side - mask.size[0]) // 2 + bearing, (side - mask.size[1]) // 2
        cell = mask.crop((-left, -top, 3 * side - left, side - top))  # also beyond the mask: this places it and cuts it
        canvas.im.paste(cell, (index * 3 * side, 0, (index + 1) * 3 * side, side))
    packed_SC3 = np.packbits(np.asarray(canvas) >= INK_FROM).reshape(side, len(characters), 3, -1)
    return packed_SC3.transpose(2, 1, 0, 3).reshape(3, len(characters), -1)


def _mask(character: str, face: ImageFont.FreeTypeFont) -> tuple["Image.core.ImagingCore", int]:
    """Coverage, 0 to 255, of the box that ImageDraw.textbbox measures, and its left bearing.

    One call instead of ImageDraw's two, and one canvas for many characters, take 0.4 of the time of ImageDraw.
    """
    try:
        mask, (bearing, _) = face.getmask2(character, "L", anchor="la")
    except OSError as error:
        raise InputError(f"{face.path} is damaged at U+{ord(character):04X} ({error}); name another font") from None
    return mask, bearing


def _named_by_environment() -> list[str]:
    return [path for path in os.environ.get("GLYPHLM_FONT", "").split(os.pathsep) if path]


def _system_unifont() -> list[Path]:
    """GNU Unifont for the first plane, and for the planes above U+FFFF where it is installed too."""
    for folder in FOLDERS:
        files = sorted(path for path in Path(folder).expanduser().rglob("unifont*") if path.is_file())
        basic, upper = ([path for path in files if re.fullmatch(name, path.name)] for name in (UNIFONT, UNIFONT_UPPER))
        if basic:
            return basic[:1] + upper[:1]
    raise InputError(
        "GNU Unifont is not installed; install it (apt-get install fonts-unifont), or name a font with --font FILE or "
        "with the environment variable GLYPHLM_FONT"
    )


def _open(path: Path, side: int) -> tuple[ImageFont.FreeTypeFont, frozenset[int]]:
    if not path.is_file():
        raise InputError(f"font {path} does not exist; name a .ttf or .otf file")
    try:
        # Layout BASIC gives the same pixels in Pillow 9.5 to 13; with RAQM no two versions agree on all rows
        face = ImageFont.truetype(path, side, layout_engine=ImageFont.Layout.BASIC)
        # FreeType, with which Pillow draws, chooses the widest Unicode map. fontTools reads it too, and is 30 MB.
        code_points = frozenset(code for code, glyph in freetype.Face(str(path)).get_chars() if glyph) - SURROGATES
    except DAMAGE as error:
        raise InputError(f"{path} cannot be used as a TTF or OTF font ({error}); name another file") from None
    if not code_points:
        raise InputError(f"font {path} has no Unicode character map; name another file")
    return face, code_points
