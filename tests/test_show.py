"""The page of `glyphlm show`: its numbers are the model's, it is one file under a strict policy, and it can be used."""

import base64
import hashlib
import json
import re
from pathlib import Path

import browser
import matplotlib
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from glyphlm.base.errors import InputError
from glyphlm.base.names import SETTINGS
from glyphlm.base.records import to_yaml
from glyphlm.composition.fuse import fuse
from glyphlm.composition.settings import FusionSettings
from glyphlm.modeling.attention import Context
from glyphlm.modeling.model import GPT, ModelConfig
from glyphlm.pages import pictures, reader, show
from glyphlm.pages.show import TEXTS, Explorer, write_show
from glyphlm.runs.folder import export_model
from glyphlm.runs.opening import open_model
from glyphlm.substrate.build import SubstrateSettings, build_substrate, load_substrate
from glyphlm.substrate.fonts import load_fonts
from glyphlm.substrate.glyphs import draw_tokens
from glyphlm.tokenizer.build import TokenizerSettings, build_tokenizer
from glyphlm.tokenizer.tokenizer import Tokenizer

FONT, BOLD = (str(Path(matplotlib.get_data_path()) / f"fonts/ttf/DejaVuSans{face}.ttf") for face in ("", "-Bold"))
GIVEN = ["Germany is а country", "abc"]


def made(folder: Path, substrate: Path, tokenizer: Tokenizer, seed: int = 1) -> Path:
    model = GPT(ModelConfig(32, 2, 2, 32), load_substrate(substrate, 32)).eval()
    model.init_weights(seed)
    for parameter in model.parameters():
        parameter.data *= 4  # clear preferences
    export_model(model, tokenizer, folder)
    return folder


@pytest.fixture(scope="module")
def runs(tokenizer, substrates, tmp_path_factory) -> dict[str, Path]:
    """A run on glyphs with its recipe, its twin, and a run on bits."""
    folder = tmp_path_factory.mktemp("shown")
    settings = SubstrateSettings(n_embed=16, font=[FONT])
    build_substrate(tokenizer, settings, folder / "glyphs")
    found = {name: made(folder / name, substrates.get(name, folder / "glyphs"), tokenizer)
             for name in ("glyph", "learned", "token_bits")}
    recorded = {"substrate": {"kind": "glyph", "n_embed": 16, "font": [FONT], "path": None}}
    (found["glyph"] / SETTINGS).write_text(to_yaml(recorded), encoding="utf-8")
    return found


@pytest.fixture(scope="module")
def explorer(runs) -> Explorer:
    return Explorer(open_model(runs["glyph"]), open_model(runs["learned"]))


@pytest.fixture(scope="module")
def page(runs, tmp_path_factory) -> Path:
    return write_show(runs["glyph"], tmp_path_factory.mktemp("page") / "page.html", runs["learned"], GIVEN)


def data_of(page: str) -> dict:
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)[1])


def test_the_page_is_one_file_that_runs_its_own_script_alone(page):
    text = page.read_text(encoding="utf-8")
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', text)[1]
    script = re.search(r"<script>(.*?)</script>", text, re.S)[1]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert policy == f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    assert "://" not in text.replace("http://www.w3.org/2000/svg", "") and not re.search(r' (src|href|on\w+|style)="', text)
    assert len(text) < 500_000 and text.count("<script") == 2


def test_probabilities_are_those_of_both_models_after_the_end_of_a_text(page, explorer):
    data = data_of(page.read_text(encoding="utf-8"))
    one = data["texts"][0]
    assert one["ids"] == [explorer.tokenizer.end_id, *explorer.tokenizer.encode(GIVEN[0])] and one["cut"] == 0
    for number, opened in enumerate(explorer.readers):
        p_TV = opened.gpt(torch.tensor([one["ids"]]))[0].softmax(-1)
        for place, rows in enumerate(one["next"]):
            for row in rows:
                assert row[1 + number] == pytest.approx(p_TV[place, row[0]].item(), rel=6e-3)
            assert p_TV[place].argmax().item() in [row[0] for row in rows]
        lens = one["runs"][number]["lens"]
        assert len(lens) == 3 and [id for id, _ in lens[-1]] == p_TV.argmax(-1).tolist()
        first = opened.gpt.logits(opened.gpt.norm(opened.gpt.substrate(torch.tensor([one["ids"]]))))[0]
        assert [id for id, _ in lens[0]] == first.argmax(-1).tolist()
        came = [p_TV[place, id].item() for place, id in enumerate(one["ids"][1:])]
        assert [p for p, _ in one["runs"][number]["came"]] == pytest.approx(came, rel=6e-3)
        ranks = [(p_TV[place] > p).sum().item() + 1 for place, p in enumerate(came)]
        assert [rank for _, rank in one["runs"][number]["came"]] == ranks


def test_neighbours_are_the_nearest_tokens_of_the_whole_vocabulary(explorer):
    opened = explorer.readers[0]
    number = opened.tokenizer.encode("a")[0]
    others = [other for other in opened.comparable if other != number]
    ids_BT = torch.tensor([[opened.tokenizer.end_id, other] for other in [number, *others]])
    x_BTD = opened.gpt.substrate(ids_BT)
    after_B = opened.gpt.blocks[0](x_BTD, _context(opened.gpt, x_BTD))[:, 1]
    by_code = opened.near_codes(number), opened.code_VE[[number, *others]]
    for found, x_NX in (by_code, (opened.near_states(number), after_B)):
        cosine_N = F.cosine_similarity(x_NX[1:], x_NX[:1]).sort(descending=True).values[: reader.NEIGHBOURS]
        assert [pair[1] for pair in found] == pytest.approx(cosine_N.tolist(), abs=1e-4)
        assert not {pair[0] for pair in found} & {number, *opened.tokenizer.special_ids}


def _context(gpt, x_BTD):
    return Context(*gpt._angles(torch.arange(2)[None]), None, None)


def test_pictures_are_those_that_the_codes_were_computed_from(page, explorer):
    data, made = data_of(page.read_text(encoding="utf-8")), "the pictures that the codes of glyph were computed from"
    assert f"These are {made}: drawn again with DejaVuSans.ttf" in explorer.picture_note
    number = explorer.tokenizer.encode("G")[0]
    bits_P = draw_tokens(["G"], load_fonts([FONT], 32), 32).bits_VP[0]
    assert base64.b64decode(data["tokens"][str(number)]["picture"]) == np.packbits(bits_P).tobytes()
    pairs = np.frombuffer(base64.b64decode(data["tokens"][str(number)]["kept"]), np.uint8)
    grey_P = np.stack([pairs >> 4, pairs & 15], -1).ravel() / pictures.GREYS
    assert np.corrcoef(grey_P, bits_P)[0, 1] > 0.5 and grey_P.std() < bits_P.std()  # like it, but not all of it


def test_other_codes_are_not_reported_to_come_from_pictures(runs, monkeypatch):
    monkeypatch.setenv("GLYPHLM_FONT", FONT)
    note = Explorer(open_model(runs["token_bits"])).picture_note
    assert "token bits codes of token_bits are not made from pictures" in note
    monkeypatch.setattr(pictures, "_drawings", lambda _: [SubstrateSettings(n_embed=16, font=[BOLD])])
    explorer = Explorer(open_model(runs["glyph"]))
    assert "The codes are not those that come from them" in explorer.picture_note and explorer.pictures.axes is None


def test_a_fused_run_is_shown_by_expert_and_reports_what_does_not_apply(runs, tmp_path):
    fuse(FusionSettings([str(runs["glyph"]), str(made(tmp_path / "b", runs["glyph"], Tokenizer.load(runs["glyph"]), 2))]),
         tmp_path / "both")
    data = data_of(write_show(tmp_path / "both", tmp_path / "page.html", texts=["abc"]).read_text(encoding="utf-8"))
    (run,), one = data["runs"], data["texts"][0]
    assert run["layers"] == ["expert 1", "expert 2", "fused"] and len(one["runs"][0]["lens"]) == 3
    assert "fused from 2 experts" in run["missing"][0]
    assert data["tokens"][str(one["ids"][1])]["near"][0][1] is None


def test_a_page_that_would_be_too_large_loses_its_last_texts(explorer, monkeypatch):
    said = []
    monkeypatch.setattr(show, "say", said.append)
    texts = [("one", "abc"), ("two", "Germany is а country of many rivers")]
    small = len(explorer.page(texts[:1]).encode())
    monkeypatch.setattr(show, "MOST_BYTES", small + 10)
    assert [one["title"] for one in data_of(explorer.page(texts))["texts"]] == ["one"] and "'two' is left out" in said[0]


def test_without_texts_those_are_shown_that_the_vocabulary_spells(runs, monkeypatch):
    monkeypatch.setattr(show, "find_pictures", lambda _: (None, ""))
    samples = [{"prompt": "a", "text": "a sample"}]
    (runs["learned"] / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in samples))
    titles = [title for title, _ in Explorer(open_model(runs["learned"])).readable()]
    assert "English" in titles and titles[-1] == "Sample 1" and set(titles) <= {*TEXTS, "Sample 1"}


def test_a_twin_of_another_vocabulary_and_bad_targets_are_refused(runs, texts, tmp_path):
    other = build_tokenizer(texts[1:], TokenizerSettings(vocab_size=512), tmp_path / "tokenizer")
    substrate = tmp_path / "bits"
    build_substrate(other, SubstrateSettings(kind="token_bits", n_embed=16), substrate)
    twin = made(tmp_path / "other", substrate, other)
    with pytest.raises(InputError, match=f"{other.fingerprint[:12]}.*trained with the same"):
        write_show(runs["glyph"], tmp_path / "page.html", twin)
    with pytest.raises(InputError, match="text 2 of 2 is empty"):
        write_show(runs["glyph"], tmp_path / "page.html", texts=["a", ""])
    (tmp_path / "mine.html").write_text("mine")
    with pytest.raises(InputError, match="was not made by this command"):
        write_show(runs["glyph"], tmp_path / "mine.html")


@pytest.mark.skipif(browser.PATH is None, reason=browser.MISSING)
def test_tokens_are_chosen_with_mouse_and_keys(page, tmp_path):
    with_page = browser.Browser(tmp_path)
    try:
        with_page.open(page.as_uri())
        name = "document.getElementById('token-name').innerText"
        chosen = "document.querySelector('.tile[aria-pressed=true] .token').innerText"
        with_page.click(".tile:nth-child(2)")
        first = with_page.value(name)
        assert first == with_page.value(chosen)
        with_page.press("ArrowRight")
        assert with_page.value(name) == with_page.value(chosen) != first
        with_page.press("Home")
        assert with_page.value(name) == "</s>"
        assert with_page.value("document.querySelectorAll('#near .near').length") == 4
        assert with_page.value("document.querySelectorAll('#lens table').length") == 2
        with_page.click("#texts label:nth-child(2)")
        second = data_of(page.read_text(encoding="utf-8"))["texts"][1]
        assert with_page.value("document.querySelectorAll('.tile').length") == len(second["ids"])
        with_page.click("#lens tbody tr:last-child td:nth-child(3)")
        assert with_page.value("document.querySelector('.tile:nth-child(2)').getAttribute('aria-pressed')") == "true"
        assert with_page.value("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
        assert not with_page.faults()
    finally:
        with_page.close()
