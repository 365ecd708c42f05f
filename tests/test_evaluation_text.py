"""Lines say what a number is, and what to compare it with."""

from dataclasses import replace

from glyphlm.evaluation.published import read_published
from glyphlm.evaluation.rows import ComparisonRow, ResultRow
from glyphlm.evaluation.stats import Interval
from glyphlm.evaluation.text import beside_line, comparison_line, result_line

ROW = ResultRow(
    "mmlu", "likelihood", "letters", "virology", "accuracy", 0.25, 0.2, 0.31, "Wilson 95% over items", run="runs/mine",
    items=1166, chance=0.25, majority=0.3, letter_mass=0.5, cut=0,
)  # fmt: skip
SAMPLED = replace(ROW, protocol="sampled", scoring="first letter", sigma=0.01, runs=10, cut=3, items_low=0.1, items_high=0.4,
                  items_interval="bootstrap 95% over items")
BITS = ResultRow("bpb", "likelihood", "", "", "bits_per_byte", 1.25, 1.2, 1.3, "bootstrap 95% over documents", run="mine",
                 documents=4, source="texts/en.txt")
PAIR = ComparisonRow("mmlu", "likelihood", "letters", "virology", "accuracy", 1166, 0.25, 0.3, 0.05,
                     Interval(-0.01, 0.11, "paired bootstrap 95% over items"), "McNemar, exact", 0.0312, 0.084, 0.5,
                     "runs/mine", "runs/twin")  # fmt: skip


def test_a_result_with_its_interval_and_what_to_compare_it_with():
    assert result_line(ROW) == ("mine mmlu [virology] letters accuracy: 25.00% [20.00%, 31.00%] (Wilson 95% over items), "
                                "chance 25.0%, majority 30.0%, letter mass 50.0%, 1,166 items")
    assert result_line(BITS) == (
        "mine bpb en.txt bits per byte: 1.2500 [1.2000, 1.3000] (bootstrap 95% over documents), 4 documents")


def test_the_sampled_protocol_has_the_published_line_and_the_rest_beside_it(tmp_path):
    (tmp_path / "lines.txt").write_text(result_line(SAMPLED), encoding="utf-8")
    assert read_published(tmp_path / "lines.txt")[0].subject == "virology"
    assert beside_line(SAMPLED) == (
        "mine mmlu [virology] first letter accuracy: 25.00% [10.00%, 40.00%] (bootstrap 95% over items), "
        "chance 25.0%, majority 30.0%, letter mass 50.0%, 1,166 items, 3 prompts cut")


def test_a_comparison_with_its_test_and_what_it_would_find():
    assert comparison_line(PAIR) == (
        "twin - mine mmlu [virology] letters accuracy: +5.00% [-1.00%, +11.00%] (paired bootstrap 95% over items), "
        "p 0.031 (McNemar, exact, Holm 0.5), detectable: 8.40%")
    assert comparison_line(replace(PAIR, mde=None, subject="")).endswith("p 0.031 (McNemar, exact), detectable: not known")
    assert comparison_line(replace(PAIR, mde=1.5)).endswith("detectable: none with so few items")
