"""More characters for a run: old text keeps its distribution, new characters are read and written at once."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from test_glyphs import box, make_font

from glyphlm.analysis.unseen import RandomRows, probe_unseen, read, table
from glyphlm.base.errors import InputError
from glyphlm.cli.main import main
from glyphlm.experiments.extend import extend
from glyphlm.modeling.config import HeadConfig, ModelConfig
from glyphlm.modeling.model import GPT
from glyphlm.pages.report import write_report
from glyphlm.runs.folder import describe_model, export_model, load_run, read_summary, write_summary
from glyphlm.substrate.build import build_substrate, load_substrate
from glyphlm.substrate.glyphs import TILE
from glyphlm.substrate.settings import SubstrateSettings
from glyphlm.tokenizer.tokenizer import Tokenizer

NEW = "ΩΨ"
HEADS = {"full": HeadConfig(), "tied": HeadConfig("tied"), "code": HeadConfig("code", digits=3, width=16)}


def font_of(tokenizer: Tokenizer, path: Path, widths: int) -> str:
    """A font in which each character of the vocabulary, and each new one, has a box of one of so many widths."""
    characters = sorted({one for token in tokenizer.pictured() for one in token} | set(NEW))
    glyphs = {one: (box((0, 0, 2 + ord(one) % widths, 4 + ord(one) % 17)), 16) for one in characters}
    return str(make_font(path, glyphs))


@pytest.fixture(scope="module")
def font(tokenizer, tmp_path_factory) -> str:
    return font_of(tokenizer, tmp_path_factory.mktemp("font") / "font.ttf", 13)


@pytest.fixture(scope="module")
def runs(tokenizer, tokenizer_folder, font, tmp_path_factory) -> dict[str, Path]:
    """Run folders of random weights, of each head over glyphs (once unique), and over other codes."""
    folder = tmp_path_factory.mktemp("runs")
    kinds = {
        **{name: SubstrateSettings(kind="glyph", n_embed=16, font=[font]) for name in HEADS},
        "unique": SubstrateSettings(kind="glyph", n_embed=16, font=[font], unique=True),
        "bits": SubstrateSettings(kind="token_bits", n_embed=16),
        "trained": SubstrateSettings(kind="learned", n_embed=16, trainable=True),
    }
    for name, settings in kinds.items():
        build_substrate(tokenizer, settings, folder / f"{name}-codes")
        substrate = load_substrate(folder / f"{name}-codes", 16)
        config = ModelConfig(16, 1, 2, 32, head_bias=name == "tied", head=HEADS.get(name, HeadConfig()))
        model = GPT(config, substrate).eval()
        model.init_weights(1)
        export_model(model, tokenizer, folder / name)
        recipe = {"tokenizer": {"path": str(tokenizer_folder)}, "substrate": {"path": str(folder / f"{name}-codes")},
                  "train": {"steps": 1}, "data": [{"text": "a.txt"}]}
        (folder / name / "settings.yaml").write_text(json.dumps(recipe))
        summary = {"name": name, "command": "", "tokens": 100, "bits_per_byte": {"validation": None}}
        write_summary(folder / name, summary | describe_model(model, tokenizer))
    return {name: folder / name for name in kinds}


@pytest.mark.parametrize("name", ["full", "tied", "code", "unique", "bits", "trained"])
def test_an_extended_run_gives_old_text_what_it_gave_and_has_ids_for_the_new(runs, tokenizer, tmp_path, name):
    assert extend(runs[name], NEW, tmp_path / "wide") == 2
    (before, _), (after, wider) = load_run(runs[name]), load_run(tmp_path / "wide")
    assert wider.encode("a Ω b") == [*tokenizer.encode("a "), tokenizer.vocab_size, *tokenizer.encode(" b")]
    assert wider.decode(wider.encode("x ΩΨ!")) == "x ΩΨ!"
    ids_BT = torch.tensor([tokenizer.encode("Hello, world")])
    with torch.no_grad():
        old, new = before(ids_BT).logits, after(ids_BT).logits
    assert new.shape[-1] == tokenizer.vocab_size + 2
    if name == "code":  # the probabilities of digits that were impossible are taken from the others
        assert (new[..., :-2] <= old + 1e-5).all()
    else:
        torch.testing.assert_close(new[..., :-2], old, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(new.softmax(-1).sum(-1), torch.ones(new.shape[:-1]))
    assert (read_summary(tmp_path / "wide") or {})["tokenizer"]["vocab_size"] == tokenizer.vocab_size + 2
    assert main(["generate", str(tmp_path / "wide"), "--prompt", "Ω", "--max-new-tokens", "2"]) == 0


def test_new_glyph_codes_are_those_of_a_vocabulary_that_had_them(runs, tokenizer, font, tmp_path):
    """Up to the axes, which the new pictures would turn a little: nearest old codes are the same."""
    extend(runs["full"], NEW, tmp_path / "wide")
    table_VE = load_run(tmp_path / "wide")[0].gpt.substrate.table_VE
    whole = Tokenizer.load(tmp_path / "wide")
    build_substrate(whole, SubstrateSettings(kind="glyph", n_embed=16, font=[font]), tmp_path / "codes")
    whole_VE = load_substrate(tmp_path / "codes", 16).table_VE
    for number in (-2, -1):
        one, other = (codes_VE[:-2] @ codes_VE[number] for codes_VE in (table_VE, whole_VE))
        torch.testing.assert_close(one, other, atol=0.05, rtol=0)


def test_other_pictures_than_the_run_was_made_with_are_refused(runs, tokenizer, tmp_path):
    other, changed = font_of(tokenizer, tmp_path / "other.ttf", 11), tmp_path / "full-codes"
    build = json.loads((runs["full"].parent / "full-codes" / "build.json").read_text())
    build["settings"]["font"] = [other]
    changed.mkdir()
    (changed / "build.json").write_text(json.dumps(build))
    run = Path(shutil.copytree(runs["full"], tmp_path / "run"))
    recipe = json.loads((run / "settings.yaml").read_text())
    recipe["substrate"]["path"] = str(changed)
    (run / "settings.yaml").write_text(json.dumps(recipe))
    with pytest.raises(InputError, match="run was made with other pictures than .*other.ttf gives now; install the font"):
        extend(run, NEW, tmp_path / "wide")
    assert not (tmp_path / "wide").exists()


def test_a_tokenizer_is_extended_alone_and_again_is_refused(tokenizer_folder, tokenizer, tmp_path):
    assert main(["tokenizer", "extend", str(tokenizer_folder), "--characters", "U+03A9", "--out", str(tmp_path / "w")]) == 0
    assert Tokenizer.load(tmp_path / "w").encode("Ω") == [tokenizer.vocab_size]
    with pytest.raises(InputError, match="all of the 1 characters have ids already"):
        extend(tmp_path / "w", "Ω", tmp_path / "again")


def test_more_ids_than_the_digits_can_number_are_refused(runs, tmp_path):
    many = "".join(map(chr, range(0x4E00, 0x4E00 + 400)))
    with pytest.raises(InputError, match="head of 3 digits, which number up to 1,331 ids, not 1,3"):
        extend(runs["code"], many, tmp_path / "wide")


# Reading and writing them


def test_random_rows_change_the_named_ids_alone(runs):
    substrate = load_run(runs["full"])[0].gpt.substrate
    ids_BT, random = torch.arange(20)[None], RandomRows(substrate, [3, 5], seed=1)
    changed = (random(ids_BT) != substrate(ids_BT)).any(-1)[0]
    assert changed.nonzero()[:, 0].tolist() == [3, 5]
    torch.testing.assert_close(random(ids_BT).norm(dim=-1), substrate(ids_BT).norm(dim=-1))


def test_a_long_document_is_read_once_token_by_token(runs, tokenizer):
    gpt, text = load_run(runs["full"])[0].gpt, "Hello, world. " * 20
    reading = read(gpt, tokenizer, text)
    assert reading.ids_T.tolist() == tokenizer.encode(text) and reading.ends_T[-1] == len(text.encode())
    ids = [tokenizer.end_id, *tokenizer.encode(text)]
    with torch.no_grad():
        first = -gpt(torch.tensor([ids[:32]])).log_softmax(-1)[0].gather(1, torch.tensor(ids[1:33])[:, None])[:, 0]
    torch.testing.assert_close(torch.from_numpy(reading.nats_T[:32]), first, atol=1e-5, rtol=1e-5)


def test_the_probe_reads_and_writes_what_was_not_seen(runs, tmp_path, capsys):
    for name in ("full", "tied"):
        extend(runs[name], NEW, tmp_path / name)
    (tmp_path / "text.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in ["a Ω b c", "Hi Ψ!", "none"]))
    (tmp_path / "new.txt").write_text(NEW)
    rows = probe_unseen([tmp_path / "full", tmp_path / "tied"], NEW, str(tmp_path / "text.jsonl"), tmp_path / "out",
                        oracle=str(tmp_path / "full"))
    assert [row["documents"] for row in rows] == [2, 2] and [row["written"] for row in rows] == [2, 2]
    assert rows[0]["closed"] == pytest.approx(1) and rows[0]["bits"] == rows[0]["bits_oracle"] != rows[0]["bits_random"]
    assert all(0 < row["times_unigram"] <= row["times_unigram_mean"] and 0 <= row["top_1"] <= row["top_100"] for row in rows)
    assert "times_unigram" in table(rows)
    for name in ("1-full.png", "2-tied.png"):
        with Image.open(tmp_path / "out" / name) as picture:
            assert picture.size == (11 * TILE[0], 2 * TILE[1])  # two characters, each with ten predicted tokens
    page = write_report([tmp_path / "full"], tmp_path / "report.html", unseen=tmp_path / "out").read_text(encoding="utf-8")
    assert "Characters never seen" in page and page.count("never saw, then the tokens") == 2
    with pytest.raises(InputError, match="has no rows in unseen.jsonl.*probe --unseen"):
        write_report([tmp_path / "full"], tmp_path / "report.html", unseen=tmp_path)
    named = ["--unseen", str(tmp_path / "new.txt"), "--text", str(tmp_path / "text.jsonl")]
    assert main(["probe", str(tmp_path / "tied"), *named, "--out", str(tmp_path / "again")]) == 0
    assert "tied" in capsys.readouterr().out
    assert main(["probe", str(tmp_path / "tied"), "--unseen", "So", "--out", str(tmp_path / "third")]) == 2
    assert "--unseen So needs a text" in capsys.readouterr().err


def test_a_run_without_ids_for_the_characters_reads_their_bytes(runs, tmp_path):
    (tmp_path / "text.txt").write_text("a Ω b c")
    [row] = probe_unseen([runs["full"]], NEW, str(tmp_path / "text.txt"), tmp_path / "out")
    assert row["bits"] > 0 and row["bits_random"] is row["times_unigram"] is row["closed"] is None
    with pytest.raises(InputError, match="no document of .* holds one of the 1 characters"):
        probe_unseen([runs["full"]], "Q", str(tmp_path / "text.txt"), tmp_path / "other")
