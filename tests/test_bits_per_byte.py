"""Bits per byte: every token of a text is scored exactly once, with the numbers of one plain forward pass."""

import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from glyphlm.data.batches import Batch
from glyphlm.modeling.model import GPT, ModelConfig
from glyphlm.modeling.substrate import Substrate, SubstrateConfig
from glyphlm.tokenizer.tokenizer import Piece
from glyphlm.training import bits_per_byte as bits
from glyphlm.training.bits_per_byte import Score, document_scores, score_batches, score_documents
from glyphlm.training.loss import Objective

V, END, BLOCK = 40, 2, 16
BYTES_V = np.array([0, 0, 0, *range(1, V - 2)], dtype=np.uint16)


@pytest.fixture(scope="module")
def model() -> GPT:
    model = GPT(ModelConfig(16, 1, 2, BLOCK), Substrate(SubstrateConfig(V, 16, "learned"), 16)).eval()
    generator = torch.Generator().manual_seed(0)
    for tensor in model.state_dict().values():
        tensor.copy_(torch.randn(tensor.shape, generator=generator) / 2)
    return model


def document(length: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(3, V, length).astype(np.uint32)


def in_pieces(ids: np.ndarray, *cuts: int) -> Iterator[Piece]:
    parts = np.split(ids, cuts)
    return (Piece(part, number == len(parts)) for number, part in enumerate(parts, 1))


def plain_nats(model: GPT, ids: np.ndarray) -> float:
    """Summed cross-entropy of a document that fits into one context."""
    ids_T = torch.tensor([END, *ids.tolist()])
    with torch.no_grad():
        return F.cross_entropy(model(ids_T[None, :-1])[0].double(), ids_T[1:], reduction="sum").item()


@pytest.mark.parametrize("length", [1, 5, BLOCK])
def test_document_within_the_context_is_scored_by_one_forward_pass(model, length):
    ids = document(length)
    score = score_documents(model, in_pieces(ids), END, BYTES_V)
    assert score.nats == pytest.approx(plain_nats(model, ids), rel=1e-6)
    assert (score.tokens, score.bytes, score.documents) == (length, BYTES_V[ids].sum(), 1)


def test_scores_of_documents_add_up(model):
    documents = [document(length, seed=length) for length in (7, 1, 0, 12)]
    score = score_documents(model, (piece for ids in documents for piece in in_pieces(ids)), END, BYTES_V)
    assert score.nats == pytest.approx(sum(plain_nats(model, ids) for ids in documents if len(ids)), rel=1e-6)
    assert (score.tokens, score.documents) == (20, 3)


@pytest.mark.parametrize("length", [BLOCK - 1, BLOCK, BLOCK + 1, BLOCK + 2, 3 * BLOCK // 2 + 1, 5 * BLOCK + 3])
def test_each_token_of_a_long_document_is_scored_once_and_sees_half_a_context(model, monkeypatch, length):
    ids, targets, contexts = document(length), [], []
    hidden, nats = model.hidden, bits.target_nats
    monkeypatch.setattr(model, "hidden", lambda x_BT: contexts.append(x_BT[0].tolist()) or hidden(x_BT))
    monkeypatch.setattr(bits, "target_nats", lambda *given: targets.append(given[2].tolist()) or nats(*given))
    score = score_documents(model, in_pieces(ids), END, BYTES_V)
    assert sum(targets, []) == ids.tolist()
    assert (score.tokens, score.bytes, score.documents) == (length, BYTES_V[ids].sum(), 1)
    text, done = [END, *ids.tolist()], 0
    for context, scored in zip(contexts, targets):
        seen = len(context) - len(scored) + 1  # by the first target of the window
        assert len(context) <= BLOCK and seen >= min(done + 1, BLOCK // 2)
        assert context[:seen] == text[done + 1 - seen : done + 1]
        done += len(scored)


def test_long_document_is_exact_where_the_model_looks_back_a_few_tokens_only(model):
    ids = document(5 * BLOCK, seed=3)
    short_sighted = GPT(model.config, model.substrate).eval()
    short_sighted.load_state_dict(model.state_dict())
    with torch.no_grad():
        short_sighted.blocks[0].attention.out.weight.zero_()  # each prediction depends on the last token alone
    score = score_documents(short_sighted, in_pieces(ids), END, BYTES_V)
    assert score.nats == pytest.approx(plain_nats(short_sighted, ids), rel=1e-6)


def test_windows_computed_together_score_as_each_alone(model):
    documents = [document(length, seed=length) for length in (7, 1, 0, 3 * BLOCK, 12, BLOCK + 1)]
    shapes, hidden = [], model.hidden

    def scores(tokens: int) -> list[Score]:
        pieces = (piece for ids in documents for piece in in_pieces(ids))
        return list(document_scores(model, pieces, END, BYTES_V, tokens))

    alone = scores(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model, "hidden", lambda x_BT: shapes.append(x_BT.shape) or hidden(x_BT))
        together = scores(4 * BLOCK)
    assert max(rows for rows, _ in shapes) > 2 and all(rows * width <= 4 * BLOCK for rows, width in shapes)
    assert [score.nats for score in together] == pytest.approx([score.nats for score in alone], rel=1e-5)
    expected = [(len(ids), BYTES_V[ids].sum(), 1) for ids in documents if len(ids)]
    assert [(score.tokens, score.bytes, score.documents) for score in together] == expected


@pytest.mark.parametrize("length", [BLOCK, BLOCK + 1, 4 * BLOCK + 5])
def test_score_does_not_depend_on_how_a_document_comes_in_pieces(model, length):
    ids = document(length, seed=5)
    whole = score_documents(model, in_pieces(ids), END, BYTES_V)
    random = np.random.default_rng(1)
    cuts = [sorted(random.integers(0, length + 1, count).tolist()) for count in (1, 2, 5, 9)]
    for places in [*cuts, [length], range(1, length)]:
        assert score_documents(model, in_pieces(ids, *places), END, BYTES_V) == whole


def test_score_of_batches_is_the_plain_sum(model):
    ids = torch.from_numpy(document(34).astype(np.int64)).view(2, 17)
    batches = [Batch(ids[:, :-1], ids[:, 1:]), Batch(ids[:1, :4], ids[:1, 1:5])]
    score = score_batches(Objective(model, torch.float32), batches, BYTES_V, torch.device("cpu"))
    with torch.no_grad():
        parts = [F.cross_entropy(model(x).flatten(0, 1).double(), y.flatten(), reduction="sum").item() for x, y in batches]
    assert score.nats == pytest.approx(sum(parts), rel=1e-6)
    assert score.tokens == 36
    assert score.bytes == sum(BYTES_V[y_BT.numpy()].sum() for _, y_BT in batches)


def test_bits_per_byte_are_nats_over_ln_2_over_bytes():
    score = Score(nats=12 * math.log(2), tokens=6, bytes=8)
    assert score.bits_per_byte == pytest.approx(1.5)
    assert score.loss == pytest.approx(2 * math.log(2))


def test_score_of_no_text_is_nan():
    assert math.isnan(Score().bits_per_byte) and math.isnan(Score().loss)
    assert math.isnan(Score(nats=1.0, tokens=1).bits_per_byte)
