"""When data repeats: the table and the picture of the study recipes/repeats.yaml.

    python docs/results/repeats.py docs/results/repeats

Reads results.jsonl of the folder, writes repeats.svg there, and prints bits per byte by kind of codes and number of epochs,
with half of Student's 95% interval over seeds.
"""

import sys
from collections import defaultdict
from pathlib import Path
from statistics import mean

from glyphlm.analysis.plots import draw_bars
from glyphlm.base.outputs import write_atomic
from glyphlm.base.records import read_json_lines
from glyphlm.evaluation.stats import over_seeds

KINDS = {"glyph": "frozen glyphs", "bits": "frozen bits", "random": "frozen random codes", "trained": "trained table",
         "trained_decay_03": "trained, weight decay 0.3", "trained_decay_1": "trained, weight decay 1",
         "glyph_decay_1": "frozen glyphs, weight decay 1"}
EPOCHS = ("1", "4", "16", "64")


def main(folder: Path) -> None:
    """Print the table and draw the picture."""
    values: dict[tuple[str, str], list[float]] = defaultdict(list)
    for row in read_json_lines(folder / "results.jsonl"):
        if row["measure"].startswith("bpb"):
            kind, _, epochs = row["arm"].rpartition("_")
            values[kind, epochs].append(row["value"])
    print(f"| | {' | '.join(f'{epochs} × the text' for epochs in EPOCHS)} |\n|---|{'---:|' * len(EPOCHS)}")
    for kind, name in KINDS.items():
        cells = [f"{mean(found):.3f} ± {over_seeds(found).high - mean(found):.3f} ({len(found)})"
                 if (found := values.get((kind, epochs))) else "" for epochs in EPOCHS]
        print(f"| {name} | {' | '.join(cells)} |")
    drawn = [kind for kind in KINDS if all((kind, epochs) in values for epochs in EPOCHS)]
    series = {KINDS[kind]: {epochs: mean(values[kind, epochs]) for epochs in EPOCHS} for kind in drawn}
    spans = {KINDS[kind]: {epochs: over_seeds(values[kind, epochs])[:2] for epochs in EPOCHS} for kind in drawn}
    write_atomic(folder / "repeats.svg", draw_bars(series, "bits per byte after so many epochs", spans))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
