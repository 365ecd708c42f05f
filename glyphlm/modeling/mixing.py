"""The formulas of the fusion methods, as functions of tensors. Torch only; this file travels inside every run folder.

Shapes: as in model.py; M experts of widths D.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .config import FusionConfig


def weighted_logits(parts: Sequence[Tensor], weights_BTM: Tensor, biased: bool) -> Tensor:
    """The fused state x_BTF from which the joined head computes the weighted sum of logits: a logarithmic opinion pool
    (Heskes 1998); with equal weights it is mean_logits, the published fusion (arXiv 2507.07129v1, section 3.1)."""
    scaled = [x_BTD * weight_BT[..., None] for x_BTD, weight_BT in zip(parts, weights_BTM.unbind(-1))]
    return torch.cat([*scaled, weights_BTM] if biased else scaled, -1)


def mean_probs(logp_MBTV: Tensor, weights_MBT: Tensor) -> Tensor:
    """Log-probabilities of the mixture: the linear opinion pool (Stone 1961), the ensemble of Branch-Train-Merge
    (arXiv 2208.03306)."""
    return (logp_MBTV + weights_MBT.log()[..., None]).logsumexp(0)


def max_confidence(logp_MBTV: Tensor) -> Tensor:
    """The distribution of the expert that gives its likeliest token the highest probability: its choice is that of the max
    rule (Kittler et al. 1998, On combining classifiers)."""
    confident_BT = logp_MBTV.amax(-1).argmax(0)
    return logp_MBTV.take_along_dim(confident_BT[None, ..., None], 0)[0]


def posterior(nats_BTM: Tensor, prior_M: Tensor, temperature: float) -> Tensor:
    """The probability of each expert, given its summed cross-entropy on all tokens so far: Bayes' rule, token by token
    (Branch-Train-Merge, arXiv 2208.03306; with a temperature as in c-BTM, 2303.14177)."""
    return (prior_M.log() - nats_BTM / temperature).softmax(-1)


def updated_nats(
    nats_XM: Tensor, new_XM: Tensor, prior_M: Tensor, temperature: float, memory: float | None, reset: float
) -> Tensor:
    """The sums that `posterior` reads after one more token, whose cross-entropy under each expert is `new_XM`.

    With `memory`, each token multiplies the earlier sums by exp(-1 / memory). With `reset`, a text switches to another
    expert, drawn from `prior_M`, with that probability at each token: the forward pass of a hidden Markov model, fixed share
    (Herbster & Warmuth 1998, Tracking the best expert). No expert is then less likely than `reset` times its prior, so the
    weights follow a change of language within a few tokens.
    """
    nats_XM = (nats_XM if memory is None else nats_XM * math.exp(-1 / memory)) + new_XM
    if not reset:
        return nats_XM
    weights_XM = (1 - reset) * posterior(nats_XM, prior_M, temperature) + reset * prior_M
    return torch.where(prior_M > 0, -temperature * (weights_XM / prior_M).log(), nats_XM)


def running_nats(
    nats_BTM: Tensor, follows_BT: Tensor, start_B1M: Tensor | float, documents_BT: Tensor | None, prior_M: Tensor,
    config: FusionConfig,
) -> Tensor:
    """`updated_nats` over a text, [B, T, M]: its value at every position.

    Args:
        nats_BTM: Cross-entropy of each token under each expert.
        follows_BT: Whether a token is counted: its predecessor is text of the same document.
        start_B1M: The value before the first position.
        documents_BT: Number of the document of each token, each of which begins at 0.
    """
    same_BTT = None if documents_BT is None else documents_BT[:, :, None] == documents_BT[:, None]
    if config.memory is None and not config.reset:
        counted_BTM = nats_BTM * follows_BT[..., None]
        if same_BTT is None:
            return start_B1M + counted_BTM.cumsum(1)
        return same_BTT.tril().to(nats_BTM.dtype) @ counted_BTM
    total_BM, totals = torch.zeros_like(nats_BTM[:, 0]) + (start_B1M[:, 0] if isinstance(start_B1M, Tensor) else 0.0), []
    for place in range(nats_BTM.shape[1]):
        if same_BTT is not None and place:
            total_BM = total_BM * same_BTT[:, place, place - 1, None]
        newer_BM = updated_nats(total_BM, nats_BTM[:, place], prior_M, config.temperature, config.memory, config.reset)
        total_BM = torch.where(follows_BT[:, place, None], newer_BM, total_BM)
        totals.append(total_BM)
    return torch.stack(totals, 1)


def segments(text_BS: Tensor, documents_BS: Tensor | None, length: int | None) -> tuple[Tensor, Tensor]:
    """The segments of each text, in each of which a router chooses an expert.

    Returns:
        same_BSS: Whether two positions belong to one segment, the second one not later.
        place_BS: The place of each position in its segment, from 0.
    """
    documents_BS = torch.zeros_like(text_BS) if documents_BS is None else documents_BS
    same_BSS = documents_BS[:, :, None] == documents_BS[:, None]
    place_BS = (same_BSS.tril() & text_BS[:, None]).sum(-1) - 1
    if length is not None:
        segment_BS, place_BS = place_BS // length, place_BS % length
        same_BSS = same_BSS & (segment_BS[:, :, None] == segment_BS[:, None])
    return same_BSS.tril(), place_BS


def route(nats_BSM: Tensor, same_BSS: Tensor, place_BS: Tensor, prior_M: Tensor, route_after: int) -> Tensor:
    """Weights [B, S, M] by routers, small models of which each expert has one.

    Over the first `route_after` tokens of a segment all experts are mixed, as by `posterior` of the routers; from then on
    only the most probable expert reads (SmallTalk LM, arXiv 2410.03529, where it reads the first tokens as well, before they
    are known).

    Args:
        nats_BSM: Cross-entropy of each token under each router.
        same_BSS, place_BS: As `segments` gives them.
    """
    early_BS = place_BS < route_after
    total_BSM = same_BSS.to(nats_BSM.dtype) @ (nats_BSM * early_BS[..., None])
    weights_BSM = posterior(total_BSM, prior_M, 1.0)
    chosen_BSM = F.one_hot(weights_BSM.argmax(-1), weights_BSM.shape[-1]).to(weights_BSM.dtype)
    return torch.where((place_BS < route_after - 1)[..., None], weights_BSM, chosen_BSM)


def gate(scores_BTM: Tensor, active_BTM: Tensor | None = None) -> Tensor:
    """Weights by trained scores (Jacobs et al. 1991); of the `active` experts only, if given (arXiv 1701.06538)."""
    return (scores_BTM if active_BTM is None else scores_BTM.masked_fill(~active_BTM, -torch.inf)).softmax(-1)


def choose(scores_BSM: Tensor, read_BS: Tensor, top_k: int) -> Tensor:
    """The `top_k` experts of each text with the highest scores over the positions `read_BS`, bool [B, M].

    A text keeps its experts: an expert that skips tokens lacks their keys and values, and could not resume.
    """
    sums_BM = (scores_BSM * read_BS[..., None]).sum(1)
    return torch.zeros_like(sums_BM, dtype=torch.bool).scatter(1, sums_BM.topk(top_k).indices, True)
