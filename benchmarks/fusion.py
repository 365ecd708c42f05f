"""A fused model of two equal experts beside one of them: tokens/s in generation and scoring, peak memory.

    python benchmarks/fusion.py
    python benchmarks/fusion.py --vocab 131072 --width 1024 --layers 16 --heads 32 --rounds 5

Experts of one shape run as one where there is a cache (generation) and one by one where there is none (scoring);
`apart` and `as one` are the way that the package does not go. Tokens/s: medians of interleaved rounds of greedy
generation with a cache (by transformers' generate(), and by a bare loop without its overhead) and of scoring. Peak
memory: a child process for each reads its highest resident memory, less what it held before there was a model.
"""

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from glyphlm.modeling.attention import KVCache
from glyphlm.modeling.fusion import Fusion, FusionConfig
from glyphlm.modeling.hf import GlyphLMConfig, GlyphLMForCausalLM
from glyphlm.modeling.model import GPT, ModelConfig
from glyphlm.modeling.substrate import Substrate, SubstrateConfig
from glyphlm.runs.folder import config_fields

GREEDY = {"do_sample": False, "pad_token_id": 0, "eos_token_id": None}


def make_expert(options: argparse.Namespace) -> GPT:
    """A model over a frozen table."""
    config = ModelConfig(options.width, options.layers, options.heads, options.context)
    return GPT(config, Substrate(SubstrateConfig(options.vocab, options.width), options.width))


def make(name: str, options: argparse.Namespace) -> GPT | Fusion:
    """One expert, two that read tables of their own (`fused`), or two that share one (`shared`); with random values."""
    with torch.device("meta"):
        experts = [make_expert(options) for _ in range(1 if name == "one" else 2)]
        if name == "shared":
            experts[1].substrate = experts[0].substrate
        model = experts[0] if name == "one" else Fusion(FusionConfig(), experts)
    model.to_empty(device="cpu").eval()
    generator = torch.Generator().manual_seed(1)
    for values in model.state_dict().values():
        values.normal_(std=0.1, generator=generator)
    return model


def wrap(model: GPT | Fusion) -> GlyphLMForCausalLM:
    """The model with generate()."""
    with torch.device("meta"):
        wrapped = GlyphLMForCausalLM(GlyphLMConfig(**config_fields(model)))
    wrapped.gpt = model
    return wrapped.eval()


def loop(model: Any, ids_BT: Tensor, new: int) -> Tensor:
    """Greedy generation by a bare loop."""
    cache, found = KVCache(), [ids_BT]
    for _ in range(new):
        found.append(model.logits(model.hidden(found[-1], cache=cache)[:, -1:]).argmax(-1))
    return torch.cat(found, 1)


def score(model: Any, ids_BT: Tensor, cached: bool = False) -> list[Tensor]:
    """The likeliest token at each position, logits of one text at a time."""
    return [model.logits(x_TF).argmax(-1) for x_TF in model.hidden(ids_BT, cache=KVCache() if cached else None)]


def rates(runs: dict[str, Callable[[], Any]], tokens: int, rounds: int) -> dict[str, float]:
    """Median tokens/s of each, in interleaved rounds after one that is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for counted in [False] + [True] * rounds:
        for name, run in runs.items():
            begin = time.perf_counter()
            run()
            if counted:
                seconds[name].append(time.perf_counter() - begin)
    return {name: tokens / statistics.median(found) for name, found in seconds.items()}


def report(title: str, found: dict[str, float], aim: str) -> None:
    """A line for each contender, with its ratio to one expert."""
    print(f"  {title} (aim: {aim})")
    for name, rate in found.items():
        print(f"    {name:8} {rate:12,.1f} tokens/s  {rate / found['one']:.2f}x")


def peak_bytes() -> int:
    """The highest resident memory of this process so far."""
    with open("/proc/self/status", encoding="ascii") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))


def measure_memory(name: str, options: argparse.Namespace) -> None:
    """In the child: print the bytes that the model takes, with generation of a few tokens and scoring."""
    before = peak_bytes()
    model = make(name, options)
    ids_BT = torch.arange(options.prompt)[None]
    loop(model, ids_BT, 4)
    score(model, ids_BT)
    print(peak_bytes() - before)


def memory_of(name: str) -> int:
    """Bytes, measured in a process of its own."""
    ended = subprocess.run([sys.executable, *sys.argv, "--memory", name], capture_output=True, text=True, check=True)
    return int(ended.stdout.split()[-1])


@torch.no_grad()
def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in {"vocab": 65536, "width": 512, "layers": 8, "heads": 8, "context": 512, "prompt": 32, "new": 32,
                        "rows": 8, "rounds": 5}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--memory", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.memory:
        measure_memory(options.memory, options)
        return
    models = {name: make(name, options) for name in ("one", "fused")}
    models["apart"] = make("fused", options)
    models["apart"]._can_run_as_one = lambda: False
    prompt_BT = torch.arange(options.prompt)[None]
    text_BT = torch.randint(options.vocab, (options.rows, options.context), generator=torch.Generator().manual_seed(1))
    of_fused, of_apart = (models[name].hidden(prompt_BT, cache=KVCache()) for name in ("fused", "apart"))
    print(f"V {options.vocab:,}  d {options.width}  {options.layers} blocks  {torch.get_num_threads()} threads; states of "
          f"fused and apart differ by at most {(of_fused - of_apart).abs().max():.1e}")
    wrapped = {name: wrap(model) for name, model in models.items()}
    given = {"attention_mask": torch.ones_like(prompt_BT), "max_new_tokens": options.new, **GREEDY}
    hf = {name: partial(model.generate, prompt_BT, **given) for name, model in wrapped.items()}
    report("generation by generate()", rates(hf, options.new, options.rounds), "0.45x")
    bare = {name: partial(loop, model, prompt_BT, options.new) for name, model in models.items()}
    report("generation by a bare loop", rates(bare, options.new, options.rounds), "0.45x")
    many = {name: partial(loop, model, text_BT[:, : options.prompt], options.new) for name, model in models.items()}
    report(f"the same, {options.rows} texts", rates(many, options.rows * options.new, options.rounds), "0.45x")
    scores = {name: partial(score, models[name], text_BT) for name in ("one", "fused")}
    scores["as one"] = partial(score, models["fused"], text_BT, cached=True)
    report("scoring", rates(scores, text_BT.numel(), options.rounds), "0.48x")
    memory = {name: memory_of(name) for name in ("one", "fused", "shared")}
    print("  peak memory (aim: at most 2.05x)")
    for name, size in memory.items():
        print(f"    {name:8} {size / 2**20:12,.0f} MiB       {size / memory['one']:.2f}x")


if __name__ == "__main__":
    main()
