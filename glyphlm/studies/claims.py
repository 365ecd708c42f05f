"""Claims about the models of a study, and the verdict of its seeds: supported, not supported or not decidable.

A verdict is computed from the differences of two models, paired by seed, and never written by hand.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from glyphlm.base.errors import InputError
from glyphlm.evaluation.stats import Z_95, Z_POWER_80, over_seeds
from glyphlm.studies.settings import Claim

SUPPORTED, NOT_SUPPORTED, NOT_DECIDABLE = "supported", "not supported", "not decidable"
BITS_PER_BYTE, LETTER_MASS = "bits per byte", "letter mass"
COSTS = ("tokens", "values trained", "petaFLOP", "seconds")  # of training
LEVELS = ("chance", "majority")  # what guessing scores, and always giving the commonest answer
Row = dict[str, Any]
Seeds = dict[int, float]  # seed -> value


@dataclass
class Measure:
    """The values of one measure: model -> seed -> value; and its LEVELS."""

    values: dict[str, Seeds] = field(default_factory=dict)
    levels: dict[str, float] = field(default_factory=dict)


def check_claims(claims: Sequence[Claim], models: Sequence[str]) -> None:
    """Refuse claims about models that are not among `models`, and margins without a meaning.

    Raises:
        InputError: with the value and what is allowed.
    """
    for claim in claims:
        if unknown := [name for name in (claim.arm, claim.against) if name not in models]:
            raise InputError(f"claim {claim.claim!r} names {', '.join(unknown)}; the models are {', '.join(models)}")
        if claim.arm == claim.against:
            raise InputError(f"claim {claim.claim!r} names {claim.arm} twice; name two models")
        if claim.margin < 0 or (claim.margin and claim.kind == "better"):
            raise InputError(f"claim {claim.claim!r} has margin {claim.margin} and kind {claim.kind}; a margin is 0 or "
                             "more, and only at_least has one")


def by_measure(rows: Sequence[Row]) -> dict[str, Measure]:
    """Rows of a study by their measures, without parts of a benchmark: of MMLU there are 57."""
    found: dict[str, Measure] = {}
    for row in rows:
        if not row.get("subject"):
            measure = found.setdefault(row["measure"], Measure())
            measure.values.setdefault(row["arm"], {})[row["seed"]] = row["value"]
            measure.levels |= {name: row[name] for name in LEVELS if name in row}
    return found


def judge(claims: Sequence[Claim], rows: Sequence[Row]) -> list[Row]:
    """A verdict a claim and measure, from the rows of results.jsonl.

    A row has what the claim says and `measure`, `seeds` (those of both models), `difference` (`arm` minus `against`, mean
    over seeds), `low` and `high` (Student's 95%), `would_find` (see `detectable`), `verdict` and `reason`. The verdict is
    - supported: the claim holds everywhere in the interval;
    - not supported: it holds nowhere in it;
    - not decidable: it holds in a part, or the models cannot be compared: `reason` says why.
    """
    found, made = by_measure(rows), {row["arm"] for row in rows}
    return [_stated(claim) | verdict for claim in claims for verdict in _verdicts(claim, found, made)]


def _stated(claim: Claim) -> Row:
    return {key: value for key, value in asdict(claim).items() if key != "measures"}


def _verdicts(claim: Claim, found: dict[str, Measure], made: set[str]) -> Iterator[Row]:
    missing = [name for name in (claim.arm, claim.against) if name not in made]
    names = [] if missing else [name for name in found if _is_about(claim, name)]
    if not names:
        reason = ", ".join(f"arm {name} was not made" for name in missing) or "it was not measured"
        yield _verdict(", ".join(claim.measures) or BITS_PER_BYTE, reason=reason)
    for name in names:
        yield _judged(claim, name, found[name])


def _is_about(claim: Claim, measure: str) -> bool:
    """Whether the claim covers this measure; letter mass is not an ability, so only claims that name it do."""
    if not claim.measures:
        return _is_bits(measure)
    return any(measure.startswith(name) and (LETTER_MASS in name or LETTER_MASS not in measure) for name in claim.measures)


def _judged(claim: Claim, name: str, measure: Measure) -> Row:
    mine, theirs = (measure.values.get(model, {}) for model in (claim.arm, claim.against))
    seeds = [seed for seed in mine if math.isfinite(mine[seed] - theirs.get(seed, math.nan))]  # without diverged runs
    differences = [mine[seed] - theirs[seed] for seed in seeds]
    if len(seeds) < 2:
        return _verdict(name, differences, reason="1 seed" if seeds else "no seed in common")
    reason = _at_level([[values[seed] for seed in seeds] for values in (mine, theirs)], measure.levels)
    verdict = NOT_DECIDABLE if reason else _decided(claim, differences, lower_is_better(name))
    if verdict == NOT_DECIDABLE and not reason:
        reason = f"{len(seeds)} seeds would find {detectable(differences):.4f}"
    return _verdict(name, differences, verdict, reason)


def _verdict(measure: str, differences: Sequence[float] = (), verdict: str = NOT_DECIDABLE, reason: str = "") -> Row:
    """JSON has no infinity: what one seed cannot decide is None."""
    interval = over_seeds(differences) if len(differences) > 1 else None
    return {
        "measure": measure,
        "seeds": len(differences),
        "difference": sum(differences) / len(differences) if differences else None,
        "low": interval and interval.low,
        "high": interval and interval.high,
        "would_find": interval and detectable(differences),
        "verdict": verdict,
        "reason": reason,
    }


def _decided(claim: Claim, differences: Sequence[float], fewer: bool) -> str:
    """Whether the claim holds at both ends of the interval, and so in all of it; at none; or at one."""
    low, high, _ = over_seeds([-one for one in differences] if fewer else differences)  # above 0 is better
    holds = [end > 0 if claim.kind == "better" else end >= -claim.margin for end in (low, high)]
    return SUPPORTED if all(holds) else NOT_DECIDABLE if any(holds) else NOT_SUPPORTED


def _at_level(values: Sequence[Sequence[float]], levels: dict[str, float]) -> str:
    """The level that neither model is above, if there is one: then their scores are no ability that could be compared."""
    highest = max(over_seeds(of_model).low for of_model in values)
    return next((f"both at {name}" for name in LEVELS if name in levels and highest <= levels[name]), "")


def detectable(differences: Sequence[float]) -> float:
    """The smallest true difference that as many seeds would find with probability 0.8 at level 0.05, about.

    The half width of Student's interval, widened by the share that the power adds for many seeds (0.43); for 3 seeds it is
    9% above the exact value, for 10 seeds 2%. One seed finds nothing.
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
