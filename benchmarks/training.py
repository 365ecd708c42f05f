"""Training steps, ours beside transformers' GPTNeoXForCausalLM: in a bare PyTorch loop, compiled, and under Trainer.

Same shape, batch, precision, optimizer and random ids. On CPU every contender is a process of its own and does a few steps a
round, in turn, so that a busy machine slows all of them; ours has the environment that the program glyphlm sets, the others
that of the script. On a GPU one contender at a time has the card. Prints the median tokens/s of each, the ratio of medians,
the median and the range of the ratios within rounds, model FLOPs utilisation (of the matrix products that this machine does
now, and of its data sheet), peak memory, and the seconds before the second step.

    python benchmarks/training.py
    python benchmarks/training.py --shapes 8192x384x8 --precisions bf16 --rounds 7
    python benchmarks/training.py --shapes 131072x1024x16 --head-width 32 --context 1024 --rows 16 --profile
"""

import argparse
import contextlib
import gc
import logging
import multiprocessing
import os
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import torch
import transformers
from torch import Tensor

from glyphlm.base.devices import gpu_of_name, local_device, resolve_device
from glyphlm.cli.main import HUGE_PAGES
from glyphlm.data.batches import Batches
from glyphlm.modeling.model import GPT, ModelConfig
from glyphlm.modeling.substrate import Substrate, SubstrateConfig
from glyphlm.training import loop
from glyphlm.training.flops import flops_per_token
from glyphlm.training.settings import TrainSettings

WHOLE_HEAD = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 1.0}
BETAS, LR, DECAY, CLIP = (0.9, 0.95), 1e-4, 0.1, 1.0
Run = Callable[[int], list[float]]  # a number of steps -> the seconds of each
ENVIRONMENT = dict(os.environ)  # of the peers


@dataclass
class Measured:
    """Seconds of each step of a contender, those before its second step, and its peak memory in bytes."""

    name: str
    seconds: list[float]
    begun: float
    memory: int


class RandomText:
    """A text of random ids, as Batches reads it."""

    folder, split, end_id, tokens = Path("random"), "train", 0, 1 << 22

    def __init__(self, vocab_size: int):
        self.ids = np.random.default_rng(1).integers(1, vocab_size, self.tokens)
        self.bytes_per_id_V = np.ones(vocab_size, np.uint16)

    def read(self, start: int, length: int) -> np.ndarray:
        """Ids start .. start + length."""
        return self.ids[start : start + length]


def our_model(shape: argparse.Namespace, trainable: bool) -> GPT:
    """A model of random values."""
    with torch.device(shape.device):
        substrate = Substrate(SubstrateConfig(shape.vocab, shape.width, "learned", trainable=trainable), shape.width)
        model = GPT(ModelConfig(shape.width, shape.layers, shape.heads, shape.context), substrate)
    torch.nn.init.normal_(substrate.table_VE, std=0.02)
    return model


def ours(shape: argparse.Namespace, precision: str, trainable: bool = True, compiled: bool | str = "auto") -> Run:
    """glyphlm's train()."""
    model = our_model(shape, trainable)
    batches = Batches([RandomText(shape.vocab)], [1.0], shape.context, shape.rows, seed=1)

    def run(steps: int) -> list[float]:
        settings = TrainSettings(
            steps=steps, batch_tokens=shape.rows * shape.context, micro_batch_tokens=shape.micro_rows * shape.context, lr=LR,
            weight_decay=DECAY, clip=CLIP, precision=precision, device=shape.device, save_every=10**9, schedule="constant",
            warmup=0, compile=compiled,
        )  # fmt: skip
        moments = [time.perf_counter()]
        with tempfile.TemporaryDirectory() as out, unsaved():
            loop.train(model, batches, settings, Path(out), on_step=lambda state: moments.append(time.perf_counter()))
        synchronize(shape)
        return np.diff([*moments[:-1], time.perf_counter()]).tolist()

    return run


@contextlib.contextmanager
def unsaved() -> Iterator[None]:
    """train() ends with a checkpoint; it is not part of a step."""
    saved, loop.save_state = loop.save_state, lambda *given: None
    try:
        yield
    finally:
        loop.save_state = saved


def neox(shape: argparse.Namespace) -> torch.nn.Module:
    """The same shape in transformers: sequential residual, no attention biases, all of a head rotated."""
    config = transformers.GPTNeoXConfig(
        vocab_size=shape.vocab, hidden_size=shape.width, num_hidden_layers=shape.layers, num_attention_heads=shape.heads,
        intermediate_size=4 * shape.width, hidden_act="gelu", max_position_embeddings=shape.context, attention_bias=False,
        use_parallel_residual=False, rope_parameters=WHOLE_HEAD, tie_word_embeddings=False, use_cache=False,
        attn_implementation="sdpa",
    )  # fmt: skip
    with torch.device(shape.device):
        return transformers.GPTNeoXForCausalLM(config)


def bare_loop(shape: argparse.Namespace, precision: str, compiled: bool = False) -> Run:
    """The usual loop."""
    model, ids_BT = neox(shape), random_batches(shape)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, betas=BETAS, weight_decay=DECAY, fused=True)
    if compiled:
        model.compile()

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


def trainer(shape: argparse.Namespace, precision: str) -> Run:
    """transformers.Trainer."""
    model = neox(shape)
    data = [{"input_ids": row, "labels": row} for row in next(random_batches(shape, shape.rows * 16)).cpu()]

    class Clock(transformers.TrainerCallback):
        def __init__(self) -> None:
            self.moments: list[float] = []

        def on_step_begin(self, *given, **more) -> None:
            self.moments.append(time.perf_counter())

        def on_train_end(self, *given, **more) -> None:
            synchronize(shape)
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


CONTENDERS: dict[str, Callable[..., Run]] = {
    "ours": ours,
    "ours, frozen table": lambda *given: ours(*given, trainable=False),
    "ours, not compiled": lambda *given: ours(*given, compiled=False),
    "ours, compiled": lambda *given: ours(*given, compiled=True),
    "bare loop": bare_loop,
    "bare loop, compiled": lambda *given: bare_loop(*given, compiled=True),
    "Trainer": trainer,
}


def synchronize(shape: argparse.Namespace) -> None:
    """Wait for the GPU."""
    if shape.device == "cuda":
        torch.cuda.synchronize()


def product_rate(precision: str, device: str) -> float:
    """Operations a second of a large matrix product of random values here; the best of eight."""
    size, dtype = 8192 if device == "cuda" else 2048, torch.bfloat16 if precision == "bf16" else torch.float32
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    times = []
    for _ in range(8):
        begin = time.perf_counter()
        float((a @ b)[0, 0])
        times.append(time.perf_counter() - begin)
    return 2 * size**3 / min(times)


def compare(shape: argparse.Namespace, precision: str, options: argparse.Namespace) -> None:
    """One table."""
    print(f"\nV {shape.vocab:,}  d {shape.width}  {shape.layers} layers of {shape.heads} heads  T {shape.context}  "
          f"{shape.rows * shape.context:,} tokens a step  {precision}  {shape.device}", flush=True)
    rates = {"measured": product_rate(precision, shape.device)}
    if shape.device == "cuda" and precision == "bf16":
        if sheet := gpu_of_name(torch.cuda.get_device_name()):
            rates["data sheet"] = sheet.rate(precision)
    with torch.device("meta"):
        model = GPT(ModelConfig(shape.width, shape.layers, shape.heads, shape.context),
                    Substrate(SubstrateConfig(shape.vocab, shape.width), shape.width))  # fmt: skip
    flops = sum(part.total for part in flops_per_token(model).values())
    measure = alone if shape.device == "cuda" else in_turn
    first = None
    for found in measure(shape, precision, options):
        speed, first = shape.rows * shape.context / statistics.median(found.seconds), first or found
        ratios = sorted(other / one for one, other in zip(first.seconds, found.seconds, strict=True))
        uses = "  ".join(f"{speed * flops / rate:5.1%} of {title}" for title, rate in rates.items())
        ratio = statistics.median(found.seconds) / statistics.median(first.seconds)
        print(f"  {found.name:20} {speed:10,.0f} tokens/s  {ratio:5.2f}x  ({statistics.median(ratios):.2f}, "
              f"{ratios[0]:.2f} to {ratios[-1]:.2f})  {uses}  {found.begun:5.1f} s to start  "
              f"{found.memory / 2**30:5.1f} GiB", flush=True)
    print("  (x: the first contender's speed over this one's; in brackets step by step)")


def in_turn(shape: argparse.Namespace, precision: str, options: argparse.Namespace) -> list[Measured]:
    """Rounds in turn."""
    with contextlib.ExitStack() as stack:
        pipes = {name: stack.enter_context(process_of(name, shape, precision)) for name in options.contenders}
        rounds = [{name: ask(pipe, options.steps + 1) for name, pipe in pipes.items()} for _ in range(options.rounds)]
    return [Measured(name, [s for found in rounds for s in found[name][0][1:]], rounds[0][name][0][0], rounds[-1][name][1])
            for name in pipes]


def ask(pipe: Connection, steps: int) -> tuple[list[float], int]:
    """Seconds of each of the next steps of a contender, and its peak memory in bytes."""
    pipe.send(steps)
    return pipe.recv()


@contextlib.contextmanager
def process_of(name: str, shape: argparse.Namespace, precision: str) -> Iterator[Connection]:
    """A process that runs the contender `name` for as many steps as it receives, until the block ends."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    if name.startswith("ours"):
        os.environ.setdefault(*HUGE_PAGES)
    process = context.Process(target=serve, args=(there, name, shape, precision), daemon=True)
    process.start()
    os.environ.update(ENVIRONMENT)
    for added in os.environ.keys() - ENVIRONMENT.keys():
        del os.environ[added]
    try:
        yield here
    finally:
        process.terminate()
        process.join()


def serve(pipe: Connection, name: str, shape: argparse.Namespace, precision: str) -> None:
    """Run the contender for each number of steps that arrives."""
    quiet()
    run = CONTENDERS[name](shape, precision)
    while True:
        steps = pipe.recv()
        with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
            seconds = run(steps)
        pipe.send((seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10))


def quiet() -> None:
    """No warnings of libraries between the rows."""
    transformers.logging.set_verbosity_error()
    logging.disable(logging.WARNING)


def alone(shape: argparse.Namespace, precision: str, options: argparse.Namespace) -> Iterator[Measured]:
    """One contender after the other."""
    for name in options.contenders:
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        run = CONTENDERS[name](shape, precision)
        seconds = run(options.rounds * options.steps + options.warm)
        if options.profile:
            profile(run, options.profile)
        yield Measured(name, seconds[options.warm :], seconds[0], torch.cuda.max_memory_allocated())
        del run


def profile(run: Run, rows: int) -> None:
    """Print where the GPU's time goes in three steps."""
    run(2)
    with torch.profiler.profile() as found:
        begin = time.perf_counter()
        run(3)
        wall = time.perf_counter() - begin
    kernels = [event for event in found.key_averages() if event.device_type == torch.autograd.DeviceType.CUDA]
    total = sum(event.self_device_time_total for event in kernels) / 1e6
    print(f"    GPU busy {total:.3f} s of {wall:.3f} s in three steps; kernels: share, ms and calls a step")
    for event in sorted(kernels, key=lambda event: -event.self_device_time_total)[:rows]:
        print(f"    {event.self_device_time_total / 1e6 / total:6.1%} {event.self_device_time_total / 3e3:8.2f} "
              f"{event.count / 3:6.0f}  {event.key[:110]}", flush=True)


def main() -> None:
    """Every shape in every precision."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", default=["65536x256x6", "8192x384x8"], metavar="VxDxLAYERS")
    parser.add_argument("--precisions", nargs="+", default=["fp32", "bf16"])
    usual, names = ["ours", "ours, frozen table", "bare loop", "Trainer"], ", ".join(CONTENDERS)
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, metavar="NAME", default=usual, help=names)
    parser.add_argument("--head-width", type=int, default=64)
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--rows", type=int, default=8, help="sequences a step")
    parser.add_argument("--micro-rows", type=int, help="sequences of one forward pass; by default all of a step")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=2, help="timed steps of each contender a round")
    parser.add_argument("--warm", type=int, default=4, help="steps on a GPU before the clock starts")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--profile", type=int, nargs="?", const=25, default=0, metavar="ROWS", help="of a GPU's kernels")
    options = parser.parse_args()
    quiet()
    device = local_device(resolve_device(options.device)).split(":")[0]
    for text in options.shapes:
        vocab, width, layers = map(int, text.split("x"))
        shape = argparse.Namespace(
            vocab=vocab, width=width, layers=layers, heads=max(1, width // options.head_width), context=options.context,
            rows=options.rows, micro_rows=options.micro_rows or options.rows, device=device,
        )  # fmt: skip
        for precision in options.precisions:
            compare(shape, precision, options)


if __name__ == "__main__":
    main()
