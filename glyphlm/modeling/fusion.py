"""Experts over one vocabulary -> one model with the face of GPT. Torch only; this file travels inside every run folder.

Shapes: as in model.py; M experts of widths D, F width of what `hidden` gives.
Methods that mix logits are one head on one state: the sum of g (W x + b) over experts with weights g is
[W_1 .. W_M  b_1 .. b_M] [g_1 x_1 .. g_M x_M  g_1 .. g_M]. So loss, training and evaluation know nothing of experts, and
the head keeps each expert's own columns as they were. Heads of kinds other than full stay modules of their own, and the
state is [x_1 .. x_M  g_1 .. g_M].
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import FusionConfig
from .heads import TiedHead, cross_entropy, target_nats_of
from .mixing import choose, gate, max_confidence, mean_probs, posterior, route, updated_nats, weighted_logits
from .model import GPT, Block, Cache, Kept
from .substrate import Substrate
from .together import Together, can_join

OF_PROBABILITIES = ("mean_probs", "max_confidence", "posterior", "router")  # these need each expert's own distribution
LOGITS_AT_ONCE = 1 << 25  # as in training


@dataclass
class FusedShape:
    """Sizes of the whole: width F of the fused state, blocks of all experts, the shortest of their contexts."""

    d_model: int
    n_layer: int
    n_head: int
    block_size: int


@dataclass
class Pass:
    """What one forward pass is given: the arguments of `hidden`, and the number of positions that the cache holds."""

    ids_BT: Tensor
    cache: Cache | None
    attended_BS: Tensor | None
    positions_BT: Tensor | None
    documents_BT: Tensor | None
    past: int

    @property
    def text_BS(self) -> Tensor:
        """True where a position is not padding."""
        if self.attended_BS is not None:
            return self.attended_BS.bool()
        rows, new = self.ids_BT.shape
        return torch.ones(rows, self.past + new, dtype=torch.bool, device=self.ids_BT.device)

    def remember(self, *values_BTX: Tensor) -> list[Tensor]:
        """Append two values of each new position to the cache's first layer; those of all positions come back, BSX."""
        if self.cache is None:
            return list(values_BTX)
        held = self.past + values_BTX[0].shape[1]
        one_BTX, other_BTX = values_BTX
        return [all_B1SX[:, 0, :held] for all_B1SX in self.cache.update(one_BTX[:, None], other_BTX[:, None], 0)]


class ExpertCache:
    """The layers of one expert in the cache of all of them."""

    def __init__(self, cache: Cache, first: int, past: int):
        self._cache, self._first, self._past = cache, first, past

    def update(self, k_BHTK: Tensor, v_BHTK: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        """As the whole cache, counted from the expert's first layer."""
        k_BHSK, v_BHSK = self._cache.update(k_BHTK, v_BHTK, self._first + layer)
        held = self._past + k_BHTK.shape[2]  # a cache of fixed length returns more
        return k_BHSK[:, :, :held], v_BHSK[:, :, :held]

    def get_seq_length(self) -> int:
        """Positions held before this pass: while it goes on, experts that were first hold more already."""
        return self._past


class Fusion(nn.Module):
    """Experts, and one head over all of them; all but what the method trains is frozen.

    It takes the experts over: their substrates and heads become its own. Experts that hold the same substrate module read
    it together.

    With top_k, all experts are mixed over the first `route_after` tokens of a text, and from then on only the top_k that
    had the highest mean score there: a rule of the text alone, the same in scoring and in generation, with and without a
    cache. What is read in one pass (a scored window, a prompt) still runs through all; each token that is generated after
    these first ones only through the experts that some text of the batch has kept.
    """

    experts: Sequence[GPT]
    substrates: Sequence[Substrate]
    gates: Sequence[nn.Linear]
    adapter: Sequence[nn.Linear]

    def __init__(self, fusion: FusionConfig, experts: Sequence[GPT]):
        super().__init__()
        speakers = len(experts) - fusion.routers
        if fusion.routers and fusion.routers != speakers:
            raise ValueError(f"{fusion.routers} routers do not fit {speakers} experts; give each one")
        if fusion.weights is not None and len(fusion.weights) != speakers:
            raise ValueError(f"weights {fusion.weights} do not fit {speakers} experts; give one an expert")
        if fusion.top_k is not None and fusion.top_k > len(experts):
            raise ValueError(f"top_k {fusion.top_k} is more than the {len(experts)} experts")
        sizes = {expert.vocab_size for expert in experts}
        if len(sizes) != 1:
            raise ValueError(f"experts of one vocabulary are needed, but they have {', '.join(map(str, sorted(sizes)))} ids")
        self.fusion = fusion
        self._widths = [expert.config.d_model for expert in experts]
        self.biased = any(expert.config.head_bias for expert in experts)
        self.recompute = False  # as training sets on GPT; frozen experts keep nothing to recompute
        self.kept: Kept | None = None
        self.substrates = _modules(dict.fromkeys(expert.substrate for expert in experts))
        self.reads = [list(self.substrates).index(expert.substrate) for expert in experts]
        full = all(expert.config.head.kind == "full" for expert in experts)
        stitched = fusion.method == "stitch"
        if stitched and not (full and len(experts) == 2):
            raise ValueError("stitch runs the upper blocks of one expert with a full head on the lower ones of another")
        self.joined = full and not stitched
        head: Any = joined_head(experts, self.biased) if self.joined else _modules(expert.head for expert in experts)
        head = experts[-1].head if stitched else head
        for expert in experts:
            if isinstance(expert.head, TiedHead):
                expert.head.tie(expert.substrate)  # which may be another module with the same codes since it was made
        for expert in experts:  # which then takes x_BTD for ids, and gives it back
            nothing: Any = nn.Identity()
            expert.substrate = expert.head = nothing
        self.experts = _modules(experts)
        self._together: Together | None = None
        self.requires_grad_(False)
        if fusion.method == "gate":
            self.gates = _modules(nn.Linear(width, 1) for width in self._widths)
        if fusion.method == "adapter":
            width = sum(self._widths)
            self.adapter = _modules(
                [nn.Linear(width, fusion.rank, bias=False), nn.Linear(fusion.rank, width, bias=False)]
            )
        if stitched:
            unnormed: Any = Unnormed(experts[0])
            experts[0].norm = unnormed
            lower, upper = self._widths
            self.map = nn.Linear(lower, upper)
        self.head: Any = head.requires_grad_(fusion.method == "head")

    def init_weights(self, seed: int) -> None:
        """Start what the method trains so that nothing changes yet: logits are those of mean_logits, a map the identity."""
        for layer in getattr(self, "gates", []):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        if self.fusion.method == "stitch":
            nn.init.eye_(self.map.weight)
            nn.init.zeros_(self.map.bias)
        if self.fusion.method == "adapter":
            down, up = self.adapter
            nn.init.normal_(down.weight, std=down.in_features**-0.5, generator=torch.Generator().manual_seed(seed))
            nn.init.zeros_(up.weight)

    @property
    def config(self) -> FusedShape:
        """Sizes."""
        configs = [expert.config for expert in self.experts]
        layers, shortest = sum(c.n_layer for c in configs), min(c.block_size for c in configs)
        single = self.joined or self.fusion.method == "stitch"
        width = self.head.in_features if single else sum(self._widths) + len(configs)
        return FusedShape(width, layers, configs[0].n_head, shortest)

    @property
    def blocks(self) -> list[Block]:
        """The blocks of all experts."""
        return [block for expert in self.experts for block in expert.blocks]

    @property
    def frozen_depth(self) -> int:
        """Number of blocks, from below, that no gradient goes through: all, but for those above a trained map."""
        return len(self.experts[0].blocks if self.fusion.method == "stitch" else self.blocks)

    @property
    def substrate(self) -> Substrate:
        """That of the first expert."""
        return self.substrates[0]

    @property
    def vocab_size(self) -> int:
        """Number of ids."""
        return self.substrate.config.vocab_size

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return self.experts[0].device

    @property
    def weights(self) -> list[float]:
        """Weights of the experts, in their order."""
        speakers = len(self.experts) - self.fusion.routers
        return self.fusion.weights or [1 / speakers] * speakers

    def forward(self, ids_BT: Tensor) -> Tensor:
        """ids_BT -> logits_BTV; log-probabilities where the method mixes probabilities."""
        return self.logits(self.hidden(ids_BT))

    def hidden(
        self,
        ids_BT: Tensor,
        *,
        cache: Cache | None = None,
        attended_BS: Tensor | None = None,
        positions_BT: Tensor | None = None,
        documents_BT: Tensor | None = None,
    ) -> Tensor:
        """x_BTF, what `logits` reads; arguments as those of `GPT.hidden`. `cache` holds the layers of all experts."""
        past = int(cache.get_seq_length()) if cache is not None else 0
        given = Pass(ids_BT, cache, attended_BS, positions_BT, documents_BT, past)
        if self.fusion.method == "stitch":
            return self._stitched(given)
        parts = self._run_experts(given)
        if self.fusion.method == "adapter":
            x_BTF = torch.cat(parts, -1)
            down, up = self.adapter
            parts = (x_BTF + up(down(x_BTF))).split(self._widths, -1)
        weights_BTM = self._weigh(parts, given)
        if self.fusion.method in OF_PROBABILITIES or not self.joined:
            return torch.cat([*parts, weights_BTM], -1)
        return weighted_logits(parts, weights_BTM, self.biased)

    def _run_experts(self, given: Pass) -> list[Tensor]:
        """The state of each expert, x_BTD; zeros of one that no text of the batch needs any more."""
        if given.cache is not None and self.fusion.top_k is None and (whole := self._as_one()):
            return self._run_as_one(whole, given.cache, given)
        parts, first, needed = [], self.fusion.records, self._needed(given)
        for number, expert in enumerate(self.experts):
            if number in needed:
                x_BTD = self.substrates[self.reads[number]](given.ids_BT)
                cache = None if given.cache is None else ExpertCache(given.cache, first, given.past)
                parts.append(expert.hidden(
                    x_BTD, cache=cache, attended_BS=given.attended_BS, positions_BT=given.positions_BT,
                    documents_BT=given.documents_BT,
                ))
            else:
                parts.append(expert.norm.weight.new_zeros(*given.ids_BT.shape, self._widths[number]))
            first += len(expert.blocks)
        return parts

    def _stitched(self, given: Pass) -> Tensor:
        """The state of the second expert, which goes on from what leaves the first one and the map."""
        x_BTD, first = self.substrates[self.reads[0]](given.ids_BT), 0
        self.experts[1].training = False  # its blocks are frozen, but the gradient goes through them to the map
        for expert in self.experts:
            cache = None if given.cache is None else ExpertCache(given.cache, first, given.past)
            x_BTD = expert.hidden(
                self.map(x_BTD) if first else x_BTD, cache=cache, attended_BS=given.attended_BS,
                positions_BT=given.positions_BT, documents_BT=given.documents_BT,
            )
            first += len(expert.blocks)
        return x_BTD

    def _as_one(self) -> Together | None:
        if self._together is None or not self._together.holds():
            self._together = Together(self.experts) if can_join(self.experts) else None
        return self._together

    def _run_as_one(self, whole: Together, cache: Cache, given: Pass) -> list[Tensor]:
        """States of the experts of one shape, run as one, with a cache: decoding is bound by reading the weights."""
        codes = [self.substrates[read](given.ids_BT) for read in self.reads]
        cache = ExpertCache(cache, self.fusion.records, given.past)
        return whole.hidden(codes, cache, given.attended_BS, given.positions_BT)

    def _needed(self, given: Pass) -> list[int]:
        everyone = list(range(len(self.experts)))
        routed = self.fusion.method == "router" and self.fusion.segment is None
        if given.past == 0 or (self.fusion.top_k is None and not routed):
            return everyone
        text_BS = given.text_BS[:, : given.past]
        if bool((text_BS.sum(1) < self.fusion.route_after).any()):
            return everyone
        if routed:
            nothing = self.experts[0].norm.weight.new_empty(len(given.ids_BT), 0, sum(self._widths))
            _, nats_BSM = given.remember(nothing, nothing[..., : len(everyone)])
            total_BM = (nats_BSM * self._early(text_BS)[..., None]).sum(1)[:, -self.fusion.routers :]
            return posterior(total_BM, total_BM.new_tensor(self.weights), 1.0).argmax(-1).unique().tolist()
        assert self.fusion.top_k is not None
        nothing = self.experts[0].norm.weight.new_empty(len(given.ids_BT), 0, len(everyone))
        scores_BSM, _ = given.remember(nothing, nothing[..., :0])
        chosen_BM = choose(scores_BSM, self._early(text_BS), self.fusion.top_k)
        return chosen_BM.any(0).nonzero().flatten().tolist()

    def _early(self, text_BS: Tensor) -> Tensor:
        """True at the first `route_after` tokens of each text."""
        return text_BS & (text_BS.cumsum(1) <= self.fusion.route_after)

    def _weigh(self, parts: Sequence[Tensor], given: Pass) -> Tensor:
        """weights_BTM of the experts at each position."""
        if self.fusion.method == "gate":
            return self._gate(parts, given)
        if self.fusion.method == "posterior":
            return self._posterior(torch.cat([*parts], -1), given)
        if self.fusion.method == "router":
            return self._route(torch.cat([*parts], -1), given)
        return parts[0].new_tensor(self.weights).expand(*given.ids_BT.shape, -1)

    def _gate(self, parts: Sequence[Tensor], given: Pass) -> Tensor:
        """Training mixes all experts; top_k is the rule of use, as choosing has no gradient."""
        scores_BTM = torch.cat([score(x_BTD) for score, x_BTD in zip(self.gates, parts)], -1)
        if self.fusion.top_k is None or self.training:
            return gate(scores_BTM)
        scores_BSM, _ = given.remember(scores_BTM, scores_BTM[..., :0])
        early_BS = self._early(given.text_BS)
        chosen_BM = choose(scores_BSM, early_BS, self.fusion.top_k)
        return gate(scores_BTM, chosen_BM[:, None] | early_BS[:, given.past :, None])

    def _posterior(self, x_BTF: Tensor, given: Pass) -> Tensor:
        """What an expert gave to a token is read from the state before it, the last of which the cache remembers."""
        nats_BTM, known_BT, nats_B1M = self._given(x_BTF, given)
        if self.fusion.memory is not None or self.fusion.reset:
            total_BTM = self._forget(nats_B1M, nats_BTM, known_BT, given.documents_BT)
        elif given.documents_BT is None:
            total_BTM = nats_B1M + (nats_BTM * known_BT[..., None]).cumsum(1)
        else:  # each document begins anew
            same_BTT = given.documents_BT[:, :, None] == given.documents_BT[:, None]
            known_BT = known_BT & F.pad(same_BTT.diagonal(1, 1, 2), (1, 0))
            total_BTM = same_BTT.tril().to(nats_BTM.dtype) @ (nats_BTM * known_BT[..., None])
        given.remember(x_BTF, total_BTM)
        weights_BTM = posterior(total_BTM, total_BTM.new_tensor(self.weights), self.fusion.temperature)
        return weights_BTM.to(x_BTF.dtype)

    def _given(self, x_BTF: Tensor, given: Pass) -> tuple[Tensor, Tensor, Tensor | float]:
        """Nats of each new token under each expert [B, T, M], where they are known, and what is remembered of the last
        position before."""
        before_BTF, last_B1M = F.pad(x_BTF, (0, 0, 1, -1)), 0.0
        if given.past:
            seen_BSF, seen_BSM = given.remember(x_BTF[:, :0], x_BTF[:, :0, : len(self.experts)].float())
            before_BTF[:, 0], last_B1M = seen_BSF[:, -1], seen_BSM[:, -1:]
        text_BS = given.text_BS
        known_BT = (text_BS & F.pad(text_BS[:, :-1], (1, 0)))[:, given.past :]
        return self._nats(before_BTF, given.ids_BT), known_BT, last_B1M

    def _route(self, x_BTF: Tensor, given: Pass) -> Tensor:
        """The small models, the last ones, have read the tokens too; segments are counted in each text."""
        nats_BTM, known_BT, _ = self._given(x_BTF, given)
        text_BS = given.text_BS
        documents_BS = torch.zeros_like(text_BS) if given.documents_BT is None else given.documents_BT
        same_BSS = documents_BS[:, :, None] == documents_BS[:, None]
        if given.documents_BT is not None:  # without cache
            known_BT = known_BT & F.pad(same_BSS.diagonal(1, 1, 2), (1, 0))
        place_BS = (same_BSS.tril() & text_BS[:, None]).sum(-1) - 1
        segment_BS = torch.zeros_like(place_BS)
        if self.fusion.segment is not None:
            place_BS, segment_BS = place_BS % self.fusion.segment, place_BS // self.fusion.segment
        same_BSS = (same_BSS & (segment_BS[:, :, None] == segment_BS[:, None])).tril()
        _, nats_BSM = given.remember(x_BTF, nats_BTM * known_BT[..., None])
        prior_M = nats_BSM.new_tensor(self.weights)
        weights_BSM = route(nats_BSM[..., len(prior_M) :], same_BSS, place_BS, prior_M, self.fusion.route_after)
        return weights_BSM[:, given.past :].to(x_BTF.dtype)

    def _forget(
        self, nats_B1M: Tensor | float, nats_BTM: Tensor, known_BT: Tensor, documents_BT: Tensor | None
    ) -> Tensor:
        """The sums of nats_BTM token by token, with memory and reset; each document begins anew."""
        how, prior_M, found = self.fusion, nats_BTM.new_tensor(self.weights), []
        total_BM = nats_B1M[:, 0] if isinstance(nats_B1M, Tensor) else torch.zeros_like(nats_BTM[:, 0])
        for place in range(nats_BTM.shape[1]):
            if documents_BT is not None and place:
                total_BM = total_BM * (documents_BT[:, place] == documents_BT[:, place - 1])[:, None]
            newer_BM = updated_nats(total_BM, nats_BTM[:, place], prior_M, how.temperature, how.memory, how.reset)
            same_B = documents_BT is None or place == 0 or documents_BT[:, place] == documents_BT[:, place - 1]
            total_BM = torch.where((known_BT[:, place] & same_B)[:, None], newer_BM, total_BM)
            found.append(total_BM)
        return torch.stack(found, 1)

    def _nats(self, x_BTF: Tensor, ids_BT: Tensor) -> Tensor:
        """Cross-entropy of each id under each expert, float32 [B, T, M], of which the states before them are given."""
        rows = max(1, LOGITS_AT_ONCE // self.vocab_size)
        nats_NM = torch.cat([
            self._each_nats(x_nF, ids_n)
            for x_nF, ids_n in zip(x_BTF.flatten(0, 1).split(rows), ids_BT.flatten().split(rows))
        ])
        return nats_NM.unflatten(0, ids_BT.shape)

    def logits(self, x_BTF: Tensor) -> Tensor:
        """What `hidden` gives -> logits_BTV, or log-probabilities."""
        if self.fusion.method == "stitch":
            return self.head(x_BTF)
        if self.fusion.method not in OF_PROBABILITIES:
            if not self.joined:
                return self._pool(x_BTF)
            return self.head(x_BTF) if self.fusion.top_k is None else self._head_of_running(x_BTF)
        logp_MBTV = torch.stack([logits_BTV.float().log_softmax(-1) for logits_BTV in self._each(x_BTF)])
        if self.fusion.method == "max_confidence":
            return max_confidence(logp_MBTV)
        speakers = len(self.experts) - self.fusion.routers
        return mean_probs(logp_MBTV[:speakers], x_BTF[..., -speakers:].float().movedim(-1, 0))

    def nats(self, x_NF: Tensor, y_N: Tensor) -> Tensor:
        """Cross-entropy of each target, float32 [N]; from that of each expert where the method mixes probabilities."""
        if self.joined or self.fusion.method not in ("mean_probs", "posterior", "router"):
            return cross_entropy(self.logits(x_NF), y_N)
        logp_MN1 = -self._each_nats(x_NF, y_N).T[..., None]
        speakers = len(self.experts) - self.fusion.routers
        return -mean_probs(logp_MN1[:speakers], x_NF[..., -speakers:].float().T)[:, 0]

    def heads(self) -> list[tuple[Tensor, Tensor | None]]:
        """weight_VD and bias_V of each expert's own columns of a joined head."""
        width = sum(self._widths)
        weights = self.head.weight[:, :width].split(self._widths, 1)
        return list(zip(weights, self.head.weight[:, width:].unbind(1) if self.biased else [None] * len(weights)))

    def _each(self, x_BTF: Tensor) -> list[Tensor]:
        """The logits of each expert alone."""
        parts = x_BTF[..., : sum(self._widths)].split(self._widths, -1)
        if not self.joined:
            return [head(x_BTD) for head, x_BTD in zip(self.head, parts)]
        return [F.linear(x_BTD, weight_VD, bias_V) for x_BTD, (weight_VD, bias_V) in zip(parts, self.heads())]

    def _each_nats(self, x_NF: Tensor, y_N: Tensor) -> Tensor:
        """Cross-entropy of each target under each expert alone, float32 [N, M]."""
        if self.joined:
            return torch.stack([cross_entropy(logits_NV, y_N) for logits_NV in self._each(x_NF)], -1)
        parts = x_NF[..., : sum(self._widths)].split(self._widths, -1)
        return torch.stack([target_nats_of(head, x_ND, y_N) for head, x_ND in zip(self.head, parts)], -1)

    def _pool(self, x_BTF: Tensor) -> Tensor:
        """The weighted sum of the logits of heads that are not joined, without those of weight 0 in the whole batch."""
        *parts, weights_BTM = x_BTF.split([*self._widths, len(self.experts)], -1)
        used = (weights_BTM > 0).flatten(0, -2).any(0).tolist() if self.fusion.top_k else [True] * len(parts)
        logits = [weights_BTM[..., m, None] * self.head[m](parts[m]) for m in range(len(parts)) if used[m]]
        return sum(logits[1:], logits[0])

    def _head_of_running(self, x_BTF: Tensor) -> Tensor:
        """The head without the columns of experts that are skipped, whose states are zeros."""
        widths = [*self._widths, self.head.in_features - sum(self._widths)]
        parts = zip(x_BTF.split(widths, -1), self.head.weight.split(widths, 1))
        logits = [F.linear(x_BTX, head_VX) for x_BTX, head_VX in parts if bool(x_BTX.any())]
        return sum(logits[1:], logits[0]) if logits else self.head(x_BTF)


class Unnormed(nn.Module):
    """In the place of the last norm of an expert: the state as it leaves the blocks."""

    def __init__(self, expert: GPT):
        super().__init__()
        self._like = [expert.blocks[0].attention_norm]

    @property
    def weight(self) -> Tensor:
        """A tensor of the type that the expert computes in."""
        return self._like[0].weight

    def forward(self, x_BTD: Tensor) -> Tensor:
        """x_BTD, unchanged."""
        return x_BTD


def _modules(modules: Iterable[nn.Module]) -> Any:
    """A ModuleList, which type checkers do not know as a sequence of what is in it."""
    return nn.ModuleList(modules)


def joined_head(experts: Sequence[GPT], biased: bool) -> nn.Linear:
    """[W_1 .. W_M], and where any expert has a bias [b_1 .. b_M] beside them."""
    columns = [expert.head.weight for expert in experts]
    for expert in experts if biased else []:
        bias_V = expert.head.bias
        columns.append((columns[0].new_zeros(len(columns[0])) if bias_V is None else bias_V)[:, None])
    weight_VF = torch.cat(columns, 1).detach()
    head = nn.Linear(*weight_VF.shape[::-1], bias=False, device="meta")  # without values to draw
    head.weight = nn.Parameter(weight_VF)
    return head
