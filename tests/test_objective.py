"""The loss as a module: summed over its targets, blind to ignored ones and, where asked, to other documents."""

import pytest
import torch
import torch.nn.functional as F

from glyphlm.data.batches import IGNORED
from glyphlm.modeling.model import GPT, ModelConfig, Substrate, SubstrateConfig
from glyphlm.training.objective import Objective

V, END = 40, 0


@pytest.fixture(scope="module")
def model():
    substrate = Substrate(SubstrateConfig(V, 16, "learned", trainable=True), 16)
    torch.nn.init.normal_(substrate.table_VE, generator=torch.Generator().manual_seed(3))
    gpt = GPT(ModelConfig(16, 2, 2, 32), substrate)
    gpt.init_weights(1)
    return gpt


def some_ids(*shape):
    return torch.randint(1, V, shape, generator=torch.Generator().manual_seed(1))


def test_the_loss_is_the_mean_over_the_targets_that_are_named(model):
    x_BT, y_BT = some_ids(2, 9), some_ids(2, 9).flip(1)
    loss = Objective(model, torch.float32)(x_BT, y_BT, 100)
    expected = F.cross_entropy(model(x_BT).flatten(0, 1), y_BT.flatten(), reduction="sum") / 100
    torch.testing.assert_close(loss, expected)


def test_ignored_targets_take_no_part(model):
    x_BT, y_BT = some_ids(2, 9), some_ids(2, 9).flip(1)
    y_BT[:, ::2] = IGNORED
    objective = Objective(model, torch.float32)
    expected = F.cross_entropy(model(x_BT).flatten(0, 1), y_BT.flatten(), ignore_index=IGNORED)
    torch.testing.assert_close(objective(x_BT, y_BT, int((y_BT != IGNORED).sum())), expected)
    assert len(objective(x_BT, y_BT)) == int((y_BT != IGNORED).sum())


def test_a_batch_without_targets_costs_nothing_and_changes_nothing(model):
    x_BT = some_ids(2, 9)
    loss = Objective(model, torch.float32)(x_BT, torch.full_like(x_BT, IGNORED), 1)
    loss.backward()
    assert float(loss.detach()) == 0 and all(p.grad is None or not p.grad.any() for p in model.parameters())
    model.zero_grad(set_to_none=True)


def test_with_document_masks_a_document_is_scored_as_if_it_were_alone(model):
    first, second = some_ids(1, 5), some_ids(1, 7).flip(1)
    end = torch.full((1, 1), END)
    x_BT = torch.cat([first, end, second], 1)
    y_BT = torch.cat([x_BT[:, 1:], end], 1)
    alone, masked, open_ = (
        Objective(model, torch.float32)(x_BT[:, 5:], y_BT[:, 5:]),
        Objective(model, torch.float32, END)(x_BT, y_BT)[5:],
        Objective(model, torch.float32)(x_BT, y_BT)[5:],
    )
    torch.testing.assert_close(masked, alone)  # rotary positions are relative: where it stands does not matter
    assert not torch.allclose(open_, alone)


def test_padding_and_documents_mask_together(model):
    ids_BT = some_ids(1, 6)
    documents_BT, attended_BS = torch.tensor([[0, 0, 0, 1, 1, 1]]), torch.tensor([[0, 1, 1, 1, 1, 1]])
    x_BTD = model.hidden(ids_BT, documents_BT=documents_BT, attended_BS=attended_BS)
    torch.testing.assert_close(x_BTD[:, 3:], model.hidden(ids_BT[:, 3:]))
