"""How a head of kind code numbers the ids: the digits of a number are classes, so similar ids should share leading digits.

Shapes: V vocabulary, E width of a code, n ids of a group.
"""

import torch
from torch import Tensor

from glyphlm.modeling.heads import CodeHead
from glyphlm.modeling.substrate import Substrate
from glyphlm.substrate.codes import one_thread, shuffled_ids


@torch.no_grad()
def number_ids(head: CodeHead, substrate: Substrate, counts_V: Tensor) -> None:
    """Fill in the numbers of the ids, in the order that the head's settings name.

    Args:
        counts_V: How often each id occurs in the training data.
    """
    config = head.config
    if config.order == "identity":
        return
    if config.order == "shuffled":
        head.place_V.copy_(shuffled_ids(head.vocab_size, config.seed))
        return
    ids_V = counts_V.argsort(descending=True, stable=True)
    if config.order == "clusters":
        codes_VE = substrate.codes(torch.arange(head.vocab_size)).float()
        sizes = [head.base**level for level in range(config.digits - 1, 0, -1)]
        short_S, rest_n = ids_V[: config.shortlist], ids_V[config.shortlist :]
        with one_thread():
            ids_V = torch.cat([short_S, clustered(codes_VE, rest_n, sizes)])
    head.place_V[ids_V] = torch.arange(head.vocab_size, dtype=torch.int32)


def clustered(codes_VE: Tensor, ids_n: Tensor, sizes: list[int]) -> Tensor:
    """The ids in groups of sizes[0] ids with similar codes, these in groups of sizes[1] ..; each in their old order.

    Groups are halved across the first principal axis of their codes, at a multiple of the size, until they have it.
    """
    if not sizes:
        return ids_n
    if len(ids_n) <= sizes[0]:
        return clustered(codes_VE, ids_n, sizes[1:])
    code_nE = codes_VE[ids_n] - codes_VE[ids_n].mean(0)
    axis_E = torch.linalg.eigh(code_nE.T @ code_nE).eigenvectors[:, -1]
    axis_E = axis_E * axis_E[axis_E.abs().argmax()].sign()  # eigenvectors leave the sign open
    half = -(-len(ids_n) // (2 * sizes[0])) * sizes[0]
    first_n = torch.zeros(len(ids_n), dtype=torch.bool)
    first_n[(code_nE @ axis_E).argsort(stable=True)[:half]] = True
    return torch.cat([clustered(codes_VE, part, sizes) for part in (ids_n[first_n], ids_n[~first_n])])
