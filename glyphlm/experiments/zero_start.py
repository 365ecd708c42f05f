"""The optimal head of a model without blocks: a softmax regression on the code of the last token, a convex problem."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from glyphlm.base.errors import InputError
from glyphlm.base.progress import say
from glyphlm.data.batches import TokenText
from glyphlm.modeling.model import GPT

AT_ONCE = 1 << 24  # logits that are held
ITERATIONS = 100


def solve_head(model: GPT, texts: Sequence[TokenText], tokens: int) -> float:
    """Set the head to the one with the lowest loss on the pairs of neighbouring tokens in the first `tokens` of the texts.

    L-BFGS over the counts of pairs, so the cost depends on the number of different tokens, not of all. Returns the loss in
    nats per token.

    Raises:
        InputError: the model has blocks, or a head that is not a full matrix.
    """
    if model.blocks or model.config.head.kind != "full":
        raise InputError(f"start solved is for a model of no blocks and a full head, not of {len(model.blocks)} blocks and "
                         f"head {model.config.head.kind}; set it to random")
    before_P, after_P, count_P = (values.to(model.device) for values in count_pairs(texts, tokens, model.vocab_size))
    seen_A, place_P = before_P.unique(return_inverse=True)
    with torch.no_grad():
        x_AD = model.norm(model._embed(seen_A[None]))[0]
    parameters = list(model.head.parameters())
    optimizer = torch.optim.LBFGS(parameters, max_iter=ITERATIONS, history_size=10, line_search_fn="strong_wolfe")
    rows, total, calls = max(1, AT_ONCE // model.vocab_size), count_P.sum(), 0

    def loss() -> Tensor:
        nonlocal calls
        calls += 1
        optimizer.zero_grad()
        found = torch.zeros((), device=model.device)
        for start in range(0, len(seen_A), rows):
            chosen_P = ((place_P >= start) & (place_P < start + rows)).nonzero()[:, 0]
            logp_aV = model.head(x_AD[start : start + rows]).log_softmax(-1)
            nats = -(logp_aV[place_P[chosen_P] - start, after_P[chosen_P]] * count_P[chosen_P]).sum() / total
            nats.backward()
            found += nats.detach()
        return found

    optimizer.step(loss)
    reached = float(loss())
    optimizer.zero_grad()
    flops = 6 * calls * len(seen_A) * model.vocab_size * model.config.d_model
    say(f"the head is solved: {reached:.4f} nats a token on {int(total):,} pairs ({calls} passes, {flops:.3g} operations)")
    return reached


def count_pairs(texts: Sequence[TokenText], tokens: int, vocab_size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Each different pair of neighbouring tokens in the first `tokens` of the texts, and how often it occurs."""
    keys = [before_N.astype(np.int64) * vocab_size + after_N for before_N, after_N in _pairs(texts, tokens)]
    key_P, count_P = np.unique(np.concatenate(keys), return_counts=True)
    before_P, after_P = np.divmod(key_P, vocab_size)
    return torch.from_numpy(before_P), torch.from_numpy(after_P), torch.from_numpy(count_P.astype(np.float32))


def _pairs(texts: Sequence[TokenText], tokens: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    share = max(2, tokens // len(texts))
    for text in texts:
        ids_N = text.read(0, min(share, text.tokens))
        yield ids_N[:-1], ids_N[1:]
