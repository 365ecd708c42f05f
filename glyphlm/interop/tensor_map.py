"""The tensors of a published checkpoint -> our names, by structure: shapes, numbers in paths, and words of names.

The key names of the published files are not known, so nothing here relies on one spelling. Tensors that are left over,
missing or ambiguous are refused by name. A module is what shares a path but for the last word (weight, bias); the MLP is
4 D wide. Shapes: V vocabulary, D d_model, E width of a code, N binary places of an id.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from glyphlm.base.errors import InputError
from glyphlm.interop.checkpoint_files import Sizes, listed, without_derived, words

Path = tuple[str, ...]  # the words and numbers of a key
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
    """Tensors that share a path: a weight, a bias, or both; `names` are the keys in the file."""

    path: Path
    tensors: dict[str, Tensor] = field(default_factory=dict)
    names: list[str] = field(default_factory=list)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the weight; () where the module has no weight."""
        return tuple(self.tensors["weight"].shape) if "weight" in self.tensors else ()

    def has_bias(self, size: int) -> bool:
        """Whether there is a bias with this number of values."""
        return "bias" in self.tensors and self.tensors["bias"].shape == (size,)


def _natural(path: Path) -> list[tuple[int, str]]:
    """Sort key of the natural order, in which 10 follows 9."""
    return [(int(word), "") if word.isdigit() else (-1, word) for word in path]


def _gather(tensors: Mapping[str, Tensor]) -> list[Module]:
    """Tensors by module, in natural order of paths."""
    modules: dict[Path, Module] = {}
    for name, tensor in tensors.items():
        path = words(name)
        leaf = LEAVES.get(path[-1]) if path else None
        path, leaf = (path[:-1], leaf) if leaf else (path, "weight")
        module = modules.setdefault(path, Module(path))
        if leaf in module.tensors:
            raise InputError(f"{name!r} and one of {listed(module.names)} cannot be distinguished; rename one of them")
        module.tensors[leaf] = tensor
        module.names.append(name)
    return sorted(modules.values(), key=lambda module: _natural(module.path))


def _map_block(prefix: str, block: Sequence[Module], d: int) -> tuple[dict[str, Tensor], bool, list[tuple[str, str]]]:
    """The tensors of a block under our names, whether q, k, v were one matrix, and what was assumed of which key."""
    matrices = [module for module in block if len(module.shape) == 2]
    up, down = _find_mlp(matrices, d)
    if up.shape == (d, 4 * d):  # [in, out], as GPT-2 keeps them
        for module in matrices:
            module.tensors["weight"] = module.tensors["weight"].T
    attention = [module for module in matrices if module not in (up, down)]
    qkv, out, fused = _find_attention(attention, d)
    norms = _find_norms([module for module in block if module.shape == (d,)])
    left = [module for module in block if module not in (up, down, *attention, *norms)]
    if left:
        raise InputError(f"left over are {_names_of(left)}; a model that needs them cannot be imported")
    found = {f"{prefix}attention.qkv.weight": qkv, f"{prefix}attention.out.weight": out}
    for name, module in zip(("attention_norm", "mlp_norm", "mlp.up", "mlp.down"), (*norms, up, down)):
        found |= _with_bias(f"{prefix}{name}.", module)
    return found, fused, _notes_on(attention, norms)


def _notes_on(attention: Sequence[Module], norms: Sequence[Module]) -> list[tuple[str, str]]:
    """What is assumed, each with the key that it concerns."""
    zeros = [name for module in attention if "bias" in module.tensors for name in module.names if name.endswith("bias")]
    bare = [name for module in norms if "bias" not in module.tensors for name in module.names]
    return [*(("biases of attention that are all 0, left out", name) for name in zeros),
            *(("taken for LayerNorms with bias 0, not for RMSNorms", name) for name in bare)]


def _find_mlp(matrices: Sequence[Module], d: int) -> tuple[Module, Module]:
    """D -> 4 D and back, exactly one each; the length of a bias distinguishes rows from columns, else rows are outputs."""
    wide = [module for module in matrices if 4 * d in module.shape]
    up = next((module for module in wide if module.has_bias(4 * d)), None)
    up = up or next((module for module in wide if module.shape == (4 * d, d)), wide[0])
    return up, next(module for module in wide if module is not up)


def _find_attention(matrices: Sequence[Module], d: int) -> tuple[Tensor, Tensor, bool]:
    """q, k, v stacked [3 D, D], the output projection [D, D], and whether the file had q, k, v in one matrix."""
    biased = [module for module in matrices if "bias" in module.tensors and bool((module.tensors["bias"] != 0).any())]
    if biased:
        raise InputError(f"attention has biases that are not 0 ({_names_of(biased)}); our blocks have none, and no other "
                         "weight can replace them")
    fused = [module for module in matrices if module.shape == (3 * d, d)]
    single = [module for module in matrices if module not in fused]
    parts = [[module for module in single if words_ & set(module.path[-3:])] for words_ in PARTS.values()]
    out = [module for module in single if not any(module in part for part in parts)]
    rows = [sum(module.shape[0] for module in part) for part in parts]  # a part may be several heads
    if rows != ([0] * 3 if fused else [d] * 3) or len(fused) > 1 or [module.shape for module in out] != [(d, d)]:
        raise InputError(f"{_names_of(matrices)}: it is not clear which are q, k, v and the output projection of width {d}")
    stacked = fused or [module for part in parts for module in part]
    return torch.cat([module.tensors["weight"] for module in stacked]), out[0].tensors["weight"], bool(fused)


def _find_norms(norms: Sequence[Module]) -> tuple[Module, Module]:
    """The norms before attention and before the MLP, identified by words in their names, else by their numbers."""
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
    raise InputError(f"{_names_of(norms)}: it is not clear which is the norm before attention and which before the MLP")


def _with_bias(prefix: str, module: Module) -> dict[str, Tensor]:
    """Weight and bias of a module; a missing bias is 0."""
    bias = module.tensors.get("bias", torch.zeros(module.shape[0]))
    return {f"{prefix}weight": module.tensors["weight"], f"{prefix}bias": bias}


def _names_of(modules: Iterable[Module]) -> str:
    """The keys of modules, the first ones of many."""
    return listed(name for module in modules for name in module.names)


HEAD = {"head", "heads", "output", "out", "unembed", "unembedding", "classifier", "logits"}


@dataclass
class Mapped:
    """One model under our names, without its substrate; q, k, v of attention are stacked as `qkv` [3 D, D].

    `fused`: the file had them in one matrix, whose row order is unknown. `codes` are the candidates for the substrate: a
    table [V, E], or the bits [E, N] and [E] of an affine code. `notes` list what was left out or assumed.
    """

    tensors: dict[str, Tensor]
    codes: list[Tensor]
    fused: bool
    notes: list[str]


def map_experts(tensors: Mapping[str, Tensor], sizes: Sizes, rope_base: float) -> list[Mapped]:
    """The models that the tensors are: one, or the experts of a fused one, in natural order of their names.

    Raises:
        InputError: tensors are left over, missing, ambiguous, not finite, or do not match the sizes.
    """
    kept, notes = without_derived(tensors, sizes, rope_base)
    modules = _gather(kept)
    return [_map_model(part, sizes, notes) for part in _split_experts(modules, _find_heads(modules, sizes))]


def _find_heads(modules: Sequence[Module], sizes: Sizes) -> list[Module]:
    """The output heads [V, D]: those with a bias, else those that are named so."""
    shaped = [module for module in modules if module.shape == (sizes.vocab_size, sizes.d_model)]
    biased = [module for module in shaped if module.has_bias(sizes.vocab_size)]
    heads = biased or [module for module in shaped if HEAD & set(module.path[-2:])]
    if not heads:
        raise InputError(f"no tensor ({sizes.vocab_size}, {sizes.d_model}) is the output head by its bias or its name "
                         f"(found: {_names_of(shaped)}); tied heads cannot be imported")
    return heads


def _split_experts(modules: Sequence[Module], heads: Sequence[Module]) -> list[list[Module]]:
    """The modules of each head's model; modules without a head of their own belong to all.

    The first word in which the paths of the heads differ marks an expert: a module belongs to the expert whose mark comes
    first in its path (`experts.1.layers.0` to 1).
    """
    if len(heads) == 1:
        return [list(modules)]
    marks = next((column for column in zip(*(head.path for head in heads)) if len(set(column)) > 1), ())
    if len(set(marks)) != len(heads):
        raise InputError(f"{len(heads)} heads ({_names_of(heads)}) whose names do not distinguish experts")
    owner = {module.path: next((word for word in module.path if word in marks), None) for module in modules}
    return [[module for module in modules if owner[module.path] in (mark, None)] for mark in marks]


def _map_model(modules: Sequence[Module], sizes: Sizes, notes: Sequence[str]) -> Mapped:
    """One model under our names."""
    found, inside, assumed = Mapped({}, [], False, list(notes)), set(), {}
    for number, (start, block) in enumerate(_find_blocks(modules, sizes).items()):
        try:
            tensors, fused, more = _map_block(f"blocks.{number}.", block, sizes.d_model)
        except InputError as error:
            raise InputError(f"block {'.'.join(start)}: {error}") from None
        found.tensors |= tensors
        found.fused |= fused
        for what, name in more:
            assumed.setdefault(what, []).append(name)
        inside |= {module.path for module in block}
    found.notes += [f"{what}: {listed(names)}" for what, names in assumed.items()]
    _map_outside(found, [module for module in modules if module.path not in inside], sizes)
    _check_finite(found)
    return found


def _map_outside(found: Mapped, modules: Sequence[Module], sizes: Sizes) -> None:
    """Head, final norm and codes."""
    heads, norms = _find_heads(modules, sizes), [module for module in modules if module.shape == (sizes.d_model,)]
    if len(heads) != 1 or len(norms) != 1:
        raise InputError(f"one head and one final norm are needed, as our blocks end in a norm that no weights can undo; "
                         f"found are {_names_of(heads)} and {_names_of(norms)}")
    rest = [module for module in modules if module not in (*heads, *norms)]
    left = [module for module in rest if not all(_is_code(tensor, sizes) for tensor in module.tensors.values())]
    if left:
        raise InputError(f"left over are {_names_of(left)}; a model that needs them cannot be imported")
    found.codes = [tensor for module in rest for tensor in module.tensors.values()]
    widths = [code.shape[1] for code in found.codes if code.shape[0] == sizes.vocab_size]
    if sizes.n_embed and widths and sizes.n_embed not in widths:
        found.notes.append(f"config.json has n_embed {sizes.n_embed}; the width of the table, {widths[0]}, is used")
    found.tensors |= {f"head.{leaf}": tensor for leaf, tensor in heads[0].tensors.items()} | _with_bias("norm.", norms[0])


def _is_code(tensor: Tensor, sizes: Sizes) -> bool:
    """Whether a tensor can be part of the substrate: a table [V, E], or the bits [E, N] or [E] of an affine code."""
    shape, places = tuple(tensor.shape), (sizes.vocab_size - 1).bit_length()
    if len(shape) == 2 and shape[0] == sizes.vocab_size:
        return shape[1] > 0 and sizes.d_model % shape[1] == 0
    return shape in ((places, places), (places,)) and bool(((tensor == 0) | (tensor == 1)).all())


def _find_blocks(modules: Sequence[Module], sizes: Sizes) -> dict[Path, list[Module]]:
    """The modules of each block, in order: everything below the deepest number that two MLP matrices share."""
    shapes = {(4 * sizes.d_model, sizes.d_model), (sizes.d_model, 4 * sizes.d_model)}
    wide = [module.path for module in modules if module.shape in shapes]
    shared = Counter(start for path in wide for start in _numbered_starts(path))
    own = {max((start for start in _numbered_starts(path) if shared[start] > 1), key=len, default=Path()) for path in wide}
    starts = [start for start in sorted(own, key=_natural) if shared[start] == 2]
    if len(starts) != sizes.n_layer or len(starts) != len(own):
        raise InputError(f"{len(starts)} numbered blocks with two MLP matrices of {sizes.d_model} x {4 * sizes.d_model} "
                         f"were found, and n_layer is {sizes.n_layer}; give all weights (other ratios cannot be imported)")
    for first, second in zip(starts, starts[1:]):
        if first[:-1] == second[:-1] and int(second[-1]) != int(first[-1]) + 1:
            raise InputError(f"block {'.'.join(first)} is followed by {'.'.join(second)}; shards are missing")
    return {start: [module for module in modules if module.path[: len(start)] == start] for start in starts}


def _numbered_starts(path: Path) -> list[Path]:
    """The prefixes of a path that end in a number."""
    return [path[:end] for end in range(1, len(path) + 1) if path[end - 1].isdigit()]


def _check_finite(found: Mapped) -> None:
    """Refuse weights that are not finite floats, and codes that are not finite."""
    for name, tensor in [*found.tensors.items(), *(("the substrate", code) for code in found.codes)]:
        if name != "the substrate" and not tensor.is_floating_point():
            raise InputError(f"{name} is stored as {tensor.dtype}; give weights in float32, bfloat16 or float16")
        if not bool(tensor.isfinite().all()):
            raise InputError(f"{name} holds NaN or infinity; the file is damaged or training diverged")
