"""Registration of the claims of a study before its results, and the power of its planned seeds."""

from collections.abc import Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

from glyphlm.base.outputs import write_atomic
from glyphlm.base.records import read_json_lines, to_lines
from glyphlm.evaluation.stats import ENOUGH_POWER, MOST_SEEDS, power, seeds_for
from glyphlm.studies.claims import BITS_PER_BYTE, Row, claims_digest
from glyphlm.studies.settings import Study
from glyphlm.studies.workflow import DONE

REGISTERED = "registered.jsonl"
BITS = ("bpb", BITS_PER_BYTE)


def register(settings: Study, out: Path) -> Row:
    """Add the claims to `out`/registered.jsonl unless they are there; their row.

    A row has `digest`, `time`, `trainings` (finished at registration), `seeds` and `claims`.
    """
    rows, digest = read_json_lines(out / REGISTERED), claims_digest(settings.claims, settings.seeds)
    if found := next((row for row in rows if row["digest"] == digest), None):
        return found
    row = {
        "digest": digest,
        "time": datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC"),
        "trainings": len(list((out / DONE).glob("train_*"))),
        "seeds": settings.seeds,
        "claims": [asdict(claim) for claim in settings.claims],
    }
    write_atomic(out / REGISTERED, to_lines([*rows, row]))
    return row


def registered_line(row: Row) -> str:
    """A sentence on when the claims were registered."""
    late = f"when {row['trainings']} trainings had finished" if row["trainings"] else "before any training had finished"
    return f"Claims and seeds were registered on {row['time']}, {late}; their digest is `{row['digest']}`."


def planned_power(settings: Study) -> Iterator[str]:
    """The power of the planned seeds for each kind of claim about bits per byte, with a warning if it is low.

    With a margin the power is for equal models, without one for a true difference of `effect`.
    """
    about = [claim for claim in settings.claims
             if not claim.measures or any(name.startswith(BITS) for name in claim.measures)]
    wanted = {(claim.kind, claim.margin or settings.effect): None for claim in about}
    seeds, spread = len(settings.seeds), settings.spread
    for kind, effect in wanted:
        if spread is None or effect is None:
            yield (f"the power of {seeds} seeds for claims of kind {kind} is not known: give `spread` and, for "
                   "claims without a margin, `effect`")
            continue
        found, needed = power(seeds, spread, effect), seeds_for(spread, effect)
        many = f"{needed} seeds" if needed else f"more than {MOST_SEEDS:,} seeds"
        low = "" if found >= ENOUGH_POWER else f"; WARNING: under {ENOUGH_POWER:.0%}, for which it takes {many}"
        what = f"equal within {effect:g}" if kind == "at_least" else f"{effect:g} better"
        yield (f"power: {seeds} seeds find a model that is {what} with probability {found:.0%} (spread of "
               f"differences {spread:g}){low}")
