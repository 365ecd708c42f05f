"""Batched decoding. Each prompt is read once; all of its samples continue from the same keys and values, in one batch.

Shapes: B prompts, C samples of each, R = B * C rows, T steps, V vocabulary, K candidates.
"""

from collections.abc import Collection, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from glyphlm.evaluation.model import EvalModel, Prefix
from glyphlm.runs.sampling import Sampling

# Tokens in a batch, padding and copies counted. Reading prompts on CPU is bound by arithmetic, where padding only costs
# (batches of 8 took 1.7 times as long, of 32 4.4 times); writing is bound by reading the weights, which rows share.
READ_TOKENS = {"cpu": 0, "cuda": 1 << 15}
WRITE_TOKENS = {"cpu": 1 << 13, "cuda": 1 << 15}
GREEDY = Sampling(temperature=0)


class Distribution(NamedTuple):
    """Candidate next ids, most likely first, and their cumulative probabilities along K, up to 1."""

    ids_BK: Tensor
    cdf_BK: Tensor

    def draw(self, uniforms_BC: Tensor) -> Tensor:
        """Inverse-CDF sampling: ids_BC, the candidates for these uniform numbers in [0, 1)."""
        places_BC = torch.searchsorted(self.cdf_BK, uniforms_BC.contiguous(), right=True).clamp(max=self.ids_BK.shape[1] - 1)
        return self.ids_BK.gather(1, places_BC)

    def mass(self, row: int, wanted_N: Tensor) -> float:
        """The probability of the `wanted_N` ids."""
        p_K = self.cdf_BK[row].diff(prepend=self.cdf_BK.new_zeros(1))
        return float(p_K[torch.isin(self.ids_BK[row], wanted_N)].sum())


def truncated(logits_BV: Tensor, sampling: Sampling) -> Distribution:
    """Temperature, then top_k, then top_p of what is left, as transformers do."""
    if sampling.temperature == 0:
        best_B1 = logits_BV.argmax(-1, keepdim=True)
        return Distribution(best_B1, torch.ones_like(best_B1, dtype=torch.float32))
    kept = min(sampling.top_k or logits_BV.shape[1], logits_BV.shape[1])
    logits_BK, ids_BK = (logits_BV.float() / sampling.temperature).topk(kept)
    p_BK = logits_BK.softmax(-1)
    p_BK[p_BK.cumsum(-1) - p_BK >= sampling.top_p] = 0
    cdf_BK = p_BK.cumsum(-1)
    return Distribution(ids_BK, cdf_BK / cdf_BK[:, -1:])


def uniforms(seed: int, task: str, number: int, copies: int, steps: int) -> np.ndarray:
    """Uniform numbers [C, T] of one item, independent of its batch; more steps do not change earlier ones."""
    return np.random.default_rng([seed, *task.encode(), number]).random((steps, copies), dtype=np.float32).T


def batches(lengths: Sequence[int], tokens: int) -> Iterator[list[int]]:
    """Indices of prompts in batches of at most `tokens` tokens with padding, longest first; a batch has at least one."""
    group: list[int] = []
    for number in sorted(range(len(lengths)), key=lambda number: -lengths[number]):
        if group and (len(group) + 1) * lengths[group[0]] > tokens:
            yield group
            group = []
        group.append(number)
    if group:
        yield group


def continue_prompts(
    model: EvalModel,
    prompts: Sequence[Sequence[int]],
    steps: Sequence[int],
    stops: Collection[int],
    sampling: Sampling = GREEDY,
    uniforms_BCT: np.ndarray | None = None,
) -> tuple[list[list[list[int]]], Distribution]:
    """The new ids of each sample of each prompt, without the stop id, and the distribution of the first new id.

    Args:
        steps: Maximum number of new ids of each prompt.
        uniforms_BCT: Random numbers in [0, 1) for C samples of each prompt; None for greedy decoding.
    """
    drawn_BCT = np.zeros((len(prompts), 1, max(steps)), np.float32) if uniforms_BCT is None else uniforms_BCT
    drawn_BCT = torch.from_numpy(drawn_BCT).to(model.device)
    copies = drawn_BCT.shape[1]
    logits_BV, prefix = model.read_prompts(prompts)
    first = truncated(logits_BV, sampling)
    drawn_RT = drawn_BCT.flatten(0, 1)
    limits = [limit for limit in steps for _ in range(copies)]
    found = _write(model, prefix, first.draw(drawn_BCT[..., 0]), limits, stops, sampling, drawn_RT)
    return [found[at : at + copies] for at in range(0, len(found), copies)], first


def _write(
    model: EvalModel,
    prefix: Prefix,
    ids_BC: Tensor,
    limits: Sequence[int],
    stops: Collection[int],
    sampling: Sampling,
    drawn_RT: Tensor,
) -> list[list[int]]:
    """Continue after the first new ids until each row has drawn a stop id or reached its limit."""
    copies, last_R = ids_BC.shape[1], ids_BC.flatten()
    found: list[list[int]] = [[] for _ in limits]
    rows = [row // copies for row in range(len(limits))]  # rows of `prefix`
    going = list(range(len(limits)))
    for step in range(1, max(limits) + 1):
        new = last_R.tolist()
        kept = [place for place, number in enumerate(new) if number not in stops]
        for place in kept:
            found[going[place]].append(new[place])
        kept = [place for place in kept if len(found[going[place]]) < limits[going[place]]]
        if not kept:
            break
        if len(kept) < len(going) or len(rows) != len(prefix.attended_BS):
            prefix = prefix.select([rows[place] for place in kept])
        going, rows, last_R = [going[place] for place in kept], list(range(len(kept))), last_R[kept]
        logits_RV, prefix = model.extend(prefix, last_R[:, None])
        chosen = truncated(logits_RV, sampling)
        last_R = chosen.draw(drawn_RT[going, step : step + 1])[:, 0]
    return found
