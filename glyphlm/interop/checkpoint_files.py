"""A published checkpoint -> its folder, sizes, tokenizer and trained tensors. Nothing in the folder is ever executed."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from glyphlm.base.errors import InputError
from glyphlm.base.hub import pull
from glyphlm.base.names import HUB
from glyphlm.base.outputs import sha256_file
from glyphlm.base.ranges import Range
from glyphlm.base.records import read_json
from glyphlm.base.tensors import plain_tensor, read_foreign
from glyphlm.tokenizer.tokenizer import Tokenizer

# config.json of the published families, then of stock architectures, names the sizes so.
SIZE_NAMES = {
    "vocab_size": ("vocab_size",),
    "d_model": ("d_model", "hidden_size", "dim"),
    "n_layer": ("n_layer", "num_hidden_layers", "n_layers", "num_layers"),
    "n_head": ("n_head", "num_attention_heads", "n_heads", "num_heads"),
    "block_size": ("block_size", "max_position_embeddings", "n_positions", "context_length", "max_seq_len"),
}
SIZES = Range(1, 1 << 31, whole=True)
WHOLE = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
ENDINGS = (".safetensors", ".bin", ".pt")
NESTED = ("model_state_dict", "state_dict", "model")  # under these a training script keeps the weights in a .pt
MAX_NESTING = 4  # .. inside each other
HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")
ROTARY = {"cos", "sin", "freqs", "angles"}
ROLES = ("bos_token", "eos_token", "pad_token", "unk_token")


@dataclass(frozen=True)
class Sizes:
    """The sizes in config.json; `n_embed` is None where it is not given."""

    vocab_size: int
    d_model: int
    n_layer: int
    n_head: int
    block_size: int
    n_embed: int | None = None


def source_folder(src: str, revision: str | None) -> Path:
    """The folder `src`, or that of OWNER/MODEL or hf:OWNER/MODEL[@REVISION] of the Hub.

    Raises:
        InputError: it is neither, or cannot be reached.
    """
    if Path(src).is_dir():
        return Path(src)
    if not HUB_NAME.fullmatch(src.removeprefix(HUB)):
        raise InputError(f"{src} is neither a folder nor a name of the Hub such as OWNER/MODEL")
    return pull(src, revision).folder


def read_config(folder: Path) -> dict[str, Any]:
    """config.json of a checkpoint.

    Raises:
        InputError: it is missing, damaged or not an object.
    """
    return read_json(folder / "config.json", cure="give the folder of a published checkpoint")


def read_sizes(folder: Path, config: Mapping[str, Any]) -> Sizes:
    """The sizes in a config.json, whichever of the known names they have.

    Raises:
        InputError: one is missing or not in `SIZES`.
    """
    found = {size: next((config[name] for name in names if name in config), None) for size, names in SIZE_NAMES.items()}
    for size, value in found.items():
        if value not in SIZES:
            names = ", ".join(SIZE_NAMES[size])
            raise InputError(f"{folder}/config.json gives {value!r:.60} as {size} (looked for {names}), which must "
                             f"be {SIZES}; write the right number there")
    n_embed = next((config[name] for name in ("n_embed", "n_embd") if config.get(name) in SIZES), None)
    return Sizes(**{size: value for size, value in found.items() if value is not None}, n_embed=n_embed)


def read_tokenizer(folder: Path, config: Mapping[str, Any], vocab_size: int) -> Tokenizer:
    """The tokenizer as its tokenizer.json says (transformers 5 would guess a byte-level one from config.json).

    Special tokens that tokenizer_config.json does not name are taken from config.json, where they are strings or ids.

    Raises:
        InputError: tokenizer.json is missing, or has another number of ids than the model.
    """
    if not (folder / "tokenizer.json").is_file():
        raise InputError(f"{folder} holds no tokenizer.json; name the folder of the model's tokenizer with --tokenizer DIR")
    tokenizer = Tokenizer.load(folder)
    if tokenizer.vocab_size != vocab_size:
        raise InputError(f"{folder}/tokenizer.json has {tokenizer.vocab_size:,} ids, the model {vocab_size:,}; name the "
                         "folder of the model's own tokenizer with --tokenizer DIR")
    for role in ROLES:
        name, number = config.get(role), config.get(f"{role}_id")
        if not isinstance(name, str) and type(number) is int and 0 <= number < vocab_size:
            name = tokenizer.tokens[number]
        if isinstance(name, str) and not tokenizer.config.get(role):
            tokenizer.config[role] = name
    return tokenizer


def weight_files(folder: Path, chosen: str | None = None) -> list[Path]:
    """The files that hold the weights: one, or those that an index names.

    Raises:
        InputError: there are none, it is not clear which, or an index names a file outside the folder.
    """
    here = sorted(path.name for path in folder.iterdir() if path.name.endswith(ENDINGS))
    name = chosen or next((name for name in WHOLE if (folder / name).is_file()), None)
    if name is None and len(here) != 1:
        raise InputError(f"{folder} holds no {WHOLE[0]} and {len(here)} other files of weights ({', '.join(here)[:200]}); "
                         "name the one to read with --weights FILE")
    name = name or here[0]
    if Path(name).name != name or not (folder / name).is_file():
        raise InputError(f"{name!r} is not a file of {folder}; name one of its files with --weights")
    return _shards(folder / name) if name.endswith(".json") else [folder / name]


def _shards(index: Path) -> list[Path]:
    names = read_json(index, cure="download it again").get("weight_map")
    names = sorted({str(name) for name in names.values()}) if isinstance(names, dict) else []
    for name in names:
        # Only plain names: `../x` or `/x` would read files outside the checkpoint.
        if Path(name).name != name or "\\" in name or not name.endswith(ENDINGS) or not (index.parent / name).is_file():
            raise InputError(f"{index} names {name!r}, which is not a file of weights in {index.parent}; download the "
                             "checkpoint again")
    if not names:
        raise InputError(f"{index} names no files in weight_map; download the checkpoint again")
    return [index.parent / name for name in names]


def read_weights(files: list[Path]) -> dict[str, Tensor]:
    """Every tensor of the files under its own name.

    Raises:
        InputError: a file is damaged, holds anything but tensors, a name occurs in two files, or a tensor claims more
            values than the file holds.
    """
    tensors: dict[str, Tensor] = {}
    for path in files:
        for name, tensor in _read_file(path).items():
            if name in tensors:
                raise InputError(f"{path} holds {name!r}, which another file holds, too; download the checkpoint again")
            tensors[name] = plain_tensor(path, name, tensor)
    return tensors


def _read_file(path: Path) -> Mapping[str, Any]:
    found = read_foreign(path, "download the checkpoint again")
    for _ in range(MAX_NESTING):  # a file may also hold itself
        inner = [found.get(key) for key in NESTED] if isinstance(found, Mapping) else []
        found = next((part for part in inner if isinstance(part, Mapping)), found)
    if not isinstance(found, Mapping) or not all(isinstance(name, str) for name in found):
        raise InputError(f"{path} holds no named tensors; give a checkpoint's file of weights")
    return found


def digests(files: list[Path]) -> dict[str, str]:
    """sha256 of each file, by its name."""
    return {path.name: sha256_file(path) for path in files}


def words(name: str) -> tuple[str, ...]:
    """The words and numbers of a key: `h.3.ln_1.weight` -> h 3 ln 1 weight."""
    return tuple(re.findall(r"[a-z]+|[0-9]{1,9}", re.sub(r"([a-z])([A-Z])", r"\1.\2", name).lower()))


def listed(names: Iterable[str]) -> str:
    """Some names, and how many more."""
    names = list(names)
    return (", ".join(names[:6]) or "none") + (f" and {len(names) - 6} more" if len(names) > 6 else "")


def without_derived(tensors: Mapping[str, Tensor], sizes: Sizes, rope_base: float) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors without those that a model computes (masks, positions, rotary tables), and a note on these.

    Raises:
        InputError: the file's rotary frequencies are not ours.
    """
    derived = [name for name, tensor in tensors.items() if _is_derived(name, tensor, sizes, rope_base)]
    kept = {name: tensor for name, tensor in tensors.items() if name not in set(derived)}
    return kept, [f"left out, as the model computes them: {listed(derived)}"] if derived else []


def _is_derived(name: str, tensor: Tensor, sizes: Sizes, rope_base: float) -> bool:
    """Whether a model computes the tensor; rotary frequencies are compared with ours."""
    path, width = words(name), sizes.d_model // sizes.n_head
    if path[-2:] == ("inv", "freq"):
        _check_frequencies(name, tensor, width, rope_base)
        return True
    has_angles = tensor.dim() >= 2 and tensor.shape[-1] in (width, width // 2) and sizes.block_size in tensor.shape
    return _is_mask(tensor) or _counts_up(tensor) or (has_angles and bool(ROTARY & set(path)))


def _check_frequencies(name: str, tensor: Tensor, width: int, rope_base: float) -> None:
    """Refuse rotary frequencies of heads of this width that are not ours."""
    exponents = torch.arange(0, width, 2, dtype=torch.float32) / width
    if tensor.shape != exponents.shape:
        raise InputError(f"{name} holds {tuple(tensor.shape)} frequencies, and heads of width {width} turn with "
                         f"{width // 2}; other rotary positions cannot be imported")
    if not torch.allclose(tensor.float(), rope_base**-exponents, rtol=0.02):
        base = float(tensor[-1].double() ** (-1 / exponents[-1])) if width > 2 else float("nan")
        raise InputError(f"{name} holds frequencies of base {base:.6g}, not {rope_base:.6g}; give --rope-base {base:.6g}")


def _is_mask(tensor: Tensor) -> bool:
    """Whether the last two axes are a causal mask: one value on and below the diagonal, another above it."""
    if tensor.dim() < 2 or tensor.shape[-1] != tensor.shape[-2] or tensor.shape[-1] < 2 or tensor.shape[:-2].numel() != 1:
        return False
    square_TT = tensor.reshape(tensor.shape[-2:])
    seen, hidden = square_TT[-1, 0], square_TT[0, -1]
    if bool(seen == hidden) or bool(square_TT[0, 0] != seen):
        return False
    places_T = torch.arange(len(square_TT))
    return torch.equal(square_TT, torch.where(places_T[:, None] >= places_T, seen, hidden))


def _counts_up(tensor: Tensor) -> bool:
    """Whether the tensor is the numbers 0, 1, 2, ... of positions."""
    numbers = torch.arange(tensor.numel())
    return not tensor.is_floating_point() and tensor.numel() > 1 and torch.equal(tensor.flatten().long(), numbers)
