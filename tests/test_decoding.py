"""Drawn ids are those of a plain loop without cache, whatever is in the batch; the distribution is that of transformers."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_models import make_run
from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from glyphlm.evaluation.decoding import GREEDY, Distribution, batches, continue_prompts, truncated, uniforms
from glyphlm.evaluation.model import EvalModel, load_eval_model
from glyphlm.runs.generate import Sampling

PROMPTS = [[300, 301, 302, 303, 304], [400, 401], [500, 501, 502]]
SAMPLINGS = [Sampling(), Sampling(temperature=1.5, top_k=0, top_p=0.7), Sampling(temperature=0.5, top_k=3, top_p=1.0)]


@pytest.fixture(scope="module")
def model(tokenizer, tmp_path_factory) -> EvalModel:
    return load_eval_model(str(make_run(tmp_path_factory.mktemp("runs") / "run", tokenizer)))


def probabilities(found: Distribution, size: int) -> torch.Tensor:
    p_BK = found.cdf_BK.diff(prepend=torch.zeros(len(found.cdf_BK), 1))
    return torch.zeros(len(p_BK), size).scatter(1, found.ids_BK, p_BK)


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_truncated_are_those_of_transformers(sampling):
    logits_BV = torch.randn(4, 200, generator=torch.Generator().manual_seed(0)) * 3
    expected = TemperatureLogitsWarper(sampling.temperature)(None, logits_BV)
    if sampling.top_k:
        expected = TopKLogitsWarper(sampling.top_k)(None, expected)
    if sampling.top_p < 1:
        expected = TopPLogitsWarper(sampling.top_p)(None, expected)
    found = truncated(logits_BV, sampling)
    torch.testing.assert_close(probabilities(found, 200), expected.softmax(-1), atol=1e-5, rtol=1e-4)
    assert found.mass(0, found.ids_BK[0, :1]) == pytest.approx(float(expected.softmax(-1)[0].max()), abs=1e-5)


def test_draws_come_as_often_as_they_are_likely():
    found = truncated(torch.tensor([[0.0, 1.0, 2.0, -9.0]]), Sampling(temperature=1.0, top_k=0, top_p=1.0))
    drawn = found.draw(torch.from_numpy(uniforms(1, "mmlu", 0, 20000, 1).T.copy()))
    expected = torch.tensor([0.0, 1.0, 2.0, -9.0]).softmax(0)
    torch.testing.assert_close(drawn[0].bincount(minlength=4) / 20000, expected, atol=0.02, rtol=0)


def test_uniforms_depend_on_the_item_alone_and_more_steps_keep_the_earlier():
    few, many = uniforms(1, "mmlu", 5, 10, 1), uniforms(1, "mmlu", 5, 10, 3)
    assert few.shape == (10, 1) and np.array_equal(few, many[:, :1])
    others = [uniforms(2, "mmlu", 5, 10, 1), uniforms(1, "squad", 5, 10, 1), uniforms(1, "mmlu", 6, 10, 1)]
    assert not any(np.array_equal(few, other) for other in others)


@given(st.lists(st.integers(1, 50), max_size=30), st.integers(0, 200))
def test_batches_hold_every_prompt_once_and_no_more_than_they_may(lengths, tokens):
    groups = list(batches(lengths, tokens))
    assert sorted(number for group in groups for number in group) == list(range(len(lengths)))
    assert all(len(group) == 1 or len(group) * max(lengths[n] for n in group) <= tokens for group in groups)


def plainly(model, prompt, steps, stops, sampling, drawn_CT):
    """Each copy by itself, the whole text read anew for each id."""
    copies = []
    for drawn_T in torch.from_numpy(drawn_CT.copy()):
        ids = []
        for step in range(steps):
            with torch.no_grad():
                logits_1V = model.model(torch.tensor([prompt + ids])).logits[:, -1]
            new = int(truncated(logits_1V, sampling).draw(drawn_T[None, step : step + 1]))
            if new in stops:
                break
            ids.append(new)
        copies.append(ids)
    return copies


@pytest.mark.parametrize("sampling", [GREEDY, *SAMPLINGS])
def test_ids_are_those_of_a_plain_loop(model, sampling):
    steps, stops = [6, 1, 4], set(range(0, 1024, 7))
    drawn = [uniforms(1, "squad", number, 5, 6) for number in range(3)]
    found, first = continue_prompts(model, PROMPTS, steps, stops, sampling, np.stack(drawn))
    assert found == [plainly(model, *given, stops, sampling, d) for *given, d in zip(PROMPTS, steps, drawn)]
    assert len({len(ids) for copies in found for ids in copies}) > 2  # some were stopped
    assert first.ids_BK.shape[0] == 3


def test_greedy_ids_are_those_of_generate(model):
    found, _ = continue_prompts(model, PROMPTS, [5, 5, 5], ())
    for prompt, (ids,) in zip(PROMPTS, found):
        options = {"do_sample": False, "temperature": None, "top_k": None, "top_p": None, "eos_token_id": None}
        ids_BT = torch.tensor([prompt])
        out = model.model.generate(ids_BT, attention_mask=torch.ones_like(ids_BT), max_new_tokens=5, **options)
        assert out[0].tolist() == prompt + ids
