"""A run -> a stock GPT-NeoX folder, which transformers, vLLM and others load without glyphlm and without remote code.

Our block is GPT-NeoX's with `use_parallel_residual` off and attention biases of 0; the substrate becomes a plain table of
vectors, lifted to D. Shapes: V vocabulary, D d_model, H heads of width K.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from glyphlm.base.errors import InputError
from glyphlm.base.names import CONFIG, RESULTS, SETTINGS, SUMMARY, WEIGHTS
from glyphlm.base.outputs import Build, one_writer
from glyphlm.base.progress import say
from glyphlm.base.records import to_json
from glyphlm.base.tensors import save_tensors
from glyphlm.modeling.heads import CodeHead, TiedHead
from glyphlm.modeling.model import GPT
from glyphlm.runs.card import write_card
from glyphlm.runs.folder import load_run, read_summary, special_ids, weights_sha256
from glyphlm.runs.sampling import SAMPLING
from glyphlm.substrate.codes import chunks
from glyphlm.tokenizer.tokenizer import Tokenizer

ACTIVATIONS = {"gelu": "gelu", "gelu_tanh": "gelu_pytorch_tanh"}
BLOCK_NAMES = {
    "attention_norm": "input_layernorm",
    "attention.out": "attention.dense",
    "mlp_norm": "post_attention_layernorm",
    "mlp.up": "mlp.dense_h_to_4h",
    "mlp.down": "mlp.dense_4h_to_h",
}
EXACT = 1e-6  # tolerance relative to the largest head bias: the resolution of float32


@dataclass
class Plain:
    """A model that other tools can express: the substrate as a table, the head without bias."""

    model: GPT
    tokenizer: Tokenizer
    table_VD: Tensor
    norm_bias_D: Tensor


def export_gpt_neox(run: Path, out: Path, fold_head_bias: bool = False) -> Path:
    """Write the folder `out`: GPTNeoXForCausalLM in float32 with the tokenizer; a finished export is not repeated.

    Raises:
        InputError: the run is a fusion, or its head has a bias that GPT-NeoX cannot express; or `out` holds other work.
    """
    build = Build("gpt_neox", {"fold_head_bias": fold_head_bias}, {"weights": weights_sha256(run)})
    with one_writer(out):
        if build.is_done(out):
            say(f"{out} is done already")
            return out
        plain = open_plain(run, fold_head_bias)
        tensors = _neox_tensors(plain)
        with build.folder(out) as partial:
            save_tensors(tensors, partial / WEIGHTS)
            plain.tokenizer.save(partial)
            (partial / CONFIG).write_text(to_json(_neox_config(plain)), encoding="utf-8")
            generation = SAMPLING | special_ids(plain.tokenizer)
            (partial / "generation_config.json").write_text(to_json(generation), encoding="utf-8")
            _copy_records(run, partial)
        say(f"{out}: GPT-NeoX, {sum(tensor.numel() for tensor in tensors.values()):,} values")
        return out


def _copy_records(run: Path, out: Path) -> None:
    """Copy the records that a model card is made from, and write the card."""
    summary = read_summary(run)
    for name in (SUMMARY, SETTINGS, RESULTS):
        if (run / name).is_file():
            shutil.copyfile(run / name, out / name)
    if summary:
        write_card(out, summary)


def open_plain(run: Path, fold_head_bias: bool) -> Plain:
    """The run's model with its codes written out and its head bias folded, where that is exact.

    Raises:
        InputError: it is a fusion, or has a head bias that cannot be folded.
    """
    wrapped, tokenizer = load_run(run)
    model = wrapped.gpt
    if not isinstance(model, GPT):
        raise InputError(f"{run} is a fusion, which no stock architecture expresses; export its experts")
    if isinstance(model.head, CodeHead):
        raise InputError(f"{run} has a head of kind code, which no stock architecture expresses; train with model.head.kind "
                         "full or tied to export")
    if isinstance(model.head, TiedHead):
        model.head = _as_matrix(model.head)
    norm_bias_D = model.norm.bias.detach()
    if model.head.bias is not None:
        norm_bias_D = folded(run, model, fold_head_bias)
    return Plain(model, tokenizer, _written_out(model), norm_bias_D)


@torch.no_grad()
def _as_matrix(head: TiedHead) -> nn.Linear:
    """The full head with the logits of a tied one: codes and trained matrix multiplied, up to rounding."""
    weight_VD = head.codes() @ head.query(torch.eye(head.project.in_features)).T
    full = nn.Linear(*weight_VD.shape[::-1], bias=head.bias is not None)
    full.weight.copy_(weight_VD)
    if head.bias is not None:
        full.bias.copy_(head.bias)
    return full


@torch.no_grad()
def _written_out(model: GPT) -> Tensor:
    """The input embedding of each id, float32 [V, D]."""
    table_VD = torch.empty(model.vocab_size, model.config.d_model)
    for rows, ids in zip(chunks(table_VD), chunks(torch.arange(model.vocab_size))):
        rows.copy_(model.substrate(ids[None])[0])
    return table_VD


@torch.no_grad()
def folded(run: Path, model: GPT, allowed: bool) -> Tensor:
    """The final norm's bias with which the head gives the same logits without its own bias, [D].

    W (n + b) gives W n + W b, so a head bias that is W b for some b can be moved; V values in general are no product of
    W [V, D] with D values.

    Raises:
        InputError: the bias is not of this form, or folding was not requested.
    """
    weight_VD, bias_V = model.head.weight.double(), model.head.bias.double()
    if not bool(bias_V.any()):
        return model.norm.bias
    shift_D = torch.linalg.lstsq(weight_VD.T @ weight_VD, (weight_VD.T @ bias_V)[:, None], driver="gelsd").solution[:, 0]
    rest = float((weight_VD @ shift_D - bias_V).abs().max() / bias_V.abs().max())
    if rest > EXACT:
        raise InputError(f"{run} has a head with bias, which GPT-NeoX does not have; it cannot be folded into the final "
                         f"norm ({rest:.0%} of its largest value would be lost); train with model.head_bias false to export")
    if not allowed:
        raise InputError(f"{run} has a head with bias, which GPT-NeoX does not have; it can be folded into the final norm "
                         "exactly: add --fold-head-bias")
    return (model.norm.bias.double() + shift_D).float()


def _neox_config(plain: Plain) -> dict[str, Any]:
    """config.json, with the rotary settings as transformers 5 reads them, and as others do."""
    config = plain.model.config
    return {
        "architectures": ["GPTNeoXForCausalLM"],
        "model_type": "gpt_neox",
        "vocab_size": plain.model.vocab_size,
        "hidden_size": config.d_model,
        "num_hidden_layers": config.n_layer,
        "num_attention_heads": config.n_head,
        "intermediate_size": 4 * config.d_model,
        "hidden_act": ACTIVATIONS[config.activation],
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_base, "partial_rotary_factor": 1.0},
        "rotary_pct": 1.0,
        "rotary_emb_base": config.rope_base,
        "max_position_embeddings": config.block_size,
        "layer_norm_eps": config.norm_eps,
        "use_parallel_residual": False,
        "attention_bias": True,  # of zeros: not every reader knows blocks without
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
        **special_ids(plain.tokenizer),
    }


@torch.no_grad()
def _neox_tensors(plain: Plain) -> dict[str, Tensor]:
    """Our tensors under GPT-NeoX's names."""
    model, d = plain.model, plain.model.config.d_model
    found = {
        "gpt_neox.embed_in.weight": plain.table_VD,
        "gpt_neox.final_layer_norm.weight": model.norm.weight,
        "gpt_neox.final_layer_norm.bias": plain.norm_bias_D,
        "embed_out.weight": model.head.weight,
    }
    for number, block in enumerate(model.blocks):
        prefix = f"gpt_neox.layers.{number}."
        for ours, theirs in BLOCK_NAMES.items():
            found |= {f"{prefix}{theirs}.{leaf}": value for leaf, value in block.get_submodule(ours).named_parameters()}
        qkv_3HKD = block.get_parameter("attention.qkv.weight").unflatten(0, (3, model.config.n_head, -1))
        found[f"{prefix}attention.query_key_value.weight"] = qkv_3HKD.transpose(0, 1).flatten(0, 2)  # head by head
        found[f"{prefix}attention.query_key_value.bias"] = torch.zeros(3 * d)
        found[f"{prefix}attention.dense.bias"] = torch.zeros(d)
    return found
