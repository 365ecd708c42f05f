"""A step of the last stage of growth (6 frozen layers, 3 new ones) beside a step of the same 9 layers trained at once.

Also with the frozen layers' output kept, beside a model of 3 layers; and the operations that are counted, beside torch's own
counter. Rounds of a few steps are interleaved, so that a busy machine slows all contenders. Prints medians and ratios.

    python benchmarks/growth.py
    python benchmarks/growth.py --precision bf16 --vocab 65536
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from training import RandomText, unsaved

from glyphlm.base.devices import local_device, resolve_device
from glyphlm.composition.growth import GrowthSettings, grow
from glyphlm.composition.hidden_cache import HiddenCache
from glyphlm.data.batches import Batches
from glyphlm.modeling.model import GPT, ModelConfig
from glyphlm.modeling.substrate import Substrate, SubstrateConfig
from glyphlm.training.flops import flops_per_token
from glyphlm.training.loop import train
from glyphlm.training.loss import Objective
from glyphlm.training.settings import TrainSettings

LAYERS, NEW, EPOCH = 9, 3, 4  # steps of an epoch, so that it comes again


def scratch(options: argparse.Namespace, layers: int) -> GPT:
    """A model over a frozen table, all else trained."""
    substrate = Substrate(SubstrateConfig(options.vocab, options.width, "learned"), options.width)
    torch.nn.init.normal_(substrate.table_VE, std=0.02)
    model = GPT(ModelConfig(options.width, layers, options.width // 64, options.context), substrate)
    model.init_weights(1)
    return model


def last_stage(options: argparse.Namespace, kept: bool = False) -> GPT:
    """The lower layers frozen, new ones on top."""
    base = scratch(options, LAYERS - NEW)
    model = grow(base, ModelConfig(**vars(base.config) | {"n_layer": LAYERS}), GrowthSettings(), 1, "")
    if kept:
        model.frozen_cache = HiddenCache(options.context, options.width, options.rows * EPOCH)
    return model


def stepper(model: GPT, options: argparse.Namespace) -> Callable[[int], list[float]]:
    """Seconds of each of some steps of glyphlm.train, after an epoch."""
    model.to(options.device)
    text = RandomText(options.vocab)
    text.tokens = (options.rows * EPOCH + 1) * options.context
    batches = Batches([text], [1.0], options.context, options.rows, seed=1, same_windows=True)
    tokens = options.rows * options.context

    def run(steps: int) -> list[float]:
        settings = TrainSettings(
            steps=steps, batch_tokens=tokens, micro_batch_tokens=tokens, lr=1e-4, precision=options.precision,
            device=options.device, save_every=10**9, schedule="constant", warmup=0,
        )  # fmt: skip
        moments = [time.perf_counter()]
        with tempfile.TemporaryDirectory() as out, unsaved():
            train(model, batches, settings, Path(out), on_step=lambda state: moments.append(time.perf_counter()))
        return np.diff(moments).tolist()

    run(EPOCH)
    return run


def operations(model: GPT) -> tuple[int, int]:
    """Of one sequence: as flops.py counts, and as torch does."""
    ids_BT = torch.randint(model.vocab_size, (1, model.config.block_size), device=model.device)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        Objective(model, torch.float32)(ids_BT, ids_BT, targets=ids_BT.numel()).backward()
    counted = sum(part.total for part in flops_per_token(model, causal=False).values()) * ids_BT.numel()
    return counted, counter.get_total_flops()


def main() -> None:
    """The table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocab", type=int, default=8192)
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--rows", type=int, default=8, help="sequences a step")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--device", default="auto")
    options = parser.parse_args()
    options.device = local_device(resolve_device(options.device)).split(":")[0]
    models = {"9 layers at once": scratch(options, LAYERS), "stage 3": last_stage(options),
              "stage 3, kept": last_stage(options, kept=True), "3 layers": scratch(options, NEW)}  # fmt: skip
    runs = {name: stepper(model, options) for name, model in models.items()}
    seconds = {name: [] for name in runs}
    for _ in range(options.rounds):
        for name, run in runs.items():
            seconds[name] += run(3)[1:]  # the first step of a round warms up
    medians = {name: statistics.median(found) for name, found in seconds.items()}
    flops = {name: sum(part.total for part in flops_per_token(model).values()) for name, model in models.items()}
    whole, least = "9 layers at once", "3 layers"
    print(f"V {options.vocab:,}  d {options.width}  T {options.context}  {options.rows} sequences a step  "
          f"{options.precision}  {options.device}")
    for name, median in medians.items():
        counted, by_torch = operations(models[name].float())
        print(f"  {name:18} {median:7.3f} s a step   {median / medians[whole]:.2f}x of 9 layers (by operations "
              f"{flops[name] / flops[whole]:.2f}x)   {median / medians[least]:.2f}x of 3 layers   "
              f"operations counted / by torch {counted / by_torch:.4f}")


if __name__ == "__main__":
    main()
