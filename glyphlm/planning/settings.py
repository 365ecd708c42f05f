"""Where a recipe is to be trained: typed settings."""

from dataclasses import dataclass
from typing import Literal

from glyphlm.base.ranges import Range, check_values

RANGES = {"gpus": Range(1, 1 << 20, whole=True), "mfu": Range(0, 1, above=True), "price_per_hour": Range(0, 1e9)}


@dataclass
class PlanSettings:
    """Where a recipe is to be trained.

    Args:
        gpu: Kind of GPU, such as h200, instead of this machine.
        gpus: How many of them share the work.
        parallel: How, ddp or fsdp2; by default as the recipe says.
        mfu: Share of the peak rate of matrix products that training reaches, where time is computed, not measured; by
            default what was measured on a GPU, with its memory traffic, launches and waits (on a CPU 0.4).
        price_per_hour: Of one GPU, in any currency; without it no cost is printed.
        measure: Time training steps, where it is planned for this machine; of a grown or fused model time is computed.

    Raises:
        InputError: a value is outside RANGES, or not one of its choices.
    """

    gpu: str | None = None
    gpus: int = 1
    parallel: Literal["ddp", "fsdp2"] | None = None
    mfu: float | None = None
    price_per_hour: float | None = None
    measure: bool = True

    def __post_init__(self) -> None:
        check_values(self, "--", RANGES)
