"""The published result files of 21 models read again: intervals over questions, chance, and what a letter's share explains.

    python docs/results/published.py FOLDER > docs/results/published.md

FOLDER holds the files of github.com/AVBochkov/Embeddings (results/*.txt), each line a mean of 10 sampled answers. The
published ± is decoding noise alone. Here each mean has Wilson's interval over the questions of the test set.
"""

import sys
from pathlib import Path

from glyphlm.evaluation.stats import wilson
from glyphlm.evaluation.text import read_published

QUESTIONS = {"mmlu": 14_042, "arc_easy": 2_376, "arc_challenge": 1_172, "commonsense_qa": 1_221}  # test; dev of the last
CHANCE = {"mmlu": 0.25, "arc_easy": 0.25, "arc_challenge": 0.25, "commonsense_qa": 0.2}
LONG = ("high_school_european_history", "high_school_us_history", "high_school_world_history", "professional_law")
PAIRS = (("best_bvv_ru", "best_bvv_unfrozen_ru"), ("best_bvv_zh", "best_bvv_unfrozen_zh"),
         ("pro_bvv_en", "pro_bvv_unfrozen"))


INTRODUCTION = """# The published scores, with intervals over questions

Made by `python docs/results/published.py FOLDER > docs/results/published.md`. A score is the mean of 10 sampled answers a
question; in brackets is Wilson's 95% interval over the questions of the set, which the published ± (decoding noise) is not.
"above" and "below": all of the interval is above or below uniform guessing (25%, CommonsenseQA 20%). The last column is what
share of answers would have to begin with a letter if a letter, once given, were right a quarter of the time. It follows from
the score and is no measurement: for these models the probability of a letter is not published. Four subjects whose questions
fill the context are left out of it.
"""


def read(folder: Path) -> dict[str, dict[tuple[str, str], float]]:
    """Model -> (task, subject) -> mean score."""
    found: dict[str, dict[tuple[str, str], float]] = {}
    for path in sorted(folder.glob("*.txt")):
        for row in read_published(path):
            found.setdefault(row.run or "", {})[row.task, row.subject] = row.value
    return found


def cell(task: str, value: float) -> str:
    """A mean with its interval, and whether all of it is above or below chance."""
    count = QUESTIONS[task]
    low, high, _ = wilson(round(value * count), count)
    mark = " above" if low > CHANCE[task] else " below" if high < CHANCE[task] else ""
    return f"{value:.1%} [{low:.1%}, {high:.1%}]{mark}"


def short(scores: dict[tuple[str, str], float]) -> float:
    """Mean over the MMLU subjects whose questions fit the context, the subjects alike."""
    found = [value for (task, subject), value in scores.items() if task == "mmlu" and subject and subject not in LONG]
    return sum(found) / len(found)


def main(folder: Path) -> None:
    """Print the two tables."""
    models = read(folder)
    print(INTRODUCTION)
    print("| model | MMLU | ARC-easy | ARC-challenge | CommonsenseQA | MMLU, 53 subjects / 25% |\n|" + " --- |" * 6)
    for name, scores in models.items():
        cells = [cell(task, scores[task, ""]) if (task, "") in scores else "–" for task in QUESTIONS]
        print(f"| {name} | {' | '.join(cells)} | {short(scores) / 0.25:.2f} |")
    print("\n| frozen − trained | MMLU | ARC-easy | ARC-challenge | CommonsenseQA |\n|" + " --- |" * 5)
    for frozen, trained in PAIRS:
        cells = [f"{models[frozen][task, ''] - models[trained][task, '']:+.1%}" for task in QUESTIONS]
        print(f"| {frozen} − {trained} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
