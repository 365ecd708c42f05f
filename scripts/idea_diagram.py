"""Draw docs/idea.svg: text -> pictures -> frozen codes -> transformer -> next token, all of it read from a trained run.

    python scripts/idea_diagram.py RUN "TEXT" docs/idea.svg
"""

import sys
from html import escape
from pathlib import Path

import numpy as np
import torch

import glyphlm
from glyphlm.substrate.fonts import load_fonts
from glyphlm.substrate.glyphs import draw_tokens

SIDE, WIDTH = 32, 940
CODE_CELLS = 24  # of the first components of a code, which hold most of its variance
STYLE = """
text { font: 13px system-ui, sans-serif; fill: #1c2430 } .small { font-size: 12px; fill: #5b6675 } .head { font-weight: 600 }
.ink { fill: #1c2430 } .paper { fill: #fff; stroke: #c3cad4 } .frozen { fill: #e3f1fb; stroke: #7fb2d9 }
.trained { fill: #fdeee0; stroke: #e0a46a } .bar { fill: #e08a3c } .arrow { stroke: #5b6675; stroke-width: 1.5; fill: none }
"""


def pixels(bits_P: np.ndarray, x: float, y: float, size: float) -> str:
    """A picture as one SVG path on a sheet of paper."""
    cell = size / SIDE
    rows, columns = np.nonzero(bits_P.reshape(SIDE, SIDE))
    path = "".join(f"M{x + column * cell:.1f} {y + line * cell:.1f}h{cell:.2f}v{cell:.2f}h-{cell:.2f}z"
                   for line, column in zip(rows, columns, strict=True))
    return f'<rect class="paper" x="{x}" y="{y}" width="{size}" height="{size}"/><path class="ink" d="{path}"/>'


def barcode(code_E: np.ndarray, x: float, y: float, height: float, cell: float = 6) -> str:
    """A code as a strip of cells: blue below zero, orange above."""
    scaled = code_E[:CODE_CELLS] / np.abs(code_E[:CODE_CELLS]).max()
    cells = (f'<rect x="{x + index * cell:.1f}" y="{y}" width="{cell}" height="{height}"'
             f' fill="{"#d9822b" if value > 0 else "#2f7fb8"}" opacity="{abs(value) ** 0.5:.2f}"/>'
             for index, value in enumerate(scaled))
    return f'<rect class="frozen" x="{x}" y="{y}" width="{CODE_CELLS * cell}" height="{height}"/>' + "".join(cells)


def arrow(x: float, y: float, length: float = 26) -> str:
    return f'<path class="arrow" d="M{x} {y}h{length}m-6 -5l6 5l-6 5"/>'


def label(x: float, y: float, text: str, kind: str = "", anchor: str = "start") -> str:
    return f'<text x="{x}" y="{y}" class="{kind}" text-anchor="{anchor}">{escape(text)}</text>'


def diagram(run: str, text: str) -> str:
    """The SVG of one text in one run."""
    model, tokenizer = glyphlm.load_run(run)
    ids = tokenizer.encode(text)
    names = [tokenizer.decode([number]) for number in ids]
    bits_TP = draw_tokens(names, load_fonts(None, SIDE), SIDE).bits_VP
    with torch.no_grad():
        ids_BT = torch.tensor([ids])
        codes_TE = model.gpt.substrate.codes(ids_BT)[0].float().numpy()
        probabilities_V = model(ids_BT).logits[0, -1].float().softmax(-1)
    likely = probabilities_V.topk(6)
    top, row = 62, 46
    parts = [label(20, 30, "text", "head"), label(110, 30, "picture", "head"), label(200, 30, "code: never trained", "head"),
             label(480, 30, "transformer: trained", "head"), label(730, 30, "next token", "head")]
    for index, name in enumerate(names):
        y = top + index * row
        parts += [label(20, y + 24, name.replace(" ", "␣")), pixels(bits_TP[index], 110, y, 38), arrow(156, y + 19),
                  barcode(codes_TE[index], 200, y + 4, 30)]
    middle, bottom = top + len(names) * row / 2 - 4, top + len(names) * row
    height = bottom + 44
    parts += [arrow(362, middle, 100), label(412, middle - 10, "to d_model", "small", "middle")]
    for block in range(3):
        y = middle - 81 + block * 58
        parts.append(f'<rect class="trained" x="480" y="{y:.0f}" width="170" height="46" rx="6"/>')
        parts.append(label(565, y + 28, ("head", "block", "block")[block], "", "middle"))
    parts.append(arrow(668, middle, 44))
    for rank, (value, number) in enumerate(zip(likely.values.tolist(), likely.indices.tolist(), strict=True)):
        y = middle - 90 + rank * 30
        length = 90 * value / likely.values[0].item()
        parts += [f'<rect class="bar" x="800" y="{y + 5}" width="{length:.0f}" height="18" rx="2"/>',
                  label(790, y + 19, tokenizer.decode([number]).replace(" ", "␣"), "", "end"),
                  label(806 + length, y + 19, f"{value:.0%}", "small")]
    parts.append(label(20, height - 16, "Its twin has a learned table where the codes stand, and shares everything else: "
                       "data, order, initial values.", "small"))
    return (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img"><style>{STYLE}</style>'
            f'<rect width="{WIDTH}" height="{height}" rx="8" fill="#f7f9fb"/>{"".join(parts)}</svg>\n')


if __name__ == "__main__":
    Path(sys.argv[3]).write_text(diagram(sys.argv[1], sys.argv[2]), encoding="utf-8")
