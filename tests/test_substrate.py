"""Codes are what their rule says, frozen or trainable under one name, and refused where they would not fit."""

import hashlib
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from test_glyphs import box, make_font

from glyphlm import substrate
from glyphlm.errors import InputError
from glyphlm.fonts import load_fonts
from glyphlm.glyphs import draw_tokens
from glyphlm.layouts import compact_backend
from glyphlm.model import SubstrateConfig, scale_rows
from glyphlm.ngrams import TextCounts
from glyphlm.outputs import read_build
from glyphlm.substrate import (
    SubstrateSettings,
    build_substrate,
    draw_vocabulary,
    load_substrate,
    principal_components,
    sheet_ids,
)
from glyphlm.tensors import load_tensors, save_tensors
from glyphlm.tokenizer import Tokenizer

LEARNED = SubstrateSettings(kind="learned", n_embed=32)
BITS = SubstrateSettings(kind="token_bits", n_embed=16)


@pytest.fixture(scope="module")
def small():
    """A tokenizer of 512 ids."""
    counts = TextCounts()
    counts.add("".join(map(chr, range(33, 400))))
    return Tokenizer(compact_backend(counts, 512))


@pytest.fixture(scope="module")
def fonts(tmp_path_factory):
    """Two fonts of the same characters, a to o and 0 to 9, with bars of different widths."""
    folder = tmp_path_factory.mktemp("fonts")

    def font(name, lowest):
        glyphs = {c: (box((0, lowest, 2 + n, 20 - n // 2)), 16) for n, c in enumerate("abcdefghijklmno")}
        digits = {c: (box((0, lowest, 4, 2 + 2 * n), (8, lowest, 12, 20)), 16) for n, c in enumerate("0123456789", 1)}
        return str(make_font(folder / f"{name}.ttf", glyphs | digits))

    return [font("one", 0), font("other", 1)]


@pytest.fixture(scope="module")
def glyph(fonts):
    return SubstrateSettings(kind="glyph", n_embed=8, font=fonts[:1])


@pytest.fixture(scope="module")
def glyph_folder(small, glyph, tmp_path_factory):
    out = tmp_path_factory.mktemp("glyph") / "made"
    build_substrate(small, glyph, out)
    return out


def built(tokenizer, settings, folder, d_model=None):
    build_substrate(tokenizer, settings, folder / "made")
    return load_substrate(folder / "made", d_model or settings.n_embed)


def table(tokenizer, settings, folder):
    return built(tokenizer, settings, folder).table_VE.detach()


def every_code(module):
    return module(torch.arange(module.config.vocab_size)[None])[0]


def refusal(tokenizer, folder, **settings):
    with pytest.raises(InputError) as caught:
        build_substrate(tokenizer, SubstrateSettings(**settings), folder / "refused")
    assert not (folder / "refused").exists()
    return str(caught.value)


# Kinds


def test_token_bits_are_the_binary_id(small, tmp_path):
    codes_VE = every_code(built(small, replace(BITS, scale="none"), tmp_path))
    expected = [[number >> place & 1 for place in range(16)] for number in range(512)]
    assert codes_VE.tolist() == expected


def test_token_bits_hold_no_table(substrates):
    module = load_substrate(substrates["token_bits"], 16)
    assert module.state_dict() == {} and not (substrates["token_bits"] / "substrate.safetensors").exists()


def test_a_learned_start_is_normal_noise_of_its_seed(small, tmp_path):
    found = table(small, replace(LEARNED, scale="none", seed=5), tmp_path)
    assert torch.equal(found, torch.randn(512, 32, generator=torch.Generator().manual_seed(5)))


def test_glyph_codes_are_the_scaled_components_of_the_pictures(small, glyph_folder, fonts):
    spelled = [token[3:5] if re.fullmatch("<0x..>", token) else token for token in small.tokens]
    pictures = draw_tokens(spelled, load_fonts(fonts[:1], 32), 32).bits_VP
    expected = scale_rows(principal_components(torch.from_numpy(pictures), 8), "l2")
    assert torch.equal(load_substrate(glyph_folder, 8).table_VE, expected)


def test_byte_tokens_are_drawn_as_their_hexadecimal_digits(small, glyph_folder):
    codes_VE = load_substrate(glyph_folder, 8).table_VE
    zero_one, one_zero = (codes_VE[small.tokens.index(name)] for name in ("<0x01>", "<0x10>"))
    assert zero_one.any() and not torch.equal(zero_one, one_zero)


def test_glyphs_come_with_a_sheet_of_pictures(glyph_folder):
    with Image.open(glyph_folder / "glyphs.png") as sheet:
        assert sheet.format == "PNG" and len(sheet.getcolors()) > 1


def test_the_sheet_shows_tokens_spread_over_the_vocabulary(tokenizer):
    shown = sheet_ids(tokenizer.tokens)
    assert len(shown) == 256 == len(set(shown)) and (shown[0], shown[-1]) == (0, 1023)
    assert not [number for number in shown if 4 <= number < 260]


# Norms, lifting, training


@pytest.mark.parametrize(("scale", "norm"), [("l2", 1), ("unit_rms", 32**0.5)])
def test_a_scaled_table_has_rows_of_one_norm(small, tmp_path, scale, norm):
    found = table(small, replace(LEARNED, scale=scale), tmp_path)
    torch.testing.assert_close(found.norm(dim=1), torch.full((512,), float(norm)))


@pytest.mark.parametrize(("scale", "norm"), [("l2", 1), ("unit_rms", 4)])
def test_scaled_bits_have_one_norm_except_those_of_zero(small, tmp_path, scale, norm):
    norms_V = every_code(built(small, replace(BITS, scale=scale), tmp_path)).norm(dim=1)
    torch.testing.assert_close(norms_V, torch.tensor([0.0] + [float(norm)] * 511))


@pytest.mark.parametrize(("lift", "expected"), [
    ("repeat_interleave", [1, 1, 1, 2, 2, 2]),
    ("tile", [1, 2, 1, 2, 1, 2]),
])  # fmt: skip
def test_a_narrow_code_is_lifted_by_repetition(small, tmp_path, lift, expected):
    module = built(small, replace(LEARNED, n_embed=2, lift=lift), tmp_path, d_model=6)
    with torch.no_grad():
        module.table_VE.copy_(torch.tensor([1.0, 2.0]).expand(512, 2))
    assert module(torch.tensor([[0, 511]])).tolist() == [[expected, expected]]


@pytest.mark.parametrize("trainable", [False, True])
def test_the_table_has_one_name_and_is_a_parameter_only_where_trainable(small, tmp_path, trainable):
    module = built(small, replace(LEARNED, trainable=trainable), tmp_path)
    assert list(module.state_dict()) == ["table_VE"]
    assert [name for name, _ in module.named_parameters()] == ["table_VE"] * trainable
    assert [name for name, _ in module.named_buffers()] == ["table_VE"] * (not trainable)


def test_frozen_and_trainable_tables_begin_equal(small, tmp_path):
    (tmp_path / "a").mkdir()
    frozen, trained = (table(small, replace(LEARNED, trainable=t), tmp_path / "a" / str(t)) for t in (False, True))
    assert torch.equal(frozen, trained)


def test_a_loaded_module_holds_the_stored_table(substrates):
    stored = load_tensors(substrates["learned"] / "substrate.safetensors")["table_VE"]
    module = load_substrate(substrates["learned"], 64)
    assert torch.equal(module.table_VE, stored) and stored.shape == (1024, 32) and module.table_VE.requires_grad


# Principal components


@pytest.mark.parametrize(("rows", "pixels"), [(40, 100), (300, 64)])
def test_principal_components_equal_those_of_a_plain_svd(rows, pixels):
    bits = np.random.default_rng(1).random((rows, pixels)) < np.linspace(0.05, 0.95, pixels)
    found = principal_components(torch.from_numpy(bits), 12).numpy()
    centred = bits - bits.mean(0)
    left, sizes, _ = np.linalg.svd(centred, full_matrices=False)
    expected = left[:, :12] * sizes[:12]
    signs = np.sign((found * expected).sum(0))
    np.testing.assert_allclose(found * signs, expected, atol=1e-4)


def test_principal_components_are_uncorrelated_and_sorted_by_size():
    bits = torch.rand(200, 80, generator=torch.Generator().manual_seed(1)) < 0.3
    together = (lambda code: code.T @ code)(principal_components(bits, 20).double())
    sizes = together.diagonal()
    assert (together - sizes.diag()).abs().max() < 1e-3 and torch.equal(sizes, sizes.sort(descending=True).values)


def test_all_components_keep_all_distances():
    bits = torch.rand(30, 50, generator=torch.Generator().manual_seed(1)) < 0.5
    found = principal_components(bits, 29)
    torch.testing.assert_close(torch.pdist(found), torch.pdist(bits.float()))


def test_the_sign_of_a_component_does_not_depend_on_the_order_of_rows():
    bits = torch.rand(100, 40, generator=torch.Generator().manual_seed(1)) < torch.linspace(0.05, 0.95, 40)
    torch.testing.assert_close(principal_components(bits.flip(0), 6), principal_components(bits, 6).flip(0))


# Fingerprints


@pytest.mark.parametrize("change", [
    {"seed": 2}, {"n_embed": 16}, {"scale": "unit_rms"}, {"scale": "none"}, {"lift": "tile"}, {"kind": "token_bits"}
], ids=str)  # fmt: skip
def test_any_setting_of_the_codes_changes_the_fingerprint(small, tmp_path, change):
    one = build_substrate(small, LEARNED, tmp_path / "one")
    assert build_substrate(small, replace(LEARNED, **change), tmp_path / "other").fingerprint != one.fingerprint


def test_any_setting_of_the_pictures_changes_the_fingerprint(small, glyph, fonts, tmp_path, monkeypatch):
    monkeypatch.setattr(substrate, "principal_components", lambda bits_VP, n_embed: bits_VP[:, ::20][:, :n_embed].float())
    changes = {}, {"side": 64}, {"font": fonts[1:]}, {"n_embed": 32}, {"scale": "none"}, {"lift": "tile"}
    settings = [replace(glyph, **{"n_embed": 50} | change) for change in changes]
    found = {build_substrate(small, each, tmp_path / str(n)).fingerprint for n, each in enumerate(settings)}
    assert len(found) == len(settings)


@pytest.mark.parametrize("settings", [BITS, LEARNED], ids=["token_bits", "learned"])
def test_another_vocabulary_changes_the_fingerprint(small, tokenizer, tmp_path, settings):
    found = {build_substrate(t, settings, tmp_path / str(t.vocab_size)).fingerprint for t in (small, tokenizer)}
    assert len(found) == 2


def test_training_the_same_codes_does_not_change_the_fingerprint(small, tmp_path):
    found = {build_substrate(small, replace(LEARNED, trainable=t), tmp_path / str(t)).fingerprint for t in (True, False)}
    assert len(found) == 1


def digests(folder):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def test_the_same_pictures_make_the_same_bytes(small, glyph, glyph_folder, tmp_path):
    build_substrate(small, glyph, tmp_path / "again")
    assert digests(tmp_path / "again") == digests(glyph_folder)


@pytest.mark.parametrize("kind", ["learned", "token_bits"])
def test_the_same_rule_or_seed_makes_the_same_bytes(tokenizer, substrates, tmp_path, kind):
    settings = SubstrateSettings(**read_build(substrates[kind]).settings)
    build_substrate(tokenizer, settings, tmp_path / "again")
    assert digests(tmp_path / "again") == digests(substrates[kind])


# Folders


def test_the_same_command_finds_its_work_done(small, tmp_path):
    first = build_substrate(small, LEARNED, tmp_path / "out")
    before = (tmp_path / "out" / "substrate.safetensors").stat().st_mtime_ns
    assert build_substrate(small, LEARNED, tmp_path / "out") == first
    assert (tmp_path / "out" / "substrate.safetensors").stat().st_mtime_ns == before


def test_other_settings_into_the_same_folder_are_refused(small, tmp_path):
    build_substrate(small, LEARNED, tmp_path / "out")
    with pytest.raises(InputError, match="seed = 1, not 2"):
        build_substrate(small, replace(LEARNED, seed=2), tmp_path / "out")


def test_the_folder_records_what_the_model_needs(substrates, tokenizer):
    found = SubstrateConfig(**read_build(substrates["learned"]).result["config"])
    assert replace(found, fingerprint="") == SubstrateConfig(1024, 32, kind="learned", trainable=True)


def test_a_missing_folder_is_refused_with_its_name(tmp_path):
    with pytest.raises(InputError, match=f"{tmp_path / 'none'} does not exist"):
        load_substrate(tmp_path / "none", 32)


def test_a_folder_of_another_kind_is_refused(tokenizer_folder):
    with pytest.raises(InputError, match="holds a tokenizer, not a substrate"):
        load_substrate(tokenizer_folder, 32)


@pytest.mark.parametrize("damage", ["missing", "empty", "cut off", "another shape", "another name"])
def test_a_damaged_table_is_refused_with_its_file(small, tmp_path, damage):
    build_substrate(small, LEARNED, tmp_path / "out")
    path = tmp_path / "out" / "substrate.safetensors"
    whole = path.read_bytes()
    path.unlink()
    match damage:
        case "empty":
            path.touch()
        case "cut off":
            path.write_bytes(whole[:-100])
        case "another shape":
            save_tensors({"table_VE": torch.zeros(512, 31)}, path)
        case "another name":
            save_tensors({"table": torch.zeros(512, 32)}, path)
    with pytest.raises(InputError, match=f"^{path} "):
        load_substrate(tmp_path / "out", 32)


# Refused widths and characters


@pytest.mark.parametrize("d_model", [16, 33, 48])
def test_a_width_that_does_not_divide_the_model_is_refused(substrates, d_model):
    with pytest.raises(InputError, match=f"n_embed 32 does not divide d_model {d_model}"):
        load_substrate(substrates["learned"], d_model)


def test_too_few_bits_are_refused_with_the_number_that_works(small, tokenizer, tmp_path):
    assert refusal(tokenizer, tmp_path, kind="token_bits", n_embed=9).endswith("tell 1024 ids apart; at least 10")
    codes = every_code(built(small, replace(BITS, n_embed=9), tmp_path))
    assert len(torch.unique(codes, dim=0)) == 512


def test_a_trainable_rule_is_refused(small, tmp_path):
    assert "token_bits is a rule" in refusal(small, tmp_path, kind="token_bits", n_embed=16, trainable=True)


@pytest.mark.parametrize("n_embed", [0, -4])
@pytest.mark.parametrize("kind", ["learned", "glyph"])
def test_a_width_that_is_not_positive_is_refused(small, fonts, tmp_path, kind, n_embed):
    assert f"n_embed {n_embed} must be positive" in refusal(small, tmp_path, kind=kind, n_embed=n_embed, font=fonts)


def test_more_components_than_tokens_are_refused_with_the_limit(small, fonts, tmp_path):
    assert refusal(small, tmp_path, kind="glyph", n_embed=513, font=fonts).endswith("at most 512")


def test_more_components_than_pixels_are_refused_with_the_limit(tmp_path, fonts, tokenizer, monkeypatch):
    monkeypatch.setattr(Tokenizer, "vocab_size", 5000)
    assert refusal(tokenizer, tmp_path, kind="glyph", n_embed=1025, font=fonts).endswith("at most 1024")


def missing_names(tokenizer):
    drawn = set("".join(t[3:5] if re.fullmatch("<0x..>", t) else t for t in tokenizer.tokens))
    return [f"U+{ord(character):04X}" for character in sorted(drawn - set("abcdefghijklmno0123456789"))]


def test_strict_refuses_characters_in_no_font_and_names_ten(small, fonts, tmp_path):
    missing = missing_names(small)
    message = refusal(small, tmp_path, kind="glyph", n_embed=8, font=fonts, strict=True)
    assert message.startswith(f"{len(missing)} of the characters are in no font (first: {', '.join(missing[:10])});")


def test_without_strict_missing_characters_are_told_and_drawn_apart(small, fonts, tmp_path, capsys):
    wanted = SubstrateSettings(kind="glyph", n_embed=8, font=fonts)
    build_substrate(small, wanted, tmp_path / "sub")
    assert f"{len(missing_names(small))} of the characters are in no font" in capsys.readouterr().err
    pictures = draw_vocabulary(small, load_fonts(fonts, 32)).bits_VP
    alone = [number for number, token in enumerate(small.tokens) if len(token) == 1 and token > "z"]
    assert len(np.unique(pictures[alone], axis=0)) == len(alone)


def test_strict_also_refuses_what_was_built_without_it(small, fonts, tmp_path):
    build_substrate(small, SubstrateSettings(kind="glyph", n_embed=8, font=fonts), tmp_path / "sub")
    with pytest.raises(InputError, match="are in no font"):
        build_substrate(small, SubstrateSettings(kind="glyph", n_embed=8, font=fonts, strict=True), tmp_path / "sub")
