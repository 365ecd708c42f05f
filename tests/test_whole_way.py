"""The verbs in a row, as a user types them: on the embedded corpus, and on real English, Russian and Chinese text."""

import gzip
import html
import itertools
import json
import shlex

import pytest

from glyphlm.cli.main import main
from glyphlm.studies.quickstart import commands

RECIPE = """
tokenizer: {{path: {0}/tok}}
substrate: {{path: {0}/sub}}
model: {{d_model: 64, n_layer: 2, n_head: 2, block_size: 64}}
data: [{{shards: {0}/shards}}]
train: {{batch_tokens: 1024, micro_batch_tokens: 1024, lr: 5e-3, validate_every: 20, save_every: 20}}
"""


def run(*arguments):
    """Run one verb that must succeed."""
    assert main([str(argument) for argument in arguments]) == 0


def excerpt(source, target, characters):
    """The first documents of a file of JSON lines, as many as make up `characters`; the rest of the budget is cut off."""
    with gzip.open(source, "rt", encoding="utf-8") as lines, target.open("w", encoding="utf-8") as out:
        for text in (json.loads(line)["text"] for line in itertools.islice(lines, 200)):
            out.write(json.dumps({"text": text[:characters]}, ensure_ascii=False) + "\n")
            characters -= len(text[:characters])
            if not characters:
                return


@pytest.mark.parametrize(
    ("other", "prompt"), [("ru_literature", "Hello, мир! "), ("zh_wikipedia", "Hello, 世界! ")], ids=["en-ru", "en-zh"]
)
def test_real_text_becomes_a_model_that_beats_the_unigram_floor(data, tmp_path, capsys, other, prompt):
    texts = [tmp_path / "en.jsonl", tmp_path / "other.jsonl"]
    excerpt(data / "train" / "en_wikipedia.jsonl.gz", texts[0], 300_000)
    excerpt(data / "train" / f"{other}.jsonl.gz", texts[1], 150_000)
    held_out = tmp_path / "held_out.txt"
    held_out.write_bytes((data / "eval" / "flores200" / "eng_Latn.dev").read_bytes()[:2000].rsplit(b"\n", 1)[0])
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(RECIPE.format(tmp_path))

    run("tokenizer", "build", "--layout", "compact", "--vocab-size", 2048, "--out", tmp_path / "tok", *texts)
    tokenizer = ("--tokenizer", tmp_path / "tok")
    run("substrate", "build", *tokenizer, "--kind", "token_bits", "--n-embed", 16, "--out", tmp_path / "sub")
    run("prepare", *tokenizer, "--validation-share", 0.05, "--out", tmp_path / "shards", *texts)
    run("train", recipe, "--train.steps", 60, "--out", tmp_path / "runs" / "mine")
    capsys.readouterr()
    run("generate", tmp_path / "runs" / "mine", "--prompt", prompt, "--max-new-tokens", 20)
    assert capsys.readouterr().out.startswith(prompt)
    run("eval", tmp_path / "runs" / "mine", "--tasks", f"bpb={held_out}", "--out", tmp_path / "results.jsonl")
    run("report", tmp_path / "runs" / "mine", "--out", tmp_path / "report.html")

    summary = json.loads((tmp_path / "runs" / "mine" / "summary.json").read_text())
    row = json.loads((tmp_path / "results.jsonl").read_text())
    assert summary["bits_per_byte"]["validation"] < summary["unigram_bits_per_byte"]["validation"]
    assert row["bytes"] == len(held_out.read_bytes()) and 0 < row["bits_per_byte"] < 8
    assert "mine" in (tmp_path / "report.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    """A quickstart of a few steps."""
    pytest.importorskip("babel")
    out = tmp_path_factory.mktemp("quick") / "start"
    if main(["quickstart", "--steps", "4", "--out", str(out)]) == 2:
        pytest.skip("GNU Unifont is not installed here")
    return out


def test_quickstart_arms_share_data_order_and_initial_weights(quick):
    arms = [json.loads(path.read_text()) for path in sorted((quick / "runs").glob("*/summary.json"))]
    assert [arm["name"] for arm in arms] == ["glyph", "token_bits", "twin"]
    assert len({arm["data_order"] for arm in arms}) == len({arm["init"] for arm in arms}) == 1
    assert [arm["substrate"]["trainable"] for arm in arms] == [False, False, True]


def test_the_report_is_one_file_with_every_arm_and_the_floor(quick):
    page = (quick / "report.html").read_text(encoding="utf-8")
    assert all(name in page for name in ("glyph", "token_bits", "twin", "unigram", "glyphlm train"))
    assert "src=\"http" not in page and "<script src" not in page


def test_a_second_quickstart_does_nothing_again(quick, capsys):
    made = [path for part in ("tokenizer", "substrates", "shards", "runs") for path in (quick / part).rglob("*")]
    before = [path.stat().st_mtime_ns for path in made]
    run("quickstart", "--steps", "4", "--out", quick)
    assert capsys.readouterr().err.count("is done already") == 3
    assert [path.stat().st_mtime_ns for path in made] == before


def test_the_commands_of_the_report_are_those_that_were_run(quick, capsys):
    page = html.unescape((quick / "report.html").read_text(encoding="utf-8"))
    for line in commands(quick)[1:]:
        assert line in page
        run(*shlex.split(line)[1:])
    assert capsys.readouterr().err == ""  # nothing was made: every folder was finished and skipped


def test_a_quickstart_arm_is_what_its_recipe_file_trains(quick, tmp_path):
    run("train", quick / "recipes" / "token_bits.yaml", "--out", tmp_path / "again")
    first = (quick / "runs" / "token_bits" / "model.safetensors").read_bytes()
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == first
