"""Pictures of tokens: the published rows bit for bit, and the drawing rules on tiny fonts made here."""

import ast
import hashlib
import json
import os
import random
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from PIL import Image, ImageDraw

from glyphlm.base.errors import InputError
from glyphlm.substrate import fonts as fonts_module
from glyphlm.substrate.fonts import draw_characters, load_fonts
from glyphlm.substrate.glyphs import draw_tokens, glyph_sheet, polar_order

FIXTURES = Path(os.environ.get("GLYPHLM_FIXTURES") or Path(__file__).parents[2] / "shared" / "fixtures")
AUGMENT = {"2-3": "published-2-3", "max": "published-max", "abs": "published-max", "nemo": "published-max"}
# The n-gram statistics of a variant, and how many of each size are taken of every language
NGRAMS = {"2-3": ("_n-gramms-2-3.txt", 338), "max": ("_n-gramms-2-3-4-5.txt", 906)}
# Controls, Latin, marks, Hebrew, Arabic, Devanagari, Thai, jamo, spaces, kana, Han, Hangul, surrogates, private, no glyph
BLOCKS = (0, 0x80, 0x300, 0x5D0, 0x600, 0x650, 0x900, 0xE30, 0x1100, 0x2000, 0x20D0, 0x3000, 0x4E00, 0xAC00, 0xD800, 0xE000,
          0xFDF0, 0xFE00, 0xFFE0)
EVERY_KIND = [chr(start + offset) for start in BLOCKS for offset in range(32)]


def box(*rectangles):
    """A glyph of filled rectangles (left, bottom, right, top) in units of 1/32 of the font size."""
    pen = TTGlyphPen(None)
    for left, bottom, right, top in rectangles:
        corners = [(left, bottom), (left, top), (right, top), (right, bottom)]
        pen.moveTo(tuple(32 * edge for edge in corners[0]))
        for corner in corners[1:]:
            pen.lineTo(tuple(32 * edge for edge in corner))
        pen.closePath()
    return pen.glyph()


def make_font(path, glyphs):
    """Write a TTF of {character: (glyph, advance)} on a grid of 32 units: at size 32 one unit is one pixel."""
    glyphs = {".notdef": (box((2, 0, 14, 20)), 16)} | glyphs
    names = {character: f"g{index}" if index else ".notdef" for index, character in enumerate(glyphs)}
    builder = FontBuilder(1024, isTTF=True)
    builder.setupGlyphOrder(list(names.values()))
    builder.setupCharacterMap({ord(character): name for character, name in names.items() if len(character) == 1})
    builder.setupGlyf({names[character]: glyph for character, (glyph, _) in glyphs.items()})
    bearings = builder.font["glyf"]
    metrics = {names[c]: (32 * advance, getattr(bearings[names[c]], "xMin", 0)) for c, (_, advance) in glyphs.items()}
    builder.setupHorizontalMetrics(metrics)
    builder.setupHorizontalHeader(ascent=896, descent=-128)
    builder.setupNameTable({"familyName": "Tiny", "styleName": "Regular"})
    builder.setupOS2(sTypoAscender=896, sTypoDescender=-128)
    builder.setupPost()
    builder.save(path)
    return path


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """I: a bar of 4 x 20; O: a block of 16 x 16; M: a mark that reaches back over the character before it; a blank."""
    glyphs = {
        "I": (box((0, 0, 4, 20)), 4),
        "O": (box((0, 0, 16, 16)), 16),
        "M": (box((-20, 0, -12, 8)), 0),
        " ": (box(), 16),
        "\n": (box((0, 0, 8, 8)), 8),
    }
    return make_font(tmp_path_factory.mktemp("fonts") / "tiny.ttf", glyphs)


def pictures(tokens, paths, side=32, **how):
    return draw_tokens(tokens, load_fonts(paths, side), side, **how).bits_VP.reshape(len(tokens), side, side)


def ink_box(picture):
    """(left, top, right, bottom) of the ink, right and bottom outside."""
    rows, columns = np.nonzero(picture)
    return columns.min(), rows.min(), columns.max() + 1, rows.max() + 1


@pytest.fixture
def unifont():
    try:
        return load_fonts(None, 32)
    except InputError:
        pytest.skip("GNU Unifont is not installed")


@pytest.fixture
def published(unifont):
    """The published rows; they hold for the font version they were made with."""
    path = FIXTURES / "glyph_rows.json"
    if not path.is_file():
        pytest.skip(f"{path} does not exist")
    facts = json.loads(path.read_text(encoding="utf-8"))
    if hashlib.sha256(unifont.paths[0].read_bytes()).hexdigest() not in facts["font"]:
        pytest.skip("another version of GNU Unifont is installed than the published rows were made with")
    return facts


# The published pictures


@pytest.mark.parametrize(("variant", "count"), [("2-3", 47), ("max", 54)])
def test_augmented_rows_equal_the_published_rows(published, unifont, variant, count):
    rows = published["variants"][variant]["rows"]
    drawing = draw_tokens([row["token"] for row in rows], unifont, 32, AUGMENT[variant])
    packed = np.packbits(drawing.bits_VP[:, polar_order(32)], axis=1)
    differing = [row["token"] for row, bits in zip(rows, packed) if bits.tobytes().hex() != row["hex"]]
    assert (len(rows), differing, drawing.missing) == (count, [], [])


def test_the_authors_own_images(published):
    images = published["author_notebook_images"]
    for image in images:
        side, length = image["h"], len(image["text"])
        bits = np.unpackbits(np.frombuffer(bytes.fromhex(image["hex_rowmajor"]), np.uint8)).reshape(side, -1)
        if image["stage"] == "augmented":  # the strip before the squeeze
            bits = bits[:, [int((column + 0.5) * length) for column in range(side)]]
        fonts = load_fonts(None, side)
        drawn = draw_tokens([image["text"]], fonts, side, AUGMENT[image["variant"]]).bits_VP
        assert np.array_equal(drawn.reshape(side, side), bits), (image["variant"], image["text"], image["stage"])
    assert len(images) == 16


@pytest.mark.parametrize(("side", "digest"), [(32, "4b3fce1e87231c6e"), (64, "8259d751670c3fd0")])
def test_characters_of_every_kind_keep_their_pixels(published, side, digest):
    (face, *_) = load_fonts(None, side).faces
    drawn = draw_characters(EVERY_KIND, [face] * len(EVERY_KIND), side)
    assert hashlib.sha256(drawn.tobytes()).hexdigest()[:16] == digest


@pytest.mark.parametrize("variant", NGRAMS)
def test_tokens_share_a_picture_where_the_published_tokens_do(published, unifont, data, variant):
    tokens = [*map(chr, range(33, 127)), *(f"<special_token_{id_}>" for id_ in range(0xE017, 0xE100))]
    tokens += sorted(token for token in published_ngrams(data / "ngrams", variant) if is_plain(token))
    groups = defaultdict(set)
    for token, row in zip(tokens, draw_tokens(tokens, unifont, 32, AUGMENT[variant]).bits_VP):
        groups[row.tobytes()].add(token)
    expected = json.loads((FIXTURES / f"collisions_{variant}.json").read_text(encoding="utf-8"))
    shared = ({token for _, token in group if is_plain(token)} for group in expected)
    assert sorted(sorted(group) for group in groups.values() if len(group) > 1) == sorted(
        sorted(group) for group in shared if len(group) > 1
    )


def is_plain(token):
    """Printable ASCII; other collisions were listed with a text layout that shapes, and unused ids share no name here."""
    return token.isascii() and token.isprintable() and not token.startswith("<unused_")


def published_ngrams(folder, variant):
    """The n-grams of the published vocabularies."""
    name, taken = NGRAMS[variant]
    tables = [language["top_ngrams"] for language in ast.literal_eval((folder / name).read_text(encoding="utf-8"))]
    ngrams = {ngram for table in tables for ranked in table.values() for ngram, _ in ranked[:taken]}
    shared = (folder / "_n-gramms-intersection.txt").read_text(encoding="utf-8").splitlines() if variant == "max" else []
    return ngrams | {token for token in shared if len(token) > 1}


def test_known_collisions_and_distinctions(unifont):
    tokens = ["a", "\u0430", " ", "\n", "\xa0", "e", "1", "l"]
    for augment in ("none", "published-2-3"):
        latin, cyrillic, space, newline, no_break, e, one, el = draw_tokens(tokens, unifont, 32, augment).bits_VP
        assert np.array_equal(latin, cyrillic) and np.array_equal(space, newline) and np.array_equal(space, no_break)
        assert not np.array_equal(latin, e) and not np.array_equal(one, el)
    published = draw_tokens(["and", "ard"], unifont, 32, "published-2-3").bits_VP
    assert np.array_equal(*published)


def test_planes_above_the_first_come_from_the_upper_font(unifont):
    if len(unifont.paths) < 2:
        pytest.skip("unifont_upper is not installed")
    assert draw_tokens(["😀", "𠮷"], unifont, 32).missing in ([], ["𠮷"])


def test_side_64_is_side_32_in_larger_pixels(unifont):
    tokens = ["A", "中", "\u0301", "é"]
    small = draw_tokens(tokens, unifont, 32).bits_VP.reshape(-1, 32, 32)
    large = draw_tokens(tokens, load_fonts(None, 64), 64).bits_VP.reshape(-1, 64, 64)
    assert np.array_equal(np.kron(small, np.ones((2, 2))), large)


# The drawing rule, as the published builder writes it and on a tiny font


def plainly_drawn(character, face):
    """The published way: measure, then draw on a canvas of three cells. Bits (S, 3S)."""
    side = int(face.size)
    canvas = Image.new("L", (3 * side, side), 255)
    draw = ImageDraw.Draw(canvas)
    left, top, right, bottom = draw.textbbox((0, 0), character, font=face)
    corner = (side + (side - (right - left)) // 2, (side - (bottom - top)) // 2 - top)
    draw.text(corner, character, font=face, fill=0)
    return np.asarray(canvas) < 128


def assert_drawn_as_published(characters, face):
    side = int(face.size)
    drawn = np.unpackbits(draw_characters(characters, [face] * len(characters), side), axis=-1)
    strips = drawn.reshape(3, len(characters), side, side).transpose(1, 2, 0, 3).reshape(-1, side, 3 * side)
    differing = [c for c, strip in zip(characters, strips) if not np.array_equal(strip, plainly_drawn(c, face))]
    assert differing == []


@pytest.mark.parametrize("side", [32, 64])
def test_characters_of_every_kind_are_drawn_as_published(unifont, side):
    for face in load_fonts(None, side).faces:
        assert_drawn_as_published(EVERY_KIND, face)


@pytest.mark.parametrize("side", [32, 64])
def test_ink_far_outside_the_cell_is_cut_and_touches_no_other_character(tmp_path, side):
    dice, glyphs = random.Random(7), {}
    for character in map(chr, range(0x4E00, 0x4E80)):
        # in quarters of a pixel: the edges are grey
        left, bottom, width, height = (dice.randint(*ends) / 4 for ends in ((-600, 300), (-300, 99), (9, 600), (9, 400)))
        glyphs[character] = (box((left, bottom, left + width, bottom + height)), dice.choice((0, 5, 16, 40, 120)))
    font = make_font(tmp_path / "wild.ttf", glyphs | {" ": (box(), 0), "\n": (box((0, 0, 9, 9)), 9)})
    assert_drawn_as_published([*glyphs, " ", "\n", "A"], load_fonts([font], side).faces[0])


def test_a_character_is_centred_in_its_cell(tiny):
    bar, block = pictures(["I", "O"], [tiny])
    assert ink_box(bar) == (14, 6, 18, 26) and bar.sum() == 4 * 20
    assert ink_box(block) == (8, 8, 24, 24) and block.sum() == 16 * 16


def test_the_squeeze_takes_the_middle_columns(tiny):
    bar, block = pictures(["I", "O"], [tiny])
    for token in ("IO", "OIO", "OOIOI", "IO" * 20):
        strip = np.hstack([{"I": bar, "O": block}[character] for character in token])
        columns = [int((column + 0.5) * len(token)) for column in range(32)]
        assert np.array_equal(pictures([token], [tiny])[0], strip[:, columns]), token


def test_a_mark_reaches_into_the_cell_before_it_and_is_cut_at_the_edge_of_the_strip(tiny):
    # The box of the mark runs from -20 to 0, so its size of 20 starts at 6 and its ink at 6 - 20 = -14, 8 pixels wide.
    alone, after_blank, before_blank = pictures(["M", " M", "M "], [tiny])
    assert not alone.any() and not before_blank.any()
    assert ink_box(after_blank)[::2] == (9, 13) and after_blank.sum() == 4 * 8


def test_ink_of_neighbours_adds_up(tiny):
    marked, plain, mark = pictures(["OM", "O ", " M"], [tiny])
    assert np.array_equal(marked, plain | mark)


def test_blank_characters_of_the_font_stay_blank(tiny):
    drawing = draw_tokens([" ", "\n"], load_fonts([tiny], 32), 32)
    assert not drawing.bits_VP.any() and drawing.missing == []


def test_rows_do_not_depend_on_their_company(tiny):
    tokens = ["I", "OO", "\t", "OM", "é", "IOI", "中"]
    for augment in ("none", "published-2-3", "published-max"):
        together = pictures(tokens, [tiny], augment=augment)
        alone = [pictures([token], [tiny], augment=augment)[0] for token in tokens]
        assert np.array_equal(together, alone), augment


def test_pieces_of_long_lists_join_up(tiny, monkeypatch):
    tokens = ["IO", "OI", "MO", "OO", "IM"]
    whole = pictures(tokens, [tiny])
    monkeypatch.setattr("glyphlm.substrate.glyphs.STRIP_BYTES", 2 * 2 * 32 * 32)
    assert np.array_equal(pictures(tokens, [tiny]), whole)


def test_augmentation_depends_on_script_and_length_only(tiny, tmp_path):
    other = make_font(tmp_path / "other.ttf", {character: (box((0, 0, 16, 16)), 16) for character in "Aֆ中ɐ"})
    latin, armenian, han, phonetic = pictures(["A", "ֆ", "中", "ɐ"], [other], augment="published-max")
    upright = pictures(["A"], [other])[0]
    assert np.array_equal(latin, armenian) and not np.array_equal(latin, upright)
    assert np.array_equal(han, upright) and np.array_equal(phonetic, upright)
    blank = pictures([" "], [tiny], augment="published-max")[0]
    assert blank.sum() == 32  # 3% noise on 1,024 pixels


def test_global_generators_are_left_alone(tiny):
    np.random.seed(1)
    random.seed(1)
    expected = np.random.rand(), random.random()
    np.random.seed(1)
    random.seed(1)
    pictures(["I"], [tiny], augment="published-max")
    assert (np.random.rand(), random.random()) == expected


def test_the_same_input_gives_the_same_bytes(tiny):
    tokens = ["OM", "I", "中"] * 3
    first, second = (pictures(tokens, [tiny], augment="published-2-3") for _ in range(2))
    assert first.tobytes() == second.tobytes() and first.dtype == np.uint8 and set(np.unique(first)) == {0, 1}


def test_no_tokens_give_no_rows(tiny):
    drawing = draw_tokens([], load_fonts([tiny], 32), 32)
    assert drawing.bits_VP.shape == (0, 1024) and drawing.missing == []


# Code points without a glyph


def test_missing_code_points_get_distinct_placeholders(tiny):
    absent = [chr(code_point) for code_point in (0, 0x41, 0x42, 0x4E2D, 0x4E2E, 0xD800, 0xDFFF, 0x1F600, 0x10FFFF)]
    drawing = draw_tokens([*absent, "I"], load_fonts([tiny], 32), 32)
    assert drawing.missing == absent
    assert len({row.tobytes() for row in drawing.bits_VP}) == len(absent) + 1


def test_every_bit_of_the_code_point_shows_in_its_placeholder(tiny):
    code_points = [1 << bit for bit in range(21)] + [0x10FFFF & ~(1 << bit) for bit in range(21)]
    tokens = sorted({chr(code_point) for code_point in code_points} - {" "})
    drawing = draw_tokens(tokens, load_fonts([tiny], 32), 32)
    assert len({row.tobytes() for row in drawing.bits_VP}) == len(tokens) == len(drawing.missing)


def test_placeholders_stay_distinct_in_a_squeezed_token(tiny):
    tokens = [chr(0x4E00 + bit) + "IIIIIII" for bit in (0, 1, 2, 4, 8, 16, 32, 64)]
    assert len({picture.tobytes() for picture in pictures(tokens, [tiny])}) == len(tokens)


def test_missing_is_sorted_and_lists_each_code_point_once(tiny):
    assert draw_tokens(["zI", "az", "z"], load_fonts([tiny], 32), 32).missing == ["a", "z"]


def test_published_tables_show_missing_code_points_as_notdef_of_the_first_font(tmp_path):
    first = make_font(tmp_path / "first.ttf", {"中": (box((2, 0, 14, 20)), 16), "国": (box((0, 0, 9, 9)), 9)})
    second = make_font(tmp_path / "second.ttf", {".notdef": (box((0, 0, 3, 3)), 3), "O": (box((0, 0, 16, 16)), 16)})
    tokens = ["中", "文", "\ud800", "\ufffe", "\n", "O", "国"]
    for augment in ("published-2-3", "published-max"):
        drawing = draw_tokens(tokens, load_fonts([first, second], 32), 32, augment)
        like_notdef = [np.array_equal(drawing.bits_VP[0], row) for row in drawing.bits_VP]
        assert like_notdef == [True, True, True, True, False, False, False]
        assert drawing.missing == ["\n", "文", "\ud800", "\ufffe"]


def test_the_published_noncharacter_looks_like_the_replacement_character(published, unifont):
    tokens = ["\ufffd", "\ufffe"]
    for augment, alike in (("none", False), ("published-2-3", True), ("published-max", True)):
        drawing = draw_tokens(tokens, unifont, 32, augment)
        assert (np.array_equal(*drawing.bits_VP), drawing.missing) == (alike, ["\ufffe"])


def test_a_glyph_that_looks_like_notdef_is_not_missing(tiny, tmp_path):
    font = make_font(tmp_path / "same.ttf", {"A": (box((2, 0, 14, 20)), 16)})
    assert draw_tokens(["A"], load_fonts([font], 32), 32).missing == []


def test_the_first_font_that_has_the_code_point_draws_it(tiny, tmp_path):
    other = make_font(tmp_path / "other.ttf", {"I": (box((0, 0, 30, 2)), 30), "X": (box((0, 0, 8, 8)), 8)})
    first, extra = pictures(["I", "X"], [tiny, other])
    assert first.sum() == 4 * 20 and extra.sum() == 8 * 8
    assert pictures(["I"], [other, tiny])[0].sum() == 30 * 2


# Fonts


def test_fonts_are_found_by_argument_environment_and_search(tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("GLYPHLM_FONT", os.pathsep.join([str(tiny), str(tiny)]))
    assert load_fonts(None, 32).paths == (tiny, tiny)
    monkeypatch.setenv("GLYPHLM_FONT", "")
    folder = tmp_path / "share" / "gnu"
    folder.mkdir(parents=True)
    for name in ("unifont-16.0.04.otf", "unifont_upper-16.0.04.otf", "unifont_jp-16.0.04.otf", "unifont.txt"):
        (folder / name).write_bytes(tiny.read_bytes())
    monkeypatch.setattr(fonts_module, "FOLDERS", (str(tmp_path / "absent"), str(tmp_path / "share")))
    found = [path.name for path in load_fonts(None, 32).paths]
    assert found == ["unifont-16.0.04.otf", "unifont_upper-16.0.04.otf"]


def test_a_missing_unifont_is_reported_with_the_cure(tmp_path, monkeypatch):
    monkeypatch.delenv("GLYPHLM_FONT", raising=False)
    monkeypatch.setattr(fonts_module, "FOLDERS", (str(tmp_path),))
    with pytest.raises(InputError, match="apt-get install fonts-unifont.*--font FILE.*GLYPHLM_FONT"):
        load_fonts(None, 32)


def test_files_that_are_not_fonts_are_named(tiny, tmp_path):
    absent, text, cut = tmp_path / "absent.ttf", tmp_path / "text.otf", tmp_path / "cut.ttf"
    text.write_text("not a font")
    cut.write_bytes(tiny.read_bytes()[:300])
    with pytest.raises(InputError, match="absent.ttf does not exist"):
        load_fonts([tiny, absent], 32)
    with pytest.raises(InputError, match="text.otf cannot be used"):
        load_fonts([text], 32)
    with pytest.raises(InputError, match="cut.ttf cannot be used"):
        load_fonts([cut], 32)
    with pytest.raises(InputError, match="does not exist"):
        load_fonts([tmp_path], 32)


def test_damaged_fonts_are_refused_or_work(tiny, tmp_path):
    dice, raw, path = random.Random(1), tiny.read_bytes(), tmp_path / "damaged.ttf"
    for _ in range(200):
        damaged = bytearray(raw)
        for _ in range(8):
            damaged[dice.randrange(len(raw))] = dice.randrange(256)
        path.write_bytes(damaged)
        try:
            draw_tokens(["IO", "M", "\ufffe"], load_fonts([path], 32), 32, "published-2-3")
        except InputError as error:
            assert "damaged.ttf" in str(error)


def test_a_font_without_a_character_map_is_refused(tmp_path):
    with pytest.raises(InputError, match="empty.ttf has no Unicode character map"):
        load_fonts([make_font(tmp_path / "empty.ttf", {})], 32)


# Requests that cannot be met


def test_wrong_requests_are_refused(tiny):
    fonts = load_fonts([tiny], 32)
    with pytest.raises(InputError, match="48 x 48"):
        load_fonts([tiny], 48)
    with pytest.raises(InputError, match="loaded for a side of 32"):
        draw_tokens(["I"], fonts, 64)
    with pytest.raises(InputError, match="16 x 16"):
        draw_tokens(["I"], fonts, 16)
    with pytest.raises(InputError, match="augment is 'published'"):
        draw_tokens(["I"], fonts, 32, "published")
    with pytest.raises(InputError, match="token 1 of 2 is empty"):
        draw_tokens(["I", ""], fonts, 32)
    with pytest.raises(InputError, match="7 x 7"):
        polar_order(7)


# Order and sheet


@pytest.mark.parametrize("side", [32, 64])
def test_polar_order_goes_outwards_from_the_centre(side):
    order = polar_order(side)
    assert sorted(order) == list(range(side * side))
    rows, columns = np.divmod(order, side)
    radii = np.hypot(columns - side / 2, rows - side / 2)
    assert order[0] == side // 2 * side + side // 2 and (np.diff(radii) >= 0).all()
    # the four pixels at radius 1 by angle: up (-90 degrees), right, down, left (180 degrees)
    centre = side // 2
    assert [(y - centre, x - centre) for y, x in zip(rows[1:5], columns[1:5])] == [(-1, 0), (0, 1), (1, 0), (0, -1)]


def test_glyph_sheet_shows_the_pictures(tiny, tmp_path):
    tokens = ["I", "O", "a long label of many words", "\n", "中国", "\ud800"]
    fonts = load_fonts([tiny], 32)
    bits_VP = draw_tokens(tokens, fonts, 32).bits_VP
    glyph_sheet(bits_VP, tokens, tmp_path / "sheet.png", fonts, columns=4)
    glyph_sheet(bits_VP, tokens, tmp_path / "again.png", fonts, columns=4)
    assert (tmp_path / "sheet.png").read_bytes() == (tmp_path / "again.png").read_bytes()
    with Image.open(tmp_path / "sheet.png") as sheet:
        pixels = np.asarray(sheet)
    assert pixels.shape == (2 * 88, 4 * 72)
    assert np.array_equal(pixels[2:66:2, 4:68:2] == 0, bits_VP[0].reshape(32, 32) == 1)
    captions = pixels.reshape(2, 88, 4, 72).swapaxes(1, 2)[:, :, 68:, 4:]
    assert all((captions[row, column] < 128).any() for row in range(2) for column in range(4) if 4 * row + column < 6)
    assert not np.array_equal(captions[0, 0], captions[0, 1])  # I is drawn as I, in the font of its picture


def test_glyph_sheet_refuses_what_does_not_fit(tiny, tmp_path):
    path = tmp_path / "sheet.png"
    for shape, labels in [((2, 16), ["a"]), ((1, 15), ["a"]), ((0, 16), []), ((16,), ["a"])]:
        with pytest.raises(InputError, match="cannot show"):
            glyph_sheet(np.zeros(shape, np.uint8), labels, path, load_fonts([tiny], 32))
    assert not path.exists()
