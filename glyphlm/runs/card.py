"""README.md of a run: the model card, with the front matter that the Hub reads."""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from glyphlm.base.errors import InputError
from glyphlm.base.names import CARD, RESULTS, SETTINGS, WEIGHTS
from glyphlm.base.outputs import sha256_file, write_atomic
from glyphlm.base.records import read_json_lines
from glyphlm.runs.sampling import SAMPLING

PAPERS = {  # the work that is re-implemented, all by A. Bochkov: number on arXiv, year, title
    "2507.04886": (2025, "Emergent Semantics Beyond Token Embeddings: Transformer LMs with Frozen Visual Unicode "
                         "Representations"),
    "2507.07129": (2025, "Growing Transformers: Modular Composition and Layer-wise Expansion on a Frozen Substrate"),
    "2605.09751": (2026, "Language Models Without a Trainable Input Embedding Table: Learning from Fixed Minimal Binary "
                         "Token Codes"),
}
MEASURED = {"task": str, "metric": str, "value": (int, float)}  # rows of results.jsonl that a card can show
PATTERNS = {
    "license": re.compile(r"[a-z0-9]+([.-][a-z0-9]+)*"),
    "language": re.compile(r"[a-z]{2,3}(-[A-Za-z0-9]{2,8})*|multilingual|code"),
    "datasets": re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?"),
}
EXAMPLES = {"license": "apache-2.0", "language": "en", "datasets": "wikimedia/wikipedia"}
HUB_DATA = re.compile(r"\bhf:([\w.-]+/[\w.-]+)")


@dataclass
class CardSettings:
    """Model card fields that a run does not record.

    Args:
        license: As the Hub spells it, such as apache-2.0.
        language: Codes of the languages of the training text, such as en ru.
        datasets: Names on the Hub, besides those that the recipe names as hf:NAME.
    """

    license: str | None = None
    language: list[str] = field(default_factory=list)
    datasets: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        words = {"license": [self.license] if self.license is not None else [], "language": self.language,
                 "datasets": self.datasets}
        for name, pattern in PATTERNS.items():
            for word in words[name]:
                if not pattern.fullmatch(word):
                    raise InputError(f"{name} {word!r} is not valid on the Hub; write it like {EXAMPLES[name]}")


def write_card(run: Path, summary: dict[str, Any], settings: CardSettings | None = None) -> None:
    """Write README.md of a run folder from its summary, settings.yaml, results.jsonl and weights."""
    write_atomic(run / CARD, card_text(run, summary, settings or CardSettings()))


def card_text(run: Path, summary: dict[str, Any], settings: CardSettings) -> str:
    """The model card.

    Raises:
        InputError: results.jsonl is damaged.
    """
    recipe = (run / SETTINGS).read_text(encoding="utf-8") if (run / SETTINGS).is_file() else ""
    results = read_json_lines(run / RESULTS)
    rows = [row for row in results if all(isinstance(row.get(key), MEASURED[key]) for key in MEASURED)]
    parts = [_front_matter(summary, settings, recipe, rows), _introduction(summary)]
    parts += [_table(rows)] if rows else []
    parts += [_usage(run, summary["name"]), _origin(run, summary, recipe), _citation()]
    return "\n".join(parts)


def _front_matter(summary: dict[str, Any], settings: CardSettings, recipe: str, rows: list[dict[str, Any]]) -> str:
    data = ModelCardData(
        library_name="transformers",
        pipeline_tag="text-generation",
        license=settings.license,
        language=settings.language or None,
        datasets=sorted({*settings.datasets, *HUB_DATA.findall(recipe)}) or None,
        tags=["glyphlm", summary["substrate"]["kind"], _freezing(summary), *(["fused"] if summary.get("fusion") else [])],
        model_name=summary["name"] if rows else None,
        eval_results=[_result(row) for row in rows] or None,
    )
    return f"---\n{data.to_yaml()}\n---"


def _result(row: dict[str, Any]) -> EvalResult:
    """A row of model-index; the interval is in its name, which the Hub shows, and in its arguments."""
    bounds = {key: row[key] for key in ("low", "high", "interval") if row.get(key) is not None}
    source = str(row.get("source") or row["task"])
    return EvalResult(
        task_type="text-generation", dataset_type=row["task"], dataset_name=source, metric_type=row["metric"],
        metric_value=row["value"], metric_name=f"{row['metric']}{_interval(row)}", metric_args=bounds or None,
    )


def _interval(row: dict[str, Any]) -> str:
    low, high = row.get("low"), row.get("high")
    return "" if low is None or high is None else f" [{low:.4g}, {high:.4g}]"


def _freezing(summary: dict[str, Any]) -> str:
    return "trainable" if summary["substrate"]["trainable"] else "frozen"


def _introduction(summary: dict[str, Any]) -> str:
    substrate, parameters, tokens = summary["substrate"], summary["parameters"], summary["tokens"]
    reached, imported = summary["bits_per_byte"]["validation"], summary.get("imported")
    trained = f"Trained on {tokens:,} tokens." if tokens else "What it was trained on is not recorded."
    made = f"imported by GlyphLM from `{imported['source']}`" if imported else "made by GlyphLM"
    if fusion := summary.get("fusion"):
        made = f"fused by GlyphLM ({fusion['method']}) from {', '.join(f'`{run}`' for run in fusion['experts'])}"
    return f"""# {summary["name"]}

A decoder-only language model over a {_freezing(summary)} `{substrate["kind"]}` substrate (width {substrate["n_embed"]}),
{made}: {parameters["trained"]:,} trained and {parameters["frozen"]:,} frozen values. {_head(summary)}{trained}
Held-out bits per byte: {"not measured" if reached is None else f"{reached:.4f}"}.
"""


def _head(summary: dict[str, Any]) -> str:
    """A sentence about a head that is not a matrix [V, D]."""
    head = summary.get("model", {}).get("head", {})
    if head.get("kind") == "tied":
        return "Its logits are products with these codes. "
    if head.get("kind") == "code":
        short = f"; the {head['shortlist']:,} ids of the lowest numbers have none" if head.get("shortlist") else ""
        return f"It predicts an id by {head.get('digits')} digits of its number (order {head.get('order')}){short}. "
    return ""


def _table(rows: list[dict[str, Any]]) -> str:
    lines = (f"| {row['task']} | {row['metric']} | {row['value']:.4g} | {_interval(row).strip(' []') or '-'} | "
             f"{row.get('interval') or '-'} |" for row in rows)
    return "\n".join(["| task | metric | value | low, high | interval |", "|---|---|---:|---|---|", *lines, ""])


def _usage(run: Path, name: str) -> str:
    sampling = ", ".join(f"{key}={value}" for key, value in SAMPLING.items())
    trust = ", trust_remote_code=True" if (run / "hf.py").is_file() else ""  # a stock architecture needs none
    return f"""```python
from transformers import AutoModelForCausalLM, AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained("{name}")
model = AutoModelForCausalLM.from_pretrained("{name}"{trust})
ids = tokenizer("Hello", return_tensors="pt").input_ids
print(tokenizer.decode(model.generate(ids, {sampling})[0]))
```
"""


def _origin(run: Path, summary: dict[str, Any], recipe: str) -> str:
    hashes = {
        WEIGHTS: sha256_file(run / WEIGHTS) if (run / WEIGHTS).is_file() else None,
        "tokenizer": summary["tokenizer"]["fingerprint"],
        "substrate": summary["substrate"]["fingerprint"],
    }
    lines = "\n".join(f"- {name}: `{value}`" for name, value in hashes.items() if value)
    steps = f"## Recipe\n\nMade with: `{summary['command']}`\n\n" + (f"```yaml\n{recipe}```\n" if recipe else "")
    return f"{steps}\nHashes (sha256):\n\n{lines}\n"


def _citation() -> str:
    entries = (f"@misc{{arxiv:{number},\n  title = {{{title}}},\n  author = {{Bochkov, A.}},\n  year = {{{year}}},\n"
               f"  eprint = {{{number}}},\n  archivePrefix = {{arXiv}}\n}}\n" for number, (year, title) in PAPERS.items())
    return "## Citation\n\nThe work that this re-implements:\n\n```bibtex\n" + "".join(entries) + "```\n"
