"""Codes are what their rule says, frozen or trainable under one name, and refused where they would not fit."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from test_glyphs import box, make_font

from glyphlm.base.errors import InputError
from glyphlm.base.outputs import read_build
from glyphlm.base.tensors import load_tensors, save_tensors
from glyphlm.modeling.substrate import SubstrateConfig, scale_rows
from glyphlm.substrate import build as substrate
from glyphlm.substrate.build import (
    SubstrateSettings,
    blank_ids,
    build_substrate,
    draw_vocabulary,
    load_substrate,
    sheet_ids,
)
from glyphlm.substrate.codes import orthonormal_rows, principal_components, random_bits
from glyphlm.substrate.fonts import load_fonts
from glyphlm.substrate.glyphs import draw_tokens, polar_order
from glyphlm.tokenizer.layouts import compact_backend
from glyphlm.tokenizer.ngrams import TextCounts
from glyphlm.tokenizer.tokenizer import Tokenizer

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
    pictures = draw_tokens(small.pictured(), load_fonts(fonts[:1], 32), 32).bits_VP
    expected = scale_rows(principal_components(pictures, 8), "l2")
    assert torch.equal(load_substrate(glyph_folder, 8).table_VE, expected)


def test_bytes_that_are_not_text_are_drawn_apart(small, glyph_folder):
    codes_VE = load_substrate(glyph_folder, 8).table_VE
    one, other = (codes_VE[small.tokens.index(name)] for name in ("<0x80>", "<0x81>"))
    assert one.any() and not torch.equal(one, other)


def test_published_pictures_are_drawn_with_the_parameters_of_their_vocabulary(fonts):
    loaded = load_fonts(fonts[:1], 32)
    wanted = SubstrateSettings(augment="published")
    for count, name in ((1 << 16, "published-2-3"), (512, "published-max")):
        drawn = draw_vocabulary(["a", "b"] * (count // 2), loaded, wanted).bits_VP[:2]
        assert np.array_equal(drawn, draw_tokens(["a", "b"], loaded, 32, name).bits_VP)


def test_without_pca_codes_are_the_centred_pixels_in_the_order_asked_for(small, glyph, tmp_path):
    for augment in ("none", "published"):
        settings = replace(glyph, n_embed=1024, scale="none", pca=False, augment=augment)
        found = table(small, settings, tmp_path / augment)
        pictures = draw_vocabulary(small.pictured(), load_fonts(glyph.font, 32), settings).bits_VP
        order = polar_order(32) if augment == "published" else np.arange(1024)
        torch.testing.assert_close(found, torch.from_numpy(pictures - pictures.mean(0))[:, order].float())


def test_raw_spelling_draws_what_stands_in_the_vocabulary(small, glyph, tmp_path):
    build_substrate(small, replace(glyph, spelling="raw"), tmp_path / "raw")
    assert json.loads((tmp_path / "raw" / "tokens.json").read_text(encoding="utf-8")) == small.tokens


def test_the_folder_names_its_tokens(small, glyph_folder):
    assert json.loads((glyph_folder / "tokens.json").read_text(encoding="utf-8")) == small.pictured()


@pytest.mark.parametrize("augment", ["none", "published"])
def test_blank_pictures_are_recorded(fonts, augment):
    tokens = ["a", " ", "  ", "a ", "0", "\u2003"]
    folder_font = make_font(Path(fonts[0]).with_name("blank.ttf"), {c: (box((0, 0, 8, 20)), 16) for c in "a0"} | {
        c: (box(), 16) for c in " \u2003"})
    loaded = load_fonts([folder_font], 32)
    drawing = draw_vocabulary(tokens, loaded, SubstrateSettings(augment=augment))
    assert blank_ids(drawing, tokens, loaded) == [1, 2, 5]


@pytest.mark.parametrize(("kind", "n_embed"), [("random_bits", 9), ("random_bits", 64), ("random_float", 16)])
def test_random_codes_never_collide_and_depend_on_their_seed(small, tmp_path, kind, n_embed):
    settings = SubstrateSettings(kind=kind, n_embed=n_embed, scale="none")
    one, again, other = (table(small, replace(settings, seed=seed), tmp_path / str(n)) for n, seed in enumerate((1, 1, 2)))
    assert torch.equal(one, again) and not torch.equal(one, other)
    assert len(torch.unique(one, dim=0)) == 512
    assert (set(one.unique().tolist()) == {0, 1}) == (kind == "random_bits")


def test_random_floats_are_the_components_of_random_bits(small, tmp_path):
    found = table(small, SubstrateSettings(kind="random_float", n_embed=32, seed=4), tmp_path)
    expected = principal_components(random_bits(512, 1024, 9, 4), 32)
    assert torch.equal(found, scale_rows(expected, "l2"))


@pytest.mark.parametrize("n_embed", [9, 16, 64])
@pytest.mark.parametrize("shuffle_seed", [None, 1])
def test_affine_codes_are_a_rule_of_small_tensors(small, tmp_path, n_embed, shuffle_seed):
    module = built(small, SubstrateSettings(kind="affine_bits", n_embed=n_embed, shuffle_seed=shuffle_seed), tmp_path)
    shapes = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    assert shapes == {"affine_NE": (9, n_embed), "offset_E": (n_embed,)} | ({"shuffled_V": (512,)} if shuffle_seed else {})
    assert not list(module.parameters()) and len(torch.unique(every_code(module), dim=0)) == 512


def test_shuffled_bits_belong_to_other_ids(small, tmp_path):
    settings = replace(BITS, n_embed=9, scale="none", shuffle_seed=7)
    module = built(small, settings, tmp_path)
    numbers = (every_code(module) @ 2.0 ** torch.arange(9)).int()
    assert torch.equal(numbers, module.shuffled_V) and torch.equal(numbers.sort().values, torch.arange(512).int())
    assert not torch.equal(numbers, torch.arange(512).int())


@pytest.mark.parametrize("suffix", ["pt", "npy", "safetensors"])
def test_a_given_table_is_kept_byte_for_byte(small, tmp_path, suffix):
    given = torch.randn(512, 24, generator=torch.Generator().manual_seed(1))
    path = tmp_path / f"table.{suffix}"
    if suffix == "npy":
        np.save(path, given.numpy())
    elif suffix == "pt":
        torch.save(given, path)
    else:
        save_tensors({"weight": given}, path)
    settings = SubstrateSettings(kind="given", file=str(path), n_embed=24, scale="none")
    assert torch.equal(table(small, settings, tmp_path), given)
    np.save(tmp_path / "other.npy", -given.numpy())
    other = replace(settings, file=str(tmp_path / "other.npy"))
    first = read_build(tmp_path / "made").result["config"]["fingerprint"]
    assert build_substrate(small, other, tmp_path / "other").fingerprint != first


def test_a_given_table_of_another_shape_is_refused_with_both(small, tmp_path):
    np.save(tmp_path / "t.npy", np.zeros((512, 24), np.float32))
    message = refusal(small, tmp_path, kind="given", n_embed=32, file=str(tmp_path / "t.npy"))
    assert "(512, 24)" in message and "(512, 32)" in message


def test_unique_glyphs_never_collide(small, glyph, tmp_path):
    found = table(small, replace(glyph, n_embed=20, unique=True), tmp_path / "a")
    plain = table(small, replace(glyph, n_embed=20), tmp_path / "b")
    assert len(torch.unique(found, dim=0)) == 512 > len(torch.unique(plain, dim=0))
    torch.testing.assert_close(F.normalize(found[:, :11]), F.normalize(plain[:, :11]))


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


@pytest.mark.parametrize("lift", ["repeat_interleave", "tile", "orthogonal"])
@pytest.mark.parametrize("kind", ["learned", "affine_bits"])
def test_every_lift_makes_codes_equally_long(small, tmp_path, lift, kind):
    module = built(small, SubstrateSettings(kind=kind, n_embed=16, lift=lift, scale="unit_rms"), tmp_path, d_model=48)
    x_VD = every_code(module).detach()
    rms_V = x_VD.square().mean(1).sqrt()
    torch.testing.assert_close(rms_V[rms_V > 0], torch.ones(int((rms_V > 0).sum())))
    assert x_VD.shape == (512, 48)
    assert torch.linalg.matrix_rank(x_VD) == torch.linalg.matrix_rank(module.codes(torch.arange(512)).detach())


def test_the_orthogonal_lift_takes_any_width_and_keeps_angles(small, tmp_path):
    module = built(small, replace(LEARNED, n_embed=33, lift="orthogonal", lift_seed=5), tmp_path, d_model=40)
    assert torch.equal(module.lift_ED, orthonormal_rows(33, 40, 5)) and not module.lift_ED.requires_grad
    x_VD = every_code(module)
    torch.testing.assert_close(x_VD @ x_VD.T, module.table_VE @ module.table_VE.T * 40 / 33, atol=1e-5, rtol=1e-5)


def test_no_lift_leaves_the_code(small, tmp_path):
    module = built(small, replace(LEARNED, lift="none"), tmp_path)
    assert torch.equal(every_code(module), module.table_VE)


@pytest.mark.parametrize(("lift", "d_model", "said"), [
    ("none", 64, "n_embed 32 is not d_model 64"),
    ("orthogonal", 31, "n_embed 32 is more than d_model 31"),
    ("tile", 48, "n_embed 32 does not divide d_model 48"),
])  # fmt: skip
def test_codes_that_cannot_be_lifted_are_refused(small, tmp_path, lift, d_model, said):
    with pytest.raises(InputError, match=said):
        built(small, replace(LEARNED, lift=lift), tmp_path, d_model)


CONTENTS = {
    "token_bits": {"kind": "token_bits"},
    "shuffled": {"kind": "token_bits", "shuffle_seed": 2},
    "affine": {"kind": "affine_bits", "scale": "unit_rms"},
    "bits": {"kind": "random_bits"},
    "float": {"kind": "random_float"},
    "learned": {"kind": "learned"},
}


@pytest.mark.parametrize("name", CONTENTS)
def test_any_content_can_be_frozen_or_where_training_starts(small, tmp_path, name):
    frozen, trained = (SubstrateSettings(n_embed=16, trainable=trainable, **CONTENTS[name]) for trainable in (False, True))
    one, other = built(small, frozen, tmp_path / "frozen"), built(small, trained, tmp_path / "trained")
    assert torch.equal(every_code(one), every_code(other))
    assert one.config.fingerprint == other.config.fingerprint
    assert list(other.state_dict()) == ["table_VE"] and other.table_VE.requires_grad and not other.config.is_rule
    assert not list(one.parameters()) and one.config.is_rule == (name in ("token_bits", "shuffled", "affine"))


def test_a_loaded_module_holds_the_stored_table(substrates):
    stored = load_tensors(substrates["learned"] / "substrate.safetensors")["table_VE"]
    module = load_substrate(substrates["learned"], 64)
    assert torch.equal(module.table_VE, stored) and stored.shape == (1024, 32) and module.table_VE.requires_grad


# Fingerprints


@pytest.mark.parametrize("change", [
    {"seed": 2}, {"n_embed": 16}, {"scale": "unit_rms"}, {"scale": "none"}, {"lift": "tile"}, {"kind": "token_bits"}
], ids=str)  # fmt: skip
def test_any_setting_of_the_codes_changes_the_fingerprint(small, tmp_path, change):
    one = build_substrate(small, LEARNED, tmp_path / "one")
    assert build_substrate(small, replace(LEARNED, **change), tmp_path / "other").fingerprint != one.fingerprint


def test_any_setting_of_the_pictures_changes_the_fingerprint(small, glyph, fonts, tmp_path, monkeypatch):
    def some_pixels(bits_VP, width):
        return torch.from_numpy(bits_VP[:, ::20][:, :width]).float()

    monkeypatch.setattr(substrate, "principal_components", some_pixels)
    changes = (
        {}, {"side": 64}, {"font": fonts[1:]}, {"n_embed": 32}, {"scale": "none"}, {"lift": "tile"},
        {"unique": True}, {"augment": "published"}, {"lift": "orthogonal"}, {"lift": "orthogonal", "lift_seed": 2},
    )  # fmt: skip
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


# Controls: the same codes at other tokens, and starts of other sizes


@pytest.mark.parametrize("kind", ["given", "glyph"])
def test_shuffled_tables_have_the_same_codes_at_other_tokens(small, tmp_path, kind):
    np.save(tmp_path / "t.npy", np.random.default_rng(0).normal(size=(512, 16)).astype(np.float32))
    settings = SubstrateSettings(kind=kind, n_embed=16, file=str(tmp_path / "t.npy") if kind == "given" else None)
    plain = table(small, settings, tmp_path / "plain")
    shuffled = table(small, replace(settings, shuffle_seed=3), tmp_path / "shuffled")
    assert torch.equal(shuffled, plain[torch.randperm(512, generator=torch.Generator().manual_seed(3))])
    assert not torch.equal(shuffled, plain)


def test_unique_bits_stay_those_of_the_id_in_a_shuffled_table(small, tmp_path):
    settings = SubstrateSettings(kind="glyph", n_embed=32, unique=True)
    plain, shuffled = (table(small, replace(settings, shuffle_seed=seed), tmp_path / str(seed)) for seed in (None, 3))
    assert torch.equal(plain[:, -9:].sign(), shuffled[:, -9:].sign()) and not torch.equal(plain[:, :-9], shuffled[:, :-9])


def test_a_learned_table_can_start_small(small, tmp_path):
    plain = table(small, replace(LEARNED, scale="none"), tmp_path / "1")
    low = table(small, replace(LEARNED, scale="none", std=0.02), tmp_path / "2")
    assert torch.equal(low, plain * 0.02) and 0.95 < float(plain.std()) < 1.05


def test_a_scale_that_sets_the_norm_takes_no_std(small, tmp_path):
    message = refusal(small, tmp_path, kind="learned", n_embed=16, std=0.02)
    assert "std 0.02 applies only to scale none, not to l2" in message and "give --scale none" in message


# Refused options, widths and characters


@pytest.mark.parametrize(("option", "value", "kind"), [
    ("file", "x.pt", "glyph"), ("unique", True, "token_bits"), ("unique", True, "random_bits"), ("std", 0.02, "glyph"),
    ("shuffle_seed", 1, "learned"), ("seed", 2, "token_bits"), ("seed", 2, "given"), ("side", 64, "learned"),
    ("augment", "published", "token_bits"), ("pca", False, "random_float"), ("spelling", "raw", "learned"),
    ("lift_seed", 2, "learned"),
])  # fmt: skip
def test_options_that_do_not_apply_are_refused(small, tmp_path, option, value, kind):
    message = refusal(small, tmp_path, kind=kind, n_embed=16, **{option: value})
    assert f"{option} {value} applies only to" in message and message.endswith("remove it")


@pytest.mark.parametrize(("given", "match"), [
    ({"seed": -1}, "seed -1 .*at least 0"), ({"lift_seed": 1 << 63}, "lift_seed .*at most"),
    ({"shuffle_seed": -1}, "shuffle_seed -1 .*at least 0"), ({"side": 31}, "side 31 .*32 or 64"),
    ({"n_embed": 0}, "n_embed 0 .*at least 1"), ({"n_embed": 2.5}, "n_embed 2.5 .*whole"),
    ({"scale": "l1"}, "scale 'l1' .*l2, unit_rms, none"),
    ({"lift": "5"}, "lift '5' .*tile"), ({"kind": "x"}, "kind 'x' .*glyph"),
])
def test_settings_out_of_range_are_refused(given, match):
    with pytest.raises(InputError, match=match):
        SubstrateSettings(**given)


@pytest.mark.parametrize("change", [
    lambda build: build["result"].pop("config"), lambda build: build["result"].update(config=[]),
    lambda build: build["result"]["config"].update(extra=1), lambda build: build["result"]["config"].update(seed=2),
    lambda build: build["result"]["config"].update(vocab_size=10**12), lambda build: build["inputs"].update(tokenizer="0"),
])
def test_a_damaged_record_is_refused_with_its_folder(small, tmp_path, change):
    build_substrate(small, SubstrateSettings(kind="learned", n_embed=32), tmp_path / "out")
    path = tmp_path / "out" / "build.json"
    build = json.loads(path.read_text())
    change(build)
    path.write_text(json.dumps(build))
    with pytest.raises(InputError, match=f"{tmp_path / 'out'}.*(again|not)"):
        load_substrate(tmp_path / "out", 32)


def test_a_given_table_must_be_named(small, tmp_path):
    assert "--file" in refusal(small, tmp_path, kind="given")
    assert "none.pt does not exist" in refusal(small, tmp_path, kind="given", file=str(tmp_path / "none.pt"))


@pytest.mark.parametrize("kind", ["affine_bits", "random_bits"])
def test_too_few_bits_are_refused_for_random_kinds_too(small, tmp_path, kind):
    assert refusal(small, tmp_path, kind=kind, n_embed=8).endswith(" 512 ids; give at least 9")


def test_widths_that_pictures_cannot_have_are_refused(small, fonts, tmp_path):
    assert "must be 1024" in refusal(small, tmp_path, kind="glyph", n_embed=256, pca=False, font=fonts)
    assert refusal(small, tmp_path, kind="glyph", n_embed=9, unique=True, font=fonts).endswith("at least 10")


def test_more_random_components_than_tokens_are_refused(small, tmp_path):
    assert refusal(small, tmp_path, kind="random_float", n_embed=513).endswith("at most 512")


@pytest.mark.parametrize("d_model", [16, 33, 48])
def test_a_width_that_does_not_divide_the_model_is_refused(substrates, d_model):
    with pytest.raises(InputError, match=f"n_embed 32 does not divide d_model {d_model}"):
        load_substrate(substrates["learned"], d_model)


def test_too_few_bits_are_refused_with_the_number_that_works(small, tokenizer, tmp_path):
    assert refusal(tokenizer, tmp_path, kind="token_bits", n_embed=9).endswith(" 1024 ids; give at least 10")
    codes = every_code(built(small, replace(BITS, n_embed=9), tmp_path))
    assert len(torch.unique(codes, dim=0)) == 512


@pytest.mark.parametrize("n_embed", [0, -4])
@pytest.mark.parametrize("kind", ["learned", "glyph"])
def test_a_width_that_is_not_positive_is_refused(small, fonts, tmp_path, kind, n_embed):
    assert f"n_embed {n_embed} must be" in refusal(small, tmp_path, kind=kind, n_embed=n_embed, font=fonts)


def test_more_components_than_tokens_are_refused_with_the_limit(small, fonts, tmp_path):
    assert refusal(small, tmp_path, kind="glyph", n_embed=513, font=fonts).endswith("at most 512")


def test_more_components_than_pixels_are_refused_with_the_limit(tmp_path, fonts, tokenizer, monkeypatch):
    monkeypatch.setattr(Tokenizer, "vocab_size", 5000)
    assert refusal(tokenizer, tmp_path, kind="glyph", n_embed=1025, font=fonts).endswith("at most 1024")


def missing_names(tokenizer):
    drawn = set("".join(tokenizer.pictured()))
    return [f"U+{ord(character):04X}" for character in sorted(drawn - set("abcdefghijklmno0123456789"))]


def test_strict_refuses_characters_in_no_font_and_names_ten(small, fonts, tmp_path):
    missing = missing_names(small)
    message = refusal(small, tmp_path, kind="glyph", n_embed=8, font=fonts, strict=True)
    assert message.startswith(f"{len(missing)} of the characters are in no font (first: {', '.join(missing[:10])});")


def test_without_strict_missing_characters_are_reported_and_drawn_apart(small, fonts, tmp_path, capsys):
    wanted = SubstrateSettings(kind="glyph", n_embed=8, font=fonts)
    build_substrate(small, wanted, tmp_path / "sub")
    assert f"{len(missing_names(small))} of the characters are in no font" in capsys.readouterr().err
    pictures = draw_vocabulary(small.pictured(), load_fonts(fonts, 32), wanted).bits_VP
    alone = [number for number, token in enumerate(small.tokens) if len(token) == 1 and token > "z"]
    assert len(np.unique(pictures[alone], axis=0)) == len(alone)


def test_strict_also_refuses_what_was_built_without_it(small, fonts, tmp_path):
    build_substrate(small, SubstrateSettings(kind="glyph", n_embed=8, font=fonts), tmp_path / "sub")
    with pytest.raises(InputError, match="are in no font"):
        build_substrate(small, SubstrateSettings(kind="glyph", n_embed=8, font=fonts, strict=True), tmp_path / "sub")
