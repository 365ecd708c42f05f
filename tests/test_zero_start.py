"""The head of a model of no blocks is solved: training from a random start does not get below it."""

import pytest
import torch
import torch.nn.functional as F

from glyphlm.base.errors import InputError
from glyphlm.data.batches import TokenText
from glyphlm.experiments.recipe import load_recipe, resolve
from glyphlm.experiments.zero_start import count_pairs, solve_head
from glyphlm.modeling.config import ModelConfig, SubstrateConfig
from glyphlm.modeling.model import GPT
from glyphlm.modeling.substrate import Substrate

TOKENS = 2000


def make(vocab_size: int, depth: int = 0) -> GPT:
    model = GPT(ModelConfig(16, depth, 2, 32, head_bias=True), Substrate(SubstrateConfig(vocab_size, 16, "token_bits"), 16))
    model.init_weights(1)
    return model


def test_pairs_are_counted(shards):
    text = TokenText(shards, "train")
    before_P, after_P, count_P = count_pairs([text], TOKENS, text.vocab_size)
    ids = text.read(0, TOKENS).tolist()
    expected: dict[tuple[int, int], int] = {}
    for pair in zip(ids, ids[1:]):
        expected[pair] = expected.get(pair, 0) + 1
    assert dict(zip(zip(before_P.tolist(), after_P.tolist()), count_P.tolist())) == expected


def test_no_training_gets_below_the_solved_head(shards):
    text = TokenText(shards, "train")
    model, trained = make(text.vocab_size), make(text.vocab_size)
    reached = solve_head(model, [text], TOKENS)
    ids_T = torch.from_numpy(text.read(0, TOKENS))

    def loss(model: GPT) -> torch.Tensor:
        return F.cross_entropy(model(ids_T[None, :-1])[0], ids_T[1:])

    assert float(loss(model).detach()) == pytest.approx(reached, rel=1e-5)
    optimizer = torch.optim.Adam(trained.head.parameters(), lr=0.05)
    for _ in range(60):
        optimizer.zero_grad()
        loss(trained).backward()
        optimizer.step()
    assert reached < float(loss(trained).detach()) < float(loss(make(text.vocab_size)).detach())


def test_what_is_not_convex_is_refused(shards):
    text = TokenText(shards, "train")
    with pytest.raises(InputError, match="not of 1 blocks"):
        solve_head(make(text.vocab_size, depth=1), [text], TOKENS)
    with pytest.raises(InputError, match="head_start solved is for a new model of no blocks, not of 4"):
        resolve(load_recipe({"head_start": "solved", "train": {"steps": 1}}))
