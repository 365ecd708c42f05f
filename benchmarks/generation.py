"""Greedy generation by transformers' generate(): a cache that grows beside one of fixed length, ours beside GPTNeoX.

    python benchmarks/generation.py
    python benchmarks/generation.py --vocab 8192 --width 256 --layers 6 --heads 4 --device cpu

On a GPU a step with a cache of fixed length is one CUDA graph. Weights are random; the texts of both caches are compared.
"""

import argparse
import time

import torch
import transformers

from glyphlm.base.devices import resolve_device
from glyphlm.modeling.hf import GlyphLMConfig, GlyphLMForCausalLM
from glyphlm.modeling.model import GPT, ModelConfig
from glyphlm.modeling.substrate import Substrate, SubstrateConfig
from glyphlm.runs.folder import config_fields

GREEDY = {"do_sample": False, "pad_token_id": 0, "eos_token_id": None}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def ours(options: argparse.Namespace) -> transformers.PreTrainedModel:
    """A model of random values over a frozen table, with generate()."""
    with torch.device(options.device):
        config = ModelConfig(options.width, options.layers, options.heads, 1024, head_bias=True)
        model = GPT(config, Substrate(SubstrateConfig(options.vocab, options.width), options.width))
        wrapped = GlyphLMForCausalLM(GlyphLMConfig(**config_fields(model)))
    for name, values in model.state_dict().items():
        values.normal_(std=0.05) if values.dim() == 2 else values.fill_(float(name.endswith("norm.weight")))
    wrapped.gpt = model
    return wrapped.eval()


def neox(options: argparse.Namespace) -> transformers.PreTrainedModel:
    """The same shape in transformers."""
    with torch.device(options.device):
        return transformers.GPTNeoXForCausalLM(transformers.GPTNeoXConfig(
            vocab_size=options.vocab, hidden_size=options.width, num_hidden_layers=options.layers,
            num_attention_heads=options.heads, intermediate_size=4 * options.width, attention_bias=False,
            use_parallel_residual=False, max_position_embeddings=1024,
        )).eval()  # fmt: skip


def timed(model: transformers.PreTrainedModel, ids_BT: torch.Tensor, new: int, static: bool) -> tuple[torch.Tensor, float]:
    """The texts, and tokens/s of all of them together, the prompt's pass and a graph's recording included."""
    given = GREEDY | {"attention_mask": torch.ones_like(ids_BT), "cache_implementation": "static" if static else None}
    model.generate(ids_BT, max_new_tokens=4, **given)  # what the first call loads is not counted
    begin = time.perf_counter()
    out_BT = model.generate(ids_BT, max_new_tokens=new, **given)
    float(out_BT[0, -1])
    return out_BT, len(ids_BT) * new / (time.perf_counter() - begin)


@torch.no_grad()
def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in {"vocab": 131072, "width": 1024, "layers": 16, "heads": 32, "new": 128, "prompt": 32}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 32], help="texts at once")
    parser.add_argument("--precisions", nargs="+", choices=DTYPES, default=["fp32", "bf16"])
    parser.add_argument("--device", type=resolve_device, default="auto")
    options = parser.parse_args()
    print(f"V {options.vocab:,}  d {options.width}  {options.layers} layers  {options.new} new tokens  {options.device}")
    models = {"ours": ours(options), "GPTNeoX": neox(options)}
    for precision in options.precisions:
        for rows in options.rows:
            ids_BT = torch.randint(1, options.vocab, (rows, options.prompt), generator=torch.Generator().manual_seed(1))
            ids_BT = ids_BT.to(options.device)
            for name, model in models.items():
                model.to(DTYPES[precision])
                grown_BT, speed = timed(model, ids_BT, options.new, False)
                print(f"  {precision}  {rows:3} texts  {name:8} {speed:9,.0f} tokens/s", flush=True)
                if name == "ours":
                    fixed_BT, fast = timed(model, ids_BT, options.new, True)
                    same = float((fixed_BT == grown_BT).all(1).float().mean())
                    print(f"  {precision}  {rows:3} texts  {name:8} {fast:9,.0f} tokens/s with a cache of fixed length, "
                          f"{fast / speed:.1f}x; {same:.0%} of the texts equal", flush=True)


if __name__ == "__main__":
    main()
