#!/usr/bin/env python3
"""Recompute every verdict of a study from its results.jsonl alone, with none of GlyphLM's code.

    python scripts/recompute_verdicts.py docs/results/freezing docs/results/fusion

For each row of claims.jsonl: the paired differences over seeds, Student's 95% interval, the smallest difference that as
many seeds would find (power 0.8), and the verdict. Prints what differs; the exit code is 1 where anything does.
"""

import json
import math
import statistics
import sys
from collections import defaultdict
from pathlib import Path

from scipy.stats import norm, t

TOLERANCE = 1e-6  # relative: the recorded detectable differences use rounded normal quantiles
LOWER_IS_BETTER = ("tokens", "values trained", "petaFLOP", "seconds")


def read(path: Path) -> list[dict]:
    """The rows of a JSON-lines file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def student(values: list[float]) -> tuple[float, float]:
    """Student's 95% interval of the mean."""
    half = t.ppf(0.975, len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    return statistics.mean(values) - half, statistics.mean(values) + half


def level_reached(values: list[list[float]], levels: dict[str, float]) -> bool:
    """Whether neither model is above chance, or above always giving the commonest answer."""
    best = max(student(of_model)[0] for of_model in values)
    return any(best <= level for level in levels.values())


def verdict(claim: dict, differences: list[float]) -> str:
    """Supported where the claim holds in the whole interval, not supported where it holds nowhere in it."""
    measure = claim["measure"]
    lower = measure.split(",")[0].endswith("bits per byte") or measure in LOWER_IS_BETTER
    ends = student([-d if lower else d for d in differences])
    holds = [end > 0 if claim["kind"] == "better" else end >= -claim["margin"] for end in ends]
    return {2: "supported", 1: "not decidable", 0: "not supported"}[sum(holds)]


def recompute(claim: dict, values: dict, levels: dict) -> dict:
    """The figures of one row of claims.jsonl."""
    mine, theirs = values[claim["arm"], claim["measure"]], values[claim["against"], claim["measure"]]
    seeds = [seed for seed in mine if seed in theirs and math.isfinite(mine[seed]) and math.isfinite(theirs[seed])]
    differences = [mine[seed] - theirs[seed] for seed in seeds]
    if len(seeds) < 2:
        return {"seeds": len(seeds), "verdict": "not decidable"}
    low, high = student(differences)
    at_level = level_reached([[v[s] for s in seeds] for v in (mine, theirs)], levels[claim["measure"]])
    return {
        "seeds": len(seeds),
        "difference": statistics.mean(differences),
        "low": low,
        "high": high,
        "would_find": (high - low) / 2 * (1 + norm.ppf(0.8) / norm.ppf(0.975)),
        "verdict": "not decidable" if at_level else verdict(claim, differences),
    }


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
    values, levels = defaultdict(dict), defaultdict(dict)
    for row in read(folder / "results.jsonl"):
        if not row.get("subject"):
            values[row["arm"], row["measure"]][row["seed"]] = row["value"]
            levels[row["measure"]] |= {name: row[name] for name in ("chance", "majority") if name in row}
    claims, wrong = read(folder / "claims.jsonl"), 0
    for claim in claims:
        differences = differing(claim, recompute(claim, values, levels))
        wrong += bool(differences)
        for line in differences:
            print(f"{folder}: {claim['claim']!r}, {claim['measure']}: {line}")
    print(f"{folder}: {len(claims) - wrong} of {len(claims)} verdicts recomputed equal")
    return wrong


if __name__ == "__main__":
    sys.exit(bool(sum(check(Path(folder)) for folder in sys.argv[1:] or sys.exit(__doc__))))
