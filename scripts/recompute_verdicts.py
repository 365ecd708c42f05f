#!/usr/bin/env python3
"""Recompute every verdict of a study from its results.jsonl alone, with none of GlyphLM's code.

    python scripts/recompute_verdicts.py docs/results/freezing docs/results/fusion

For each row of claims.jsonl: the paired differences over seeds, Student's 95% interval, the interval with the variance of
all arms, the smallest difference that as many seeds would find (power 0.8), p, Holm's correction within the source, and the
verdict. Prints what differs; the exit code is 1 where anything does.
"""

import json
import math
import statistics
import sys
from collections import defaultdict
from pathlib import Path

from scipy.stats import norm, t, ttest_1samp

TOLERANCE = 1e-6  # relative: the recorded detectable differences use rounded normal quantiles
LOWER_IS_BETTER = ("tokens", "values trained", "petaFLOP", "seconds", "clipped steps", "tokens to threshold")
MOST_CUT, LEVEL = 0.05, 0.05
DECIDED = ("supported", "equivalent", "not supported")


class Measure:
    """The rows of one measure: model -> seed -> value, reference levels, and the share of prompts that were cut."""

    def __init__(self) -> None:
        self.values: dict[str, dict[int, float]] = defaultdict(dict)
        self.levels: dict[str, float] = {}
        self.cut = 0.0

    def add(self, row: dict) -> None:
        """Count a row of results.jsonl."""
        self.values[row["arm"]][row["seed"]] = row["value"]
        self.levels |= {name: row[name] for name in ("chance", "majority", "unigram") if name in row}
        if "cut" in row:
            self.cut = max(self.cut, row["cut"] / row["items"])


def read(path: Path) -> list[dict]:
    """The rows of a JSON-lines file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def student(values: list[float]) -> tuple[float, float]:
    """Student's 95% interval of the mean."""
    half = t.ppf(0.975, len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    return statistics.mean(values) - half, statistics.mean(values) + half


def pooled(measure: Measure, claim: dict, seeds: list[int]) -> tuple[float, float]:
    """The interval of the difference with the residual variance of all models over these seeds, as in a two-way layout."""
    arms = {arm: [of[seed] for seed in seeds] for arm, of in measure.values.items()
            if all(math.isfinite(of.get(seed, math.nan)) for seed in seeds)}
    columns = [statistics.mean(column) for column in zip(*arms.values())]
    grand = statistics.mean(columns)
    squares = sum((value - statistics.mean(of) - column + grand) ** 2
                  for of in arms.values() for value, column in zip(of, columns))
    freedom = (len(arms) - 1) * (len(seeds) - 1)
    half = t.ppf(0.975, freedom) * math.sqrt(2 * squares / freedom / len(seeds))
    centre = statistics.mean(arms[claim["arm"]]) - statistics.mean(arms[claim["against"]])
    return centre - half, centre + half


def is_lower_better(measure: str) -> bool:
    """Fewer bits per byte and lower costs are better."""
    return measure.split(",")[0].endswith("bits per byte") or measure in LOWER_IS_BETTER


def reference_failed(measure: Measure, claim: dict, seeds: list[int], lower: bool) -> bool:
    """Whether the model compared with is no better than a unigram model, or behind the one that it should beat."""
    mean = statistics.mean(measure.values[claim["against"]][seed] for seed in seeds)
    if lower and mean >= measure.levels.get("unigram", math.inf):
        return True
    below = measure.values.get(claim.get("reference_beats", ""), {})
    if not below or any(seed not in below for seed in seeds):
        return False
    gap = mean - statistics.mean(below[seed] for seed in seeds)
    return (gap if lower else -gap) > claim["margin"]


def decide(claim: dict, differences: list[float], lower: bool) -> tuple[str, float]:
    """The verdict on this row alone, and the p-value of the difference at the edge of the claim."""
    better = [-d if lower else d for d in differences]
    low, high = student(better)
    holds = [end > 0 if claim["kind"] == "better" else end >= -claim["margin"] for end in (low, high)]
    p = float(ttest_1samp(better, -claim["margin"]).pvalue) if low < high else 0.0
    if sum(holds) < 2:
        return ("not supported", "not decidable")[sum(holds)], p
    is_equal = claim["kind"] == "at_least" and claim["margin"] > 0 and high <= claim["margin"]
    return "equivalent" if is_equal else "supported", p


def recompute(claim: dict, measure: Measure) -> dict:
    """The figures of one row of claims.jsonl before the correction for their number."""
    mine, theirs = measure.values[claim["arm"]], measure.values[claim["against"]]
    seeds = [seed for seed in mine if seed in theirs and math.isfinite(mine[seed]) and math.isfinite(theirs[seed])]
    differences, lower = [mine[seed] - theirs[seed] for seed in seeds], is_lower_better(claim["measure"])
    if len(seeds) < 2:
        return {"seeds": len(seeds), "p": None, "verdict": "not decidable"}
    (low, high), (pooled_low, pooled_high) = student(differences), pooled(measure, claim, seeds)
    found = {
        "seeds": len(seeds),
        "difference": statistics.mean(differences),
        "low": low,
        "high": high,
        "pooled_low": pooled_low,
        "pooled_high": pooled_high,
        "would_find": (high - low) / 2 * (1 + norm.ppf(0.8) / norm.ppf(0.975)),
        "p": None,
    }
    if reference_failed(measure, claim, seeds, lower):
        return found | {"verdict": "reference failed"}
    guess = max(measure.levels.get("chance", -math.inf), measure.levels.get("majority", -math.inf))
    if measure.cut > MOST_CUT or max(student([of[seed] for seed in seeds])[0] for of in (mine, theirs)) <= guess:
        return found | {"verdict": "not decidable"}
    verdict, p = decide(claim, differences, lower)
    return found | {"verdict": verdict, "p": p}


def correct(found: list[dict], sources: list[str]) -> None:
    """Add p_holm within each source, and undo the verdicts that it does not leave."""
    for source in set(sources):
        family = [row for row, of in zip(found, sources) if of == source and row["p"] is not None]
        tested = sorted(family, key=lambda row: row["p"])
        worst = 0.0
        for rank, row in enumerate(tested):
            worst = max(worst, min(1.0, row["p"] * (len(tested) - rank)))
            row["p_holm"] = worst
            if row["verdict"] in DECIDED and row["p"] < LEVEL <= worst:
                row["verdict"] = "not decidable"


def differing(claim: dict, found: dict) -> list[str]:
    """The figures that are not as recorded."""
    wrong = []
    for name, value in found.items():
        recorded = claim[name]
        both = isinstance(value, float) and isinstance(recorded, float)
        if not math.isclose(value, recorded, rel_tol=TOLERANCE) if both else value != recorded:
            wrong.append(f"{name}: recorded {recorded}, recomputed {value}")
    return wrong


def check(folder: Path) -> int:
    """Print the claims of a study whose figures differ; their number."""
    measures: dict[str, Measure] = defaultdict(Measure)
    for row in read(folder / "results.jsonl"):
        if not row.get("subject"):
            measures[row["measure"]].add(row)
    claims, wrong = read(folder / "claims.jsonl"), 0
    found = [recompute(claim, measures[claim["measure"]]) for claim in claims]
    correct(found, [claim["source"] for claim in claims])
    for claim, row in zip(claims, found):
        differences = differing(claim, row)
        wrong += bool(differences)
        for line in differences:
            print(f"{folder}: {claim['claim']!r}, {claim['measure']}: {line}")
    print(f"{folder}: {len(claims) - wrong} of {len(claims)} verdicts recomputed equal")
    return wrong


if __name__ == "__main__":
    sys.exit(bool(sum(check(Path(folder)) for folder in sys.argv[1:] or sys.exit(__doc__))))
