"""Lines say what a number is, and what to hold it against."""

from glyphlm.evaluation.published import read_published
from glyphlm.evaluation.text import beside_line, comparison_line, result_line

ROW = {
    "run": "runs/mine", "task": "mmlu", "protocol": "likelihood", "scoring": "letters", "subject": "virology",
    "metric": "accuracy", "value": 0.25, "low": 0.2, "high": 0.31, "interval": "Wilson 95% over items", "items": 1166,
    "chance": 0.25, "majority": 0.3, "letter_mass": 0.5, "cut": 0,
}  # fmt: skip
SAMPLED = ROW | {
    "protocol": "sampled", "scoring": "first letter", "sigma": 0.01, "runs": 10, "cut": 3, "items_low": 0.1,
    "items_high": 0.4, "items_interval": "bootstrap 95% over items",
}  # fmt: skip
BITS = {"run": "mine", "task": "bpb", "protocol": "likelihood", "scoring": "", "subject": "", "metric": "bits_per_byte",
        "value": 1.25, "low": 1.2, "high": 1.3, "interval": "bootstrap 95% over documents", "documents": 4,
        "source": "texts/en.txt"}  # fmt: skip
PAIR = ROW | {"a": "runs/mine", "b": "runs/twin", "difference": 0.05, "low": -0.01, "high": 0.11, "p": 0.0312, "p_holm": 0.5,
              "test": "McNemar, exact", "mde": 0.084}  # fmt: skip


def test_a_result_with_its_interval_and_what_to_hold_it_against():
    assert result_line(ROW) == ("mine mmlu [virology] letters accuracy: 25.00% [20.00%, 31.00%] (Wilson 95% over items), "
                                "chance 25.0%, majority 30.0%, letter mass 50.0%, 1,166 items")
    assert result_line(BITS) == (
        "mine bpb en.txt bits per byte: 1.2500 [1.2000, 1.3000] (bootstrap 95% over documents), 4 documents")


def test_the_sampled_protocol_has_the_published_line_and_the_rest_beside_it(tmp_path):
    (tmp_path / "lines.txt").write_text(result_line(SAMPLED), encoding="utf-8")
    assert read_published(tmp_path / "lines.txt")[0]["subject"] == "virology"
    assert beside_line(SAMPLED) == (
        "mine mmlu [virology] first letter accuracy: 25.00% [10.00%, 40.00%] (bootstrap 95% over items), "
        "chance 25.0%, majority 30.0%, letter mass 50.0%, 1,166 items, 3 prompts cut")


def test_a_comparison_with_its_test_and_what_it_would_find():
    assert comparison_line(PAIR) == (
        "twin - mine mmlu [virology] letters accuracy: +5.00% [-1.00%, +11.00%] (Wilson 95% over items), "
        "p 0.031 (McNemar, exact, Holm 0.5), detectable: 8.40%")
    assert comparison_line(PAIR | {"mde": None, "subject": ""}).endswith("p 0.031 (McNemar, exact), detectable: not known")
    assert comparison_line(PAIR | {"mde": 1.5}).endswith("detectable: none with so few items")
