"""The tensors of one block of a published checkpoint -> our names, by shapes first and by words of their names last.

A module is what shares a path but for the last word (weight, bias). D is d_model, the MLP is 4 D wide.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from glyphlm.base.errors import InputError

Path = tuple[str, ...]
LEAVES = {"weight": "weight", "gamma": "weight", "bias": "bias", "beta": "bias"}
PARTS = {
    "q": {"q", "query", "queries", "wq"},
    "k": {"k", "key", "keys", "wk"},
    "v": {"v", "value", "values", "wv"},
}
BEFORE_MLP = {"mlp", "ff", "ffn", "ffwd", "feed", "feedforward", "post"}
BEFORE_ATTENTION = {"attn", "attention", "sa", "self", "input", "pre"}


@dataclass(eq=False)
class Module:
    """What shares a path: a weight, a bias, or both; `names` are the keys in the file."""

    path: Path
    tensors: dict[str, Tensor] = field(default_factory=dict)
    names: list[str] = field(default_factory=list)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the weight; () where there is none."""
        return tuple(self.tensors["weight"].shape) if "weight" in self.tensors else ()

    def has_bias(self, size: int) -> bool:
        """Whether there is a bias of so many values."""
        return "bias" in self.tensors and self.tensors["bias"].shape == (size,)


def words(name: str) -> Path:
    """The words and numbers of a key: `h.3.ln_1.weight` -> h 3 ln 1 weight."""
    return tuple(re.findall(r"[a-z]+|[0-9]{1,9}", re.sub(r"([a-z])([A-Z])", r"\1.\2", name).lower()))


def natural(path: Path) -> list[tuple[int, str]]:
    """Sorts 10 behind 9."""
    return [(int(word), "") if word.isdigit() else (-1, word) for word in path]


def gather(tensors: Mapping[str, Tensor]) -> list[Module]:
    """Tensors by module, in natural order of paths.

    Raises:
        InputError: two keys consist of the same words.
    """
    modules: dict[Path, Module] = {}
    for name, tensor in tensors.items():
        path = words(name)
        leaf = LEAVES.get(path[-1]) if path else None
        path, leaf = (path[:-1], leaf) if leaf else (path, "weight")
        module = modules.setdefault(path, Module(path))
        if leaf in module.tensors:
            raise InputError(f"{name!r} and one of {listed(module.names)} cannot be told apart; rename one of them")
        module.tensors[leaf] = tensor
        module.names.append(name)
    return sorted(modules.values(), key=lambda module: natural(module.path))


def map_block(prefix: str, block: Sequence[Module], d: int) -> tuple[dict[str, Tensor], bool, list[tuple[str, str]]]:
    """The tensors of a block under our names, whether q, k, v were one matrix, and what was assumed of which key.

    Raises:
        InputError: tensors are left over or missing, cannot be told apart, or attention has a bias that is not 0.
    """
    matrices = [module for module in block if len(module.shape) == 2]
    up, down = find_mlp(matrices, d)
    if up.shape == (d, 4 * d):  # [in, out], as GPT-2 keeps them
        for module in matrices:
            module.tensors["weight"] = module.tensors["weight"].T
    attention = [module for module in matrices if module not in (up, down)]
    qkv, out, fused = find_attention(attention, d)
    norms = find_norms([module for module in block if module.shape == (d,)])
    left = [module for module in block if module not in (up, down, *attention, *norms)]
    if left:
        raise InputError(f"left over are {names_of(left)}; a model that needs them cannot be imported")
    found = {f"{prefix}attention.qkv.weight": qkv, f"{prefix}attention.out.weight": out}
    for name, module in zip(("attention_norm", "mlp_norm", "mlp.up", "mlp.down"), (*norms, up, down)):
        found |= with_bias(f"{prefix}{name}.", module)
    return found, fused, notes_on(attention, norms)


def notes_on(attention: Sequence[Module], norms: Sequence[Module]) -> list[tuple[str, str]]:
    """What is assumed, and the key that it is assumed of."""
    zeros = [name for module in attention if "bias" in module.tensors for name in module.names if name.endswith("bias")]
    bare = [name for module in norms if "bias" not in module.tensors for name in module.names]
    return [*(("biases of attention that are all 0, left out", name) for name in zeros),
            *(("taken for LayerNorms with bias 0, not for RMSNorms", name) for name in bare)]


def find_mlp(matrices: Sequence[Module], d: int) -> tuple[Module, Module]:
    """D -> 4 D and back, of which there is one each; the length of a bias tells rows from columns, else rows are outputs."""
    wide = [module for module in matrices if 4 * d in module.shape]
    up = next((module for module in wide if module.has_bias(4 * d)), None)
    up = up or next((module for module in wide if module.shape == (4 * d, d)), wide[0])
    return up, next(module for module in wide if module is not up)


def find_attention(matrices: Sequence[Module], d: int) -> tuple[Tensor, Tensor, bool]:
    """q, k, v stacked [3 D, D], the output projection [D, D], and whether the file had q, k, v in one matrix.

    Raises:
        InputError: the matrices are not these, or have a bias that is not 0.
    """
    biased = [module for module in matrices if "bias" in module.tensors and bool((module.tensors["bias"] != 0).any())]
    if biased:
        raise InputError(f"attention has biases that are not 0 ({names_of(biased)}); our blocks have none, and no other "
                         "weight can stand in for them")
    fused = [module for module in matrices if module.shape == (3 * d, d)]
    single = [module for module in matrices if module not in fused]
    parts = [[module for module in single if words_ & set(module.path[-3:])] for words_ in PARTS.values()]
    out = [module for module in single if not any(module in part for part in parts)]
    rows = [sum(module.shape[0] for module in part) for part in parts]  # a part may be several heads
    if rows != ([0] * 3 if fused else [d] * 3) or len(fused) > 1 or [module.shape for module in out] != [(d, d)]:
        raise InputError(f"of {names_of(matrices)} it is not clear which are q, k, v and the output projection of width {d}")
    stacked = fused or [module for part in parts for module in part]
    return torch.cat([module.tensors["weight"] for module in stacked]), out[0].tensors["weight"], bool(fused)


def find_norms(norms: Sequence[Module]) -> tuple[Module, Module]:
    """The norms before attention and before the MLP, told by words, else by their numbers.

    Raises:
        InputError: there are not two, or they cannot be told apart.
    """
    own = [set(norm.path).difference(*(other.path for other in norms if other is not norm)) for norm in norms]
    numbers = [[word for word in norm.path if word.isdigit()] for norm in norms]
    of_mlp, of_attention = ([bool(some & words_) for words_ in own] for some in (BEFORE_MLP, BEFORE_ATTENTION))
    if len(norms) == 2:
        if of_mlp[0] != of_mlp[1]:
            return (norms[1], norms[0]) if of_mlp[0] else (norms[0], norms[1])
        if of_attention[0] != of_attention[1]:
            return (norms[0], norms[1]) if of_attention[0] else (norms[1], norms[0])
        if numbers[0] != numbers[1] and not any(of_mlp):
            return norms[0], norms[1]  # in natural order, as modules are
    raise InputError(f"of {names_of(norms)} it is not clear which is the norm before attention and which before the MLP")


def with_bias(prefix: str, module: Module) -> dict[str, Tensor]:
    """Weight and bias of a module; a missing bias is 0."""
    bias = module.tensors.get("bias", torch.zeros(module.shape[0]))
    return {f"{prefix}weight": module.tensors["weight"], f"{prefix}bias": bias}


def names_of(modules: Iterable[Module]) -> str:
    """The keys of modules, the first ones of many."""
    return listed(name for module in modules for name in module.names)


def listed(names: Iterable[str]) -> str:
    """Some names, and how many more."""
    names = list(names)
    return (", ".join(names[:6]) or "none") + (f" and {len(names) - 6} more" if len(names) > 6 else "")
