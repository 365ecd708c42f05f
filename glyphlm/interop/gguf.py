"""A run -> a GGUF file, which llama.cpp and programs built on it run: GPT-NeoX with our tokenizer.

llama.cpp computes GELU by its tanh approximation, whatever a file says: logits of a model with exact GELU differ a little.

Our tokenizers are written as SentencePiece-BPE ("llama"): the same ids for every text, or a refusal. SentencePiece joins the
two neighbours whose joined text has the best score, leftmost first. Our merges are all splits of each n-gram, n-gram by
n-gram, so a score of minus the n-gram's rank joins the same neighbours. llama.cpp writes a space as U+2581 before it looks
tokens up, and U+2581 is a character of its own in our vocabularies. Both are therefore user-defined tokens, which it cuts
out of a text first, unchanged. No n-gram holds either. It also reads token texts up to the first NUL, so U+0000 is
spelled as a byte.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import gguf
import numpy as np
import torch
from torch import Tensor

from glyphlm.base.errors import InputError
from glyphlm.base.outputs import Build, one_writer
from glyphlm.base.progress import say
from glyphlm.base.records import read_json
from glyphlm.interop.export_neox import Plain, open_plain
from glyphlm.runs.folder import special_ids, weights_sha256
from glyphlm.tokenizer.layouts import BYTES, FALLBACK_BYTES, SPECIAL_SLOTS, is_reserved
from glyphlm.tokenizer.piece_encoder import is_plain_bpe
from glyphlm.tokenizer.spelling import BYTE
from glyphlm.tokenizer.tokenizer import Tokenizer

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE_KIND = range(1, 7)  # token types of GGUF
CUT_OUT = (" ", "\u2581")
SAMPLED, JOINED = 4000, 6  # tokens whose texts are compared at export, so many at once


@dataclass(frozen=True)
class GgufToken:
    """A token as a GGUF file holds it."""

    text: str
    score: float
    kind: int


def gguf_tokens(run: Path, tokenizer: Tokenizer) -> tuple[list[GgufToken], list[str]]:
    """The tokens in order of ids, and what they cannot express, in words; ids are compared on a sample of texts.

    Raises:
        InputError: the tokenizer does not have one of our layouts, or gives other ids than the pieces would.
    """
    ranks = _merge_ranks(run, tokenizer.tokens)
    pieces = [_token(number, token, tokenizer, ranks) for number, token in enumerate(tokenizer.tokens)]
    pieces, cannot = _with_all_bytes(_spell_nul_as_byte(pieces), run)
    compare(run, tokenizer, pieces, ranks)
    return pieces, cannot


def _merge_ranks(run: Path, tokens: Sequence[str]) -> dict[str, int]:
    """The rank of each n-gram: the place of its merges."""
    parts = read_json(run / "tokenizer.json")
    model, refusal = parts["model"], f"{run}/tokenizer.json cannot be written as SentencePiece-BPE"
    if not is_plain_bpe(parts) or not model.get("byte_fallback"):
        raise InputError(f"{refusal}: it is not one of our layouts (BPE over characters, without normalizer and "
                         "pre-tokenizer); export --to gpt_neox, which keeps any tokenizer")
    merges = [tuple(merge.split(" ")) if isinstance(merge, str) else tuple(merge) for merge in model["merges"]]
    joined = [left + right for left, right in merges]
    ranks = {text: rank for rank, text in enumerate(dict.fromkeys(joined))}
    known = set(tokens)
    splits = {(text[:cut], text[cut:]) for text in known for cut in range(1, len(text))
              if text[:cut] in known and text[cut:] in known}
    grouped = all(ranks[later] - ranks[earlier] in (0, 1) for earlier, later in zip(joined, joined[1:]))
    if splits != set(merges) or not grouped:
        raise InputError(f"{refusal}: its merges are not all splits of its tokens, token by token; export "
                         "--to gpt_neox, which keeps any tokenizer")
    spaced = next((text for text in ranks if any(character in text for character in CUT_OUT)), None)
    if spaced or " " not in known:
        reason = f"the token {spaced!r} holds a space or U+2581" if spaced else "no token is a space"
        raise InputError(f"{refusal}: {reason}; export --to gpt_neox, which keeps any tokenizer")
    return ranks


def _token(number: int, token: str, tokenizer: Tokenizer, ranks: dict[str, int]) -> GgufToken:
    kind = NORMAL
    if number == tokenizer.unknown_id:
        kind = UNKNOWN
    elif BYTE.fullmatch(token):
        kind = BYTE_KIND
    elif number in tokenizer.special_ids:
        kind = UNUSED if is_reserved(number, token) else CONTROL
    elif token in CUT_OUT:
        kind = USER_DEFINED
    return GgufToken(token, -float(ranks.get(token, len(ranks))), kind)


def _spell_nul_as_byte(pieces: Sequence[GgufToken]) -> list[GgufToken]:
    """U+0000 spelled as byte 0, which is used for nothing else."""
    if all(piece.text != "\0" for piece in pieces):
        return list(pieces)
    named = {"\0": (BYTES[0], BYTE_KIND), BYTES[0]: ("<unused_byte_0>", UNUSED)}
    return [replace(piece, text=named[piece.text][0], kind=named[piece.text][1]) if piece.text in named else piece
            for piece in pieces]


def _with_all_bytes(pieces: list[GgufToken], run: Path) -> tuple[list[GgufToken], list[str]]:
    """The pieces with a byte for everything that has no id, without which llama.cpp ends with an error.

    The published layouts have none: theirs take the free slots that the lossless variant gives them.
    """
    spelled = {piece.text for piece in pieces}
    lacking = (chr(code) for code in range(1, 0x110000) if not 0xD800 <= code < 0xE000)
    needed = {BYTES[byte] for character in lacking if character not in spelled for byte in character.encode()}
    missing = needed - spelled
    if not missing:
        return pieces, []
    slots = {SPECIAL_SLOTS[byte]: BYTES[byte] for byte in FALLBACK_BYTES if BYTES[byte] in missing}
    free = len(pieces) > SPECIAL_SLOTS[-1] and all(is_reserved(number, pieces[number].text) for number in slots)
    if not free or missing - set(slots.values()):
        raise InputError(f"{run}: {len(missing)} bytes have no token and no free slot, and llama.cpp has no other way to "
                         "characters without an id; use a lossless layout")
    for number, text in slots.items():
        pieces[number] = GgufToken(text, pieces[number].score, BYTE_KIND)
    return pieces, ["characters without an id (above U+FFFF, private use), which are <unk> here, are there the bytes of the "
                    "layout's lossless variant, which the model was not trained on"]


def compare(run: Path, tokenizer: Tokenizer, pieces: Sequence[GgufToken], ranks: dict[str, int]) -> None:
    """Compare ids on texts of the vocabulary's own tokens: n-grams side by side and with spaces, and single characters.

    Raises:
        InputError: they differ; the text is named.
    """
    ids = {piece.text: number for number, piece in enumerate(pieces)}
    texts = [token for token in tokenizer.tokens if len(token) == 1] + list(ranks)
    texts = texts[:: max(1, len(texts) // SAMPLED)]
    for start in range(0, len(texts), JOINED):
        group = texts[start : start + JOINED]
        for text in ("".join(group), " ".join(group)):
            if spm_ids(text, pieces, ids) != tokenizer.encode(text):
                raise InputError(f"{run}: SentencePiece-BPE would give other ids for {text!r}; export --to gpt_neox")


def spm_ids(text: str, pieces: Sequence[GgufToken], ids: dict[str, int]) -> list[int]:
    """Ids of `text` by the rule of llama.cpp."""
    found, word = [], ""
    for character in [*text, None]:
        if character is not None and (character not in ids or pieces[ids[character]].kind != USER_DEFINED):
            word += character
            continue
        for part in _joined(word, pieces, ids):
            found += [ids[part]] if part in ids else [ids[BYTES[byte]] for byte in part.encode()]
        found += [ids[character]] if character else []
        word = ""
    return found


def _joined(text: str, pieces: Sequence[GgufToken], ids: dict[str, int]) -> list[str]:
    """Join the best-scored pair of neighbours, leftmost first, until no pair is a token."""
    parts = list(text)
    while True:
        pairs = [(-pieces[ids[parts[i] + parts[i + 1]]].score, i) for i in range(len(parts) - 1)
                 if parts[i] + parts[i + 1] in ids]
        if not pairs:
            return parts
        place = min(pairs)[1]
        parts[place : place + 2] = [parts[place] + parts[place + 1]]


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
    """Write the file NAME-QUANTIZE.gguf into the folder `out` and return its path; a finished export is not repeated.

    Matrices are stored as `quantize` says, vectors always in float32.

    Raises:
        InputError: the run cannot be expressed as GPT-NeoX, its tokenizer not as SentencePiece-BPE, its width does not
            divide for q8_0, or `out` holds other work.
    """
    file = out / f"{run.resolve().name}-{quantize}.gguf"
    build = Build("gguf", {"quantize": quantize, "fold_head_bias": fold_head_bias}, {"weights": weights_sha256(run)})
    with one_writer(out):
        if build.is_done(out):
            say(f"{out} is done already")
            return file
        plain = open_plain(run, fold_head_bias)
        if quantize == "q8_0" and plain.model.config.d_model % ROWS_OF_32:
            raise InputError(f"q8_0 needs a d_model that is a multiple of {ROWS_OF_32}, and {run} has "
                             f"{plain.model.config.d_model}; use f16")
        pieces, cannot = gguf_tokens(run, plain.tokenizer)
        if plain.model.config.activation == "gelu":
            cannot.append("exact GELU: llama.cpp takes its tanh approximation, so that logits differ by about a thousandth")
        with build.folder(out) as partial:
            write(partial / file.name, plain, pieces, quantize)
            build.result = {"cannot_express": cannot}
        for line in cannot:
            say(f"{file}: cannot express {line}")
        say(f"{file}: {file.stat().st_size / 1e6:,.1f} MB")
        return file


def write(path: Path, plain: Plain, pieces: list[GgufToken], quantize: Quantization) -> None:
    """Write the GGUF file."""
    matrix_type, file_type = TYPES[quantize]
    writer = gguf.GGUFWriter(path, "gptneox")
    writer.add_name(path.stem)
    writer.add_file_type(file_type)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    _add_sizes(writer, plain)
    _add_vocabulary(writer, plain, pieces)
    for name, tensor in _gguf_tensors(plain):
        values = tensor.detach().numpy()
        kind = matrix_type if values.ndim == 2 else gguf.GGMLQuantizationType.F32
        writer.add_tensor(name, np.ascontiguousarray(gguf.quants.quantize(values, kind)), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_sizes(writer: gguf.GGUFWriter, plain: Plain) -> None:
    """Write the sizes of the model."""
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


def _add_vocabulary(writer: gguf.GGUFWriter, plain: Plain, pieces: list[GgufToken]) -> None:
    """Write the tokenizer; nothing is put before or after a text, as in our training."""
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([piece.text.encode() for piece in pieces])
    writer.add_token_scores([piece.score for piece in pieces])
    writer.add_token_types([piece.kind for piece in pieces])
    writer.add_eos_token_id(plain.tokenizer.end_id)
    writer.add_pad_token_id(plain.tokenizer.pad_id)
    writer.add_bos_token_id(special_ids(plain.tokenizer)["bos_token_id"])
    if plain.tokenizer.unknown_id is not None:
        writer.add_unk_token_id(plain.tokenizer.unknown_id)
    writer.add_add_bos_token(False)
    writer.add_add_eos_token(False)
    writer.add_add_space_prefix(False)


def _gguf_tensors(plain: Plain) -> Iterator[tuple[str, Tensor]]:
    """The tensors of the model under GGUF's names."""
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
