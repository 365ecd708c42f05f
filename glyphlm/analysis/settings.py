"""Settings of probes."""

from dataclasses import dataclass, field

from glyphlm.base.ranges import Range, check_values

FEWEST = 10  # tokens per class
RANGES = {"per_class": Range(FEWEST, 2**20, whole=True), "seed": Range(0, 2**63 - 1, whole=True)}


@dataclass
class ProbeSettings:
    """Settings of probes.

    Args:
        words: Texts whose nearest neighbours are listed; by default five of the names that are translated.
        pairs: TSV file of translations: a first line that names the languages, then one meaning a line; by default CLDR's
            names of territories, languages and currencies in English, Russian and Chinese.
        text: Only tokens that occur in this text are classed; of a large vocabulary most may never have been trained.
        per_class: Maximum number of tokens per class.
        seed: Seed of the choice of tokens, of the folds and of t-SNE.
        tsne: Also draw tsne.png: tokens in the plane at the codes, the middle block and the final norm, by script.
    """

    words: list[str] = field(default_factory=list)
    pairs: str | None = None
    text: str | None = None
    per_class: int = 200
    seed: int = 1
    tsne: bool = False

    def __post_init__(self) -> None:
        check_values(self, "--", RANGES)
