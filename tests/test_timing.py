"""True steps are timed on a copy, and what is not timed is extended from what is."""

import math
import tempfile

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from glyphlm.modeling.model import GPT, ModelConfig
from glyphlm.modeling.substrate import Substrate, SubstrateConfig
from glyphlm.planning import timing
from glyphlm.planning.timing import LONGEST, affordable_rows, measure, replicate, time_step, update_seconds
from glyphlm.training.settings import TrainSettings

T = 16


def meta(n_layer: int = 8, kind: str = "glyph", lift: str = "repeat_interleave", width: int = 16) -> GPT:
    with torch.device("meta"):
        config = SubstrateConfig(64, 8, kind, lift=lift, shuffle_seed=1 if kind == "token_bits" else None)
        return GPT(ModelConfig(d_model=width, n_layer=n_layer, n_head=2, block_size=T), Substrate(config, width))


def settings(rows: int = 32, micro: int = 8, **changes) -> TrainSettings:
    sizes = {"batch_tokens": rows * T, "micro_batch_tokens": micro * T}
    return TrainSettings(**{"steps": 1, "precision": "fp32", "device": "cpu", **sizes, **changes})


@pytest.mark.parametrize(("kind", "in_flight"), [("glyph", 0), ("token_bits", 0), ("affine_bits", 0), ("glyph", 1)])
def test_steps_of_train_are_timed_and_leave_nothing_behind(kind, in_flight, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr("glyphlm.training.loop.STEPS_IN_FLIGHT", {"cpu": in_flight})  # 1 on a GPU
    model = meta(2, kind, "orthogonal")
    assert time_step(model, settings(4, 2, attention="document", lr=10), 4, 3) > 0
    assert all(values.is_meta for values in model.parameters()) and not list(tmp_path.glob("tmp*"))


def test_a_copy_has_the_same_shapes_and_real_values():
    model = meta(3)
    copy = replicate(model, 3, "cpu")
    assert {n: v.shape for n, v in copy.state_dict().items()} == {n: v.shape for n, v in model.state_dict().items()}
    assert all(values.isfinite().all() for values in copy.state_dict().values())


@given(st.integers(1, 64), st.integers(1, 64), st.sampled_from([1, 16, 300, 4096]), st.floats(1e-9, 1e3))
def test_rows_are_timed_in_whole_micro_batches_or_in_a_part_of_one(rows, micro, block_size, per_row):
    given_settings = TrainSettings(steps=1, batch_tokens=rows * block_size, micro_batch_tokens=micro * block_size)
    timed, micro = affordable_rows(given_settings, block_size, per_row), min(rows, micro)
    assert 1 <= timed <= rows and (timed <= micro or timed % micro == 0 or timed == rows)
    assert timed * per_row <= LONGEST or timed <= max(1, 1024 // block_size)


# A step of r sequences and l layers that takes 0.5 + r (0.2 + 0.1 l) seconds, guessed rightly and wrongly.
@pytest.mark.parametrize("layers", [1, 2, 3, 8])
@pytest.mark.parametrize("wrong", [0.01, 0.3, 1, 1.5])
def test_what_is_not_timed_is_extended(layers, wrong, monkeypatch):
    asked = []

    def time_step(model, _, rows, steps):
        asked.append((model.config.n_layer, rows))
        return 0.5 + rows * (0.2 + 0.1 * model.config.n_layer)

    monkeypatch.setattr(timing, "time_step", time_step)
    monkeypatch.setattr(timing, "update_seconds", lambda *_: 0.5)
    monkeypatch.setattr(timing, "LEAST_TOKENS", T)
    found = measure(meta(layers), settings(), (0.2 * wrong, 0.1 * wrong), 10**9)
    assert found.step == pytest.approx(0.5 + 32 * (0.2 + 0.1 * layers)) and found.update == 0.5
    assert max(rows * (0.2 + 0.1 * n) * wrong for n, rows in asked) <= LONGEST + 0.2
    assert (found.how == "measured: whole steps") == (asked == [(layers, 32)])


def test_what_takes_too_long_or_too_much_memory_is_not_timed(monkeypatch):
    monkeypatch.setattr(timing, "time_step", lambda *_: pytest.fail("was timed"))
    assert measure(meta(), settings(), (100.0, 1.0), 10**9) is None
    assert measure(meta(), settings(), (1e-6, 1e-6), 1000) is None


def test_the_update_of_many_values_is_extended_from_few():
    few, many = (update_seconds(meta(layers, width=width), settings()) for layers, width in ((1, 16), (64, 4096)))
    assert few > 0 and math.isfinite(many) and many > 1000 * few


def test_the_update_of_muon_is_that_of_each_block_and_of_the_rest():
    few, many = (update_seconds(meta(layers), settings(optimizer="muon")) for layers in (1, 64))
    assert few > 0 and many > 10 * few


def test_a_measurement_reports_what_it_timed(monkeypatch):
    monkeypatch.setattr(timing, "LEAST_TOKENS", T)
    assert measure(meta(1), settings(4, 4), (0.1, 0.1), 10**9).how == "measured: whole steps"
    assert measure(meta(1), settings(4, 4), (1.0, 0.1), 10**9).how == (
        "measured: all layers, 2 of 4 sequences; extended from there"
    )
    assert measure(meta(8), settings(4, 4), (1.0, 0.5), 10**9).how == (
        "measured: 1 and 4 of 8 layers, 1 of 4 sequences; extended from there"
    )
