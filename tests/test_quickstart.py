"""A first try does not end at a font: where GNU Unifont is missing, others draw what they have, and the page says so."""

import pytest

from glyphlm.base.errors import InputError
from glyphlm.studies import quickstart
from glyphlm.substrate import fonts


@pytest.fixture
def no_unifont(monkeypatch, tmp_path):
    """A machine whose only fonts are those of matplotlib."""
    monkeypatch.delenv("GLYPHLM_FONT", raising=False)
    monkeypatch.setattr(fonts, "FOLDERS", (str(tmp_path),))


def test_without_unifont_the_fonts_that_cover_most_are_named(no_unifont):
    chosen, missing = fonts.unifont_or_others("Hello мир 世界")
    assert chosen[0].name == "DejaVuSans.ttf" and missing == 2
    with pytest.raises(InputError, match="fonts-unifont"):
        fonts.load_fonts(None, 32)  # elsewhere a missing Unifont is refused as before


def test_a_chain_covers_what_one_font_does_not(no_unifont, monkeypatch):
    known = {"small.ttf": "ab", "large.ttf": "abcd", "other.ttf": "e", "none.ttf": "x"}
    monkeypatch.setattr(fonts, "_fonts_in", lambda folders: {name: {*map(ord, text)} for name, text in known.items()})
    assert fonts.unifont_or_others("abcdef") == (["large.ttf", "other.ttf"], 1)
    with pytest.raises(InputError, match="no font is installed .*--font"):
        fonts.unifont_or_others("z")


def test_the_run_and_the_page_report_which_fonts_were_used(no_unifont, tokenizer, tmp_path, capsys, monkeypatch):
    chain, notes = quickstart._fonts(tokenizer)
    assert chain[0].endswith("DejaVuSans.ttf") and "GNU Unifont is not installed" in capsys.readouterr().err
    lines = [*notes, *quickstart.commands(tmp_path, chain)]
    assert lines[0].startswith("# GNU Unifont is not installed: glyphs are drawn with DejaVuSans.ttf")
    assert all(f"--font {chain[0]}" in line for line in lines if "substrate build" in line)


def test_with_a_named_font_nothing_is_reported(monkeypatch, tokenizer, capsys, no_unifont):
    found, _ = fonts.unifont_or_others("a")
    monkeypatch.setenv("GLYPHLM_FONT", str(found[0]))
    assert quickstart._fonts(tokenizer) == ([], []) and not capsys.readouterr().err
