"""What training holds in memory, by part, in bytes; tests compare it with every tensor that a step really holds.

Weights, gradients and both moments of AdamW are float32. Per token of a micro-batch each block keeps for its backward pass
the two inputs of its norms (float32) and, in the precision of the products, 16 D values: 2 normed inputs, q, k and v before
and q and k after the rotation, the attention's result, 4 D before and 4 D after GELU.
"""

from bisect import bisect_right
from dataclasses import dataclass, replace

from glyphlm.loss import LOGITS_AT_ONCE
from glyphlm.model import GPT
from glyphlm.trainsettings import TrainSettings, micro_batch_rows

FLOAT = 4  # bytes
HEAP = 0.8  # the C library's heap keeps freed pieces: up to this much more, measured on CPU in steps of one and two passes
MOST_ROWS = 1 << 20  # the largest micro-batch that is tried


@dataclass(frozen=True)
class Load:
    """How one device trains.

    Args:
        rows: Sequences of a micro-batch.
        passes: Micro-batches of a step.
        bf16: Whether matrix products are bfloat16, else float32.
        recompute: Whether blocks are computed again in the backward pass.
        documents: Whether attention stays inside documents, which needs a mask.
        gpus: Devices that share the work.
        parallel: ddp (each holds everything) or fsdp2 (each holds a part of what trains).
        heap: Whether memory is that of the C library (on a CPU), which does not give all back that is freed.
    """

    rows: int
    passes: int = 1
    bf16: bool = False
    recompute: bool = False
    documents: bool = False
    gpus: int = 1
    parallel: str = "ddp"
    heap: bool = False

    @property
    def sharded(self) -> bool:
        """Whether each device holds a part only."""
        return self.gpus > 1 and self.parallel == "fsdp2"

    @property
    def width(self) -> int:
        """Bytes of a value in matrix products."""
        return 2 if self.bf16 else FLOAT


def load_of(settings: TrainSettings, block_size: int, rows: int, gpus: int = 1) -> Load:
    """The load of each of `gpus` devices that share steps of `rows` sequences."""
    each = -(-rows // gpus)
    micro = min(each, micro_batch_rows(settings, block_size))
    return Load(
        micro, -(-each // micro), settings.precision == "bf16", settings.recompute, settings.attention == "document",
        gpus, settings.parallel, settings.device == "cpu",
    )


def memory_by_part(model: GPT, load: Load) -> dict[str, int]:
    """Bytes of each part on one device. Not all exist at the same time: see `peak_bytes`."""
    trained = sum(values.numel() for values in model.parameters() if values.requires_grad)
    held = [*model.buffers(), *(values for values in model.parameters() if not values.requires_grad)]
    shards = load.gpus if load.sharded else 1
    whole = load.sharded and load.passes > 1  # FSDP2 adds up whole gradients until the last micro-batch of a step
    kept, working = activation_bytes(model, load), max(head_bytes(model, load), backward_bytes(model, load))
    return {
        "weights": FLOAT * trained // shards,
        "frozen": sum(values.numel() * values.element_size() for values in held),
        "moments of AdamW": 2 * FLOAT * trained // shards,
        "gradients": FLOAT * trained // (1 if whole else shards),
        "weights gathered": gathered_bytes(model) if load.sharded else 0,
        "weights in bf16": 0 if load.recompute else _reached(model) * copied_bytes(model, load),
        "activations": kept,
        "working space": working,
        "freed, but kept": int(HEAP * (kept + working)) if load.heap else 0,
    }


def peak_bytes(model: GPT, load: Load) -> int:
    """The most bytes held at one time on one device.

    With one micro-batch a step, gradients appear while activations go; with several, or in the buckets of DDP, they stay.
    """
    parts = memory_by_part(model, load)
    gradients = parts.pop("gradients")
    passing = sum(parts.pop(name) for name in ("weights in bf16", "activations", "working space", "freed, but kept"))
    stay = load.passes > 1 or (load.gpus > 1 and not load.sharded)
    return sum(parts.values()) + (gradients + passing if stay else max(gradients, passing))


def largest_rows(model: GPT, load: Load, limit: int) -> int:
    """Sequences of the largest micro-batch that stays within `limit` bytes; 0 where none does."""
    return bisect_right(range(1, MOST_ROWS), limit, key=lambda rows: peak_bytes(model, replace(load, rows=rows)))


def activation_bytes(model: GPT, load: Load) -> int:
    """What is kept until the backward pass of each block that it goes through, and around the head."""
    entering = FLOAT * load.rows * model.config.block_size * model.config.d_model
    mask = load.rows * model.config.block_size**2 if load.documents else 0
    of_block = entering if load.recompute else _inside(model, load)
    return of_block * _reached(model) + mask + 3 * entering  # the last block's output, the head's input and its gradient


def head_bytes(model: GPT, load: Load) -> int:
    """What the head's loss holds for a moment: a chunk of logits and what is made of them, and the head's gradient."""
    tokens, vocab_size, width = load.rows * model.config.block_size, model.vocab_size, model.config.d_model
    chunk = min(tokens, max(1, LOGITS_AT_ONCE // vocab_size))
    in_bf16 = 2 if load.bf16 else 0
    losing = (chunk * 8 + width * (4 + in_bf16)) * vocab_size  # logits and log-probabilities; gradient and weights
    deriving = (chunk * (4 + in_bf16) + width * (8 + in_bf16)) * vocab_size  # their gradient; a chunk's share of the head's
    return max(losing, deriving) + chunk * width * in_bf16


def backward_bytes(model: GPT, load: Load) -> int:
    """What the backward pass of a block holds for a moment, with the head's gradient; recomputed, all that is inside."""
    tokens, width = load.rows * model.config.block_size, model.config.d_model
    again = _inside(model, load) + copied_bytes(model, load) if load.recompute else 0
    return FLOAT * model.vocab_size * width + 4 * load.width * tokens * width + again


def copied_bytes(model: GPT, load: Load) -> int:
    """The weights of one block in bf16."""
    return 2 * sum(values.numel() for values in model.blocks[0].parameters() if values.dim() > 1) if load.bf16 else 0


def gathered_bytes(model: GPT) -> int:
    """Whole weights that FSDP2 holds at a time: those outside blocks, and two blocks (one is fetched ahead)."""
    outside = sum(values.numel() for name, values in model.named_parameters() if not name.startswith("blocks."))
    return FLOAT * (outside + 2 * sum(values.numel() for values in model.blocks[0].parameters()))


def traffic_bytes(model: GPT, load: Load) -> int:
    """Bytes that each device sends in one step; what is frozen in the substrate is never sent.

    DDP adds gradients up once a step, in a ring. FSDP2 gathers weights for each forward and each backward pass, and
    scatters gradients once a step.
    """
    trained = FLOAT * sum(values.numel() for values in model.parameters() if values.requires_grad)
    rounds = 2 * load.passes + 1 if load.sharded else 2
    return rounds * trained * (load.gpus - 1) // load.gpus


def _reached(model: GPT) -> int:
    """Blocks that the backward pass goes through: those from the lowest value that trains."""
    return len(model.blocks) - model.frozen_depth


def _inside(model: GPT, load: Load) -> int:
    """What the backward pass of one block needs."""
    config, tokens = model.config, load.rows * model.config.block_size
    mask = tokens * config.block_size * load.width if load.documents else 0  # as numbers that are added to scores
    return tokens * (config.d_model * (2 * FLOAT + 16 * load.width) + FLOAT * (config.n_head + 4)) + mask
