"""A run -> a GGUF file, which llama.cpp and what is built on it run: GPT-NeoX with our tokenizer.

llama.cpp computes GELU by its tanh approximation, whatever a file says: logits of a model with exact GELU differ a little.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import gguf
import numpy as np
import torch
from torch import Tensor

from glyphlm.base.errors import InputError
from glyphlm.base.outputs import Build
from glyphlm.base.progress import say
from glyphlm.interop.export_neox import Plain, open_plain
from glyphlm.interop.ggufvocab import Piece, gguf_pieces
from glyphlm.runs.folder import weights_sha256

Quantization = Literal["f32", "f16", "q8_0"]
TYPES = {
    "f32": (gguf.GGMLQuantizationType.F32, gguf.LlamaFileType.ALL_F32),
    "f16": (gguf.GGMLQuantizationType.F16, gguf.LlamaFileType.MOSTLY_F16),
    "q8_0": (gguf.GGMLQuantizationType.Q8_0, gguf.LlamaFileType.MOSTLY_Q8_0),
}
BLOCK_NAMES = {
    "attention_norm": "attn_norm",
    "attention.qkv": "attn_qkv",
    "attention.out": "attn_output",
    "mlp_norm": "ffn_norm",
    "mlp.up": "ffn_up",
    "mlp.down": "ffn_down",
}
ROWS_OF_32 = 32  # q8_0 has one scale for 32 values of a row


def export_gguf(run: Path, out: Path, quantize: Quantization = "f32", fold_head_bias: bool = False) -> Path:
    """Write the file NAME-QUANTIZE.gguf into the folder `out` and return its path; found done, it is left alone.

    Matrices are stored as `quantize` says, vectors always in float32.

    Raises:
        InputError: the run cannot be expressed as GPT-NeoX, its tokenizer not as SentencePiece-BPE, its width does not
            divide for q8_0, or `out` holds other work.
    """
    file = out / f"{run.resolve().name}-{quantize}.gguf"
    build = Build("gguf", {"quantize": quantize, "fold_head_bias": fold_head_bias}, {"weights": weights_sha256(run)})
    if build.is_done(out):
        say(f"{out} is done already")
        return file
    plain = open_plain(run, fold_head_bias)
    if quantize == "q8_0" and plain.model.config.d_model % ROWS_OF_32:
        raise InputError(f"q8_0 needs a d_model that is a multiple of {ROWS_OF_32}, and {run} has "
                         f"{plain.model.config.d_model}; use f16")
    pieces, cannot = gguf_pieces(run, plain.tokenizer)
    if plain.model.config.activation == "gelu":
        cannot.append("exact GELU: llama.cpp takes its tanh approximation, so that logits differ by about a thousandth")
    with build.folder(out) as partial:
        write(partial / file.name, plain, pieces, quantize)
        build.result = {"cannot_express": cannot}
    for line in cannot:
        say(f"{file}: cannot express {line}")
    say(f"{file}: {file.stat().st_size / 1e6:,.1f} MB")
    return file


def write(path: Path, plain: Plain, pieces: list[Piece], quantize: Quantization) -> None:
    """The whole file."""
    matrix_type, file_type = TYPES[quantize]
    writer = gguf.GGUFWriter(path, "gptneox")
    writer.add_name(path.stem)
    writer.add_file_type(file_type)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    add_sizes(writer, plain)
    add_vocabulary(writer, plain, pieces)
    for name, tensor in gguf_tensors(plain):
        values = tensor.detach().numpy()
        kind = matrix_type if values.ndim == 2 else gguf.GGMLQuantizationType.F32
        writer.add_tensor(name, np.ascontiguousarray(gguf.quants.quantize(values, kind)), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def add_sizes(writer: gguf.GGUFWriter, plain: Plain) -> None:
    """The shape of the model."""
    config = plain.model.config
    writer.add_context_length(config.block_size)
    writer.add_embedding_length(config.d_model)
    writer.add_block_count(config.n_layer)
    writer.add_feed_forward_length(4 * config.d_model)
    writer.add_head_count(config.n_head)
    writer.add_rope_dimension_count(config.d_model // config.n_head)
    writer.add_rope_freq_base(config.rope_base)
    writer.add_layer_norm_eps(config.norm_eps)
    writer.add_parallel_residual(False)
    writer.add_vocab_size(plain.model.vocab_size)


def add_vocabulary(writer: gguf.GGUFWriter, plain: Plain, pieces: list[Piece]) -> None:
    """The tokenizer; nothing is put before or after a text, as in our training."""
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([piece.text.encode() for piece in pieces])
    writer.add_token_scores([piece.score for piece in pieces])
    writer.add_token_types([piece.kind for piece in pieces])
    writer.add_eos_token_id(plain.tokenizer.end_id)
    writer.add_pad_token_id(plain.tokenizer.pad_id)
    if plain.tokenizer.start_id is not None:
        writer.add_bos_token_id(plain.tokenizer.start_id)
    if plain.tokenizer.unknown_id is not None:
        writer.add_unk_token_id(plain.tokenizer.unknown_id)
    writer.add_add_bos_token(False)
    writer.add_add_eos_token(False)
    writer.add_add_space_prefix(False)


def gguf_tensors(plain: Plain) -> Iterator[tuple[str, Tensor]]:
    """Our tensors under GGUF's names."""
    model, d = plain.model, plain.model.config.d_model
    yield "token_embd.weight", plain.table_VD
    for number, block in enumerate(model.blocks):
        for ours, theirs in BLOCK_NAMES.items():
            for leaf, value in block.get_submodule(ours).named_parameters():
                yield f"blk.{number}.{theirs}.{leaf}", value
        yield f"blk.{number}.attn_qkv.bias", torch.zeros(3 * d)
        yield f"blk.{number}.attn_output.bias", torch.zeros(d)
    yield "output_norm.weight", model.norm.weight
    yield "output_norm.bias", plain.norm_bias_D
    yield "output.weight", model.head.weight
