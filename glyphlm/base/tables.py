"""Text in aligned columns."""

import re
from collections.abc import Sequence


def aligned(lines: Sequence[Sequence[str]]) -> str:
    """Rows of cells as text, the head first: numbers right-aligned, columns that are empty below their head left out."""
    kept = [column for column in zip(*lines) if any(column[1:])]
    sides = [">" if all(re.match(r"[-+\d]|none|not|$", cell) for cell in column[1:]) else "<" for column in kept]
    columns = [[f"{cell:{side}{max(map(len, column))}}" for cell in column] for column, side in zip(kept, sides)]
    return "\n".join("  ".join(line).rstrip() for line in zip(*columns))
