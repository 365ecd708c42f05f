"""A fused model of two equal experts beside one of them: tokens/s in generation and scoring, peak memory.

    python benchmarks/fusion.py
    python benchmarks/fusion.py --vocab 131072 --width 1024 --layers 16 --heads 32 --rounds 5

`batched` computes both experts as one: their weights stacked, products as torch.bmm, one cache of twice the rows. It is
only here, to be measured. Tokens/s: medians of interleaved rounds of greedy generation with a cache (by
transformers' generate(), and by a bare loop without its overhead) and of scoring. Peak memory: a child process for each
reads its highest resident memory, less what it held before there was a model.
"""

import argparse
import copy
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from glyphlm.fusion import Fusion, FusionConfig
from glyphlm.hf import GlyphLMConfig, GlyphLMForCausalLM
from glyphlm.model import GPT, KVCache, ModelConfig, Substrate, SubstrateConfig
from glyphlm.runfolder import config_fields

GREEDY = {"do_sample": False, "pad_token_id": 0, "eos_token_id": None}


class Linears(nn.Module):
    """A matrix of each expert as one product; rows of the batch are text 1 of expert 1, text 1 of expert 2, text 2 ..."""

    def __init__(self, layers: Sequence[nn.Linear]):
        super().__init__()
        self.weight_MOI = torch.stack([layer.weight for layer in layers])
        self.bias_M1O = None if layers[0].bias is None else torch.stack([layer.bias for layer in layers])[:, None]

    def forward(self, x_BTI: Tensor) -> Tensor:
        """As nn.Linear."""
        x_MNI = x_BTI.unflatten(0, (-1, len(self.weight_MOI))).transpose(0, 1).flatten(1, 2)
        weight_MIO = self.weight_MOI.mT
        x_MNO = x_MNI @ weight_MIO if self.bias_M1O is None else torch.baddbmm(self.bias_M1O, x_MNI, weight_MIO)
        return x_MNO.unflatten(1, (-1, x_BTI.shape[1])).transpose(0, 1).flatten(0, 1)


class Norms(nn.Module):
    """A norm of each expert, on such rows."""

    def __init__(self, layers: Sequence[nn.LayerNorm]):
        super().__init__()
        self.scale_M1D, self.shift_M1D = (torch.stack([getattr(layer, name) for layer in layers])[:, None]
                                          for name in ("weight", "bias"))

    def forward(self, x_BTD: Tensor) -> Tensor:
        """As nn.LayerNorm."""
        normed = F.layer_norm(x_BTD, x_BTD.shape[-1:]).unflatten(0, (-1, len(self.scale_M1D)))
        return torch.addcmul(self.shift_M1D, normed, self.scale_M1D).flatten(0, 1)


class Batched(nn.Module):
    """A fusion by mean_logits whose experts, of one shape, run as one."""

    def __init__(self, fusion: Fusion):
        super().__init__()
        self.fusion, self.experts = fusion, copy.deepcopy(fusion.experts[0])
        for kind, together in ((nn.Linear, Linears), (nn.LayerNorm, Norms)):
            for name in [name for name, module in self.experts.named_modules() if isinstance(module, kind)]:
                self.experts.set_submodule(name, together([expert.get_submodule(name) for expert in fusion.experts]))
        self.experts.norm.weight = fusion.experts[0].norm.weight  # for its dtype

    def hidden(self, ids_BT: Tensor, *, cache: KVCache | None = None) -> Tensor:
        """As Fusion.hidden."""
        many = len(self.fusion.reads)
        x_BMTD = torch.stack([self.fusion.substrates[read](ids_BT) for read in self.fusion.reads], 1)
        x_BMTD = self.experts.hidden(x_BMTD.flatten(0, 1), cache=cache).unflatten(0, (-1, many))
        return x_BMTD.movedim(1, 2).flatten(2) / many

    def logits(self, x_BTF: Tensor) -> Tensor:
        """As Fusion.logits."""
        return self.fusion.logits(x_BTF)


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


def score(model: Any, ids_BT: Tensor) -> list[Tensor]:
    """The likeliest token at each position, logits of one text at a time."""
    return [model.logits(x_TF).argmax(-1) for x_TF in model.hidden(ids_BT)]


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


def tell(title: str, found: dict[str, float], aim: str) -> None:
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
    models["batched"] = Batched(models["fused"])
    prompt_BT = torch.arange(options.prompt)[None]
    text_BT = torch.randint(options.vocab, (options.rows, options.context), generator=torch.Generator().manual_seed(1))
    difference = (models["fused"].hidden(prompt_BT) - models["batched"].hidden(prompt_BT)).abs().max()
    print(f"V {options.vocab:,}  d {options.width}  {options.layers} blocks  {torch.get_num_threads()} threads; states of "
          f"fused and batched differ by at most {difference:.1e}")
    wrapped = {name: wrap(models[name]) for name in ("one", "fused")}
    given = {"attention_mask": torch.ones_like(prompt_BT), "max_new_tokens": options.new, **GREEDY}
    hf = {name: partial(model.generate, prompt_BT, **given) for name, model in wrapped.items()}
    tell("generation by generate()", rates(hf, options.new, options.rounds), "0.45x")
    bare = {name: partial(loop, model, prompt_BT, options.new) for name, model in models.items()}
    tell("generation by a bare loop", rates(bare, options.new, options.rounds), "0.45x")
    many = {name: partial(loop, model, text_BT[:, : options.prompt], options.new) for name, model in models.items()}
    tell(f"the same, {options.rows} texts", rates(many, options.rows * options.new, options.rounds), "0.45x")
    scores = {name: partial(score, model, text_BT) for name, model in models.items()}
    tell("scoring", rates(scores, text_BT.numel(), options.rounds), "0.48x")
    memory = {name: memory_of(name) for name in ("one", "fused", "shared")}
    print("  peak memory (aim: at most 2.05x)")
    for name, size in memory.items():
        print(f"    {name:8} {size / 2**20:12,.0f} MiB       {size / memory['one']:.2f}x")


if __name__ == "__main__":
    main()
