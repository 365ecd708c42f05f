"""Training steps, ours beside transformers' GPTNeoXForCausalLM in a bare PyTorch loop and under Trainer.

Same shape, batch, precision, optimizer and random ids; every contender trains its input table. Rounds of a few steps
are interleaved, so that a busy machine slows all of them. Prints the median tokens/s of each and the ratios.

    python benchmarks/training.py
    python benchmarks/training.py --shapes 8192x384x8 --precisions bf16 --rounds 7
"""

import argparse
import contextlib
import logging
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
import transformers
from torch import Tensor

from glyphlm.base.devices import local_device, resolve_device
from glyphlm.data.batches import Batches
from glyphlm.modeling.model import GPT, ModelConfig, Substrate, SubstrateConfig
from glyphlm.training.loop import train
from glyphlm.training.settings import TrainSettings

WHOLE_HEAD = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 1.0}
BETAS, LR, DECAY, CLIP = (0.9, 0.95), 1e-4, 0.1, 1.0


class RandomText:
    """A text of random ids, as Batches reads it."""

    folder, split, end_id, tokens = Path("random"), "train", 0, 1 << 22

    def __init__(self, vocab_size: int):
        self.ids = np.random.default_rng(1).integers(1, vocab_size, self.tokens)
        self.bytes_per_id_V = np.ones(vocab_size, np.uint16)

    def read(self, start: int, length: int) -> np.ndarray:
        """Ids start .. start + length."""
        return self.ids[start : start + length]


def ours(shape: argparse.Namespace, precision: str, trainable: bool = True) -> Callable[[int], list[float]]:
    """Seconds of each of some steps of glyphlm.train."""
    substrate = Substrate(SubstrateConfig(shape.vocab, shape.width, "learned", trainable=trainable), shape.width)
    torch.nn.init.normal_(substrate.table_VE, std=0.02)
    model = GPT(ModelConfig(shape.width, shape.layers, shape.heads, shape.context), substrate)
    model.init_weights(1)
    model.to(shape.device)
    batches = Batches([RandomText(shape.vocab)], [1.0], shape.context, shape.rows, seed=1)
    tokens = shape.rows * shape.context

    def run(steps: int) -> list[float]:
        settings = TrainSettings(
            steps=steps, batch_tokens=tokens, micro_batch_tokens=shape.micro_rows * shape.context, lr=LR, weight_decay=DECAY,
            clip=CLIP, precision=precision, device=shape.device, save_every=10**9, schedule="constant", warmup=0,
            compile=shape.compile,
        )  # fmt: skip
        moments = [time.perf_counter()]
        with tempfile.TemporaryDirectory() as out, unsaved():
            train(model, batches, settings, Path(out), on_step=lambda state: moments.append(time.perf_counter()))
        return np.diff(moments).tolist()

    return run


@contextlib.contextmanager
def unsaved() -> Iterator[None]:
    """train() ends with a checkpoint; it is no part of a step."""
    from glyphlm.training import loop as training

    saved, training.save_state = training.save_state, lambda *given: None
    try:
        yield
    finally:
        training.save_state = saved


def neox(shape: argparse.Namespace) -> torch.nn.Module:
    """The same shape in transformers: sequential residual, no attention biases, all of a head rotated."""
    config = transformers.GPTNeoXConfig(
        vocab_size=shape.vocab, hidden_size=shape.width, num_hidden_layers=shape.layers, num_attention_heads=shape.heads,
        intermediate_size=4 * shape.width, hidden_act="gelu", max_position_embeddings=shape.context, attention_bias=False,
        use_parallel_residual=False, rope_parameters=WHOLE_HEAD, tie_word_embeddings=False, use_cache=False,
        attn_implementation="sdpa",
    )  # fmt: skip
    return transformers.GPTNeoXForCausalLM(config).to(shape.device)


def bare_loop(shape: argparse.Namespace, precision: str) -> Callable[[int], list[float]]:
    """Seconds of each of some steps of the usual loop."""
    model, ids_BT = neox(shape), random_batches(shape)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, betas=BETAS, weight_decay=DECAY, fused=True)

    def step() -> None:
        micro_batches = next(ids_BT).split(shape.micro_rows)
        for micro_BT in micro_batches:
            with torch.autocast(shape.device, torch.bfloat16, enabled=precision == "bf16"):
                loss = model(input_ids=micro_BT, labels=micro_BT).loss / len(micro_batches)
            loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad()
        float(loss.detach())

    def run(steps: int) -> list[float]:
        seconds = []
        for _ in range(steps):
            begin = time.perf_counter()
            step()
            seconds.append(time.perf_counter() - begin)
        return seconds

    return run


def trainer(shape: argparse.Namespace, precision: str) -> Callable[[int], list[float]]:
    """Seconds of each of some steps of transformers.Trainer."""
    model = neox(shape)
    data = [{"input_ids": row, "labels": row} for row in next(random_batches(shape, shape.rows * 16)).cpu()]

    class Clock(transformers.TrainerCallback):
        def __init__(self) -> None:
            self.moments: list[float] = []

        def on_step_begin(self, *given, **more) -> None:
            self.moments.append(time.perf_counter())

        def on_train_end(self, *given, **more) -> None:
            self.moments.append(time.perf_counter())

    def run(steps: int) -> list[float]:
        clock = Clock()
        with tempfile.TemporaryDirectory() as out:
            arguments = transformers.TrainingArguments(
                out, max_steps=steps, per_device_train_batch_size=shape.micro_rows, report_to="none", save_strategy="no",
                gradient_accumulation_steps=shape.rows // shape.micro_rows, learning_rate=LR, weight_decay=DECAY,
                max_grad_norm=CLIP, adam_beta2=BETAS[1], optim="adamw_torch_fused", bf16=precision == "bf16",
                use_cpu=shape.device == "cpu", disable_tqdm=True, logging_strategy="no", lr_scheduler_type="constant",
                dataloader_pin_memory=shape.device != "cpu",
            )  # fmt: skip
            transformers.Trainer(model=model, args=arguments, train_dataset=data, callbacks=[clock]).train()
        return np.diff(clock.moments).tolist()

    return run


def random_batches(shape: argparse.Namespace, rows: int | None = None) -> Iterator[Tensor]:
    """Random ids, as many targets a row as ours: transformers shifts labels itself, so a row has one more."""
    generator = torch.Generator().manual_seed(1)
    while True:
        yield torch.randint(1, shape.vocab, (rows or shape.rows, shape.context + 1), generator=generator).to(shape.device)


def compare(shape: argparse.Namespace, precision: str, rounds: int, steps: int) -> None:
    """One table."""
    contenders = {"ours": ours(shape, precision), "ours, frozen table": ours(shape, precision, trainable=False),
                  "bare loop": bare_loop(shape, precision), "Trainer": trainer(shape, precision)}  # fmt: skip
    seconds = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, run in contenders.items():
            seconds[name] += run(steps + 1)[1:]  # the first step of a round warms up
    speeds = {name: shape.rows * shape.context / statistics.median(found) for name, found in seconds.items()}
    print(f"\nV {shape.vocab:,}  d {shape.width}  {shape.layers} layers  T {shape.context}  "
          f"{shape.rows * shape.context:,} tokens a step  {precision}  {shape.device}")
    for name, speed in speeds.items():
        print(f"  {name:20} {speed:10,.0f} tokens/s   ours is {speeds['ours'] / speed:.2f}x")
    if shape.device == "cuda":
        print(f"  peak memory {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB (all contenders together)")


def main() -> None:
    """Every shape in every precision."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", default=["65536x256x6", "8192x384x8"], metavar="VxDxLAYERS")
    parser.add_argument("--precisions", nargs="+", default=["fp32", "bf16"])
    parser.add_argument("--head-width", type=int, default=64)
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--rows", type=int, default=8, help="sequences a step")
    parser.add_argument("--micro-rows", type=int, default=8, help="sequences of one forward pass")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=2, help="timed steps of each contender a round")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--compile", action="store_true", help="torch.compile our blocks")
    options = parser.parse_args()
    transformers.logging.set_verbosity_error()
    logging.disable(logging.WARNING)
    device = local_device(resolve_device(options.device)).split(":")[0]
    for text in options.shapes:
        vocab, width, layers = map(int, text.split("x"))
        shape = argparse.Namespace(
            vocab=vocab, width=width, layers=layers, heads=max(1, width // options.head_width), context=options.context,
            rows=options.rows, micro_rows=options.micro_rows, device=device, compile=options.compile,
        )  # fmt: skip
        for precision in options.precisions:
            compare(shape, precision, options.rounds, options.steps)


if __name__ == "__main__":
    main()
