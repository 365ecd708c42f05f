"""Values of codes: principal components of pictures, random bits, rules over the bits of an id, given tables.

Shapes: V tokens, P bits of a picture or of a random code, E n_embed, D d_model, N binary places that distinguish all ids,
U distinct rows.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from glyphlm.base.errors import InputError
from glyphlm.base.progress import meter, working
from glyphlm.base.records import to_json
from glyphlm.base.tensors import load_foreign
from glyphlm.modeling.config import SubstrateConfig
from glyphlm.modeling.substrate import Substrate, scale_rows

ROWS = 4096  # rows worked on at once: 64 MiB of float32 at width 4096


def chunks(rows: Any) -> Iterator[Any]:
    """Views of at most ROWS rows of an array or tensor, in order."""
    for start in range(0, len(rows), ROWS):
        yield rows[start : start + ROWS]


def shown_chunks(rows: Any, title: str) -> Iterator[Any]:
    """`chunks` under a progress bar."""
    with meter(title, len(rows)) as bar:
        for part in chunks(rows):
            yield part
            bar.advance(len(part))


def first_equal(rows: Iterable[np.ndarray]) -> np.ndarray:
    """For each row the number of the first one that equals it byte for byte, int64 [V]."""
    seen: dict[bytes, int] = {}
    return np.array([seen.setdefault(hashlib.sha256(row.tobytes()).digest(), number) for number, row in enumerate(rows)])


def principal_components(bits_VP: np.ndarray, n_embed: int) -> Tensor:
    """The first `n_embed` principal components of the rows, float32 [V, E] (PCA without whitening).

    Equal rows get equal bytes: each distinct row is projected once. The order of the P columns has no effect, so the
    published order of pixels is not applied here.
    """
    mean_P, axes_PE = principal_axes(bits_VP, n_embed)
    first_V = first_equal(np.packbits(bits_VP, axis=1))
    is_first_V = first_V == np.arange(len(first_V))
    code_VE = np.empty((len(bits_VP), n_embed), np.float32)
    for rows_U in shown_chunks(np.flatnonzero(is_first_V), "projecting codes"):
        code_VE[rows_U] = (bits_VP[rows_U] - mean_P) @ axes_PE
    for rows in chunks(np.flatnonzero(~is_first_V)):
        code_VE[rows] = code_VE[first_V[rows]]
    return torch.from_numpy(code_VE)


def principal_axes(bits_VP: np.ndarray, n_embed: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean row and principal axes, float32 [P] and [P, E], from an exact covariance.

    Each axis is turned so that its largest entry is positive; eigenvectors leave the sign open.
    """
    together_PP = np.zeros((bits_VP.shape[1],) * 2, np.float32)
    for rows in shown_chunks(bits_VP, "comparing columns"):
        x_UP = rows.astype(np.float32)
        together_PP += x_UP.T @ x_UP  # counts below 2^24 are exact in float32; numpy computes half of the square
    mean_P = torch.from_numpy(together_PP.diagonal() / np.float64(len(bits_VP)))
    covariance_PP = torch.from_numpy(together_PP).double().div_(len(bits_VP)).sub_(torch.outer(mean_P, mean_P))
    with one_thread(), working("finding principal components"):
        axes_PE = torch.linalg.eigh(covariance_PP).eigenvectors.flip(1)[:, :n_embed]
    largest_E = axes_PE.abs().argmax(0)
    axes_PE = axes_PE * axes_PE[largest_E, torch.arange(axes_PE.shape[1])].sign()
    return mean_P.float().numpy(), axes_PE.float().numpy()


@contextmanager
def one_thread() -> Iterator[None]:
    """Run LAPACK on one thread: its results depend on the number of threads, and more hardly speed it up."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def centred(bits_VP: np.ndarray, order_P: np.ndarray) -> Tensor:
    """The rows themselves, columns in this order, minus their mean: float32 [V, P]."""
    mean_P = bits_VP.mean(0, dtype=np.float64).astype(np.float32)
    code_VP = np.empty(bits_VP.shape, np.float32)
    for code_UP, bits_UP in zip(chunks(code_VP), chunks(bits_VP)):
        code_UP[:] = np.take(bits_UP - mean_P, order_P, axis=1)
    return torch.from_numpy(code_VP)


def random_bits(vocab_size: int, width: int, places: int, seed: int) -> np.ndarray:
    """Random rows that are distinct by construction, uint8 {0,1} [V, P].

    `places` of the columns, wherever they fall, hold the bits of distinct random numbers.
    """
    rng = np.random.default_rng(seed)
    bits_VP = rng.integers(0, 2, (vocab_size, width), np.uint8)
    numbers_V = rng.permutation(1 << places)[:vocab_size]
    columns_N = rng.permutation(width)[:places]
    bits_VP[:, columns_N] = numbers_V[:, None] >> np.arange(places) & 1
    return bits_VP


def random_affine(places: int, width: int, seed: int) -> tuple[Tensor, Tensor]:
    """A and b of an affine map over GF(2) that keeps all ids apart, uint8 [N, E] and [E].

    A is drawn evenly among the matrices of full rank: GL(N, 2) where E is N (arXiv 2605.09751), else rows of it.
    """
    rng = np.random.default_rng(seed)
    affine_NE = rng.integers(0, 2, (places, width), np.uint8)
    while not are_independent(affine_NE):  # 3 of 10 square matrices are, and nearly all wider ones
        affine_NE = rng.integers(0, 2, (places, width), np.uint8)
    return torch.from_numpy(affine_NE), torch.from_numpy(rng.integers(0, 2, width, np.uint8))


def are_independent(bits_NE: np.ndarray) -> bool:
    """Whether no row is a sum, modulo 2, of other rows."""
    basis: list[int] = []
    for row in np.packbits(bits_NE, axis=1):
        rest = int.from_bytes(row.tobytes())
        for other in basis:
            rest = min(rest, rest ^ other)  # clears the leading bit of `other`
        if not rest:
            return False
        basis.append(rest)
    return True


def shuffled_ids(vocab_size: int, seed: int) -> Tensor:
    """A random permutation of 0..V-1, int32 [V]."""
    return torch.randperm(vocab_size, generator=torch.Generator().manual_seed(seed)).int()


def orthonormal_rows(n_embed: int, d_model: int, seed: int) -> Tensor:
    """A random matrix with orthonormal rows, float32 [E, D]."""
    generator = torch.Generator().manual_seed(seed)
    q_DE, r_EE = torch.linalg.qr(torch.randn(d_model, n_embed, generator=generator, dtype=torch.float64))
    return (q_DE * r_EE.diagonal().sign()).T.float().contiguous()


def read_table(path: Path, vocab_size: int, n_embed: int) -> Tensor:
    """A given table, float32 [V, E].

    Raises:
        InputError: the file cannot be read, holds another shape, or a number that is not finite.
    """
    found = load_foreign(path)
    plain = found.layout == torch.strided and not found.is_quantized and not found.is_complex()
    if found.shape != (vocab_size, n_embed) or not plain:
        raise InputError(f"{path} holds {found.dtype} of shape {tuple(found.shape)}, but the tokenizer and n_embed need "
                         f"real numbers of shape ({vocab_size}, {n_embed}); give the tokenizer and --n-embed of the table")
    table_VE = found.float().contiguous()
    finite_V = torch.cat([rows.norm(dim=1).isfinite() for rows in chunks(table_VE)])
    if not finite_V.all():
        raise InputError(f"{path} holds NaN, infinity or numbers whose squares are infinite in float32, first in row "
                         f"{finite_V.int().argmin()}; give finite numbers of moderate size")
    return table_VE


def scale_table(table_VE: Tensor, scale: str) -> None:
    """Scale each row in place, as `scale_rows`, without a second table in memory."""
    for rows in chunks(table_VE):
        rows.copy_(scale_rows(rows, scale))


def put_id_bits(table_VE: Tensor, places: int, scale: str) -> None:
    """Scale the table in place with the id in its last columns: +-(rms of all other columns), so that no rows are equal."""
    content_VE, bits_VN = table_VE[:, :-places], table_VE[:, -places:]
    scale_table(content_VE, scale)
    energy = sum(rows.double().square().sum().item() for rows in chunks(content_VE))
    amplitude = (energy / content_VE.numel()) ** 0.5 or 1.0
    signs_VN = (torch.arange(len(table_VE))[:, None] >> torch.arange(places) & 1) * 2 - 1
    bits_VN.copy_(signs_VN * amplitude)
    scale_table(table_VE, scale)


def rule_tensors(config: SubstrateConfig) -> dict[str, Tensor]:
    """The parameters of a rule, under their names in Substrate."""
    tensors = {}
    if config.shuffle_seed is not None:
        tensors["shuffled_V"] = shuffled_ids(config.vocab_size, config.shuffle_seed)
    if config.kind == "affine_bits":
        tensors["affine_NE"], tensors["offset_E"] = random_affine(config.places, config.n_embed, config.seed)
    return tensors


def all_codes(config: SubstrateConfig, tensors: dict[str, Tensor]) -> Tensor:
    """The codes of all ids before they are lifted, float32 [V, E]: the table, or what the rule gives."""
    if "table_VE" in tensors:
        return tensors["table_VE"]
    module = unlifted(config)
    module.load_state_dict(tensors)
    code_VE = torch.empty(config.vocab_size, config.n_embed)
    for rows, ids in zip(chunks(code_VE), chunks(torch.arange(config.vocab_size))):
        rows.copy_(module.codes(ids))
    return code_VE


def unlifted(config: SubstrateConfig) -> Substrate:
    """The module without a lift, of width n_embed."""
    return Substrate(replace(config, lift="none"), config.n_embed)


def expected_shapes(config: SubstrateConfig) -> dict[str, tuple[int, ...]]:
    """The tensors that codes are stored as: a table, the parameters of a rule, or none."""
    with torch.device("meta"):
        return {name: tuple(tensor.shape) for name, tensor in unlifted(config).state_dict().items()}


def check_tensors(path: Path, config: SubstrateConfig, tensors: Mapping[str, Tensor]) -> None:
    """Refuse tensors of other names or shapes than the config's.

    Raises:
        InputError: with what was found in `path` and what belongs there.
    """
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    try:
        expected = expected_shapes(config)
    except ValueError as error:
        raise InputError(f"the codes of {path} are described wrongly ({error}); make them again") from None
    if found != expected:
        raise InputError(f"{path} holds the codes {found}, not {expected}; make it again")


def fingerprint(config: SubstrateConfig, tokenizer_fingerprint: str, tensors: Mapping[str, Tensor]) -> str:
    """sha256 of kind, vocabulary, how codes are scaled and lifted, seeds, and the bytes of the table or of the rule."""
    left_out = ("trainable", "fingerprint")
    described = {name: value for name, value in asdict(config).items() if name not in left_out}
    digest = hashlib.sha256(to_json({"tokenizer": tokenizer_fingerprint, **described}).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(name.encode())
        digest.update(tensor.contiguous().numpy().reshape(-1).view(np.uint8).data)  # no copy: a table may fill the memory
    return digest.hexdigest()
