"""What growth.jsonl says of the claims about growth, as a table.

    python docs/results/growth.py
"""

import json
from pathlib import Path

from glyphlm.studies.claims import Claim, judge

MEASURE, FIRST = "bits per byte, validation", "arXiv 2507.07129v1"
CLAIMS = [
    *(Claim(f"depth brings ability: {n} layers are better than {n - 1}", f"random.{n}", f"random.{n - 1}", FIRST,
            kind="better") for n in range(2, 7)),
    Claim("depth brings ability: 6 layers are better than 1", "random.6", "random.1", FIRST, kind="better"),
    Claim("a grown model rivals one trained at once on as many tokens", "random.6", "monolithic-tokens.6",
          "arXiv 2507.07129v2", margin=0.02),
    Claim("a grown model rivals one trained at once with as many operations", "random.6", "monolithic-flops.6",
          "our question", margin=0.02),
    Claim("freezing the old layers costs nothing beside training all of them (G_stack)", "random.6", "stackall.6",
          "our control", margin=0.02),
    Claim("a start that changes nothing is better than a random one", "zero.6", "random.6", "our question", kind="better"),
]


def main() -> None:
    """Print the table."""
    found = [json.loads(line) for line in Path(__file__).with_name("growth.jsonl").read_text(encoding="utf-8").splitlines()]
    rows = [{"arm": f"{row['arm']}.{row['layers']}", "seed": row["seed"], "measure": MEASURE, "value": row["bits_per_byte"]}
            for row in found]
    print("| claim | source | difference | 95% | margin | verdict |\n| --- | --- | --- | --- | --- | --- |")
    for row in judge(CLAIMS, rows):
        margin = f"{row['margin']:g}" if row["kind"] == "at_least" else row["kind"]
        verdict = ": ".join(filter(None, (row["verdict"], row["reason"])))
        print(f"| {row['claim']} | {row['source']} | {row['difference']:+.4f} | {row['low']:+.4f} to {row['high']:+.4f} | "
              f"{margin} | {verdict} |")


if __name__ == "__main__":
    main()
