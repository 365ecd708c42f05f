"""Memory of training by part, in bytes; tests compare it with the tensors that exist during a step.

Weights, gradients, both moments of AdamW and the one of Muon are float32. Per token of a micro-batch, a block stores for its
backward pass the two inputs of its norms (float32) and, in the precision of the products, 16 D values: 2 normed inputs,
q, k and v before and q and k after the rotation, the result of attention, 4 D before and 4 D after GELU. The frozen blocks
of a fused model store nothing: the peak is what one block needs while it runs, or the joined states of all experts.
"""

from bisect import bisect_right
from dataclasses import dataclass, replace

import torch
from torch import nn

from glyphlm.modeling.attention import HALVED
from glyphlm.modeling.fusion import Fusion
from glyphlm.modeling.heads import CodeHead, TiedHead
from glyphlm.modeling.model import GPT, count_parameters, trains
from glyphlm.training.loss import rows_at_once
from glyphlm.training.optim import hidden_matrices
from glyphlm.training.settings import TrainSettings, micro_batch_rows

FLOAT = 4  # bytes
HEAP = 0.8  # share by which memory that the C library frees but keeps adds, at most; measured on CPU, one and two passes
MOST_ROWS = 1 << 20  # the largest micro-batch that is tried


@dataclass(frozen=True)
class Load:
    """The work of one device in a step, and how it is done.

    Args:
        rows: Sequences of a micro-batch.
        passes: Micro-batches of a step.
        bf16: Whether matrix products are bfloat16, else float32.
        recompute: Whether blocks are computed again in the backward pass.
        documents: Whether attention stays inside documents, which needs a mask.
        gpus: Devices that share the work.
        parallel: ddp (each holds everything) or fsdp2 (each holds a part of what trains).
        heap: Whether the C library allocates the memory (on a CPU), which keeps a part of what is freed.
        muon: Whether Muon, which keeps one moment, updates the matrices of blocks; else AdamW, which keeps two.
    """

    rows: int
    passes: int = 1
    bf16: bool = False
    recompute: bool = False
    documents: bool = False
    gpus: int = 1
    parallel: str = "ddp"
    heap: bool = False
    muon: bool = False

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
        gpus, settings.parallel, settings.device == "cpu", settings.optimizer == "muon",
    )


def memory_by_part(model: GPT | Fusion, load: Load) -> dict[str, int]:
    """Bytes of each part on one device; not all exist at the same time, see `peak_bytes`."""
    trained = count_parameters(model)["trained"]
    of_muon = sum(values.numel() for values in hidden_matrices(model).values()) if load.muon else 0
    shards = load.gpus if load.sharded else 1
    whole = load.sharded and load.passes > 1  # FSDP2 adds up whole gradients until the last micro-batch of a step
    kept = activation_bytes(model, load)
    working = max(head_bytes(model, load), backward_bytes(model, load), forward_bytes(model, load) - kept)
    return {
        "weights": FLOAT * trained // shards,
        "frozen": FLOAT * _frozen(model) // shards + sum(buffer.nbytes for buffer in model.buffers()),
        "moments of AdamW": 2 * FLOAT * (trained - of_muon) // shards,
        **({"moment of Muon": FLOAT * of_muon // shards} if of_muon else {}),
        "gradients": FLOAT * trained // (1 if whole else shards),
        "weights gathered": gathered_bytes(model) if load.sharded else 0,
        "weights in bf16": 0 if load.recompute else _reached(model) * copied_bytes(model, load),
        "activations": kept,
        "working space": working,
        "allocator cache": int(HEAP * (kept + working)) if load.heap else 0,
    }


def peak_bytes(model: GPT | Fusion, load: Load) -> int:
    """The most bytes in use at a time on one device.

    With one micro-batch a step, activations are freed while gradients appear; with several, or in the buckets of DDP,
    gradients exist beside the activations.
    """
    parts = memory_by_part(model, load)
    gradients = parts.pop("gradients")
    passing = sum(parts.pop(name) for name in ("weights in bf16", "activations", "working space", "allocator cache"))
    stay = load.passes > 1 or (load.gpus > 1 and not load.sharded)
    return sum(parts.values()) + (gradients + passing if stay else max(gradients, passing))


def largest_rows(model: GPT | Fusion, load: Load, limit: int) -> int:
    """Sequences of the largest micro-batch that stays within `limit` bytes; 0 where none does."""
    return bisect_right(range(1, MOST_ROWS), limit, key=lambda rows: peak_bytes(model, replace(load, rows=rows)))


def activation_bytes(model: GPT | Fusion, load: Load) -> int:
    """Activations stored for the backward pass, of the blocks that it reaches and around the head."""
    entering = FLOAT * load.rows * model.config.block_size * model.config.d_model
    if isinstance(model, Fusion):  # what the head reads; for a gate or an adapter also its gradient, and what they read
        if trains(model.head):
            return entering
        # In bf16 an adapter gives the head bf16, of which head_bytes counts a copy that is not made; a gate gives float32.
        half = entering // 2 if load.bf16 else 0
        return 3 * entering + (half if model.fusion.method == "gate" else -half)
    mask = load.rows * model.config.block_size**2 if load.documents else 0
    of_block = entering if load.recompute else _inside(model, load)
    return of_block * _reached(model) + mask + 3 * entering  # the last block's output, the head's input and its gradient


def head_bytes(model: GPT | Fusion, load: Load) -> int:
    """Temporary memory of the head's loss: a chunk of logits and tensors computed from them, and the head's gradient.

    A head of kind code stores for its backward pass logits and log-probabilities of each digit, and four times the width of
    its network for each later digit; during the pass twice the width more.
    """
    tokens, vocab_size = load.rows * model.config.block_size, model.vocab_size
    dtype, in_bf16 = (torch.bfloat16, 2) if load.bf16 else (torch.float32, 0)
    chunk = min(tokens, rows_at_once(vocab_size, torch.device("cpu"), dtype))
    if isinstance(head := model.head, CodeHead):
        digits, values = head.config.digits, head.config.shortlist + head.config.digits * head.base
        return FLOAT * tokens * (2 * values + (4 * digits - 2) * head.config.width)
    if isinstance(head, nn.ModuleList):  # of a fusion: each expert's logits, weighted, their sum, its softmax and gradient
        return FLOAT * chunk * vocab_size * (3 * len(head) + 3)
    width, trained = _matrix(model)
    matrices = FLOAT * trained + in_bf16 * (1 + trained)  # its gradient; in bf16 its weights and the gradient of a chunk
    return (chunk * (load.width + FLOAT) + width * matrices) * vocab_size + 2 * chunk * width * in_bf16


def backward_bytes(model: GPT | Fusion, load: Load) -> int:
    """Temporary memory of the backward pass of a block, with the head's gradient and all recomputed activations."""
    tokens, width = load.rows * model.config.block_size, model.config.d_model
    of_head, trained = _matrix(model)
    gradient = FLOAT * model.vocab_size * of_head * trained
    if not _reached(model):
        return gradient
    again = _inside(model, load) + copied_bytes(model, load) if load.recompute else 0
    return gradient + 4 * load.width * tokens * width + again


def forward_bytes(model: GPT | Fusion, load: Load) -> int:
    """Temporary memory of a frozen block: input, normed input, 4 D before and after GELU; states of other experts."""
    widths = [block.attention.qkv.in_features for block in model.blocks[: model.frozen_depth]]
    if not widths:
        return 0
    tokens, widest = load.rows * model.config.block_size, max(widths)
    mask = model.config.block_size * (1 + load.width) if load.documents else 0
    return tokens * (widest * (4 * FLOAT + 8 * load.width) + FLOAT * (model.config.d_model - widest) + mask)


def copied_bytes(model: GPT | Fusion, load: Load) -> int:
    """The weights of one block in bf16; 0 of a model without blocks."""
    matrices = [values for block in model.blocks[:1] for values in block.parameters() if values.dim() > 1]
    return 2 * sum(values.numel() for values in matrices) if load.bf16 else 0


def gathered_bytes(model: GPT | Fusion) -> int:
    """Weights that FSDP2 gathers at a time: those outside blocks, and of two blocks (one is prefetched)."""
    of_blocks = [sum(values.numel() for values in block.parameters()) for block in model.blocks]
    outside = sum(values.numel() for values in model.parameters()) - sum(of_blocks)
    return FLOAT * (outside + 2 * max(of_blocks, default=0))


def traffic_bytes(model: GPT | Fusion, load: Load) -> int:
    """Bytes that each device sends in one step; frozen codes are never sent.

    DDP sums gradients once a step, in a ring. FSDP2 gathers weights for each forward and each backward pass (frozen weights
    for the forward pass only), and scatters gradients once a step.
    """
    trained = count_parameters(model)["trained"]
    sent = (2 * load.passes + 1) * trained + load.passes * _frozen(model) if load.sharded else 2 * trained
    return FLOAT * sent * (load.gpus - 1) // load.gpus


def _frozen(model: GPT | Fusion) -> int:
    """Number of frozen parameters; without frozen codes, which are buffers, complete on every device."""
    return sum(values.numel() for values in model.parameters() if not values.requires_grad)


def _matrix(model: GPT | Fusion) -> tuple[int, bool]:
    """Width of the matrix of V rows that computes the logits (0 if there is none), and whether it gets a gradient.

    A head with an adapter is merged into one matrix, which gets a gradient.
    """
    head = model.head
    if isinstance(head, TiedHead):
        return head.substrate.config.n_embed, trains(head.substrate)
    if isinstance(head, (CodeHead, nn.ModuleList)):
        return 0, False
    return model.config.d_model, trains(head)


def _reached(model: GPT | Fusion) -> int:
    """Number of blocks that the backward pass goes through."""
    return len(model.blocks) - model.frozen_depth


def _inside(model: GPT | Fusion, load: Load) -> int:
    """Activations that the backward pass of one block needs."""
    config, tokens = model.config, load.rows * model.config.block_size
    mask = tokens * config.block_size * load.width if load.documents else 0  # as numbers that are added to scores
    values = 17 if load.heap and config.block_size in HALVED else 16  # attention in halves: each result, and both together
    return tokens * (config.d_model * (2 * FLOAT + values * load.width) + FLOAT * (config.n_head + 4)) + mask
