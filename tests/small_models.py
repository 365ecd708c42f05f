"""Small models with random weights, for tests of evaluation: their answers are nonsense, but with clear preferences."""

from collections.abc import Callable
from pathlib import Path

import torch
import transformers
from safetensors.torch import load_file, save_file

from glyphlm.modeling.config import HeadConfig
from glyphlm.modeling.model import GPT, ModelConfig
from glyphlm.modeling.substrate import Substrate, SubstrateConfig
from glyphlm.runs.folder import export_model
from glyphlm.tokenizer.tokenizer import Tokenizer


def make_run(
    folder: Path, tokenizer: Tokenizer, block_size: int = 256, seed: int = 0, head: HeadConfig | None = None
) -> Path:
    """A run folder."""
    substrate = Substrate(SubstrateConfig(tokenizer.vocab_size, 16, "learned"), 32)
    model = GPT(ModelConfig(32, 2, 4, block_size, head_bias=True, head=head or HeadConfig()), substrate).eval()
    randomise(model, seed)
    export_model(model, tokenizer, folder)
    return folder


def make_foreign(folder: Path, tokenizer: Tokenizer, block_size: int = 256) -> Path:
    """A model of another library over the same vocabulary, in a folder as transformers write it."""
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    ids = {"bos_token_id": tokenizer.start_id, "eos_token_id": tokenizer.end_id, "pad_token_id": tokenizer.pad_id}
    lengths = {"vocab_size": tokenizer.vocab_size, "max_position_embeddings": block_size}
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes, **ids, **lengths)).eval()
    randomise(model, 1)
    model.save_pretrained(folder)
    tokenizer.save(folder)
    return folder


def spoil(folder: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> Path:
    """Replace the tensors of a saved model."""
    path = folder / "model.safetensors"
    save_file(change(load_file(path)), path, metadata={"format": "pt"})
    return folder


@torch.no_grad()
def randomise(model: torch.nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for tensor in model.state_dict().values():
        tensor.copy_(torch.randn(tensor.shape, generator=generator) / 3)
