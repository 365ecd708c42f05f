"""Growth schedules by name: each a short list of stages, with the paper that it is from."""

from typing import Any

# Of each schedule: the stages, as (blocks to add, share of the tokens, settings); -1 adds the blocks that are still missing,
# a fraction is one of the final depth. All stages share one plateau of the learning rate, which falls in the last one.
PLATEAU = {"schedule": "constant"}
FALL = {"schedule": "wsd", "warmup": 0.0, "decay": 0.5, "carry": True}
SCHEDULES: dict[str, list[tuple[float, float, dict[str, Any]]]] = {
    # One late expansion of a model of one or no block, after which all blocks train (arXiv 2511.04981).
    "late_one": [(1, 0.8, PLATEAU), (-1, 0.2, FALL | {"start": "copy", "blocks": "all"})],
    "late_zero": [(0, 0.8, PLATEAU), (-1, 0.2, FALL | {"start": "random", "blocks": "all"})],
    # G_stack: a model of a quarter of the depth, stacked early (arXiv 2405.15319, section 4).
    "stack": [(1 / 4, 0.1, PLATEAU), (-1, 0.9, FALL | {"decay": 0.2, "start": "stack", "blocks": "all"})],
    # The same start with the old blocks frozen, as the control of freezing.
    "stack_frozen": [(1 / 4, 0.1, PLATEAU), (-1, 0.9, FALL | {"decay": 0.2, "start": "stack", "blocks": "new"})],
    # Zero blocks spread between frozen ones, which alone train (LLaMA-Pro, arXiv 2401.02415: 8 beside 32).
    "llama_pro": [
        (4 / 5, 0.8, PLATEAU),
        (-1, 0.2, FALL | {"start": "zero", "place": "interleaved", "blocks": "new", "head": "frozen"}),
    ],
    # Thirds, each on what is frozen below it, each with a schedule of its own (arXiv 2507.07129, section 3).
    "published": [(1 / 3, 1 / 3, {}), (1 / 3, 1 / 3, {}), (-1, 1 / 3, {})],
}
