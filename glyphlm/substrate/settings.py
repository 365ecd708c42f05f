"""How the codes of a vocabulary are made: typed settings."""

from dataclasses import dataclass, field
from typing import Literal

from glyphlm.base.errors import InputError
from glyphlm.base.ranges import Range, check_values

MAX_EMBED = 1 << 20
SIDES = (32, 64)  # Unifont is drawn on a grid of 16 x 16, so these are whole multiples without grey edges
# The kinds that an option applies to; with others it is refused. (Fonts belong to the machine and are not.)
OPTIONS = {
    "file": ("given",),
    "unique": ("glyph", "given"),
    "shuffle_seed": ("token_bits", "affine_bits", "glyph", "given"),
    "std": ("learned",),
    "seed": ("random_bits", "random_float", "affine_bits", "learned"),
    **dict.fromkeys(("side", "augment", "pca", "spelling"), ("glyph",)),
}


@dataclass
class SubstrateSettings:
    """Settings of a substrate.

    Args:
        path: Folder of a substrate, or a run whose substrate it is; without it one is built.
        kind: Pictures of the tokens, bits of the id (as they are, or through a random affine map), random bits, their
            projection, a random start for training, or a table from a file.
        n_embed: Width of a code.
        scale: Norm of a code: 1 (l2, as published), sqrt(n_embed) (unit_rms), or as it comes (none).
        lift: How a code narrower than d_model is widened: each value repeated (papers 1, 2), the whole code repeated
            (paper 3), a random matrix with orthonormal rows, or not at all.
        lift_seed: Seed of that matrix.
        trainable: Whether training changes the table; the codes are then its initial values.
        unique: Put the bits of the id into the last columns of kinds glyph and given, where tokens can share a code.
        seed: Seed of the kinds random_bits, random_float, affine_bits and learned.
        shuffle_seed: Permute the ids before they get their codes: the same codes, so the same spectrum, at other tokens; of
            bits it removes the order of code points. `unique` bits stay those of the id.
        std: Standard deviation of the numbers of kind learned with scale none; by default 1.
        file: The table of kind given: .pt, .safetensors or .npy.
        side: Canvas of a glyph in pixels, 32 or 64.
        augment: The published rotation, shift and noise of pictures (the 2-3 set for 65,536 ids, else the max set), or none.
        pca: Project the pictures on principal components, or keep their pixels, centred (n_embed = side * side).
        spelling: Draw the text of a token, or its spelling in the vocabulary (differs in byte-level vocabularies).
        font: Font files in order of preference; by default the system's GNU Unifont.
        strict: Stop where a character is in no font, instead of drawing a placeholder.
    """

    path: str | None = None
    kind: Literal["glyph", "token_bits", "affine_bits", "random_bits", "random_float", "learned", "given"] = "glyph"
    n_embed: int = 256
    scale: Literal["l2", "unit_rms", "none"] = "l2"
    lift: Literal["repeat_interleave", "tile", "orthogonal", "none"] = "repeat_interleave"
    lift_seed: int = 1
    trainable: bool = False
    unique: bool = False
    seed: int = 1
    shuffle_seed: int | None = None
    std: float | None = None
    file: str | None = None
    side: int = 32
    augment: Literal["none", "published"] = "none"
    pca: bool = True
    spelling: Literal["decoded", "raw"] = "decoded"
    font: list[str] = field(default_factory=list)
    strict: bool = False

    def __post_init__(self) -> None:
        seeds = dict.fromkeys(("seed", "lift_seed", "shuffle_seed"), Range(0, 2**63 - 1, whole=True))
        check_values(self, "substrate.", seeds | {"n_embed": Range(1, MAX_EMBED, whole=True),
                                                  "std": Range(0, 1e6, above=True)})
        if self.side not in SIDES:
            raise InputError(f"substrate.side {self.side} must be {' or '.join(map(str, SIDES))}")
