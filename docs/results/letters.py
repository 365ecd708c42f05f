"""How much of a sampled benchmark score is the probability that an answer begins with the letter of an option?

    python docs/results/letters.py docs/results/letters/results.jsonl

Reads the rows of recipes/study_letters.yaml. Within each seed, a line through the models: the score of the published
protocol over the letter mass. Printed are its slope and the share of the variance of scores that it explains (R²), by seed;
and the same for the accuracies by likelihood, in which the mass has no part.
"""

import sys
from collections import defaultdict
from pathlib import Path

import numpy as np

from glyphlm.base.records import read_json_lines

MASS, SCORES = "sampled letter mass", ("first letter accuracy", "letters accuracy", "texts accuracy")


def lines(path: Path) -> dict[str, list[tuple[float, float]]]:
    """Score -> slope and R² of each seed."""
    values: dict[int, dict[str, dict[str, float]]] = defaultdict(lambda: defaultdict(dict))
    for row in read_json_lines(path):
        for name in (MASS, *SCORES):
            if f" {name}, " in row["measure"]:
                values[row["seed"]][name][row["arm"]] = row["value"]
    found: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for seed in sorted(values):
        for score in SCORES:
            arms = sorted(values[seed][MASS].keys() & values[seed][score].keys())
            mass, scores = (np.array([values[seed][name][arm] for arm in arms]) for name in (MASS, score))
            found[score].append((float(np.polyfit(mass, scores, 1)[0]), float(np.corrcoef(mass, scores)[0, 1] ** 2)))
    return found


if __name__ == "__main__":
    print("| score | slope over letter mass | R² |\n|---|---|---|")
    for score, seeds in lines(Path(sys.argv[1])).items():
        print(f"| {score} |", " | ".join(", ".join(f"{value:.3f}" for value in column) for column in zip(*seeds)), "|")
