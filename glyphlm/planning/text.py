"""A plan as readable text: aligned tables, numbers with units."""

from collections import Counter
from typing import Any

from glyphlm.base.tables import aligned

PREFIXES = ("", "k", "M", "G", "T", "P", "E", "Z")


def plan_text(plan: dict[str, Any]) -> str:
    """The plan that `make_plan` gave."""
    sections = (_head, _parameters, _memory, _flops, _forecast, *([_savings] if plan["savings"] else []))
    title = f"stage {plan['stage']}\n" if "stage" in plan else ""
    return title + "\n\n".join("\n".join(section(plan)) for section in sections) + "\n"


def scaled(value: float, unit: str) -> str:
    """Three digits with a decimal prefix: 1.34 GB."""
    power = 0
    while abs(value) >= 999.5 and power < len(PREFIXES) - 1:
        value, power = value / 1000, power + 1
    return f"{value:.3g} {PREFIXES[power]}{unit}"


def duration(seconds: float) -> str:
    """The two largest units: 3 h 12 min."""
    if seconds < 10:
        return f"{seconds:.2g} s"
    units = {"d": 86400, "h": 3600, "min": 60, "s": 1}
    left, parts = round(seconds), []
    for name, size in units.items():
        if left >= size or parts:
            parts.append(f"{left // size:,} {name}")
            left %= size
    return " ".join(parts[:2])


def _head(plan: dict[str, Any]) -> list[str]:
    model, substrate, train, machine = (plan[name] for name in ("model", "substrate", "train", "machine"))
    tokens, micro = train["steps"] * train["batch_tokens"], train["rows"] * model["block_size"]
    split = f"{train['passes']} x {micro:,} tokens a pass{' and GPU' if train['gpus'] > 1 else ''}"
    many = f"{machine['count']} x {machine['name']}, {train['parallel']}" if machine["count"] > 1 else machine["name"]
    return [
        f"model      {_shapes(plan)}, context of {model['block_size']} tokens, {model['vocab_size']:,} ids",
        f"substrate  {substrate['kind']}, width {substrate['n_embed']}, {'trained' if substrate['trainable'] else 'frozen'}",
        *_kind_of_head(model.get("head", {})),
        f"training   {tokens:,} tokens: {train['steps']:,} steps of {train['batch_tokens']:,}; {split}; "
        f"{'bf16' if train['bf16'] else 'fp32'}{', blocks recomputed' if train['recompute'] else ''}",
        f"machine    {many}, {scaled(machine['memory'], 'B')}{' each' if machine['count'] > 1 else ''}",
    ]


def _kind_of_head(head: dict[str, Any]) -> list[str]:
    """A line on a head that is no matrix [V, D]."""
    short = f", {head['shortlist']:,} ids without digits" if head.get("shortlist") else ""
    digits = f"{head.get('digits')} digits of the id by {head.get('order')}, width {head.get('width')}{short}"
    return [{"tied": "head       tied to the codes", "code": f"head       {digits}"}[head["kind"]]
            ] if head.get("kind", "full") != "full" else []


def _shapes(plan: dict[str, Any]) -> str:
    fusion = plan["fusion"]
    shapes = Counter(f"d_model {shape['d_model']}, {shape['n_layer']} layers, {shape['n_head']} heads"
                     for shape in (fusion["experts"] if fusion else [plan["model"]]))
    if not fusion:
        return next(iter(shapes))
    experts = " and ".join(f"{count} of {shape}" for shape, count in shapes.items())
    return f"{fusion['method']} over {len(fusion['experts'])} frozen experts ({experts})"


def _parameters(plan: dict[str, Any]) -> list[str]:
    counts = [(part, found["trained"], found["frozen"]) for part, found in plan["parameters"].items()]
    counts.append(("total", sum(trained for _, trained, _ in counts), sum(frozen for *_, frozen in counts)))
    rows = [(part, f"{trained:,}", f"{frozen:,}", f"{trained + frozen:,}") for part, trained, frozen in counts]
    lines = [aligned([("parameters", "trained", "frozen", "total"), *rows])]
    if fusion := plan["fusion"]:
        experts, whole = len(fusion["experts"]), fusion["parameters_in_copies"]
        lines.append(f"{experts} experts as whole models: {whole:,} parameters; a substrate that they share is stored once")
    return lines


def _memory(plan: dict[str, Any]) -> list[str]:
    memory, train = plan["memory"], plan["train"]
    rows = [(part, scaled(size, "B")) for part, size in memory["parts"].items() if size]
    lines = [aligned([("memory of a device", ""), *rows, ("at most at the same time", scaled(memory["peak"], "B"))])]
    largest = memory["largest_micro_batch_tokens"]
    fits = "fits" if memory["peak"] <= memory["limit"] else "DOES NOT FIT"
    most = f"the largest micro-batch that does: {largest:,} tokens" if largest else "no micro-batch does"
    lines.append(f"{fits} in {scaled(memory['limit'], 'B')}; {most}")
    if train["gpus"] > 1:
        lines.append(f"each GPU sends {scaled(memory['sent_per_step'], 'B')} a step (never of frozen codes)")
    return lines


def _flops(plan: dict[str, Any]) -> list[str]:
    found = {part: (flops["forward"], flops["backward"]) for part, flops in plan["flops_per_token"].items()}
    found["total"] = tuple(map(sum, zip(*found.values())))
    rows = [(part, scaled(forward, "FLOP"), scaled(backward, "FLOP"), scaled(forward + backward, "FLOP"))
            for part, (forward, backward) in found.items()]
    note = "a multiply-add is 2 FLOP; scores are causal (half of what FlopCounterMode counts)"
    return [aligned([("FLOPs per token", "forward", "backward", "total"), *rows]), note]


def _forecast(plan: dict[str, Any]) -> list[str]:
    forecast, count = plan["forecast"], plan["machine"]["count"]
    rows = [
        ("a step", duration(forecast["step_seconds"])),
        ("tokens a second", f"{forecast['tokens_per_second']:,.0f}"),
        ("training", duration(forecast["training_seconds"])),
        ("validation, at most", duration(forecast["validation_seconds"])),
    ]
    if plan["machine"]["name"] != "cpu":
        rows.append((f"GPU-hours ({count} GPU{'s' * (count > 1)})", f"{forecast['device_hours']:,.2f}"))
    if forecast["cost"] is not None:
        rows.append(("cost", f"{forecast['cost']:,.2f}"))
    share = f"{forecast['share_of_rate']:.0%} of the rate of matrix products"
    return [f"time ({forecast['how']})", aligned(rows), *([share] if forecast["how"].startswith("measured") else [])]


def _savings(plan: dict[str, Any]) -> list[str]:
    rows = [(saving["option"], scaled(saving["bytes"], "B"), scaled(saving["flops_per_token"], "FLOP"))
            for saving in plan["savings"]]
    return [aligned([("what would save", "memory", "per token"), *rows])]
