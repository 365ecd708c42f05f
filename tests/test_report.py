"""The report page: one file, complete, escaped, repeatable, and clear about bad input."""

import base64
import hashlib
import html
import json
import math
import re
import struct
import zlib
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import browser
import numpy as np
import pytest

from glyphlm.analysis import plots
from glyphlm.analysis.drawing import arm_style
from glyphlm.base.errors import InputError
from glyphlm.base.records import to_lines
from glyphlm.evaluation.item_log import log_name, result_rows
from glyphlm.pages import report, run_data
from glyphlm.pages.report import write_report

NAMESPACE = "http://www.w3.org/2000/svg"
CLAIM = {"arm": "a", "against": "b", "measure": "bpb bits per byte, x", "kind": "at_least", "margin": 0.02, "low": -0.1,
         "difference": 0.0, "high": 0.1}  # fmt: skip
SUBSTRATES = {"glyph": ("glyph", False), "bits": ("token_bits", False), "learned": ("learned", True)}


def write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text(to_lines(rows), encoding="utf-8")


def png(width: int, height: int) -> bytes:
    """A small checkered grey picture."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = b"".join(b"\0" + bytes(255 * ((x // 8 + y // 8) % 2) for x in range(width)) for y in range(height))
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    signature = b"\x89PNG\r\n\x1a\n"
    return signature + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def summary(name: str, end: float, steps: int) -> dict[str, Any]:
    kind, trainable = SUBSTRATES.get(name, ("glyph", False))
    return {
        "name": name,
        "substrate": {"kind": kind, "n_embed": 192, "trainable": trainable, "scale": "l2", "fingerprint": "ab" * 32},
        "model": {"d_model": 192, "n_layer": 4, "n_head": 6, "block_size": 128, "vocab_size": 2048},
        "parameters": {"trained": 2200000, "frozen": 0 if trainable else 390000},
        "tokens": 1024 * steps,
        "seconds": 0.2 * steps + 1.2,
        "tokens_per_second": 5100.0,
        "steps": steps,
        "precision": "bf16",
        "device": "cpu",
        "seed": 1,
        "bits_per_byte": {"train": end - 0.1, "validation": end},
        "unigram_bits_per_byte": {"train": 3.9, "validation": 3.951},
        "command": f"glyphlm train runs/quickstart/{name}.yaml --out runs/quickstart/{name}",
        "versions": {"python": "3.11.7", "glyphlm": "0.1.0", "torch": "2.13.0"},
        "tokenizer": {"layout": "compact", "vocab_size": 2048, "fingerprint": "cd" * 32},
        "data_order": "ef" * 32,
        "init": "01" * 32,
        "clipped": 0.04,
    }


def metrics(end: float, steps: int) -> list[dict[str, Any]]:
    """A falling curve with some noise; the last validation is the best."""
    rows: list[dict[str, Any]] = []
    for step in range(10, steps + 1, 10):
        bits = end - 0.1 + 3 * math.exp(-4 * step / steps) + 0.08 * math.sin(step * 12.9898)
        common = {"step": step, "tokens": 1024 * step, "seconds": 0.2 * step}
        more = {"lr": 0.001, "grad_norm": 1.2, "tokens_per_second": 5000.0}
        rows.append({"split": "train", **common, "loss": 2 * bits, "bits_per_byte": bits, **more})
        if step % (steps // 4) == 0:
            bits = end + 3 * (math.exp(-4 * step / steps) - math.exp(-4))
            rows.append({"split": "validation", **common, "loss": 2 * bits, "bits_per_byte": bits})
    return rows


SAMPLES = [
    {"prompt": "Germany is", "text": "Germany is <script>alert(1)</script> & \x00\x1b[31m so on", "language": "en"},
    {"prompt": "Россия —", "text": "Россия — это страна, где много рек и озёр.", "language": "ru"},
    {"prompt": "中国是", "text": "中国是一个很大的国家\u2028有很多河。\ud800", "language": "zh"},
]


def make_run(folder: Path, name: str = "glyph", end: float = 0.93, steps: int = 400, **changed: Any) -> Path:
    """A run folder with every file a run can have; `changed` replaces values of its summary."""
    folder.mkdir(parents=True)
    values = {**summary(name, end, steps), **changed}
    (folder / "summary.json").write_text(json.dumps(values), encoding="utf-8")
    (folder / "settings.yaml").write_text(f"name: {name}\nlr: 0.001  # <b>\n", encoding="utf-8")
    (folder / "glyphs.png").write_bytes(png(320, 96))
    (folder / "inputs.json").write_text(json.dumps({"validation": [["ab" * 32]]}), encoding="utf-8")
    write_lines(folder / "metrics.jsonl", metrics(end, steps))
    settings = "temperature 0.8, top_k 50, top_p 0.95, seed 1"
    write_lines(folder / "samples.jsonl", [{**sample, "settings": settings} for sample in SAMPLES])
    result = {"task": "bpb", "source": "notes.txt", "bits_per_byte": end + 0.3, "bytes": 12345, "documents": 12}
    write_lines(folder / "results.jsonl", [result])
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    root = tmp_path_factory.mktemp("runs")
    ends = {"glyph": 0.93, "bits": 0.987, "learned": 0.9}
    return [make_run(root / name, name, end) for name, end in ends.items()]


@pytest.fixture(scope="module")
def page(runs: list[Path]) -> str:
    return write_report(runs, runs[0].parent / "page" / "report.html", "Three <arms>").read_text(encoding="utf-8")


class Elements(HTMLParser):
    """Collects what a page opens, and checks that it closes in order."""

    def __init__(self, page: str):
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_page_is_one_well_formed_file_that_uses_no_network(page: str) -> None:
    elements = Elements(page)
    assert not elements.open
    assert "://" not in page.replace(NAMESPACE, "")
    assert not {"link", "iframe", "object"} & {tag for tag, _ in elements.found}
    script = re.search(r"<script>(.*?)</script>", page, re.S)[1]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'\"" in page
    assert [tag for tag, _ in elements.found].count("script") == 2
    addresses = [value for _, attrs in elements.found for key, value in attrs.items() if key in ("src", "href")]
    assert addresses and all(address and address.startswith(("data:image/", "#")) for address in addresses)
    assert "@import" not in page and "url(" not in page.replace("url(#", "")
    assert len(page) < 600_000


def test_images_have_alternatives_and_headings_do_not_skip(page: str) -> None:
    elements = Elements(page).found
    images = [attrs for tag, attrs in elements if tag == "img"]
    assert len(images) == 1  # the one sheet that all three runs share
    assert all(len(image["alt"] or "") > 20 for image in images)
    levels = [int(tag[1]) for tag, _ in elements if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))


def test_numbers_stand_in_words_and_in_the_table(page: str) -> None:
    words = " ".join(page.split())
    assert (
        "(frozen glyph embedding) reached 0.930 bits per byte on held-out text; a unigram model needs 3.951." in words
    )
    assert "(learned embedding) reached 0.900 bits per byte on held-out text, −0.030 against" in words
    assert "(frozen token bits embedding) reached 0.987 bits per byte on held-out text, +0.057 against" in words
    for text in ("2,200,000", "390,000", "409,600", "81.2", "5,100", "0.830", "1.230", "12,345", "3.11.7"):
        assert f">{text}" in page or f" {text}" in page, text
    assert "glyphlm train runs/quickstart/glyph.yaml --out runs/quickstart/glyph" in page


def test_text_is_escaped_and_unwritable_characters_are_shown(page: str) -> None:
    assert "<title>Three &lt;arms&gt;</title>" in page
    assert "<strong>Germany is</strong> &lt;script&gt;alert(1)&lt;/script&gt; &amp; ␀␛[31m so on" in page
    assert "lr: 0.001  # &lt;b&gt;" in page
    assert "<strong>中国是</strong>一个很大的国家\u2028有很多河。\ufffd" in page
    assert "\x00" not in page and "\x1b" not in page


def test_same_runs_give_the_same_bytes(runs: list[Path], page: str, tmp_path: Path) -> None:
    again = write_report(runs, tmp_path / "again.html", "Three <arms>")
    assert again.read_text(encoding="utf-8") == page
    assert [path.name for path in tmp_path.iterdir()] == ["again.html"]


def test_shared_conditions_are_checked(page: str, runs: list[Path], tmp_path: Path) -> None:
    assert page.count("☑ yes") == 7 and "☐" not in page
    assert "All arms share the tokenizer" in page
    other = make_run(tmp_path / "other", "glyph", data_order="77" * 32, init=None, tokens=7)
    text = write_report([runs[0], other], tmp_path / "report.html").read_text(encoding="utf-8")
    assert text.count("☐ NO") == 2 and text.count("☐ unknown") == 1
    assert "differ in: order of the training batches; number of training tokens." in text
    assert "glyph: efefefefefefefef" in text and "other: 7777777777777777" in text
    assert "other: not recorded" in text


def test_run_without_validation_has_a_dash(runs: list[Path], tmp_path: Path) -> None:
    bare = make_run(tmp_path / "bare", "learned", bits_per_byte={"train": 0.8}, unigram_bits_per_byte=None)
    rows = [row for row in metrics(0.9, 400) if row["split"] == "train"]
    write_lines(bare / "metrics.jsonl", rows)
    for name in ("results.jsonl", "samples.jsonl", "glyphs.png", "settings.yaml"):
        (bare / name).unlink()
    text = write_report([bare, runs[0]], tmp_path / "report.html").read_text(encoding="utf-8")
    assert "(learned embedding) was not measured on held-out text." in text
    row = text.split('<th scope="row">')[1]
    assert row.count('<td class="number">–</td>') == 4
    Elements(text)


def test_summary_alone_is_enough(tmp_path: Path) -> None:
    folder = tmp_path / "多语言 $x$"
    folder.mkdir()
    (folder / "summary.json").write_text('{"name": "多语言 $x$", "substrate": {"kind": "glyph"}}', encoding="utf-8")
    text = write_report([folder], tmp_path / "report.html").read_text(encoding="utf-8")
    assert "多语言 $x$" in text and "Learning curves" not in text and "Same comparison" not in text
    write_lines(folder / "metrics.jsonl", metrics(0.9, 40))
    assert "Learning curves" in write_report([folder], tmp_path / "report.html").read_text(encoding="utf-8")


def charts_of(page: str) -> dict[str, Any]:
    return json.loads(re.search(r'id="charts">(.*?)</script>', page, re.S)[1])


def test_runs_of_a_study_are_drawn_as_arms_with_a_band_over_seeds(runs, tmp_path):
    ends = {("a", 1): 1.0, ("a", 2): 1.2, ("b", 1): 0.9}
    made = {make_run(tmp_path / f"{arm}{seed}", f"x{seed}", end, seed=seed, data_order=f"order{seed}"): arm
            for (arm, seed), end in ends.items()}
    claims = [{"claim": "x", "margin": "0.02", "verdict": "supported"}]
    text = write_report([*made], tmp_path / "report.html", arms=made, forest="<svg/>", claims=claims)
    page = text.read_text(encoding="utf-8")
    lead = " ".join(re.sub("<[^>]*>", "", page[page.index('<p class="lead">') : page.index("</p>")]).split())
    assert "2 arms, 3 runs with different seeds. They reached 0.900 to 1.200 bits per byte" in lead and "The arm" not in lead
    one, two = charts_of(page)["learning"]["series"]
    assert (one["arm"], two["arm"]) == ("a", "b") and "a, seed 2" in page
    assert section(page, 'id="arms"', 'id="comparison"').count("−0.100") == 1  # b, seed 1 against a, seed 1
    marks = one["marks"]
    assert (marks["bits_per_byte"][-1], marks["bits_per_byte.low"][-1], marks["bits_per_byte.high"][-1]) == (1.1, 1.0, 1.2)
    assert "(seed 1: order1, seed 2: order2)" in page  # the same in the runs of each seed
    assert re.findall('<th scope="col">(claim|verdict|margin)</th>', page) == ["claim", "verdict", "margin"]
    assert "bits_per_byte.low" not in two["marks"] and base64.b64encode(b"<svg/>").decode() in page
    assert Elements(page).open == []


def test_runs_whose_recipes_differ_by_the_seed_alone_are_one_arm(tmp_path):
    runs = [make_run(tmp_path / f"glyph-{seed}", f"glyph-{seed}", 1.0, seed=seed) for seed in (1, 2)]
    for seed, run in enumerate(runs, 1):
        (run / "settings.yaml").write_text(f"train: {{seed: {seed}, lr: 0.1}}\n")
    other = make_run(tmp_path / "learned", "learned", 1.0, seed=1)
    page = write_report([*runs, other], tmp_path / "report.html").read_text(encoding="utf-8")
    assert [one["arm"] for one in charts_of(page)["learning"]["series"]] == ["glyph", "learned"]
    (runs[1] / "settings.yaml").write_text("train: {seed: 2, lr: 0.2}\n")
    page = write_report([*runs, other], tmp_path / "report.html").read_text(encoding="utf-8")
    assert len(charts_of(page)["learning"]["series"]) == 3


def test_a_difference_is_shown_only_where_the_held_out_text_is_the_same(runs, tmp_path):
    other = make_run(tmp_path / "other", "learned", 0.9)
    (other / "inputs.json").write_text('{"validation": [["77"]]}')
    page = write_report([runs[0], other], tmp_path / "report.html").read_text(encoding="utf-8")
    assert "they differ in: held-out text." in page and "−0.030" not in page
    assert "−0.030" in write_report([runs[0], runs[2]], tmp_path / "report.html").read_text(encoding="utf-8")


def test_the_share_of_clipped_steps_is_shown_where_it_was_logged(runs, page, tmp_path):
    run = make_run(tmp_path / "run", clipped=0.25)
    text = section(write_report([run], tmp_path / "report.html").read_text(encoding="utf-8"), 'id="arms"', 'id="reproduce"')
    assert "clipped" in text and "25.0%" in text


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page of 64 arms; arm 7 is the best, arm 50 the worst."""
    root = tmp_path_factory.mktemp("many")
    ends = {number: 1 + number % 5 / 100 for number in range(64)} | {7: 0.5, 50: 2.0}
    return write_report([make_run(root / f"arm-{number}", f"arm-{number}", end, steps=2000) for number, end in ends.items()],
                        root / "report.html")


def test_many_arms_have_a_table_in_place_of_a_paragraph_and_stay_light(many: Path) -> None:
    page = many.read_text(encoding="utf-8")
    assert len(page.encode()) < 1_000_000 and "The arm" not in page
    table = section(page, 'class="ranked"', "Learning curves")
    rows = (r"best \S+ arm-7 .* 0\.500 −0\.500", r"reference \S+ arm-0 .* 1\.000 –", r"worst \S+ arm-50 .* 2\.000 \+1\.000")
    assert re.search(" ".join(rows), table)
    assert "−0.500" in section(page, 'id="arms"', 'id="reproduce"')  # the table of all arms has differences, too
    styles = {str(arm_style(number)) for number in range(64)}
    assert len(styles) == 64 and len({report.mark(number) for number in range(49)}) == 49


@pytest.mark.skipif(browser.PATH is None, reason=browser.MISSING)
def test_charts_and_tables_answer_to_the_mouse(many: Path, tmp_path: Path) -> None:
    page = browser.Browser(tmp_path)
    try:
        page.open(many.as_uri())
        coloured = "[...document.querySelectorAll('[data-chart=learning] .arm:not(.off)')].map((one) => one.dataset.arm)"
        assert sorted(page.value(coloured)) == ["arm-0", "arm-50", "arm-7"]
        page.click(".legend button:nth-child(4)")
        assert "arm-3" in page.value(coloured)
        x, y = page.place("svg.chart")
        page.mouse("mouseMoved", x, y)
        tip = page.value("document.querySelector('.tip').innerText")
        assert "training tokens" in tip and "arm-50" in tip and "held out" in tip
        ticks, before = "[...document.querySelectorAll('.chart .tick')].map((one) => one.textContent).join()", ""
        before = page.value(ticks)
        page.mouse("mousePressed", x, y)
        page.call("Input.dispatchMouseEvent", type="mouseMoved", x=x + 200, y=y, button="left", buttons=1)
        page.mouse("mouseReleased", x + 200, y)
        zoomed = page.value(ticks)
        assert zoomed != before and "not from 0" in zoomed
        page.click(".controls button:nth-of-type(2)")
        assert page.value(ticks) == before
        page.click("table.sortable thead tr:nth-child(2) th:nth-child(8) button")
        best = "document.querySelector('table.sortable tbody th').innerText"
        assert "arm-7" in page.value(best)
        page.click("table.sortable thead tr:nth-child(2) th:nth-child(8) button")
        assert "arm-50" in page.value(best)
        assert page.value("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
        assert not page.faults()
    finally:
        page.close()


def test_long_and_diverged_run_stays_small(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "long", steps=100_000)
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"split": "train", "step": 9, "tokens": 9, "seconds": 1, "loss": NaN, "bits_per_byte": NaN}\n')
    assert write_report([folder], tmp_path / "report.html").stat().st_size < 400_000


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ('{"split": "train", "st', "not JSON"),
        ("[1, 2]", "a list, not an object"),
        (
            '{"split": "train", "step": 1, "tokens": 5, "seconds": 1, "loss": "x", "bits_per_byte": 1}',
            "no valid 'loss'",
        ),
    ],
)
def test_damaged_line_is_named(tmp_path: Path, line: str, fault: str) -> None:
    folder = make_run(tmp_path / "run")
    path = folder / "metrics.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:6], line, *lines[7:]]) + "\n")
    with pytest.raises(InputError, match=re.escape(f"{path} line 7 is damaged (") + f".*{fault}"):
        write_report([folder], tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()


def test_paths_without_a_run_are_passed_over(runs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(run_data, "say", said.append)
    write_report([tmp_path / "nothing", runs[0]], tmp_path / "report.html")
    assert len(said) == 1 and "nothing is skipped" in said[0]
    with pytest.raises(InputError, match="no finished run among 1 paths; give folders"):
        write_report([tmp_path], tmp_path / "report.html")


@pytest.mark.parametrize(("wrong", "place"), [
    ({"versions": [1]}, "versions"), ({"growth": {"base": 5}}, "growth.base"), ({"growth": {"base": "x"}}, "growth.start"),
    ({"tokens": "many"}, "tokens"), ({"cost": {"flops": {"head": "x"}}}, "cost.flops.head"), ({"name": None}, "name"),
    ({"fusion": {"experts": "a"}}, "fusion.experts"), ({"model": [4]}, "model"),
])  # fmt: skip
def test_a_summary_with_values_of_other_types_is_refused(tmp_path: Path, wrong: dict[str, Any], place: str) -> None:
    folder = make_run(tmp_path / "run", **wrong)
    with pytest.raises(InputError, match=f"summary.json .*{re.escape(repr(place))}.*train it again"):
        write_report([folder], tmp_path / "report.html")


def test_runs_that_name_each_other_as_their_base_end(tmp_path: Path) -> None:
    growth = {"start": "zero", "blocks": "new", "head": "full", "lora": {"rank": 0}}
    bases = {"a": "b", "b": "a", "c": "a", "d": "d"}
    runs = [make_run(tmp_path / name, name, growth=growth | {"base": base}) for name, base in bases.items()]
    assert write_report(runs, tmp_path / "report.html").is_file()


def test_only_a_page_of_ours_is_written_over(runs: list[Path], tmp_path: Path) -> None:
    notes, page = tmp_path / "notes.txt", tmp_path / "report.html"
    for text in ("my only copy", "", "<!DOCTYPE html><title>mine</title>"):
        notes.write_text(text)
        with pytest.raises(InputError, match="notes.txt .*choose another --out"):
            write_report([tmp_path / "nothing"], notes)  # before a run is looked for
        assert notes.read_text() == text
    before = write_report(runs[:1], page).read_bytes()
    assert write_report(runs, page).read_bytes() != before


def test_bad_summary_and_bad_target_are_named(runs: list[Path], tmp_path: Path) -> None:
    for content in (b"{", b"[]", b'{"name": 1}', b"\xff\xfe"):
        (tmp_path / "summary.json").write_bytes(content)
        with pytest.raises(InputError, match="summary.json .*train it again"):
            write_report([tmp_path], tmp_path / "report.html")
    with pytest.raises(InputError, match="is a folder; give the file"):
        write_report(runs, tmp_path)


def questions(share: int, protocol: str, seed: int) -> list[dict[str, Any]]:
    """The log of 60 questions of MMLU in three subjects, `share` of 10 of which are answered right."""
    log = []
    for number in range(60):
        right = (number * 7 + seed) % 10 < share
        row = {"task": "mmlu", "protocol": protocol, "number": number, "prompt": f"Question {number}",
               "subject": ("astronomy", "virology", "<b>law")[number % 3], "labels": list("ABCD"), "correct": 1,
               "cut": number < 3, "letter_mass": 0.5}  # fmt: skip
        answers = {"scores": [int(right), 0], "outputs": ["B", "C"]}
        log.append(row | (answers if protocol == "sampled" else {"letters": [0.5, float(right), 0.25, 0]}))
    return log


def ask(run: Path, logs: Path, share: int, seed: int, protocol: str = "likelihood") -> None:
    """Results and logs as glyphlm eval leaves them."""
    digest = hashlib.sha256(run.name.encode()).hexdigest()
    made_from = {"model": digest, "files": {"mmlu=x": "d"}, "settings": {"precision": "fp32", "protocol": protocol}}
    log = questions(share, protocol, seed)
    rows = [replace(row, source="mmlu/test", made_from=made_from).to_json() for row in result_rows(log)]
    with (run / "results.jsonl").open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    folder = logs / f"{run.name}.{digest[:12]}"
    folder.mkdir(parents=True, exist_ok=True)
    write_lines(folder / log_name("mmlu", made_from), log)


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two experts and their fusion, all asked by both protocols, with logs and a published file."""
    root = tmp_path_factory.mktemp("asked") / "evaluated"
    fusion = {"experts": ["evaluated/glyph", "evaluated/learned", "elsewhere/lost"], "method": "mean_logits"}
    runs = [make_run(root / name, name, steps=40) for name in ("glyph", "learned")]
    runs.append(make_run(root / "both", "both", steps=40, fusion=fusion))
    for seed, (run, share) in enumerate(zip(runs, (3, 9, 8))):
        ask(run, root / "logs", share, seed)
        ask(run, root / "logs", share, seed, "sampled")
    values = {"MMLU": "23.68% ± 0.17% (σ=0.27%)", "MMLU [virology]": "20.00% ± 1.00% (σ=1.61%)",
              "SQUAD": "9.61% ± 1.37% (σ=2.22%)"}  # fmt: skip
    lines = "".join(f"pub {name}: {value}\n" for name, value in values.items())
    (root / "published.txt").write_text(lines, encoding="utf-8")
    return root


@pytest.fixture(scope="module")
def evaluated(asked: Path) -> str:
    runs = [asked / name for name in ("glyph", "learned", "both")]
    out = write_report(runs, asked / "report.html", published=[asked / "published.txt"], logs=asked / "logs")
    return out.read_text(encoding="utf-8")


def section(page: str, start: str, end: str) -> str:
    """Its words, without tags."""
    return " ".join(html.unescape(re.sub("<[^>]*>", " ", page[page.index(start) : page.index(end)])).split())


def test_benchmarks_have_their_intervals_and_are_marked_against_chance(evaluated: str) -> None:
    text = section(evaluated, 'id="likelihood"', 'id="sampled"')
    assert "mmlu letters, accuracy mmlu/test 60 items chance 25.0%, majority 100.0%" in text
    assert re.search(r"30\.00% ≈ \[19\.\d\d, 42\.\d\d\] 3 cut 90\.00% ≈ \[79\.\d\d, 95\.\d\d\] 3 cut", text)
    assert text.count("Wilson 95% over items") == 1 and "virology" not in text


def test_sampled_results_stand_beside_published_ones(evaluated: str) -> None:
    text = section(evaluated, 'id="sampled"', "MMLU by subject")
    assert "pub published" in text and "23.68% ± 0.17% (σ=0.27%)" in text and "letter mass 50.0%" in text
    assert "bootstrap 95% over items (accuracy)" in text and "9.61%" not in text  # SQuAD was not asked


def test_subjects_are_listed_as_text_too(evaluated: str) -> None:
    alts = [attrs["alt"] or "" for tag, attrs in Elements(evaluated).found if tag == "img"]
    maps = [" ".join(alt.split()) for alt in alts if alt.startswith("Heat map")]
    assert len(maps) == 2
    assert "learned: above chance in <b>law, astronomy, virology; below chance in none." in maps[0]
    assert "glyph, learned, both, pub" in maps[1] and "pub:" not in maps[1]


def test_experts_stand_beside_their_fusion(evaluated: str) -> None:
    text = section(evaluated, "both beside its experts", 'id="differences"')
    assert "Fused by mean logits. Not among the runs of this page: elsewhere/lost." in text
    assert evaluated.count('alt="Bars of ') == 2  # bits per byte and percent


def test_differences_are_paired_and_report_what_they_could_detect(evaluated: str) -> None:
    text = section(evaluated, 'id="differences"', 'id="reproduce"')
    assert "McNemar, exact" in text and "paired bootstrap 95% over items" in text and "Would be found" in text
    interval, found = r"\[\+4\d\.\d\d%, \+7\d\.\d\d%\]", r"\d\d\.\d\d% \S+ McNemar, exact 60"
    assert re.search(rf"mmlu letters learned \+60\.00% ≠ {interval} {found}", text)
    assert evaluated.count('alt="Differences of the other runs from glyph') == 1


def test_evaluated_page_is_well_formed_and_uses_no_network(evaluated: str) -> None:
    elements = Elements(evaluated)
    assert not elements.open and "://" not in evaluated.replace(NAMESPACE, "")
    assert "<b>law" not in re.sub('alt="[^"]*"', "", evaluated)
    levels = [int(tag[1]) for tag, _ in elements.found if re.fullmatch("h[1-6]", tag)]
    assert all(after - before <= 1 for before, after in pairwise(levels))
    assert all(len(attrs["alt"] or "") > 20 for tag, attrs in elements.found if tag == "img")


def test_without_logs_the_page_explains_how_to_get_them(asked: Path, tmp_path: Path) -> None:
    runs = [asked / name for name in ("glyph", "learned")]
    text = write_report(runs, tmp_path / "report.html").read_text(encoding="utf-8")
    assert "glyphlm eval glyph learned --tasks ... --log-items logs" in text and "The logs given" not in text
    text = write_report(runs, tmp_path / "report.html", logs=tmp_path).read_text(encoding="utf-8")
    assert "The logs given fit no two runs of this page." in text
    with pytest.raises(InputError, match="is not a folder"):
        write_report(runs, tmp_path / "other.html", logs=tmp_path / "nothing")
    assert not (tmp_path / "other.html").exists()


def test_claims_stand_first_and_are_escaped(runs: list[Path], tmp_path: Path) -> None:
    claims = [{"claim": "<b> helps", "verdict": "supported"}, {"claim": "more", "verdict": "not supported"},
              {"claim": "less", "verdict": "not decidable: 1 seed"}]  # fmt: skip
    text = write_report(runs, tmp_path / "report.html", claims=claims).read_text(encoding="utf-8")
    assert not Elements(text).open and text.index("<h2") == text.index('<h2 id="claims">')
    assert "&lt;b&gt; helps" in text and '<td class="yes">supported</td>' in text
    assert '<td class="no">not supported</td>' in text and '<td class="quiet">not decidable: 1 seed</td>' in text


def test_pictures_of_benchmarks_bear_what_is_missing_and_are_repeatable() -> None:
    values_SR, signs_SR = np.array([[0.25, math.nan], [0.5, 0.0]]), np.array([[0, 0], [1, -1]])
    rows = [{"name": "$x$", "run": "a", "difference": 1.0, "low": -1.0, "high": 3.0, "mde": None}]
    bars = {"a": {"x": 1.0, "y": math.nan}, "b": {"x": 2.0, "y": 3.0}}
    spans = {"a": {"x": (0.5, 1.5), "y": (math.nan, math.nan)}, "b": {"x": (1.0, 3.0), "y": (2.0, 4.0)}}
    for draw in (
        lambda: plots.draw_heat(values_SR, signs_SR, ["one", "two"], ["a", "多"]),
        lambda: plots.draw_forest(rows, "percent", {"a": 3}),
        lambda: plots.draw_bars(bars, "percent", spans, {"x": 2.5}, [4, 8]),
        lambda: plots.draw_claims([CLAIM | {"verdict": verdict} for verdict in plots.VERDICTS]),
    ):
        assert draw() == draw() and draw().endswith("</svg>\n")
