"""Inspection of a table: counted, measured and drawn on tables whose properties are known."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from test_glyphs import box, make_font

from glyphlm.analysis import inspection
from glyphlm.analysis.inspection import (
    Codes,
    analyse,
    find_nearest,
    find_sharing,
    find_token,
    findings_text,
    inspect_folder,
    measure_spectrum,
    open_codes,
    script,
)
from glyphlm.base.errors import InputError
from glyphlm.base.outputs import sha256_file
from glyphlm.base.tensors import load_tensors, save_tensors
from glyphlm.cli.main import main
from glyphlm.modeling.model import GPT, ModelConfig
from glyphlm.modeling.substrate import SubstrateConfig
from glyphlm.runs.folder import export_model
from glyphlm.substrate import codes
from glyphlm.substrate.build import SubstrateSettings, build_substrate, load_substrate
from glyphlm.substrate.fonts import load_fonts
from glyphlm.tokenizer.build import TokenizerSettings, build_tokenizer


@pytest.fixture(params=[3, 4096])
def pieces(request, monkeypatch):
    """What is worked on piece by piece is the same in one piece."""
    monkeypatch.setattr(codes, "ROWS", request.param)


def made(rows, tokens=None, blank=(), **config):
    code_VE = torch.tensor(rows, dtype=torch.float32)
    config = SubstrateConfig(*code_VE.shape, "learned", **config)
    return Codes("made", config, code_VE, tokens or [chr(97 + number) for number in range(len(rows))], list(blank))


@pytest.fixture(scope="module")
def glyphs(tokenizer, tmp_path_factory):
    """A substrate whose letters a to f and A to F look alike two by two."""
    folder = tmp_path_factory.mktemp("glyphs")
    pairs = {c: (box((0, 0, 2 + 2 * n, 20 - n)), 16) for n, lower in enumerate("abcdef") for c in (lower, lower.upper())}
    font = make_font(folder / "pairs.ttf", pairs | {" ": (box(), 16)})
    build_substrate(tokenizer, SubstrateSettings(n_embed=32, font=[str(font)]), folder / "made")
    return folder / "made"


def test_tokens_that_share_a_code_are_grouped_the_largest_first():
    found = find_sharing(made([[1, 0], [2, 0], [0.0, 1], [1, 0], [-0.0, 1], [1, 0]]))
    assert found["distinct"] == 3 and found["tokens_sharing"] == 5
    assert [[entry["id"] for entry in group] for group in found["groups"]] == [[0, 3, 5], [2, 4]]
    assert found["groups"][1][0] == {"id": 2, "token": "c"}


@pytest.mark.usefixtures("pieces")
def test_blank_are_the_recorded_ones_and_rows_of_zeros():
    findings, _ = analyse(made([[1, 0], [0, 0], [0, 2], [1, 1]], blank=[3]), [])
    assert [entry["id"] for entry in findings["blank"]] == [1, 3]
    assert findings["norm"] == {"smallest": 0, "largest": 2}


@pytest.mark.usefixtures("pieces")
def test_the_spectrum_is_that_of_a_plain_decomposition():
    dice = np.random.default_rng(1)
    sizes = np.diag([9, 4, 2, 1, 0.5, 0.1])
    table = (dice.standard_normal((500, 6)) @ sizes @ dice.standard_normal((6, 20)) + 3).astype(np.float32)
    found, x_V2 = measure_spectrum(torch.from_numpy(table))
    left, sizes, _ = np.linalg.svd(table - table.mean(0, dtype=float), full_matrices=False)
    share = np.cumsum(sizes**2) / np.sum(sizes**2)
    assert found["components"] == {f"{p:g}%": int(np.argmax(share >= p / 100)) + 1 for p in (50, 90, 95, 99, 99.9)}
    assert found["participation_ratio"] == pytest.approx(np.sum(sizes**2) ** 2 / np.sum(sizes**4), rel=1e-4)
    assert found["rank"] == 7  # six directions and the offset
    expected = left[:, :2] * sizes[:2]
    np.testing.assert_allclose(np.abs(x_V2.numpy()), np.abs(expected), atol=1e-2)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_equal_codes_have_a_spectrum_too(value):
    found, x_V2 = measure_spectrum(torch.full((10, 4), value))
    assert found["rank"] == value and found["participation_ratio"] == 0 and not x_V2.any()
    assert all(1 <= number <= 4 for number in found["components"].values())


def test_codes_that_are_not_finite_are_refused_with_their_id():
    with pytest.raises(InputError, match="code of id 1 holds NaN"):
        analyse(made([[1, 0], [float("nan"), 1]]), [])


def test_codes_of_width_1_have_a_map():
    assert measure_spectrum(torch.arange(5.0)[:, None])[1][:, 1].tolist() == [0] * 5


@pytest.mark.usefixtures("pieces")
def test_the_nearest_are_those_of_largest_cosine_without_the_token_itself():
    near = find_nearest(made([[2, 0], [1, 0.1], [0, 1], [-1, 0], [3, 0.2], [0, 0]]), 0)
    assert [entry["token"] for entry in near] == ["e", "b", "c", "f", "d"]
    assert near[0]["cosine"] == pytest.approx(3 / (9 + 0.04) ** 0.5, abs=1e-5) and near[-1]["cosine"] == -1


def test_at_most_ten_are_listed():
    assert len(find_nearest(made(np.eye(30).tolist(), [str(n) for n in range(30)]), 3)) == 10


def test_tokens_are_found_by_spelling_or_number():
    found = made([[1, 0]] * 4, ["a", " ", "#3", "#"])
    assert [find_token(found, name) for name in ("a", " ", "#3", "#", "#0", "#1")] == [0, 1, 2, 3, 0, 1]
    for unknown in ("b", "#4", "", "##"):
        with pytest.raises(InputError, match="not a token of made.*4 tokens.*#0 to #3"):
            find_token(found, unknown)


@pytest.mark.parametrize(("token", "expected"), [
    ("a", "Latin"), ("ж", "Cyrillic"), ("中国", "Han"), ("2nd", "Latin"), ("7", "numbers"), ("\n", "other signs"),
])  # fmt: skip
def test_the_script_is_that_of_the_first_letter(token, expected):
    assert script(token) == expected


def test_the_text_names_what_looks_the_same_by_code_point():
    table = made([[1, 0], [1, 0], [0, 1], [0, 1], [1, 1]], ["a", "а", " ", "\n", "the"])
    text = findings_text(table, analyse(table, [4])[0])
    assert "4 tokens in 2 groups" in text and "'a' U+0061, 'а' U+0430" in text and "' ' U+0020, '\\n' U+000A" in text
    assert "nearest to 'the' #4" in text and "0.707" in text


def test_a_glyph_folder_is_reported_drawn_and_written(glyphs, tokenizer, tmp_path):
    text = inspect_folder(glyphs, ["a"], tmp_path / "out")
    findings = json.loads((tmp_path / "out" / "inspect.json").read_text(encoding="utf-8"))
    assert any({"a", "A"} <= {entry["token"] for entry in group} for group in findings["groups"])
    assert findings["nearest"][0]["neighbours"][0]["cosine"] == pytest.approx(1)
    assert tokenizer.pictured().index(" ") in [entry["id"] for entry in findings["blank"]]
    assert findings["distinct"] < 1024 and f"{findings['distinct']:,}" in text
    assert findings["norm"]["smallest"] == pytest.approx(1) and findings["rank"] == 32
    with Image.open(tmp_path / "out" / "map.png") as picture:
        assert picture.format == "PNG" and len(picture.convert("RGB").getcolors(1 << 24)) > 10
    assert (tmp_path / "out" / "glyphs.png").read_bytes() == (glyphs / "glyphs.png").read_bytes()


def test_the_same_look_is_read_again_and_another_one_refused(glyphs, tmp_path, monkeypatch):
    text = inspect_folder(glyphs, [], tmp_path / "out")
    monkeypatch.setattr(inspection, "analyse", None)
    assert inspect_folder(glyphs, [], tmp_path / "out") == text
    with pytest.raises(InputError, match="already holds other work: nearest"):
        inspect_folder(glyphs, ["a"], tmp_path / "out")


def test_without_out_nothing_is_written(glyphs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "distinct" in inspect_folder(glyphs) and not list(tmp_path.iterdir())


@pytest.mark.parametrize("settings", [
    SubstrateSettings(kind="token_bits", n_embed=16, shuffle_seed=1),
    SubstrateSettings(kind="affine_bits", n_embed=16, scale="unit_rms"),
    SubstrateSettings(kind="learned", n_embed=8, trainable=True),
    SubstrateSettings(kind="random_bits", n_embed=12, lift="orthogonal"),
], ids=lambda settings: settings.kind)  # fmt: skip
def test_run_folders_hold_what_their_substrate_folders_hold(tokenizer, tmp_path, settings):
    build_substrate(tokenizer, settings, tmp_path / "sub")
    model = GPT(ModelConfig(16, 1, 2, 8), load_substrate(tmp_path / "sub", 16))
    export_model(model, tokenizer, tmp_path / "run")
    one, other = open_codes(tmp_path / "sub"), open_codes(tmp_path / "run")
    assert torch.equal(one.code_VE, other.code_VE) and one.config == other.config and one.tokens == other.tokens
    assert find_sharing(one)["distinct"] == 1024


def break_weights(run):
    tensors = load_tensors(run / "model.safetensors")
    more = {"other." + name: tensor.clone() for name, tensor in tensors.items()}
    save_tensors(tensors | more, run / "model.safetensors")


def break_config(run):
    (run / "config.json").write_text('{"model_type": "gpt2"}')


@pytest.mark.parametrize(("damage", "said"), [
    (break_weights, "holds more than one substrate"),
    (break_config, "does not describe a single substrate"),
    (lambda run: (run / "config.json").unlink(), "does not describe a single substrate"),
    (lambda run: (run / "model.safetensors").write_bytes(b"x"), "cannot be read"),
    (lambda run: (run / "model.safetensors").unlink(), "no build.json"),
])  # fmt: skip
def test_a_run_that_cannot_be_looked_into_is_refused(substrates, tokenizer, tmp_path, damage, said):
    model = GPT(ModelConfig(32, 1, 2, 8), load_substrate(substrates["learned"], 32))
    export_model(model, tokenizer, tmp_path / "run")
    damage(tmp_path / "run")
    with pytest.raises(InputError, match=said):
        open_codes(tmp_path / "run")


def test_a_substrate_without_its_tokens_is_refused(substrates, tmp_path):
    folder = shutil.copytree(substrates["learned"], tmp_path / "sub")
    (folder / "tokens.json").unlink()
    with pytest.raises(InputError, match="build the substrate again"):
        open_codes(folder)


# The 10 known names at their places, between 13 that stand for the unknown ones: all that counts is that they differ.
SPECIALS = """<pad> <s> </s> <unk> <think> </think> <one> <mask> [SEP] <two> [CLS] <user>
[INST] [/INST] [EOT] <bot> [IMG] [AUDIO] <sys> [DOC] <end> [CODE] [FILE_SEP]""".split()
FONT_OF_THE_COUNTS = "db1960227adcb14640063e7384fdcd2867aaf819d9ca4866bca289d4db9a9f67"


def test_the_published_table_of_2_3_is_not_injective(data, tmp_path):
    try:
        font = load_fonts(None, 32).paths[0]
    except InputError:
        pytest.skip("GNU Unifont is not installed")
    if sha256_file(font) != FONT_OF_THE_COUNTS:
        pytest.skip("another version of GNU Unifont is installed than the rows were counted with")
    (tmp_path / "names.txt").write_text("\n".join(SPECIALS))
    layout = TokenizerSettings(
        layout="bvv241-2-3", ngrams=str(data / "ngrams" / "_n-gramms-2-3.txt"), special_names=str(tmp_path / "names.txt")
    )
    tokenizer = build_tokenizer([], layout, tmp_path / "tok")
    build_substrate(tokenizer, SubstrateSettings(n_embed=64, augment="published"), tmp_path / "sub")
    found = find_sharing(open_codes(tmp_path / "sub"))
    groups = [{entry["token"] for entry in group} for group in found["groups"]]
    assert found["distinct"] == 64_049
    assert all(any(alike <= group for group in groups) for alike in ({" ", "\n", "\xa0"}, {"a", "а"}, {"and", "ard"}))


def test_the_command_line_builds_and_looks(tokenizer_folder, tmp_path, capsys):
    sub, out = tmp_path / "sub", tmp_path / "out"
    build = ["substrate", "build", "--tokenizer", str(tokenizer_folder), "--kind", "affine_bits", "--n-embed", "16"]
    assert main([*build, "--shuffle-seed", "3", "--lift", "orthogonal", "--out", str(sub)]) == 0
    assert main(["substrate", "inspect", str(sub), "--nearest", " ", "#7", "--out", str(out)]) == 0
    text = capsys.readouterr().out
    assert "distinct             1,024" in text and "nearest to ' ' U+0020" in text
    assert {path.name for path in out.iterdir()} == {"build.json", "inspect.json", "map.png"}


@pytest.mark.parametrize("options", [
    ["--kind", "token_bits", "--unique"], ["--kind", "given"], ["--kind", "learned", "--file", "x.pt"],
    ["--kind", "nothing"], ["--kind", "token_bits", "--n-embed", "4"],
    ["--kind", "glyph", "--pca", "false", "--n-embed", "100"],
])  # fmt: skip
def test_the_command_line_refuses_in_one_line(tokenizer_folder, tmp_path, capsys, options):
    command = ["substrate", "build", "--tokenizer", str(tokenizer_folder), "--out", str(tmp_path / "sub"), *options]
    assert main(command) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1 and not (tmp_path / "sub").exists()


def test_the_command_line_refuses_what_is_not_a_folder_of_codes(tokenizer_folder, tmp_path, capsys):
    for folder, said in ((tmp_path / "none", "does not exist"), (tokenizer_folder, "holds a tokenizer")):
        assert main(["substrate", "inspect", str(folder)]) == 2
        assert said in capsys.readouterr().err
