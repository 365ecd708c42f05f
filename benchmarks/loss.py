"""The chunked loss of the head beside plain cross-entropy: time, extra peak memory, gradients, and the logged value.

    python benchmarks/loss.py
    python benchmarks/loss.py --vocab 131072 --width 256 --tokens 4096 --rounds 7

Time: medians of interleaved rounds. Extra peak memory: a child process for each reads its highest resident memory before
and after one forward and backward pass (on CPU), or asks CUDA.
"""

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from glyphlm.training.loss import head_loss

Loss = Callable[[Tensor, Tensor, Tensor, torch.dtype], Tensor]


def plain(x_ND: Tensor, weight_VD: Tensor, y_N: Tensor, dtype: torch.dtype) -> Tensor:
    """All logits at once."""
    return F.cross_entropy((x_ND.to(dtype) @ weight_VD.to(dtype).T).float(), y_N)


def ours(x_ND: Tensor, weight_VD: Tensor, y_N: Tensor, dtype: torch.dtype) -> Tensor:
    """glyphlm.training.loss.head_loss."""
    return head_loss(x_ND, weight_VD, None, y_N, dtype)


def compiled(x_ND: Tensor, weight_VD: Tensor, y_N: Tensor, dtype: torch.dtype) -> Tensor:
    """All logits at once, under torch.compile."""
    return fused_plain()(x_ND, weight_VD, y_N, dtype)


@cache
def fused_plain() -> Loss:
    """`plain` under torch.compile, made once."""
    return torch.compile(plain)


CONTENDERS = {"plain": plain, "ours": ours, "plain, compiled": compiled}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def inputs(options: argparse.Namespace) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states, head and targets, the same for every contender."""
    generator = torch.Generator().manual_seed(1)
    x_ND = torch.randn(options.tokens, options.width, generator=generator)
    weight_VD = torch.randn(options.vocab, options.width, generator=generator) * 0.05
    y_N = torch.randint(options.vocab, (options.tokens,), generator=generator)
    device = options.device
    return x_ND.to(device).requires_grad_(), weight_VD.to(device).requires_grad_(), y_N.to(device)


def run_once(loss: Loss, given: tuple[Tensor, Tensor, Tensor], dtype: torch.dtype) -> tuple[float, float, list[Tensor]]:
    """Seconds, value and gradients of one forward and backward pass."""
    x_ND, weight_VD, y_N = given
    x_ND.grad = weight_VD.grad = None
    wait(x_ND)
    begin = time.perf_counter()
    value = loss(x_ND, weight_VD, y_N, dtype)
    value.backward()
    wait(x_ND)
    return time.perf_counter() - begin, float(value.detach()), [x_ND.grad, weight_VD.grad]


def wait(values: Tensor) -> None:
    """For the GPU, where the values are on one."""
    if values.is_cuda:
        torch.cuda.synchronize()


def peak_bytes() -> int:
    """The highest resident memory of this process so far, or of this process on the GPU."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    with open("/proc/self/status", encoding="ascii") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))


def measure_memory(options: argparse.Namespace) -> None:
    """In the child: print the bytes that one pass needs beyond inputs and gradients."""
    given = inputs(options)
    run_once(ours, tuple(part[:8] if part.dim() == 1 or part is given[0] else part for part in given), torch.float32)
    for part in given[:2]:
        part.grad = torch.zeros_like(part)
    before = peak_bytes()
    run_once(CONTENDERS[options.memory], given, DTYPES["fp32"])
    print(peak_bytes() - before)


def extra_memory(name: str) -> int:
    """Bytes, measured in a process of its own."""
    ended = subprocess.run([sys.executable, *sys.argv, "--memory", name], capture_output=True, text=True, check=True)
    return int(ended.stdout.split()[-1])


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocab", type=int, default=131072)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    usual = [*CONTENDERS] if torch.cuda.is_available() else ["plain", "ours"]
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=usual)
    parser.add_argument("--precisions", nargs="+", choices=DTYPES, default=[*DTYPES])
    parser.add_argument("--memory", choices=CONTENDERS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.memory:
        measure_memory(options)
        return
    given = inputs(options)
    contenders = {name: CONTENDERS[name] for name in options.contenders}
    print(f"V {options.vocab:,}  d {options.width}  {options.tokens:,} tokens  {options.device}")
    for label in options.precisions:
        seconds: dict[str, list[float]] = {name: [] for name in contenders}
        for counted in [False] + [True] * options.rounds:
            for name, loss in contenders.items():
                seconds[name] += [run_once(loss, given, DTYPES[label])[0]] * counted
        (_, our_loss, our_grads), (_, plain_loss, plain_grads) = (run_once(f, given, DTYPES[label]) for f in (ours, plain))
        worst = max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(our_grads, plain_grads))
        found = {name: 1e3 * statistics.median(times) for name, times in seconds.items()}
        speeds = ", ".join(f"{name} {ms:,.1f} ms ({found['ours'] / ms:.2f}x)" for name, ms in found.items())
        print(f"  {label}: {speeds}; loss {our_loss:.6f} and {plain_loss:.6f}; gradients differ by at most {worst:.1e} of "
              f"their largest value", flush=True)
    memory = {name: extra_memory(name) for name in ("plain", "ours")}
    print(f"  extra peak memory (fp32): ours {memory['ours'] / 2**20:,.0f} MiB, plain {memory['plain'] / 2**20:,.0f} MiB, "
          f"{memory['ours'] / memory['plain']:.3f}x")


if __name__ == "__main__":
    main()
