"""Distributed training: the processes that torchrun started, and a model over them (DDP or FSDP2).

Every rank computes the same global batch from the seed and takes its share of the rows, so the number of ranks changes
neither data nor, up to rounding, the loss.
"""

import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from glyphlm.base.devices import resolve_device
from glyphlm.base.errors import InputError

PATIENCE = timedelta(hours=12)  # the other ranks wait while the first one prepares text


@dataclass(frozen=True)
class World:
    """Rank of this process and number of processes."""

    rank: int = 0
    size: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this process (rank 0) writes files and prints."""
        return self.rank == 0

    def wait(self) -> None:
        """Barrier: wait until every process has reached this call."""
        if self.size > 1:
            dist.barrier()

    def sums(self, *values: Tensor) -> tuple[Tensor, ...]:
        """The sum of each scalar over all processes, on its device, without synchronizing."""
        if self.size == 1:
            return values
        sums = torch.stack([value.double() for value in values])
        dist.all_reduce(sums)
        return sums.unbind()


def world() -> World:
    """The process group that this process has joined, or a single-process one."""
    return World(dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else World()


@contextmanager
def joined(device: str) -> Iterator[World]:
    """Join the processes that torchrun started, if it did, to train on `device` (auto, cpu, cuda ..).

    Raises:
        InputError: there are more processes than GPUs.
    """
    if "RANK" not in os.environ or dist.is_initialized():
        yield world()
        return
    on_gpu, place = resolve_device(device).startswith("cuda"), int(os.environ["LOCAL_RANK"])
    if on_gpu and place >= torch.cuda.device_count():
        raise InputError(f"torchrun started {place + 1} processes or more here, for {torch.cuda.device_count()} GPUs; lower "
                         "--nproc-per-node, or train on the CPU: --train.device cpu")
    if on_gpu:
        torch.cuda.set_device(place)
    dist.init_process_group("nccl" if on_gpu else "gloo", timeout=PATIENCE)
    try:
        yield world()
    finally:
        dist.destroy_process_group()


def spread(module: nn.Module, blocks: Iterable[nn.Module], how: str) -> nn.Module:
    """`module` wrapped for all processes; unchanged for one. Frozen buffers are replicated and never communicated."""
    if world().size == 1:
        return module
    if how == "fsdp2":
        from torch.distributed.fsdp import fully_shard  # takes a second to load

        for block in blocks:
            fully_shard(block)
        return cast(nn.Module, fully_shard(module))
    return DistributedDataParallel(module, broadcast_buffers=False, gradient_as_bucket_view=True)


def without_sync(module: nn.Module, last: bool) -> AbstractContextManager[None]:
    """Skip gradient synchronization for all but the last micro-batch."""
    if set_sync := getattr(module, "set_requires_gradient_sync", None):  # exists in FSDP2
        set_sync(last)
    elif isinstance(module, DistributedDataParallel) and not last:
        return module.no_sync()
    return nullcontext()


def shard_again(module: nn.Module) -> None:
    """Release the weights that FSDP2 has gathered for a forward pass without a backward pass: it keeps those of the root,
    whose parameters are then not those of the optimizer."""
    if reshard := getattr(module, "reshard", None):
        reshard()


def is_sharded(module: nn.Module) -> bool:
    """Whether each process holds only a shard of the weights."""
    tensors = sys.modules.get("torch.distributed.tensor")  # takes a second to load, and without it nothing is sharded
    return tensors is not None and any(isinstance(parameter, tensors.DTensor) for parameter in module.parameters())
