"""What each method of fusion computes, as functions of tensors. Torch only; this file travels inside every run folder.

Shapes: as in model.py; M experts of widths D.
"""

from collections.abc import Sequence

import torch
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


def gate(scores_BTM: Tensor, speaks_BTM: Tensor | None = None) -> Tensor:
    """Weights by the scores that experts give themselves (Jacobs et al. 1991), over those that speak (arXiv 1701.06538)."""
    return (scores_BTM if speaks_BTM is None else scores_BTM.masked_fill(~speaks_BTM, -torch.inf)).softmax(-1)


def choose(scores_BSM: Tensor, read_BS: Tensor, top_k: int) -> Tensor:
    """The `top_k` experts of each text with the highest scores over the positions that count, bool [B, M].

    A text keeps its experts: one that skips tokens has no keys and values of them, and could not come back.
    """
    sums_BM = (scores_BSM * read_BS[..., None]).sum(1)
    return torch.zeros_like(sums_BM, dtype=torch.bool).scatter(1, sums_BM.topk(top_k).indices, True)
