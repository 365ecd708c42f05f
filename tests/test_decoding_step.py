"""Generation with a cache of fixed length: the same text as with one that grows, by steps that are computed or replayed."""

import pytest
import torch
from torch import Tensor

from glyphlm.modeling import decoding_step, hf
from glyphlm.modeling.fusion import Fusion, FusionConfig
from glyphlm.modeling.hf import GlyphLMConfig, GlyphLMForCausalLM
from glyphlm.modeling.model import GPT, ModelConfig
from glyphlm.modeling.substrate import Substrate, SubstrateConfig
from glyphlm.runs.folder import config_fields

V = 60
METHODS = [FusionConfig(), FusionConfig("posterior"), FusionConfig("mean_probs"),
           FusionConfig("gate", top_k=1, route_after=4)]
GREEDY = {"do_sample": False, "pad_token_id": 0, "eos_token_id": None, "max_new_tokens": 12}


def random_model(seed: int) -> GPT:
    """A model whose next token depends on what stands before it."""
    model = GPT(ModelConfig(32, 2, 2, 64), Substrate(SubstrateConfig(V, 16, "token_bits"), 32))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, values in model.named_parameters():
            draw = torch.randn(values.shape, generator=generator)
            values.copy_(draw * 0.5 if values.dim() == 2 else draw * 0.1 + name.endswith("norm.weight"))
    return model


def wrapped(model: GPT | Fusion) -> GlyphLMForCausalLM:
    outer = GlyphLMForCausalLM(GlyphLMConfig(**config_fields(model)))
    outer.gpt = model
    return outer.eval()


@pytest.fixture(params=["computed", "replayed"])
def way(request, monkeypatch) -> list[str]:
    """What happens: on a GPU a step is recorded once and replayed; here a replay computes it again, in the same tensors."""
    calls: list[str] = []

    def record(compute, put_back):
        result = compute()
        put_back()
        calls.append("recorded")

        def replay() -> None:
            calls.append("replayed")
            result.copy_(compute())

        return replay, result

    if request.param == "replayed":
        monkeypatch.setattr(hf, "can_record", lambda device: True)
        monkeypatch.setattr(decoding_step, "record", record)
    return calls


def prompts() -> Tensor:
    return torch.randint(1, V, (3, 7), generator=torch.Generator().manual_seed(5))


def test_text_is_that_of_a_growing_cache(way, request):
    model, ids_BT = wrapped(random_model(1)), prompts()
    expected = model.generate(ids_BT, attention_mask=torch.ones_like(ids_BT), **GREEDY)
    assert len({tuple(row) for row in expected[:, 7:].tolist()}) == 3  # it depends on the prompt
    for _ in range(2):  # each call has a cache of its own
        found = model.generate(ids_BT, attention_mask=torch.ones_like(ids_BT), cache_implementation="static", **GREEDY)
        assert torch.equal(found, expected)
    if "replayed" in request.node.name:
        assert way == (["recorded"] + ["replayed"] * 11) * 2


def test_left_padding_changes_nothing(way):
    model, ids_BT = wrapped(random_model(2)), prompts()
    mask_BT = torch.ones_like(ids_BT)
    ids_BT[0, :3] = mask_BT[0, :3] = 0
    expected = model.generate(ids_BT, attention_mask=mask_BT, **GREEDY)
    found = model.generate(ids_BT, attention_mask=mask_BT, cache_implementation="static", **GREEDY)
    assert torch.equal(found, expected)
    alone = model.generate(ids_BT[:1, 3:], attention_mask=mask_BT[:1, 3:], cache_implementation="static", **GREEDY)
    assert torch.equal(found[0, 3:], alone[0])


def test_drawn_text_is_that_of_a_growing_cache(way):
    model, ids_BT = wrapped(random_model(3)), prompts()
    drawn = GREEDY | {"do_sample": True, "top_k": 10, "attention_mask": torch.ones_like(ids_BT)}
    texts = []
    for given in ({}, {"cache_implementation": "static"}):
        torch.manual_seed(1)
        texts.append(model.generate(ids_BT, **drawn, **given))
    assert torch.equal(*texts)


@pytest.mark.parametrize("fusion", METHODS, ids=lambda fusion: fusion.method)
def test_fused_models_have_the_same_text(fusion):
    model, ids_BT = wrapped(Fusion(fusion, [random_model(1), random_model(2)])), prompts()
    given = GREEDY | {"attention_mask": torch.ones_like(ids_BT)}
    assert torch.equal(model.generate(ids_BT, cache_implementation="static", **given), model.generate(ids_BT, **given))


def test_a_mask_that_does_not_fit_is_refused(way):
    model, ids_BT = wrapped(random_model(1)), prompts()
    cache = hf.DynamicCache()
    with torch.no_grad():
        model(ids_BT, past_key_values=cache)
        with pytest.raises(ValueError, match=r"shape \(3, 4\).*need \(3, 8\)"):
            model(ids_BT[:, :1], past_key_values=cache, attention_mask=torch.ones(3, 4))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_graph_on_a_gpu_gives_the_same_text():
    model, ids_BT = wrapped(random_model(1)).cuda(), prompts().cuda()
    given = GREEDY | {"attention_mask": torch.ones_like(ids_BT)}
    assert torch.equal(model.generate(ids_BT, cache_implementation="static", **given), model.generate(ids_BT, **given))
