"""What each method of fusion computes, as functions of tensors. Torch only; this file travels inside every run folder.

Shapes: as in model.py; M experts of widths D.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def weighted_logits(parts: Sequence[Tensor], weights_BTM: Tensor, biased: bool) -> Tensor:
    """The fused state, under which the head gives the weighted sum of logits: a logarithmic opinion pool (Heskes 1998).

    With equal weights it is mean_logits, the published fusion (arXiv 2507.07129v1, section 3.1).
    """
    scaled = [x_BTD * weight_BT[..., None] for x_BTD, weight_BT in zip(parts, weights_BTM.unbind(-1))]
    return torch.cat([*scaled, weights_BTM] if biased else scaled, -1)


def mean_probs(logp_MBTV: Tensor, weights_MBT: Tensor) -> Tensor:
    """Log-probabilities of the mixture: the linear opinion pool (Stone 1961), the ensemble of Branch-Train-Merge
    (arXiv 2208.03306)."""
    return (logp_MBTV + weights_MBT.log()[..., None]).logsumexp(0)


def max_confidence(logp_MBTV: Tensor) -> Tensor:
    """The distribution of the expert whose likeliest token has the highest probability; its choice is that of the max
    rule (Kittler et al. 1998, On combining classifiers)."""
    surest_BT = logp_MBTV.amax(-1).argmax(0)
    return logp_MBTV.take_along_dim(surest_BT[None, ..., None], 0)[0]


def posterior(nats_BTM: Tensor, prior_M: Tensor, temperature: float) -> Tensor:
    """How likely each expert is the one whose text this is, after what it gave to all tokens so far (their summed nats):
    Bayes' rule, token by token (Branch-Train-Merge, arXiv 2208.03306; with a temperature as in c-BTM, 2303.14177)."""
    return (prior_M.log() - nats_BTM / temperature).softmax(-1)


def updated_nats(
    nats_XM: Tensor, new_XM: Tensor, prior_M: Tensor, temperature: float, memory: float | None, reset: float
) -> Tensor:
    """What `posterior` counts of each expert after one token more, of which it gave `new_XM`.

    With `memory` what is older than that many tokens has faded (each token multiplies it by exp(-1 / memory)). With
    `reset` a text changes its expert at each token with that probability, to any of them by `prior_M`: the forward pass
    of a hidden Markov model, fixed share (Herbster & Warmuth 1998, Tracking the best expert). No expert is then less
    likely than `reset` times its prior, so that a change of language is followed within a few tokens.
    """
    nats_XM = (nats_XM if memory is None else nats_XM * math.exp(-1 / memory)) + new_XM
    if not reset:
        return nats_XM
    weights_XM = (1 - reset) * posterior(nats_XM, prior_M, temperature) + reset * prior_M
    return torch.where(prior_M > 0, -temperature * (weights_XM / prior_M).log(), nats_XM)


def route(nats_BSM: Tensor, same_BSS: Tensor, place_BS: Tensor, prior_M: Tensor, route_after: int) -> Tensor:
    """weights_BSM of the experts by what a small model of each gave to the first `route_after` tokens of a segment.

    While they are read, as `posterior`; from then on the likeliest expert reads the segment alone (SmallTalk LM, arXiv
    2410.03529, which lets it read the first tokens, too, before they are known).

    Args:
        same_BSS: Whether two positions, the second one not later, belong to one segment.
        place_BS: The place of each position in its segment, from 0 on.
    """
    early_BS = place_BS < route_after
    total_BSM = same_BSS.to(nats_BSM.dtype) @ (nats_BSM * early_BS[..., None])
    weights_BSM = posterior(total_BSM, prior_M, 1.0)
    surest_BSM = F.one_hot(weights_BSM.argmax(-1), weights_BSM.shape[-1]).to(weights_BSM.dtype)
    return torch.where((place_BS < route_after - 1)[..., None], weights_BSM, surest_BSM)


def gate(scores_BTM: Tensor, speaks_BTM: Tensor | None = None) -> Tensor:
    """Weights by the scores that experts give themselves (Jacobs et al. 1991), over those that speak (arXiv 1701.06538)."""
    return (scores_BTM if speaks_BTM is None else scores_BTM.masked_fill(~speaks_BTM, -torch.inf)).softmax(-1)


def choose(scores_BSM: Tensor, read_BS: Tensor, top_k: int) -> Tensor:
    """The `top_k` experts of each text with the highest scores over the positions that count, bool [B, M].

    A text keeps its experts: one that skips tokens has no keys and values of them, and could not come back.
    """
    sums_BM = (scores_BSM * read_BS[..., None]).sum(1)
    return torch.zeros_like(sums_BM, dtype=torch.bool).scatter(1, sums_BM.topk(top_k).indices, True)
