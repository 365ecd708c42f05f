"""Experts that share a vocabulary, combined into one language model. Torch only; this file travels inside every run folder.

Shapes: as in model.py; M experts of widths D, F width of the fused state (what `hidden` returns).
A method that mixes logits is one linear head on one state: the sum of g (W x + b) over experts with weights g is
[W_1 .. W_M  b_1 .. b_M] [g_1 x_1 .. g_M x_M  g_1 .. g_M]. Loss, training and evaluation therefore treat a fusion like any
other model. Where a head is not a full matrix, or the method mixes probabilities, the state is [x_1 .. x_M  g_1 .. g_M].
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .attention import Cache
from .config import FusionConfig
from .heads import JoinedHead, SeparateHeads, TiedHead, cross_entropy
from .mixing import choose, gate, max_confidence, mean_probs, posterior, route, running_nats, segments, weighted_logits
from .model import GPT, Block, FrozenCache
from .substrate import Substrate
from .together import ExpertCache, Together, can_join

OF_PROBABILITIES = ("mean_probs", "max_confidence", "posterior", "router")  # these need each expert's own distribution
LOGITS_AT_ONCE = 1 << 25  # as in training


@dataclass
class FusedShape:
    """Sizes of a fusion: width F of the fused state, blocks of all experts, the shortest of their contexts."""

    d_model: int
    n_layer: int
    n_head: int
    block_size: int


@dataclass
class Pass:
    """The arguments of one call of `hidden`, and the number of positions that the cache held before it."""

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

    @property
    def follows_BT(self) -> Tensor:
        """True where a new position and the one before it are text of the same document."""
        text_BS = self.text_BS
        follows_BT = (text_BS & shifted(text_BS))[:, self.past :]
        if self.documents_BT is not None:  # without a cache
            follows_BT &= self.documents_BT == shifted(self.documents_BT)
        return follows_BT

    def remember(self, one_BTX: Tensor, other_BTX: Tensor) -> list[Tensor]:
        """Append two values per new position to the first layer of the cache; return those of all positions, BSX."""
        if self.cache is None:
            return [one_BTX, other_BTX]
        held = self.past + one_BTX.shape[1]
        return [all_B1SX[:, 0, :held] for all_B1SX in self.cache.update(one_BTX[:, None], other_BTX[:, None], 0)]

    def run(self, expert: GPT, x_BTD: Tensor, first: int) -> Tensor:
        """The final state of an expert, given its input embeddings; its layers begin at layer `first` of the cache."""
        cache = None if self.cache is None else ExpertCache(self.cache, first, self.past)
        return expert.hidden(x_BTD, cache=cache, attended_BS=self.attended_BS, positions_BT=self.positions_BT,
                             documents_BT=self.documents_BT)


class Fusion(nn.Module):
    """Frozen experts under one head; only what the method adds is trained.

    The experts are modified: their substrates and heads move into the fusion. Experts share a substrate module that they
    all hold.

    With top_k, all experts are mixed over the first `route_after` tokens of a text, and afterwards only the top_k with the
    highest mean score on these tokens. The choice depends on the text alone, so scoring and generation, with and without a
    cache, agree. A window or prompt that is read in one pass still runs through all experts; a later token runs only
    through the experts that some text of the batch has chosen.

    Raises:
        ValueError: the number of experts does not fit the method, or their vocabularies differ in size.
    """

    experts: Sequence[GPT]
    substrates: Sequence[Substrate]
    gates: Sequence[nn.Linear]
    adapter: Sequence[nn.Linear]

    def __init__(self, fusion: FusionConfig, experts: Sequence[GPT]):
        super().__init__()
        fusion.check_experts(len(experts))
        sizes = {expert.vocab_size for expert in experts}
        if len(sizes) != 1:
            raise ValueError(f"experts of one vocabulary are needed, but they have {', '.join(map(str, sorted(sizes)))} ids")
        self.fusion = fusion
        self._widths = [expert.config.d_model for expert in experts]
        self.recompute = False  # as training sets on GPT; frozen experts keep nothing to recompute
        self.frozen_cache: FrozenCache | None = None
        self.substrates = module_list(dict.fromkeys(expert.substrate for expert in experts))
        self.reads = [list(self.substrates).index(expert.substrate) for expert in experts]
        head: Any = self._take_head(experts)
        for expert in experts:  # from here on an expert maps embeddings x_BTD to its final state
            if isinstance(expert.head, TiedHead):
                expert.head.tie(expert.substrate)  # which may have been replaced by an equal one
            identity: Any = nn.Identity()
            expert.substrate = expert.head = identity
        self.experts = module_list(experts)
        self._together: Together | None = None
        self.requires_grad_(False)
        self._add_trained()
        self.head: Any = head.requires_grad_(fusion.method == "head")

    def _take_head(self, experts: Sequence[GPT]) -> nn.Module:
        full = all(expert.config.head.kind == "full" for expert in experts)
        return (JoinedHead if full else SeparateHeads)([expert.head for expert in experts], self._widths)

    def _add_trained(self) -> None:
        if self.fusion.method == "stitch":
            raise ValueError("method stitch needs the class Stitched; call make_fusion of stitching.py")
        if self.fusion.method == "gate":
            self.gates = module_list(nn.Linear(width, 1) for width in self._widths)
        if self.fusion.method == "adapter":
            width, rank = sum(self._widths), self.fusion.rank
            self.adapter = module_list([nn.Linear(width, rank, bias=False), nn.Linear(rank, width, bias=False)])

    def init_weights(self, seed: int) -> None:
        """Initialize what the method trains so that the logits are those of mean_logits."""
        for gate_of_expert in getattr(self, "gates", []):
            nn.init.zeros_(gate_of_expert.weight)
            nn.init.zeros_(gate_of_expert.bias)
        if self.fusion.method == "adapter":
            down, up = self.adapter
            nn.init.normal_(down.weight, std=down.in_features**-0.5, generator=torch.Generator().manual_seed(seed))
            nn.init.zeros_(up.weight)

    @property
    def config(self) -> FusedShape:
        """Sizes."""
        configs = [expert.config for expert in self.experts]
        layers, shortest = sum(c.n_layer for c in configs), min(c.block_size for c in configs)
        return FusedShape(self.head.in_features, layers, configs[0].n_head, shortest)

    @property
    def blocks(self) -> list[Block]:
        """The blocks of all experts."""
        return [block for expert in self.experts for block in expert.blocks]

    @property
    def frozen_depth(self) -> int:
        """Number of blocks, from below, that no gradient goes through."""
        return len(self.blocks)

    @property
    def substrate(self) -> Substrate:
        """The substrate of the first expert."""
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
    def joined(self) -> bool:
        """Whether the heads of all experts form one matrix."""
        return isinstance(self.head, JoinedHead)

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
        """The fused state x_BTF; arguments as those of `GPT.hidden`. `cache` holds the layers of all experts."""
        past = int(cache.get_seq_length()) if cache is not None else 0
        return self._fused_state(Pass(ids_BT, cache, attended_BS, positions_BT, documents_BT, past))

    def _fused_state(self, given: Pass) -> Tensor:
        states = self._run_experts(given)
        if self.fusion.method == "adapter":
            x_BTF = torch.cat(states, -1)
            down, up = self.adapter
            states = list((x_BTF + up(down(x_BTF))).split(self._widths, -1))
        weights_BTM = self._weigh(states, given)
        if self.fusion.method in OF_PROBABILITIES or not self.joined:
            return torch.cat([*states, weights_BTM], -1)
        return weighted_logits(states, weights_BTM, self.head.biased)

    def _run_experts(self, given: Pass) -> list[Tensor]:
        """The final state x_BTD of each expert; zeros for one that no text of the batch has chosen."""
        if given.cache is not None and self.fusion.top_k is None and (batched := self._batched()):
            codes = [self.substrates[read](given.ids_BT) for read in self.reads]
            cache = ExpertCache(given.cache, self.fusion.records, given.past)
            return batched.hidden(codes, cache, given.attended_BS, given.positions_BT)
        states, first, needed = [], self.fusion.records, self._needed(given)
        for number, expert in enumerate(self.experts):
            if number in needed:
                states.append(given.run(expert, self.substrates[self.reads[number]](given.ids_BT), first))
            else:
                states.append(expert.norm.weight.new_zeros(*given.ids_BT.shape, self._widths[number]))
            first += len(expert.blocks)
        return states

    def _batched(self) -> Together | None:
        """Experts of one shape as one batched model, for generation, whose speed is that of reading the weights."""
        if self._together is None or not self._together.holds():
            self._together = Together(self.experts) if can_join(self.experts) else None
        return self._together

    def _needed(self, given: Pass) -> list[int]:
        """Numbers of the experts that some text of the batch uses at the new positions."""
        everyone, top_k = list(range(len(self.experts))), self.fusion.top_k
        routed = self.fusion.method == "router" and self.fusion.segment is None
        if given.past == 0 or not (top_k or routed):
            return everyone
        text_BS = given.text_BS[:, : given.past]
        if bool((text_BS.sum(1) < self.fusion.route_after).any()):
            return everyone
        nothing_B0F = self.experts[0].norm.weight.new_empty(len(given.ids_BT), 0, sum(self._widths))
        nothing_B0M = nothing_B0F[..., : len(everyone)]
        if top_k:
            scores_BSM, _ = given.remember(nothing_B0M, nothing_B0M[..., :0])
            return choose(scores_BSM, self._early(text_BS), top_k).any(0).nonzero().flatten().tolist()
        _, nats_BSM = given.remember(nothing_B0F, nothing_B0M)
        total_BM = (nats_BSM * self._early(text_BS)[..., None]).sum(1)[:, -self.fusion.routers :]
        return posterior(total_BM, total_BM.new_tensor(self.weights), 1.0).argmax(-1).unique().tolist()

    def _early(self, text_BS: Tensor) -> Tensor:
        """True at the first `route_after` tokens of each text."""
        return text_BS & (text_BS.cumsum(1) <= self.fusion.route_after)

    def _weigh(self, states: Sequence[Tensor], given: Pass) -> Tensor:
        """weights_BTM of the experts at each position."""
        if self.fusion.method == "gate":
            return self._gate(states, given)
        if self.fusion.method == "posterior":
            return self._posterior(torch.cat([*states], -1), given)
        if self.fusion.method == "router":
            return self._route(torch.cat([*states], -1), given)
        return states[0].new_tensor(self.weights).expand(*given.ids_BT.shape, -1)

    def _gate(self, states: Sequence[Tensor], given: Pass) -> Tensor:
        """Training mixes all experts even with top_k, because a choice has no gradient."""
        scores_BTM = torch.cat([score(x_BTD) for score, x_BTD in zip(self.gates, states)], -1)
        if self.fusion.top_k is None or self.training:
            return gate(scores_BTM)
        scores_BSM, _ = given.remember(scores_BTM, scores_BTM[..., :0])
        early_BS = self._early(given.text_BS)
        chosen_BM = choose(scores_BSM, early_BS, self.fusion.top_k)
        return gate(scores_BTM, chosen_BM[:, None] | early_BS[:, given.past :, None])

    def _posterior(self, x_BTF: Tensor, given: Pass) -> Tensor:
        nats_BTM, seen_BSM = self._new_nats(x_BTF, given)
        start_B1M, prior_M = seen_BSM[:, -1:] if given.past else 0.0, nats_BTM.new_tensor(self.weights)
        total_BTM = running_nats(nats_BTM, given.follows_BT, start_B1M, given.documents_BT, prior_M, self.fusion)
        given.remember(x_BTF, total_BTM)
        return posterior(total_BTM, prior_M, self.fusion.temperature).to(x_BTF.dtype)

    def _route(self, x_BTF: Tensor, given: Pass) -> Tensor:
        """Weights by the router models, which are the last of `experts`."""
        nats_BTM, _ = self._new_nats(x_BTF, given)
        _, nats_BSM = given.remember(x_BTF, nats_BTM * given.follows_BT[..., None])
        same_BSS, place_BS = segments(given.text_BS, given.documents_BT, self.fusion.segment)
        prior_M = nats_BSM.new_tensor(self.weights)
        weights_BSM = route(nats_BSM[..., len(prior_M) :], same_BSS, place_BS, prior_M, self.fusion.route_after)
        return weights_BSM[:, given.past :].to(x_BTF.dtype)

    def _new_nats(self, x_BTF: Tensor, given: Pass) -> tuple[Tensor, Tensor]:
        """Cross-entropy of each new token under each expert, float32 [B, T, M], and what the cache holds of earlier ones.

        A token is predicted from the state before it, so the cache also holds the states.
        """
        before_BTF, seen_BSM = shifted(x_BTF), x_BTF[:, :0, : len(self.experts)].float()
        if given.past:
            seen_BSF, seen_BSM = given.remember(x_BTF[:, :0], seen_BSM)
            before_BTF[:, 0] = seen_BSF[:, -1]
        rows = max(1, LOGITS_AT_ONCE // self.vocab_size)
        parts = zip(before_BTF.flatten(0, 1).split(rows), given.ids_BT.flatten().split(rows))
        nats_NM = torch.cat([self.head.each_nats(x_nF, ids_n) for x_nF, ids_n in parts])
        return nats_NM.unflatten(0, given.ids_BT.shape), seen_BSM

    def logits(self, x_BTF: Tensor) -> Tensor:
        """Fused state -> logits_BTV, or log-probabilities."""
        if self.fusion.method not in OF_PROBABILITIES:
            return self.head(x_BTF, sparse=self.fusion.top_k is not None)
        logp_MBTV = torch.stack([logits_BTV.float().log_softmax(-1) for logits_BTV in self.head.each(x_BTF)])
        if self.fusion.method == "max_confidence":
            return max_confidence(logp_MBTV)
        return self._mean_probs(logp_MBTV, x_BTF)

    def nats(self, x_NF: Tensor, y_N: Tensor) -> Tensor:
        """Cross-entropy of each target, float32 [N]."""
        if self.joined or self.fusion.method not in ("mean_probs", "posterior", "router"):
            return cross_entropy(self.logits(x_NF), y_N)
        logp_MN1 = -self.head.each_nats(x_NF, y_N).T[..., None]
        return -self._mean_probs(logp_MN1, x_NF)[:, 0]

    def _mean_probs(self, logp_MXV: Tensor, x_XF: Tensor) -> Tensor:
        """The mixture without the routers; the last values of the fused state are the weights. Shapes X are batches."""
        speakers = len(self.weights)
        return mean_probs(logp_MXV[:speakers], x_XF[..., -speakers:].float().movedim(-1, 0))


def shifted(x_BTX: Tensor) -> Tensor:
    """The value of the position before, along the second axis; zeros at the first position."""
    return torch.cat([torch.zeros_like(x_BTX[:, :1]), x_BTX[:, :-1]], 1)


def module_list(items: Iterable[nn.Module]) -> Any:
    """A ModuleList, typed as Any because type checkers do not know the type of its members."""
    return nn.ModuleList(items)
