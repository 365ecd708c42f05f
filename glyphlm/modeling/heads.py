"""Heads: the final state of a model -> a distribution over ids. Torch only; this file travels inside every run folder.

A model has one of three: a full matrix [V, D] (nn.Linear), TiedHead, or CodeHead, neither of which has such a matrix.
JoinedHead and SeparateHeads hold the heads of all experts of a fusion.

Shapes: as in model.py; N states, E n_embed, W width of the digit network, Z values of a digit, P prefixes of digits,
S ids of the shortlist, M experts, F width of the state of a fusion.
"""

import heapq
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import HeadConfig
from .substrate import Substrate

AT_ONCE = 1 << 25  # values of the digit network that exist at a time while all logits are computed
EXPANDED = 8  # prefixes that the search opens in its first round; each later round opens twice as many


def make_head(config: HeadConfig, d_model: int, substrate: Substrate, bias: bool) -> Any:
    """The head of a model, which maps x_ND to logits_NV; `substrate` has the codes that a tied head reads."""
    if config.kind == "full":
        return nn.Linear(d_model, substrate.config.vocab_size, bias=bias)
    if config.kind == "tied":
        return TiedHead(d_model, substrate, bias)
    return CodeHead(config, d_model, substrate.config.vocab_size, bias)


def target_nats_of(head: Any, x_ND: Tensor, y_N: Tensor) -> Tensor:
    """Cross-entropy in nats of each target, float32 [N]."""
    return head.nats(x_ND, y_N) if isinstance(head, CodeHead) else cross_entropy(head(x_ND), y_N)


def cross_entropy(logits_NV: Tensor, y_N: Tensor) -> Tensor:
    """Cross-entropy in nats of each target, float32 [N]."""
    return F.cross_entropy(logits_NV.float(), y_N, reduction="none")


class TiedHead(nn.Module):
    """logits = (M h) . codes^T, over the codes that the substrate has for each id; optionally with a bias for each id.

    The substrate belongs to the model, not to this module: its table is stored once.
    """

    def __init__(self, d_model: int, substrate: Substrate, bias: bool):
        super().__init__()
        self.project = nn.Linear(d_model, substrate.config.n_embed, bias=False)
        self.bias = nn.Parameter(torch.zeros(substrate.config.vocab_size)) if bias else None
        self.tie(substrate)

    def tie(self, substrate: Substrate) -> None:
        """Use the codes of `substrate` from now on."""
        self._tied = (substrate,)  # in a tuple, or it would be registered as a part of this module

    @property
    def substrate(self) -> Substrate:
        """The substrate whose codes it reads."""
        return self._tied[0]

    def forward(self, x_BTD: Tensor) -> Tensor:
        """logits_BTV."""
        return F.linear(self.query(x_BTD), self.codes(x_BTD.dtype), self.bias)

    def query(self, x_BTD: Tensor) -> Tensor:
        """The vector that the codes are multiplied with, [B, T, E]; scaled, because codes of norm sqrt(E) would give logits
        sqrt(E) times as large."""
        config = self.substrate.config
        return self.project(x_BTD) * (config.n_embed**-0.5 if config.scale == "unit_rms" else 1.0)

    def codes(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The code of each id, [V, E]."""
        substrate = self.substrate
        if not substrate.config.is_rule:
            return substrate.table_VE
        return substrate.codes(torch.arange(substrate.config.vocab_size, device=self.project.weight.device)).to(dtype)


class CodeHead(nn.Module):
    """p(id) = p(first digit | h) p(second digit | h, first digit) .., where each id has a number, written in base Z.

    The logits of a later digit are a linear map of gelu((A h) * (1 + g) + s), where g and s [W] are sums of learned rows,
    one for each earlier digit. Digits that no id continues with have probability 0, so the probabilities of all ids sum to
    1. With a shortlist the first digit has S more values, each of which is an id (as in the adaptive softmax of arXiv
    1609.04309), and only the numbers from S on have digits. Logits are log-probabilities. Related: hierarchical softmax
    (Morin and Bengio 2005; arXiv cs/0108006), whose classes have matrices of their own, V D values in all; here they share
    one.

    Args:
        bias: A bias for each value of a digit after each prefix, V values in all; else one for each value of a digit.
    """

    place_V: Tensor  # the number of each id

    def __init__(self, config: HeadConfig, d_model: int, vocab_size: int, bias: bool):
        super().__init__()
        self.config, self.vocab_size = config, vocab_size
        config.check_vocabulary(vocab_size)
        self.numbered = vocab_size - config.shortlist  # ids that have digits
        self.base = next(base for base in range(2, self.numbered + 2) if base**config.digits >= self.numbered)
        later = range(1, config.digits)
        modules: list[Any] = [
            [nn.Linear(d_model, config.width) for _ in later],
            # Zeros, since drawing values on the meta device (`glyphlm plan`) imports torch._dynamo, which takes 3 s.
            [nn.Embedding.from_pretrained(torch.zeros(self.base * level, 2 * config.width), False) for level in later],
            [nn.Linear(d_model, config.shortlist + self.base), *(nn.Linear(config.width, self.base) for _ in later)],
        ]
        self.inputs, self.earlier, self.outputs = (nn.ModuleList(found) for found in modules)
        self.biases = nn.ParameterList(torch.zeros(self._prefixes(level), self.base) for level in later if bias)
        if config.order != "identity":
            self.register_buffer("place_V", torch.arange(vocab_size, dtype=torch.int32))

    def forward(self, x_BTD: Tensor) -> Tensor:
        """logits_BTV: log-probabilities in float32."""
        x_ND = x_BTD.flatten(0, -2)
        rows = max(1, AT_ONCE // (self._prefixes(self.config.digits - 1) * max(self.base, self.config.width)))
        logp_NV = torch.cat([self._all(x_nD) for x_nD in x_ND.split(rows)])
        return logp_NV.unflatten(0, x_BTD.shape[:-1])

    def nats(self, x_ND: Tensor, y_N: Tensor) -> Tensor:
        """Cross-entropy of each target, float32 [N], from Z logits for each digit."""
        short, place_N = self.config.shortlist, self.places(y_N)
        first_N = torch.where(place_N < short, place_N, short + (place_N - short) // self._ids_below(0))
        nats_N = cross_entropy(self._first_logits(x_ND), first_N)
        numbered_n: Any = (place_N >= short).nonzero()[:, 0] if short else slice(None)
        x_nD, number_n = x_ND[numbered_n], place_N[numbered_n] - short
        for level in range(1, self.config.digits):
            digits_n = number_n // self._ids_below(level)
            logits_nZ = self._logits(level, x_nD, digits_n // self.base)
            nats_n = cross_entropy(logits_nZ, digits_n % self.base)
            nats_N = nats_N.index_add(0, numbered_n, nats_n) if short else nats_N + nats_n
        return nats_N

    def places(self, ids: Tensor) -> Tensor:
        """The number of each id."""
        return ids if self.config.order == "identity" else self.place_V[ids].long()

    def best(self, x_BD: Tensor, count: int) -> Tensor:
        """The logits of the `count` most probable ids of each row, [B, V]; -inf for the others.

        Best-first search: no id is more probable than a prefix of its digits, so prefixes are opened in the order of their
        probability until none that is left is as probable as the last of `count` ids.
        """
        ids_V = torch.arange(self.vocab_size, device=x_BD.device)
        ids_V = ids_V if self.config.order == "identity" else self.place_V.argsort()
        logits_BV = x_BD.new_full((len(x_BD), self.vocab_size), -torch.inf, dtype=torch.float32)
        for x_D, logits_V in zip(x_BD, logits_BV):
            places_K, logp_K = self._search(x_D, count)
            logits_V[ids_V[places_K]] = logp_K
        return logits_BV

    def _search(self, x_D: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Numbers and log-probabilities of the `count` most probable ids, most probable first."""
        places_K, logp_K = torch.empty(0, dtype=torch.int64, device=x_D.device), x_D.new_empty(0, dtype=torch.float32)
        least, opened, closed = -torch.inf, EXPANDED, [(0.0, 0, 0)]  # minus log-probability, level, prefix
        while closed and -closed[0][0] >= least:
            level, some = closed[0][1], []
            while closed and closed[0][1] == level and len(some) < opened:
                some.append(heapq.heappop(closed))
            opened *= 2
            minus_P, _, prefixes = zip(*some)
            prefix_P = torch.tensor(prefixes, device=x_D.device)
            logp_PZ = self._logits(level, x_D.expand(len(some), -1), prefix_P) if level else self._first_logits(x_D[None])
            logp_PZ = logp_PZ.log_softmax(-1) - torch.tensor(minus_P, device=x_D.device)[:, None]
            values_Z = torch.arange(logp_PZ.shape[-1], device=x_D.device) - (0 if level else self.config.shortlist)
            number_PZ = prefix_P[:, None] * self.base + values_Z  # of ids of the shortlist: their place minus S
            possible_X = (logp_PZ.isfinite() & (logp_PZ >= least)).nonzero(as_tuple=True)
            number_X, logp_X = number_PZ[possible_X], logp_PZ[possible_X]
            ids_X = (number_X < 0) | (level == self.config.digits - 1)
            for minus, number in zip((-logp_X[~ids_X]).tolist(), number_X[~ids_X].tolist()):
                heapq.heappush(closed, (minus, level + 1, number))
            places_K = torch.cat([places_K, number_X[ids_X] + self.config.shortlist])
            logp_K, kept_K = torch.cat([logp_K, logp_X[ids_X]]).topk(min(count, len(places_K)))
            places_K, least = places_K[kept_K], float(logp_K[-1]) if len(logp_K) == count else least
        return places_K, logp_K

    def _all(self, x_ND: Tensor) -> Tensor:
        """logits_NV."""
        logp_NX = self._first_logits(x_ND).log_softmax(-1)
        short_NS, logp_NP = logp_NX.split([self.config.shortlist, self.base], -1)
        logp_NP = logp_NP[:, : self._prefixes(1)]
        for level in range(1, self.config.digits):
            prefix_P = torch.arange(self._prefixes(level), device=x_ND.device)
            logp_NPZ = self._logits(level, x_ND[:, None], prefix_P).log_softmax(-1)
            logp_NP = (logp_NP[..., None] + logp_NPZ).flatten(1)[:, : self._prefixes(level + 1)]
        logp_NV = torch.cat([short_NS, logp_NP], -1)
        return logp_NV if self.config.order == "identity" else logp_NV[:, self.place_V]

    def _first_logits(self, x_ND: Tensor) -> Tensor:
        """Logits of the shortlist and of the first digit, float32 [N, S + Z]; -inf where no id begins so."""
        logits_NX, possible = self.outputs[0](x_ND).float(), self.config.shortlist + self._prefixes(1)
        impossible_X = torch.arange(logits_NX.shape[-1], device=x_ND.device) >= possible
        return logits_NX if possible == len(impossible_X) else logits_NX.masked_fill(impossible_X, -torch.inf)

    def _logits(self, level: int, x_XD: Tensor, prefix_X: Tensor) -> Tensor:
        """Logits of a later digit after each prefix, float32 [X, Z]; -inf where no id continues so. Shapes X broadcast."""
        gain_XW, shift_XW = self._prefix_rows(level, prefix_X).to(x_XD.dtype).chunk(2, -1)
        logits_XZ = self.outputs[level](F.gelu(self.inputs[level - 1](x_XD) * (1 + gain_XW) + shift_XW))
        if len(self.biases):
            logits_XZ = logits_XZ + self.biases[level - 1][prefix_X]
        logits_XZ = logits_XZ.float()
        below = self._ids_below(level)
        if self.base**self.config.digits == self.numbered:
            return logits_XZ
        number_XZ = prefix_X[..., None] * self.base + torch.arange(self.base, device=x_XD.device)
        return logits_XZ.masked_fill(number_XZ * below >= self.numbered, -torch.inf)

    def _prefix_rows(self, level: int, prefix_X: Tensor) -> Tensor:
        """The sum of the learned rows of the digits of each prefix, [X, 2 W]."""
        rows_XW: Any = 0
        for place in range(level):
            rows_XW = rows_XW + self.earlier[level - 1](prefix_X % self.base + place * self.base)
            prefix_X = prefix_X // self.base
        return rows_XW

    def _ids_below(self, level: int) -> int:
        """Count of numbers that share their first level + 1 digits."""
        return self.base ** (self.config.digits - level - 1)

    def _prefixes(self, level: int) -> int:
        """Count of the different first `level` digits of all numbers."""
        return -(-self.numbered // self.base ** (self.config.digits - level))


def damaged_order(model: nn.Module) -> str | None:
    """The name of a tensor `place_V` that does not number the ids from 0 to V - 1, if the model has one."""
    orders = {name: tensor for name, tensor in model.named_buffers() if name.endswith("place_V") and not tensor.is_meta}
    return next((name for name, place_V in orders.items()
                 if not torch.equal(place_V.sort().values, torch.arange(len(place_V)).to(place_V))), None)


class JoinedHead(nn.Linear):
    """The full heads of all experts side by side: [W_1 .. W_M], and [b_1 .. b_M] if any of them has a bias."""

    def __init__(self, heads: Sequence[nn.Linear], widths: list[int]):
        columns = [head.weight for head in heads]
        biased = any(head.bias is not None for head in heads)
        for head in heads if biased else []:
            columns.append((columns[0].new_zeros(len(columns[0])) if head.bias is None else head.bias)[:, None])
        weight_VF = torch.cat(columns, 1).detach()
        super().__init__(*weight_VF.shape[::-1], bias=False, device="meta")  # draws no values
        self.weight, self.widths, self.biased = nn.Parameter(weight_VF), widths, biased

    def forward(self, input: Tensor, sparse: bool = False) -> Tensor:
        """x_BTF -> logits_BTV; `sparse` skips the columns of experts whose states are all zeros."""
        widths = [*self.widths, self.in_features - sum(self.widths)]
        parts = zip(input.split(widths, -1), self.weight.split(widths, 1)) if sparse else ()
        logits = [F.linear(x_BTX, head_VX) for x_BTX, head_VX in parts if bool(x_BTX.any())]
        return sum(logits[1:], logits[0]) if logits else super().forward(input)

    def of_experts(self) -> list[tuple[Tensor, Tensor | None]]:
        """weight_VD and bias_V of each expert."""
        width = sum(self.widths)
        weights = self.weight[:, :width].split(self.widths, 1)
        return list(zip(weights, self.weight[:, width:].unbind(1) if self.biased else [None] * len(weights)))

    def each(self, x_BTF: Tensor) -> list[Tensor]:
        """logits_BTV of each expert alone."""
        parts = zip(states(x_BTF, self.widths), self.of_experts())
        return [F.linear(x_BTD, weight_VD, bias_V) for x_BTD, (weight_VD, bias_V) in parts]

    def each_nats(self, x_NF: Tensor, y_N: Tensor) -> Tensor:
        """Cross-entropy of each target under each expert alone, float32 [N, M]."""
        return torch.stack([cross_entropy(logits_NV, y_N) for logits_NV in self.each(x_NF)], -1)


class SeparateHeads(nn.ModuleList):
    """The heads of all experts, of any kind, on [x_1 .. x_M  g_1 .. g_M]: their final states, and weights g."""

    def __init__(self, heads: Sequence[nn.Module], widths: list[int]):
        super().__init__(heads)
        self.widths, self.in_features = widths, sum(widths) + len(heads)

    def forward(self, x_BTF: Tensor, sparse: bool = False) -> Tensor:
        """The weighted sum of logits; `sparse` skips experts whose weight is 0 in the whole batch."""
        *states_M, weights_BTM = x_BTF.split([*self.widths, len(self)], -1)
        used_M = (weights_BTM > 0).flatten(0, -2).any(0).tolist() if sparse else [True] * len(self)
        logits = [weights_BTM[..., m, None] * self[m](states_M[m]) for m in range(len(self)) if used_M[m]]
        return sum(logits[1:], logits[0])

    def each(self, x_BTF: Tensor) -> list[Tensor]:
        """logits_BTV of each expert alone."""
        return [head(x_BTD) for head, x_BTD in zip(self, states(x_BTF, self.widths))]

    def each_nats(self, x_NF: Tensor, y_N: Tensor) -> Tensor:
        """Cross-entropy of each target under each expert alone, float32 [N, M]."""
        return torch.stack([target_nats_of(head, x_ND, y_N) for head, x_ND in zip(self, states(x_NF, self.widths))], -1)


def states(x_BTF: Tensor, widths: list[int]) -> Sequence[Tensor]:
    """The state of each expert in that of their fusion."""
    return x_BTF[..., : sum(widths)].split(widths, -1)
