"""Growth in the report: cost and result of each stage, the change of loss between stages, results by depth."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from glyphlm.evaluation.stats import over_seeds
from glyphlm.pages.run_data import Run, find_run, finite

Points = dict[str, list[dict[str, float]]]


@dataclass(frozen=True)
class StageRow:
    """A stage, or a control; bits per byte are on held-out text, costs in operations."""

    run: Run
    layers: int
    added: int
    start: str | None
    before: float | None  # bits per byte of the stage below at its end
    after: float | None  # of this stage before its first step
    end: float | None
    frozen: float | None  # operations of the frozen blocks
    blocks: float | None  # of the other blocks
    head: float | None

    @property
    def border(self) -> float | None:
        """The change of bits per byte by adding the blocks; a loss spike if positive."""
        return None if self.before is None or self.after is None else self.after - self.before


def chains(runs: Sequence[Run]) -> list[list[Run]]:
    """The chains of runs grown from one another, from the first stage to a run that nothing was grown from."""
    below = {run.label: find_run(base, run, runs) if (base := run.get("growth", "base")) else None for run in runs}
    bases = {base.label for base in below.values() if base}
    ends = [run for run in runs if below[run.label] and run.label not in bases]
    return [_down(run, below)[::-1] for run in ends]


def _down(run: Run, below: dict[str, Run | None]) -> list[Run]:
    chain = [run]
    while (base := below[chain[-1].label]) is not None and base not in chain:  # damaged summaries may name each other
        chain.append(base)
    return chain


def stage_rows(chain: Sequence[Run]) -> list[StageRow]:
    """The rows of the table of a chain."""
    return [_row(run, below) for run, below in zip(chain, [None, *chain])]


def _row(run: Run, below: Run | None) -> StageRow:
    layers, flops = run.get("model", "n_layer"), run.get("cost", "flops") or {}
    first = next((row["bits_per_byte"] for row in run.validation if row["step"] == 0), None)
    return StageRow(
        run=run,
        layers=layers,
        added=layers - (below.get("model", "n_layer") if below else 0),
        start=run.get("growth", "start"),
        before=finite(below.get("bits_per_byte", "validation")) if below else None,
        after=finite(first),
        end=finite(run.get("bits_per_byte", "validation")),
        frozen=flops.get("frozen"),
        blocks=sum(flops.get(part, 0) for part in ("attention", "scores", "mlp", "recompute")) if flops else None,
        head=flops.get("head"),
    )


def controls(chain: Sequence[Run], runs: Sequence[Run]) -> list[Run]:
    """The controls of a chain: runs in the same folder, of its final shape, that were not grown."""
    last = chain[-1]
    return [run for run in runs if run.get("growth") is None and run not in chain
            and run.get("model") == last.get("model") and run.folder.resolve().parent == last.folder.resolve().parent]


def whole(chain: Sequence[Run]) -> Run:
    """The last run of a chain, with costs and logs summed over the chain as if it were one training."""
    rows: dict[str, list[dict[str, Any]]] = {"train": [], "validation": []}
    so_far = {"tokens": 0, "seconds": 0.0, "flops": 0.0}
    for run in chain:
        spent = {key: run.get(key) or 0 for key in ("tokens", "seconds")} | {"flops": run.get("cost", "flops_total") or 0}
        for split, kept in rows.items():
            kept += [row | _since(row, so_far, spent) | {"stage": run.label} for row in getattr(run, split)]
        so_far = {key: value + spent[key] for key, value in so_far.items()}
    speed = so_far["tokens"] / max(so_far["seconds"], 1e-9)
    totals = {"tokens": so_far["tokens"], "seconds": so_far["seconds"], "tokens_per_second": speed, "mfu": None}
    summary = chain[-1].summary | totals
    return replace(chain[-1], summary=summary, **rows)


def _since(row: dict[str, Any], so_far: Mapping[str, float], spent: Mapping[str, float]) -> dict[str, float]:
    flops = row["tokens"] / max(1, spent["tokens"]) * spent["flops"]
    return {"tokens": so_far["tokens"] + row["tokens"], "seconds": so_far["seconds"] + row["seconds"],
            "flops": so_far["flops"] + flops}


def _manner(chain: Sequence[Run]) -> str:
    """How a chain was grown, in words."""
    growth = chain[-1].get("growth")
    words = [f"{growth['start']} start"]
    if growth["blocks"] == "all":
        words.append("all blocks train")
    if growth["lora"]["rank"]:
        words.append(f"adapters of rank {growth['lora']['rank']}")
    if growth["head"] != "full":
        words.append(f"{growth['head'].replace('_', '-')} head")
    return ", ".join(words)


def validation_by_depth(runs: Sequence[Run]) -> Points:
    """Bits per byte on held-out text by depth (see `by_depth`)."""
    bits = {run.label: bits for run in runs if (bits := finite(run.get("bits_per_byte", "validation"))) is not None}
    return by_depth(runs, "bits_per_byte", {label: (value, value, value) for label, value in bits.items()})


def by_depth(runs: Sequence[Run], y: str, values: Mapping[str, tuple[float, float, float]]) -> Points:
    """Manner of growth, or kind of control -> a point per depth: `depth`, the mean (under the name `y`), `low`, `high`.

    Args:
        values: Label of a run -> its value and interval, which is shown if the depth has a single run; otherwise
            Student's interval over training seeds is.
    """
    found: dict[str, dict[int, list[tuple[float, float, float]]]] = {}
    for name, run in _named(runs):
        if run.label in values:
            found.setdefault(name, {}).setdefault(run.get("model", "n_layer"), []).append(values[run.label])
    return {name: [_point(depth, y, depths[depth]) for depth in sorted(depths)] for name, depths in found.items()}


def _named(runs: Sequence[Run]) -> Iterator[tuple[str, Run]]:
    """Grown runs with their manner of growth, and controls with their kind."""
    for chain in chains(runs):
        yield from ((_manner(chain), run) for run in chain)
        yield from ((run.get("name").replace("-", ", equal "), run) for run in controls(chain, runs))


def _point(depth: int, y: str, given: Sequence[tuple[float, float, float]]) -> dict[str, float]:
    values = [value for value, *_ in given]
    low, high = over_seeds(values)[:2] if len(values) > 1 else given[0][1:]
    return {"depth": depth, y: sum(values) / len(values), "low": low, "high": high}


def operations_unit(runs: Sequence[Run]) -> int:
    """The exponent of 10, a multiple of 3, that the operations of these runs are shown in."""
    largest = max((run.get("cost", "flops_total") or 0 for run in runs), default=0)
    return 3 * int(math.log10(max(1, largest)) // 3)
