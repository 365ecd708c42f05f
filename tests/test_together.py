"""Experts of one shape give the same, computed as one or one by one, and there is one copy of their weights."""

import copy

import pytest
import torch
from test_fusion import METHODS as ALL
from test_fusion import VOCAB, fuse, make_expert, step_by_step, with_gates
from torch import Tensor, nn

from glyphlm.modeling.fusion import Fusion
from glyphlm.modeling.hf import GlyphLMConfig, GlyphLMForCausalLM
from glyphlm.modeling.model import GPT
from glyphlm.modeling.together import can_join
from glyphlm.runs.folder import config_fields

METHODS = [method for method in ALL if method not in ("router", "stitch")]


@pytest.fixture(scope="module")
def experts() -> list[GPT]:
    """Three of one shape; contexts and the bias of the head are no part of what runs as one."""
    return [make_expert(1), make_expert(2, block_size=40), make_expert(3, head_bias=False)]


@pytest.fixture
def ids_BT() -> Tensor:
    return torch.randint(VOCAB, (3, 14), generator=torch.Generator().manual_seed(3))


def joined(fusion: Fusion) -> bool:
    return fusion._together is not None


def make(method: str, experts: list[GPT]) -> Fusion:
    weights = [0.2, 0.5, 0.3] if method == "weighted_logits" else None
    fusion = fuse(method, experts, weights=weights)
    return with_gates(fusion) if method == "gate" else fusion


@pytest.mark.parametrize("prompt", [1, 9])
@pytest.mark.parametrize("method", METHODS)
def test_cached_steps_of_all_at_once_equal_the_whole_one_by_one(method, prompt, experts, ids_BT):
    fusion = make(method, experts)
    with torch.no_grad():
        expected = fusion(ids_BT)
    assert not joined(fusion)  # without a cache
    torch.testing.assert_close(step_by_step(fusion, ids_BT, prompt), expected, atol=1e-4, rtol=1e-4)
    assert joined(fusion)


@pytest.mark.parametrize("method", METHODS)
def test_padding_on_the_left_changes_nothing(method, experts, ids_BT):
    fusion = make(method, experts)
    padded_BT = torch.cat([torch.zeros(3, 4, dtype=torch.long), ids_BT], 1)
    attended_BT = torch.ones_like(padded_BT)
    attended_BT[:, :4] = 0
    found, expected = step_by_step(fusion, padded_BT, 6, attended_BT), step_by_step(fusion, ids_BT, 2)
    torch.testing.assert_close(found[:, 4:], expected, atol=1e-4, rtol=1e-4)


def test_there_is_one_copy_of_the_weights(experts, ids_BT):
    fusion = make("mean_logits", experts)
    before = {name: values.clone() for name, values in fusion.state_dict().items()}
    step_by_step(fusion, ids_BT, 5)
    after = fusion.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(values, after[name]) for name, values in before.items())
    weights = [expert.blocks[1].mlp.up.weight for expert in fusion.experts]
    assert len({values.untyped_storage().data_ptr() for values in weights}) == 1
    assert weights[0].untyped_storage().nbytes() == sum(values.nbytes for values in weights)


def change_values(fusion: Fusion) -> None:
    fusion.experts[1].blocks[0].mlp.up.weight.data.mul_(3)


def replace_values(fusion: Fusion) -> None:
    layer = fusion.experts[1].blocks[0].mlp.up
    layer.weight = nn.Parameter(layer.weight * 3, requires_grad=False)


def load_values(fusion: Fusion) -> None:
    fusion.load_state_dict({name: values * 1.5 for name, values in fusion.state_dict().items()})


def change_type(fusion: Fusion) -> None:
    fusion.double()


def unfreeze(fusion: Fusion) -> None:
    fusion.experts[2].blocks[0].requires_grad_(True)


class Doubled(nn.Linear):
    """A layer that is no plain one, as adapters are."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def wrap(fusion: Fusion) -> None:
    for expert in fusion.experts:
        expert.blocks[0].mlp.up.__class__ = Doubled


@pytest.mark.parametrize("change", [change_values, replace_values, load_values, change_type, unfreeze])
def test_what_changes_the_weights_is_seen(change, experts, ids_BT):
    fusion = make("mean_logits", experts)
    before = step_by_step(fusion, ids_BT, 5)
    change(fusion)
    with torch.no_grad():
        expected = fusion(ids_BT)
    torch.testing.assert_close(step_by_step(fusion, ids_BT, 5), expected, atol=1e-4, rtol=1e-4)
    assert change in (change_type, unfreeze) or not torch.allclose(before, expected)
    assert joined(fusion) == (change != unfreeze)


def test_other_layers_run_one_by_one(experts, ids_BT):
    fusion = make("mean_logits", experts)
    wrap(fusion)
    with torch.no_grad():
        expected = fusion(ids_BT)
    torch.testing.assert_close(step_by_step(fusion, ids_BT, 5), expected, atol=1e-4, rtol=1e-4)
    assert not joined(fusion)


@pytest.mark.parametrize("shape", [{"n_layer": 3}, {"d_model": 48}, {"n_head": 2}, {"rope_base": 500.0}])
def test_other_shapes_run_one_by_one(shape, experts):
    frozen = [expert.requires_grad_(False) for expert in copy.deepcopy([experts[0], experts[1]])]
    assert can_join(frozen)
    assert not can_join([frozen[0], make_expert(4, **shape).requires_grad_(False)])
    assert not can_join(frozen[:1])


@pytest.mark.parametrize("options", [{"num_beams": 3}, {"num_return_sequences": 2, "do_sample": True, "top_k": 1}])
def test_transformers_generates_the_same(options, experts, tmp_path, monkeypatch):
    fusion = make("posterior", experts)
    model = GlyphLMForCausalLM(GlyphLMConfig(**config_fields(fusion))).eval()
    model.gpt.load_state_dict(fusion.state_dict())
    given = {"attention_mask": torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]]), "max_new_tokens": 8, "pad_token_id": 0,
             "eos_token_id": None, "do_sample": False} | options
    prompt_BT = torch.tensor([[0, 0, 5, 6, 7], [8, 9, 10, 11, 12]])
    found = model.generate(prompt_BT, **given)
    assert joined(model.gpt)
    model.save_pretrained(tmp_path)  # weights that are views of one another's storage
    monkeypatch.setattr("glyphlm.modeling.fusion.can_join", lambda experts: False)
    again = GlyphLMForCausalLM.from_pretrained(tmp_path).eval()
    assert torch.equal(again.generate(prompt_BT, **given), found)
    assert not joined(again.gpt)
