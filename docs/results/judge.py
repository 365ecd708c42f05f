"""Judge the published rows of the studies anew by the claims of their files: claims.jsonl, .svg of each, tables on stdout.

    python docs/results/judge.py

Reads results.jsonl of each study's folder with recipes/study_*.yaml, and growth.jsonl, stitching.jsonl, averaging.jsonl and
heads_longer.jsonl with the claims below; those of the last three were committed before their runs.
"""

import re
from collections import Counter
from pathlib import Path

from glyphlm.analysis.plots import draw_claims
from glyphlm.base.outputs import write_atomic
from glyphlm.base.records import read_json_lines, to_lines
from glyphlm.experiments.recipe import load_recipe
from glyphlm.studies.claims import Row, claims_digest, judge
from glyphlm.studies.registration import REGISTERED, registered_line
from glyphlm.studies.results import claims_table
from glyphlm.studies.settings import Claim, Study

HERE = Path(__file__).parent
RECIPES = HERE.parents[1] / "recipes"
STUDIES = sorted(path.parent.name for path in HERE.glob("*/claims.jsonl")
                 if (RECIPES / f"study_{path.parent.name}.yaml").is_file())
DOCUMENTS = ("documents_low", "documents_high")  # as the study found them, since the logs of documents are not published
MEASURE, FIRST, QUESTION = "bits per byte, validation", "arXiv 2507.07129v1", "our question"
GROWTH = [
    *(Claim(f"depth brings ability: {n} layers are better than {n - 1}", f"random.{n}", f"random.{n - 1}", FIRST,
            kind="better") for n in range(2, 7)),
    Claim("depth brings ability: 6 layers are better than 1", "random.6", "random.1", FIRST, kind="better"),
    Claim("a grown model rivals one trained at once on as many tokens", "random.6", "monolithic-tokens.6",
          "arXiv 2507.07129v2", margin=0.02),
    Claim("a grown model rivals one trained at once with as many operations", "random.6", "monolithic-flops.6",
          QUESTION, margin=0.02),
    Claim("freezing the old layers costs nothing beside training all of them (G_stack)", "random.6", "stackall.6",
          "our control", margin=0.02),
    Claim("a start that changes nothing is better than a random one", "zero.6", "random.6", QUESTION, kind="better"),
]

STITCHING = [
    Claim("on a shared frozen substrate, strangers' halves lose less by being stitched than with tables of their own",
          "trained_frozen", "trained_learned", QUESTION, kind="better"),
    Claim("the same without training the map", "identity_frozen", "identity_learned", QUESTION, kind="better"),
]

AVERAGING = [
    Claim("the mean of logits of eight models of one corpus is better than one of them", "mean_logits", "one", QUESTION,
          kind="better"),
    Claim("it is at least as good as one model of all their operations", "mean_logits", "long", QUESTION, margin=0.01),
    Claim("the mean of probabilities is at least as good as that of logits", "mean_probs", "mean_logits", QUESTION,
          margin=0.01),
]

HEADS = [Claim("a code head with a shortlist is at most 0.03 behind a full matrix at equal tokens",
               "code order=frequency shortlist=2048", "full", "our goal", ["bits per byte"], margin=0.03)]


def study_verdicts(name: str) -> list[Row]:
    """The verdicts of a study on its published rows, written to its claims.jsonl."""
    folder, settings = HERE / name, load_recipe(RECIPES / f"study_{name}.yaml", kind=Study)
    rows, before = (read_json_lines(folder / file) for file in ("results.jsonl", "claims.jsonl"))
    commands = {(row["arm"], row["against"]): row["command"] for row in before}
    digest = claims_digest(settings.claims, settings.seeds)
    registered = next((row for row in read_json_lines(folder / REGISTERED) if row["digest"] == digest), None)
    beside = {"registered" if registered else "claims": digest}
    spans = {(row["arm"], row["against"], row["measure"]): {key: row[key] for key in DOCUMENTS}
             for row in before if DOCUMENTS[0] in row}
    unknown = dict.fromkeys(DOCUMENTS) if spans else {}
    verdicts = [row | spans.get((row["arm"], row["against"], row["measure"]), unknown) | beside
                | {"command": commands.get((row["arm"], row["against"]), "")} for row in judge(settings.claims, rows)]
    write_atomic(folder / "claims.jsonl", to_lines(verdicts))
    write_atomic(folder / "claims.svg", draw_claims(verdicts))
    page = (folder / "results.md").read_text(encoding="utf-8")
    section = f"## Claims\n\n{summary(verdicts, registered)}\n\n{claims_table(verdicts)}\n"
    write_atomic(folder / "results.md", re.sub(r"## Claims\n.*?(?=^!\[)", lambda _: section, page, flags=re.S | re.M))
    return verdicts


def summary(verdicts: list[Row], registered: Row | None = None, claimed: str = "after the results were known") -> str:
    """What was judged how, in a sentence or two; `claimed` is when claims were made that are not registered."""
    counts = ", ".join(f"{count} {verdict}" for verdict, count in Counter(row["verdict"] for row in verdicts).items())
    judged = f"{counts}; judged by docs/results/judge.py, corrected within each source"
    return f"{judged}. {registered_line(registered)}" if registered else f"{judged}, {claimed}."


def growth_verdicts() -> list[Row]:
    """The verdicts on the runs of growth.jsonl."""
    rows = [{"arm": f"{row['arm']}.{row['layers']}", "seed": row["seed"], "measure": MEASURE, "value": row["bits_per_byte"]}
            for row in read_json_lines(HERE / "growth.jsonl")]
    return judge(GROWTH, rows)


def heads_rows() -> list[Row]:
    """The lines of benchmarks/heads.py in heads_longer.jsonl, a row for each number of tokens."""
    scores = [(line["contender"], line["seed"], score) for line in read_json_lines(HERE / "heads_longer.jsonl")
              for mark, score in line.items() if mark == "at_tokens" or mark.endswith(" tokens")]
    return [{"arm": arm, "seed": seed, "measure": f"bits per byte, {score['tokens']:,} tokens",
             "value": score["bits_per_byte"]} for arm, seed, score in scores]


def main() -> None:
    """Print the tables."""
    for name, verdicts in (*((name, study_verdicts(name)) for name in STUDIES), ("growth", growth_verdicts())):
        print(f"## {name}\n\n{summary(verdicts)}\n\n{claims_table(verdicts)}")
    for name, claims, rows in (("stitching", STITCHING, read_json_lines(HERE / "stitching.jsonl")),
                               ("averaging", AVERAGING, read_json_lines(HERE / "averaging.jsonl")),
                               ("heads", HEADS, heads_rows())):
        verdicts = judge(claims, rows)
        print(f"## {name}\n\n{summary(verdicts, claimed='by claims made before the runs')}\n\n{claims_table(verdicts)}")


if __name__ == "__main__":
    main()
