"""Claims about the models of a study, and verdicts on them from differences of two models that are paired by seed.

Claims are registered: their digest is recorded before the first result, and printed with the verdicts.
"""

import hashlib
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from glyphlm.base.errors import InputError
from glyphlm.base.records import to_json
from glyphlm.evaluation.rows import MANY_CUT
from glyphlm.evaluation.stats import Z_95, Z_POWER_80, holm, over_seeds, pooled_over_seeds, student_p
from glyphlm.studies.settings import Claim

SUPPORTED, EQUIVALENT, NOT_SUPPORTED = "supported", "equivalent", "not supported"
NOT_DECIDABLE, REFERENCE_FAILED = "not decidable", "reference failed"
BITS_PER_BYTE, LETTER_MASS = "bits per byte", "letter mass"
CLIPPED, TO_THRESHOLD = "clipped steps", "tokens to threshold"
COSTS = ("tokens", "values trained", "petaFLOP", "seconds", CLIPPED, TO_THRESHOLD)  # of training
# Scores of uniform guessing, of the most frequent answer, of a unigram model (bits per byte).
LEVELS = ("chance", "majority", "unigram")
LEVEL = 0.05
Row = dict[str, Any]
Seeds = dict[int, float]  # seed -> value


@dataclass
class Measure:
    """The values of a measure (model -> seed -> value), its LEVELS, and the largest share of truncated prompts."""

    values: dict[str, Seeds] = field(default_factory=dict)
    levels: dict[str, float] = field(default_factory=dict)
    cut: float = 0.0


def check_claims(claims: Sequence[Claim], models: Sequence[str]) -> None:
    """Check claims against the names of the models.

    Raises:
        InputError: a model is unknown or named twice, or a margin is negative or given to a claim of kind better.
    """
    for claim in claims:
        named = filter(None, (claim.arm, claim.against, claim.reference_beats))
        if unknown := [name for name in named if name not in models]:
            raise InputError(f"claim {claim.claim!r} names {', '.join(unknown)}; the models are {', '.join(models)}")
        if claim.arm == claim.against:
            raise InputError(f"claim {claim.claim!r} names {claim.arm} twice; name two models")
        if claim.margin < 0 or (claim.margin and claim.kind == "better"):
            raise InputError(f"claim {claim.claim!r} has margin {claim.margin} and kind {claim.kind}; a margin is 0 or "
                             "more, and only at_least has one")


def claims_digest(claims: Sequence[Claim], seeds: Sequence[int]) -> str:
    """sha256 of the claims and of the seeds that decide them, 16 digits."""
    return hashlib.sha256(to_json([[asdict(claim) for claim in claims], list(seeds)]).encode()).hexdigest()[:16]


def by_measure(rows: Sequence[Row]) -> dict[str, Measure]:
    """The rows of a study by measure, without the subjects of benchmarks."""
    found: dict[str, Measure] = {}
    for row in rows:
        if not row.get("subject"):
            measure = found.setdefault(row["measure"], Measure())
            measure.values.setdefault(row["arm"], {})[row["seed"]] = row["value"]
            measure.levels |= {name: row[name] for name in LEVELS if name in row}
            measure.cut = max(measure.cut, row.get("cut", 0) / row.get("items", 1))
    return found


def judge(claims: Sequence[Claim], rows: Sequence[Row]) -> list[Row]:
    """A verdict per claim and measure, from the rows of results.jsonl.

    A row has the fields of the claim, `measure`, `seeds` (those of both models), `difference` (`arm` minus `against`, mean
    over seeds), `low` and `high` (Student's 95%), `pooled_low` and `pooled_high` (the same with the variance of all arms),
    `would_find` (see `detectable`), `p` (Student's two-sided test against the margin), `p_holm` (corrected over all rows of
    the same source), `verdict` and `reason`. The verdict is
    - supported: the claim holds in the whole interval;
    - equivalent: supported, and the whole interval is within the margin of 0;
    - not supported: it holds nowhere in the interval;
    - not decidable: it holds in a part, or only before the correction, or nothing can be compared (see `reason`);
    - reference failed: the reference is no better than a unigram model, or behind a model that it should beat.
    """
    found, made = by_measure(rows), {row["arm"] for row in rows}
    verdicts = [row for claim in claims for row in _verdicts(claim, found, made)]
    families: dict[str, list[Row]] = {}
    for row in verdicts:
        if row["p"] is not None:
            families.setdefault(row["source"], []).append(row)
    for family in families.values():
        for row, p_holm in zip(family, holm([row["p"] for row in family])):
            row["p_holm"] = p_holm
            if row["verdict"] in (SUPPORTED, EQUIVALENT, NOT_SUPPORTED) and row["p"] < LEVEL <= p_holm:
                reason = f"{row['verdict']} alone, not among the {len(family)} tests of this source"
                row |= {"verdict": NOT_DECIDABLE, "reason": reason}
    return verdicts


def _verdicts(claim: Claim, found: dict[str, Measure], made: set[str]) -> Iterator[Row]:
    given = asdict(claim).items()
    stated = {key: value for key, value in given if key not in ("measures", "languages") and value is not None}
    missing = [name for name in (claim.arm, claim.against) if name not in made]
    names = [] if missing else [name for name in found if _is_about(claim, name)]
    if not names:
        reason = ", ".join(f"arm {name} was not made" for name in missing) or "it was not measured"
        asked = ", ".join(claim.measures) or BITS_PER_BYTE
        yield stated | _verdict(", ".join([asked, *claim.languages]), reason=reason)
    for name in names:
        yield stated | _judged(claim, name, found[name])


def _is_about(claim: Claim, measure: str) -> bool:
    """Whether the claim covers this measure; letter mass, which is no ability, has to be named."""
    source = Path(measure.partition(", ")[2]).name
    if claim.languages and not set(claim.languages) & set(re.split(r"[\W_]+", source)):
        return False
    if not claim.measures:
        return _is_bits(measure)
    return any(measure.startswith(name) and (LETTER_MASS in name or LETTER_MASS not in measure) for name in claim.measures)


def _judged(claim: Claim, name: str, measure: Measure) -> Row:
    mine, theirs = (measure.values.get(model, {}) for model in (claim.arm, claim.against))
    seeds = [seed for seed in mine if math.isfinite(mine[seed] - theirs.get(seed, math.nan))]  # both finite
    row = _verdict(name, [mine[seed] - theirs[seed] for seed in seeds])
    if len(seeds) < 2:
        return row | {"reason": "1 seed" if seeds else "no seed in common"}
    row |= _pooled(measure, seeds, claim)
    values = [[found[seed] for seed in seeds] for found in (mine, theirs)]
    if failed := _failure(claim, name, measure, seeds):
        return row | {"verdict": REFERENCE_FAILED, "reason": failed}
    if measure.cut > MANY_CUT:
        return row | {"reason": f"{measure.cut:.0%} of the prompts lost their beginning to the context"}
    if level := _at_level(values, measure.levels):
        return row | {"reason": f"both at {level}"}
    return row | _decided(claim, values, lower_is_better(name))


def _verdict(measure: str, differences: Sequence[float] = (), reason: str = "") -> Row:
    """A row without the claim: statistics of the differences, None if there are too few seeds; not decidable as yet."""
    interval = over_seeds(differences) if len(differences) > 1 else None
    return {
        "measure": measure,
        "seeds": len(differences),
        "difference": sum(differences) / len(differences) if differences else None,
        "low": interval and interval.low,
        "high": interval and interval.high,
        "pooled_low": None,
        "pooled_high": None,
        "would_find": interval and detectable(differences),
        "p": None,
        "p_holm": None,
        "verdict": NOT_DECIDABLE,
        "reason": reason,
    }


def _pooled(measure: Measure, seeds: Sequence[int], claim: Claim) -> Row:
    """The interval with the residual variance of all models that have finite values for these seeds."""
    whole = {arm: values for arm, values in measure.values.items()
             if all(math.isfinite(values.get(seed, math.nan)) for seed in seeds)}
    values_AS = [[values[seed] for seed in seeds] for values in whole.values()]
    interval = pooled_over_seeds(values_AS, [*whole].index(claim.arm), [*whole].index(claim.against))
    return {"pooled_low": interval.low, "pooled_high": interval.high}


def _failure(claim: Claim, name: str, measure: Measure, seeds: Sequence[int]) -> str:
    """Why the reference failed, or ""."""
    theirs, fewer = measure.values[claim.against], lower_is_better(name)
    mean = sum(theirs[seed] for seed in seeds) / len(seeds)
    if fewer and mean >= measure.levels.get("unigram", math.inf):
        return f"{claim.against} is not better than a unigram model"
    below = measure.values.get(claim.reference_beats or "", {})
    if below and all(seed in below for seed in seeds):
        behind = (mean - sum(below[seed] for seed in seeds) / len(seeds)) * (1 if fewer else -1)
        if behind > claim.margin:
            return f"{claim.against} is {behind:.4f} behind {claim.reference_beats}"
    return ""


def _decided(claim: Claim, values: Sequence[Sequence[float]], fewer: bool) -> Row:
    """Verdict and p-value: the claim holds in the whole interval if at both ends, in a part if at one."""
    differences = [mine - theirs for mine, theirs in zip(*values)]
    better = [-one for one in differences] if fewer else differences
    low, high, _ = over_seeds(better)
    holds = [end > 0 if claim.kind == "better" else end >= -claim.margin for end in (low, high)]
    is_equal = claim.kind == "at_least" and claim.margin > 0 and high <= claim.margin
    verdict = EQUIVALENT if all(holds) and is_equal else SUPPORTED if all(holds) else NOT_SUPPORTED
    reason = ""
    if any(holds) and not all(holds):
        verdict, reason = NOT_DECIDABLE, f"{len(better)} seeds would find {detectable(differences):.4f}"
    p = student_p(better, -claim.margin) if low < high else 0.0
    return {"verdict": verdict, "reason": reason, "p": p}


def _at_level(values: Sequence[Sequence[float]], levels: dict[str, float]) -> str:
    """The reference level that neither model is above, or ""; their scores then reflect no ability to compare."""
    highest = max(over_seeds(of_model).low for of_model in values)
    return next((name for name in ("chance", "majority") if name in levels and highest <= levels[name]), "")


def detectable(differences: Sequence[float]) -> float:
    """The approximate minimum detectable effect of as many seeds (power 0.8 at level 0.05); infinite for one seed.

    The half width of Student's interval times 1 + 0.84 / 1.96: 9% above the exact value for 3 seeds, 2% for 10.
    """
    if len(differences) < 2:
        return math.inf
    interval = over_seeds(differences)
    return (interval.high - interval.low) / 2 * (1 + Z_POWER_80 / Z_95)


def lower_is_better(measure: str) -> bool:
    """True for bits per byte and costs; False for accuracies, F1, BLEU and chrF."""
    return _is_bits(measure) or measure in COSTS


def _is_bits(measure: str) -> bool:
    return measure.partition(",")[0].endswith(BITS_PER_BYTE)
