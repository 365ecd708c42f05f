"""The model card: front matter that the Hub's own reader understands, results with intervals, recipe, hashes, citation."""

import json

import pytest
import yaml
from huggingface_hub import ModelCard

from glyphlm.base.errors import InputError
from glyphlm.base.outputs import sha256_file
from glyphlm.base.records import to_lines
from glyphlm.runs.card import CardSettings, write_card

SUMMARY = {
    "name": "mine",
    "command": "glyphlm train recipe.yaml --out runs/mine",
    "substrate": {"kind": "glyph", "trainable": False, "n_embed": 16, "fingerprint": "f00d"},
    "tokenizer": {"fingerprint": "beef", "vocab_size": 1024},
    "parameters": {"trained": 1000, "frozen": 200, "total": 1200},
    "tokens": 5000,
    "bits_per_byte": {"train": 2.0, "validation": 2.345678},
}
ROWS = [
    {"task": "arc_easy", "metric": "accuracy", "value": 0.25, "low": 0.2, "high": 0.31, "interval": "95% over items"},
    {"task": "bpb", "metric": "bits_per_byte", "value": 1.5, "low": None, "high": None, "source": "held_out.txt"},
    {"task": "bpb", "source": "older.txt", "bits_per_byte": 1.7},
]
RECIPE = "data:\n- text: hf:wikimedia/wikipedia:20231101.en\n- text: mine.txt\n"


@pytest.fixture
def run(tmp_path):
    (tmp_path / "settings.yaml").write_text(RECIPE)
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    (tmp_path / "hf.py").write_text("")
    (tmp_path / "results.jsonl").write_text(to_lines(ROWS))
    return tmp_path


def test_the_front_matter_is_what_the_hub_reads(run):
    write_card(run, SUMMARY, CardSettings("apache-2.0", ["en", "ru"], ["me/mine"]))
    data = ModelCard.load(run / "README.md").data
    assert (data.license, data.language, data.library_name) == ("apache-2.0", ["en", "ru"], "transformers")
    assert data.datasets == ["me/mine", "wikimedia/wikipedia"] and data.tags == ["glyphlm", "glyph", "frozen"]
    first, second = data.eval_results
    assert (first.metric_type, first.metric_value, first.dataset_type) == ("accuracy", 0.25, "arc_easy")
    assert first.metric_name == "accuracy [0.2, 0.31]"
    assert first.metric_args == {"low": 0.2, "high": 0.31, "interval": "95% over items"}
    assert (second.metric_value, second.dataset_name, second.metric_name) == (1.5, "held_out.txt", "bits_per_byte")


def test_the_card_has_results_recipe_hashes_and_papers(run):
    write_card(run, SUMMARY)
    text = (run / "README.md").read_text(encoding="utf-8")
    assert "| arc_easy | accuracy | 0.25 | 0.2, 0.31 | 95% over items |" in text
    assert f"```yaml\n{RECIPE}```" in text and SUMMARY["command"] in text and "2.3457" in text
    assert f"`{sha256_file(run / 'model.safetensors')}`" in text and "`beef`" in text and "`f00d`" in text
    assert all(f"eprint = {{{number}}}" in text for number in ("2507.04886", "2507.07129", "2605.09751"))
    assert "# mine\n" in text and 'from_pretrained("mine", trust_remote_code=True)' in text


def test_nothing_is_reported_that_is_not_known(tmp_path):
    summary = SUMMARY | {"tokens": None, "bits_per_byte": {"validation": None}, "imported": {"source": "them/theirs"}}
    write_card(tmp_path, summary)
    text = (tmp_path / "README.md").read_text(encoding="utf-8")
    front = yaml.safe_load(text.split("---")[1])
    assert front.keys() == {"library_name", "pipeline_tag", "tags"}
    assert "imported by GlyphLM from `them/theirs`" in text
    assert "not measured" in text and "is not recorded" in text and "| task |" not in text


def test_the_head_is_described_if_it_is_not_a_matrix(run):
    code = {"kind": "code", "digits": 2, "order": "frequency"}
    for head, said in (({"kind": "tied"}, "products with these codes"), (code, "2 digits of its number (order frequency). "),
                       (code | {"shortlist": 2048}, "(order frequency); the 2,048 ids of the lowest numbers have none. ")):
        write_card(run, SUMMARY | {"model": {"head": head}})
        assert said in (run / "README.md").read_text(encoding="utf-8")


def test_damaged_results_are_refused(run):
    (run / "results.jsonl").write_text(json.dumps(ROWS[0]) + "\n{half")
    with pytest.raises(InputError, match="results.jsonl line 2 is damaged"):
        write_card(run, SUMMARY)


@pytest.mark.parametrize("wrong", [{"license": "All rights reserved"}, {"language": ["English"]}, {"datasets": ["a b/c"]}])
def test_what_the_hub_does_not_take_is_refused(wrong):
    with pytest.raises(InputError, match=f"{next(iter(wrong))} .*write it like"):
        CardSettings(**wrong)
