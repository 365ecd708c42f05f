"""Training: it learns, a stop at any moment changes nothing, twins see the same, and what goes wrong is named."""

import json
import math
import os
import random
import re
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import yaml
from forked import start

from glyphlm.base.errors import InputError
from glyphlm.base.tensors import load_tensors, save_tensors
from glyphlm.cli.main import main
from glyphlm.data.batches import IGNORED, Batch, Batches, TokenText, unigram_bits_per_byte, validation_batches
from glyphlm.data.shards import prepare
from glyphlm.experiments.train_recipe import initial_digest
from glyphlm.modeling.model import GPT, ModelConfig
from glyphlm.modeling.substrate import Substrate, SubstrateConfig
from glyphlm.substrate.build import load_substrate
from glyphlm.training.checkpoint import TrainState, list_states, load_state
from glyphlm.training.loop import METRICS, train
from glyphlm.training.settings import TrainSettings, batch_rows, count_steps

BLOCK = 32
CLOCK = {"seconds", "tokens_per_second", "mfu"}  # the only values that differ between equal runs


def settings(**changes) -> TrainSettings:
    small = {"steps": 10, "batch_tokens": 4 * BLOCK, "micro_batch_tokens": 4 * BLOCK, "lr": 1e-2, "precision": "fp32",
             "log_every": 2, "validate_every": 5, "save_every": 4, "keep": 9}
    return TrainSettings(**small | changes)


class Arm:
    """A tiny model and its data, opened anew for each start as a new process does."""

    def __init__(self, shards: Path, substrate: Path | None = None, d_model: int = 32, seed: int = 1):
        self.seed, self.text, self.held_out = seed, TokenText(shards, "train"), TokenText(shards, "validation")
        if substrate:
            module = load_substrate(substrate, d_model)
        else:
            module = Substrate(SubstrateConfig(self.text.vocab_size, 16, "glyph"), d_model)
            module.table_VE.copy_(torch.randn(module.table_VE.shape, generator=torch.Generator().manual_seed(7)))
        self.model = GPT(ModelConfig(d_model, 1, 2, BLOCK), module)
        self.model.init_weights(seed)

    def validation(self) -> Iterator[Batch]:
        return validation_batches([self.held_out], BLOCK, 4, 512)

    def train(self, out: Path, given: TrainSettings, on_step: Callable[[TrainState], None] | None = None) -> TrainState:
        self.batches = Batches([self.text], [1.0], BLOCK, batch_rows(given, BLOCK), self.seed)
        return train(self.model, self.batches, given, out, self.validation, on_step)


def rows(run: Path) -> list[dict]:
    """The metrics without what the clock says."""
    lines = (run / METRICS).read_text(encoding="utf-8").splitlines()
    return [{key: value for key, value in json.loads(line).items() if key not in CLOCK} for line in lines]


def assert_equal_runs(run: Path, straight: Path) -> None:
    """Metrics, and weights, moments and random numbers of the last checkpoint, are equal bit for bit."""
    assert rows(run) == rows(straight)
    newest, expected = list_states(run)[-1], list_states(straight)[-1]
    assert newest.name == expected.name
    for file in ("model.safetensors", "optimizer.safetensors"):
        assert (newest / file).read_bytes() == (expected / file).read_bytes(), file
    was, now = (json.loads((folder / "state.json").read_text()) for folder in (newest, expected))
    assert {**was, "seconds": 0} == {**now, "seconds": 0}


@pytest.fixture(scope="module")
def straight(shards, tmp_path_factory) -> Path:
    """A run of 10 steps that nothing stops."""
    out = tmp_path_factory.mktemp("straight")
    arm = Arm(shards)
    torch.manual_seed(0)
    state = arm.train(out, settings())
    assert (state.step, state.tokens) == (10, 10 * 4 * BLOCK)
    return out


@pytest.fixture
def stopped(shards, tmp_path) -> Path:
    """The same run, thrown out in step 7 of 10; its last checkpoint is of step 4."""

    def leave(state: TrainState) -> None:
        if state.step == 7:
            raise RuntimeError("out")

    arm = Arm(shards)
    torch.manual_seed(0)
    with pytest.raises(RuntimeError, match="out"):
        arm.train(tmp_path / "run", settings(), leave)
    torch.manual_seed(99)  # what a new process happens to have
    return tmp_path / "run"


def test_model_learns_more_than_the_frequencies_of_tokens(tokenizer, tmp_path):
    words = "one two three four five six seven eight nine ten ".split()
    lines = [" ".join(words[(start + i) % 10] for i in range(30)) for start in range(200)]
    documents = (json.dumps({"text": f"{number} {line}"}) for number, line in enumerate(lines))
    (tmp_path / "toy.jsonl").write_text("\n".join(documents))
    arm = Arm(prepare(tokenizer, [str(tmp_path / "toy.jsonl")], tmp_path / "toy", 0.1))
    arm.train(tmp_path / "run", settings(steps=60, validate_every=30))
    reached = [row["bits_per_byte"] for row in rows(tmp_path / "run") if row["split"] == "validation"]
    losses = [row["loss"] for row in rows(tmp_path / "run") if row["split"] == "train"]
    assert reached[-1] < 0.8 * unigram_bits_per_byte([arm.text], arm.validation())
    assert reached[-1] < reached[0] and losses[-1] < 0.5 * losses[0]


def test_metrics_have_a_row_for_each_moment(straight):
    found = [(row["step"], row["split"]) for row in rows(straight)]
    trained = [(step, "train") for step in (2, 4, 6, 8, 10)]
    assert found == sorted([*trained, (5, "validation"), (10, "validation")])
    assert all(row["tokens"] == row["step"] * 4 * BLOCK for row in rows(straight))


def test_logged_loss_is_that_of_the_steps_since_the_last_row(shards, tmp_path, straight):
    arm = Arm(shards)
    arm.train(tmp_path, settings(steps=10, log_every=1))
    each = [row["loss"] for row in rows(tmp_path) if row["split"] == "train"]
    pairs = [row["loss"] for row in rows(straight) if row["split"] == "train"]
    assert pairs == pytest.approx([(a + b) / 2 for a, b in zip(each[::2], each[1::2])])
    assert each[0] == pytest.approx(math.log(1024), rel=0.02)  # untrained, every token is as likely


@pytest.mark.parametrize("rate, is_logged", [(1e15, True), (1.0, False), (None, False)])
def test_utilisation_is_logged_where_the_rate_is_known_and_below_100_percent(shards, tmp_path, monkeypatch, rate, is_logged):
    monkeypatch.setattr("glyphlm.training.loop.peak_rate", lambda *given: rate)
    Arm(shards).train(tmp_path, settings(steps=2))
    use = json.loads((tmp_path / METRICS).read_text(encoding="utf-8").splitlines()[0])["mfu"]
    assert (use is not None and 0 < use <= 1) == is_logged


def test_run_that_was_stopped_ends_as_if_it_had_not(shards, stopped, straight):
    assert [state.name for state in list_states(stopped)] == ["step-00000004"]
    arm = Arm(shards, seed=1)
    arm.model.init_weights(5)  # whatever stood in the model before
    arm.train(stopped, settings())
    assert_equal_runs(stopped, straight)


def test_muon_continues_bit_for_bit_where_it_was_stopped(shards, tmp_path):
    def leave(state: TrainState) -> None:
        if state.step == 7:
            raise RuntimeError("out")

    torch.manual_seed(0)
    Arm(shards).train(tmp_path / "straight", settings(optimizer="muon"))
    torch.manual_seed(0)
    with pytest.raises(RuntimeError, match="out"):
        Arm(shards).train(tmp_path / "stopped", settings(optimizer="muon"), leave)
    Arm(shards, seed=1).train(tmp_path / "stopped", settings(optimizer="muon"))
    assert_equal_runs(tmp_path / "stopped", tmp_path / "straight")


def test_finished_run_does_nothing_more(shards, straight, tmp_path):
    run = shutil.copytree(straight, tmp_path / "run")
    before = (run / METRICS).read_bytes()
    arm = Arm(shards)
    assert arm.train(run, settings(), on_step=lambda state: pytest.fail("a step")).step == 10
    assert (run / METRICS).read_bytes() == before
    assert torch.equal(arm.model.head.weight, load_tensors(list_states(run)[-1] / "model.safetensors")["head.weight"])


@pytest.mark.parametrize(
    ("number", "ending"), [(signal.SIGTERM, SystemExit), (signal.SIGINT, KeyboardInterrupt)], ids=["SIGTERM", "SIGINT"]
)
def test_signal_stops_after_the_step_with_a_checkpoint(shards, straight, tmp_path, capsys, number, ending):
    handlers = [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)]
    arm = Arm(shards)
    torch.manual_seed(0)
    with pytest.raises(ending) as stop:
        arm.train(tmp_path, settings(), lambda state: os.kill(os.getpid(), number) if state.step == 7 else None)
    assert ending is KeyboardInterrupt or stop.value.code == 128 + signal.SIGTERM
    assert "stopped and saved at step 7 of 10" in capsys.readouterr().err
    assert list_states(tmp_path)[-1].name == "step-00000007"
    assert [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)] == handlers
    Arm(shards).train(tmp_path, settings())
    assert_equal_runs(tmp_path, straight)


def test_half_written_checkpoint_is_removed_and_named(shards, stopped, straight, capsys):
    half = stopped / "state" / ".step-00000008.partial"
    half.mkdir()
    (half / "model.safetensors").write_bytes(b"half")
    Arm(shards).train(stopped, settings())
    said = capsys.readouterr().err
    assert f"{half.name} was left half-written" in said and "resuming from step 4" in said
    assert not half.exists()
    assert_equal_runs(stopped, straight)


def test_half_written_metrics_line_is_dropped(shards, stopped, straight):
    with (stopped / METRICS).open("a") as file:
        file.write('{"step": 8, "tok')
    Arm(shards).train(stopped, settings())
    assert_equal_runs(stopped, straight)


@pytest.mark.parametrize("file", ["model.safetensors", "optimizer.safetensors", "state.json"])
@pytest.mark.parametrize("damage", ["cut", "gone"])
def test_damaged_checkpoint_is_refused_by_name_and_an_earlier_one_serves(shards, straight, tmp_path, file, damage):
    run = shutil.copytree(straight, tmp_path / "run")
    newest = list_states(run)[-1]
    content = (newest / file).read_bytes()
    (newest / file).unlink()
    if damage == "cut":
        (newest / file).write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match=f"{newest} cannot be restored .*remove it"):
        Arm(shards).train(run, settings())
    shutil.rmtree(newest)
    Arm(shards).train(run, settings())
    assert_equal_runs(run, straight)


@pytest.mark.parametrize(
    ("spoil", "named"),
    [
        (lambda tensors: {"rng": tensors["rng"]}, "lacks blocks.0.* more tensors"),
        (lambda tensors: {k: v for k, v in tensors.items() if k != "head.weight/exp_avg"}, "lacks head.weight/exp_avg"),
        (lambda tensors: {k: v for k, v in tensors.items() if k != "rng"}, "lacks rng"),
        (lambda tensors: tensors | {"foot.weight/exp_avg": torch.zeros(3)}, "has unknown foot.weight/exp_avg"),
        (lambda tensors: tensors | {"head.weight/exp_avg": torch.zeros(3)}, r"head.weight/exp_avg has shape \[3\]"),
    ],
)
def test_an_incomplete_optimizer_is_refused(shards, straight, tmp_path, spoil, named):
    run = shutil.copytree(straight, tmp_path / "run")
    newest = list_states(run)[-1]
    save_tensors(spoil(load_tensors(newest / "optimizer.safetensors")), newest / "optimizer.safetensors")
    with pytest.raises(InputError, match="cannot be restored .optimizer.safetensors is not as it was written.*remove it"):
        Arm(shards).train(run, settings())
    record = json.loads((newest / "state.json").read_text())
    del record["files"]  # as checkpoints of before have none
    (newest / "state.json").write_text(json.dumps(record))
    with pytest.raises(InputError, match=f"cannot be restored .optimizer.safetensors:? {named}.*remove it"):
        Arm(shards).train(run, settings())


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"step": 9}, "of step 9"), ({"tokens": -1}, "tokens -1"), ({"seconds": None}, "seconds None"),
        ({"end": 1}, "'end'"),
        ({"window": {"nats": "x"}}, "window.nats 'x'"), ({"window": {"of": 1}}, "'of'"), ({"window": [1]}, "mapping"),
        ({"batches": [1]}, "batches"),
    ],
)
def test_a_record_that_was_changed_is_refused(shards, straight, tmp_path, changes, named):
    run = shutil.copytree(straight, tmp_path / "run")
    path = list_states(run)[-1] / "state.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(InputError, match=f"cannot be restored .*{named}"):
        Arm(shards).train(run, settings())


def test_copies_of_checkpoints_are_neither_read_nor_deleted(shards, stopped, straight):
    names = ("step-00000004.bak", "step-00000009-from4", "step-4", ".step-00000004.old")
    copies = [stopped / "state" / name for name in names]
    for copy in copies:
        shutil.copytree(stopped / "state" / "step-00000004", copy)
    assert [state.name for state in list_states(stopped)] == ["step-00000004"]
    Arm(shards).train(stopped, settings(keep=1))
    assert all((copy / "state.json").exists() for copy in copies)
    assert_equal_runs(stopped, straight)


def test_validation_before_the_first_step_is_logged_once_whatever_was_killed(shards, tmp_path):
    def leave(state: TrainState) -> None:
        raise RuntimeError("out")

    for _ in range(2):
        with pytest.raises(RuntimeError, match="out"):
            Arm(shards).train(tmp_path, settings(validate_first=True), leave)
    Arm(shards).train(tmp_path, settings(validate_first=True))
    assert [row["step"] for row in rows(tmp_path)].count(0) == 1


def test_a_damaged_line_of_metrics_is_named(shards, stopped):
    path = stopped / METRICS
    path.write_text(path.read_text().replace('{"step": 4', '{"step": four', 1))
    with pytest.raises(InputError, match="metrics.jsonl line 2 is damaged .*; fix or delete"):
        Arm(shards).train(stopped, settings())


def test_a_step_without_a_target_is_reported_and_logged_as_null(shards, tmp_path, capsys):
    class Masked(Batches):
        def __next__(self) -> Batch:
            x_BT, y_BT = super().__next__()
            return Batch(x_BT, torch.full_like(y_BT, IGNORED))

    arm, given = Arm(shards), settings(steps=1, log_every=1)
    train(arm.model, Masked([arm.text], [1.0], BLOCK, 4, 1), given, tmp_path)
    assert [(row["loss"], row["bits_per_byte"]) for row in rows(tmp_path)] == [(None, None)]
    assert "NaN" not in (tmp_path / METRICS).read_text() and "step 1 had no target" in capsys.readouterr().err
    assert all(tensor.isfinite().all() for tensor in arm.model.state_dict().values())


@pytest.mark.parametrize("how", ["stop", "skip"])
def test_a_validation_that_is_not_a_number_stops_or_is_left_out(shards, tmp_path, capsys, how):
    def spoil(state: TrainState) -> None:
        if state.step == 5:
            arm.model.head.weight.data.fill_(math.nan)

    arm, given = Arm(shards), settings(steps=5, not_finite=how)
    if how == "stop":
        with pytest.raises(InputError, match="validation at step 5: .* loss of nan; .*; the last checkpoint is of step 4"):
            arm.train(tmp_path, given, spoil)
    else:
        arm.train(tmp_path, given, spoil)
        assert "validation at step 5" in capsys.readouterr().err
    assert "validation" not in {row["split"] for row in rows(tmp_path)}


def test_checkpoint_of_another_model_is_refused(shards, stopped):
    with pytest.raises(InputError, match="step-00000004 cannot be restored"):
        Arm(shards, d_model=64).train(stopped, settings())


@pytest.mark.parametrize(("keep", "kept"), [(1, [10]), (2, [8, 10]), (3, [4, 8, 10])])
def test_only_the_newest_checkpoints_are_kept(shards, tmp_path, keep, kept):
    Arm(shards).train(tmp_path, settings(keep=keep))
    assert [path.name for path in sorted((tmp_path / "state").iterdir())] == [f"step-{step:08}" for step in kept]


def test_loss_that_is_not_a_number_names_step_position_and_last_checkpoint(shards, tmp_path):
    def spoil(state: TrainState) -> None:
        if state.step == 6:
            arm.model.head.weight.data.fill_(math.inf)

    arm = Arm(shards)
    named = r"at step 6 \(batch position \[28\]\); the last checkpoint is of step 4; lower train.lr"
    with pytest.raises(InputError, match=named):
        arm.train(tmp_path, settings(), spoil)
    assert list_states(tmp_path)[-1].name == "step-00000004"
    assert max(row["step"] for row in rows(tmp_path)) == 6


class Exploding(torch.autograd.Function):
    """A loss that is no number, as overflow gives."""

    @staticmethod
    def forward(ctx, loss):
        return loss * math.nan

    @staticmethod
    def backward(ctx, upstream):
        return upstream * math.nan


def test_steps_that_are_no_number_can_be_skipped_and_are_counted(shards, tmp_path, monkeypatch, capsys):
    from glyphlm.training import loss

    whole, calls = loss.head_loss, []

    def sometimes(*given):
        calls.append(1)
        return Exploding.apply(whole(*given)) if len(calls) in (3, 4) else whole(*given)

    monkeypatch.setattr(loss, "head_loss", sometimes)
    arm = Arm(shards)
    state = arm.train(tmp_path, settings(not_finite="skip"))
    assert (state.step, state.skipped) == (10, 2)
    assert "at step 3 (batch position [16]): skipped, 2 so far" in capsys.readouterr().err
    assert all(math.isfinite(row["loss"]) for row in rows(tmp_path) if row["step"] > 4)
    assert all(tensor.isfinite().all() for tensor in arm.model.state_dict().values())


@pytest.mark.parametrize("clip", [1e-6, 1e6])
def test_steps_whose_gradient_is_clipped_are_counted_over_a_stop(shards, tmp_path, clip):
    class Stop(Exception):
        """Stands for whatever ends a run."""

    def stop(state):
        if state.step == 5:
            raise Stop

    asked = settings(clip=clip, log_every=3)
    with pytest.raises(Stop):
        Arm(shards).train(tmp_path, asked, stop)
    state = Arm(shards).train(tmp_path, asked)
    share = float(clip < 1)
    assert state.clipped == 10 * share and state.clipped_share(10) == share
    assert [row["clipped"] for row in rows(tmp_path) if row["split"] == "train"] == [share] * 3


def test_a_run_that_an_older_version_began_does_not_know_its_share_of_clipped_steps(shards, tmp_path):
    Arm(shards).train(tmp_path, settings())
    path = list_states(tmp_path)[-1] / "state.json"
    record = json.loads(path.read_text())
    del record["clipped"]
    path.write_text(json.dumps(record))
    arm = Arm(shards)
    assert load_state(tmp_path, arm.model).clipped_share(10) is None


@pytest.mark.parametrize("changes", [{"recompute": True}, {"micro_batch_tokens": BLOCK, "recompute": True}])
def test_recomputed_activations_give_the_same_run(shards, straight, tmp_path, changes):
    Arm(shards).train(tmp_path, settings(**changes))
    numbers = [[value for key, value in row.items() if key != "split"] for row in rows(tmp_path)]
    assert numbers == [pytest.approx([v for k, v in row.items() if k != "split"], rel=1e-4) for row in rows(straight)]


def test_with_document_masks_the_loss_is_another_one(shards, straight, tmp_path):
    Arm(shards).train(tmp_path, settings(attention="document"))
    assert [row["loss"] for row in rows(tmp_path)] != [row["loss"] for row in rows(straight)]


def test_a_dry_run_checks_everything_and_trains_nothing(recipe, tmp_path, capsys):
    assert main(["train", str(recipe), "--out", str(tmp_path / "run"), "--dry-run"]) == 0
    assert "all inputs fit; loss " in capsys.readouterr().err
    assert not (tmp_path / "run" / METRICS).exists() and not list_states(tmp_path / "run")


def test_frozen_table_keeps_its_bytes_and_costs_no_optimizer_state(shards, straight):
    table_VE = Arm(shards).model.substrate.table_VE
    newest = list_states(straight)[-1]
    assert torch.equal(load_tensors(newest / "model.safetensors")["substrate.table_VE"], table_VE)
    assert not [name for name in load_tensors(newest / "optimizer.safetensors") if "substrate" in name]


def test_trainable_table_is_trained(shards, substrates, tmp_path):
    arm = Arm(shards, substrates["learned"])
    before = arm.model.substrate.table_VE.detach().clone()
    arm.train(tmp_path, settings(steps=2))
    assert not torch.equal(arm.model.substrate.table_VE, before)
    assert "substrate.table_VE/exp_avg" in load_tensors(list_states(tmp_path)[-1] / "optimizer.safetensors")


def test_micro_batches_add_up_to_the_same_gradient(shards, tmp_path, monkeypatch):
    def gradient(micro_rows: int) -> dict[str, torch.Tensor]:
        arm = Arm(shards)
        for p in arm.model.parameters():
            p.data.mul_(4)  # initial values give small gradients
        before = {name: p.detach().clone() for name, p in arm.model.named_parameters()}
        one = settings(steps=1, micro_batch_tokens=micro_rows * BLOCK, lr=1.0, schedule="constant", warmup=0.0, clip=1e9)
        arm.train(tmp_path / str(micro_rows), one)
        return {name: before[name] - p.detach() for name, p in arm.model.named_parameters()}

    # Plain descent at rate 1 moves each value by its gradient.
    monkeypatch.setattr("glyphlm.training.loop.make_optimizer", lambda model, *_: torch.optim.SGD(model.parameters()))
    whole, pairs, single = (gradient(micro_rows) for micro_rows in (4, 2, 1))
    for name, expected in whole.items():
        assert expected.abs().max() > 1e-4
        torch.testing.assert_close(pairs[name], expected, atol=1e-6, rtol=1e-4)
        torch.testing.assert_close(single[name], expected, atol=1e-6, rtol=1e-4)
    losses = [rows(tmp_path / micro_rows)[-1]["loss"] for micro_rows in ("4", "2", "1")]
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-5)


def test_bf16_products_train_as_well(shards, tmp_path, straight):
    Arm(shards).train(tmp_path, settings(precision="bf16", steps=5))
    for row, exact in zip(rows(tmp_path)[:2], rows(straight)[:2], strict=True):
        assert row["loss"] == pytest.approx(exact["loss"], rel=0.02)
    assert all(t.dtype == torch.float32 for t in load_tensors(list_states(tmp_path)[-1] / "model.safetensors").values())


def test_twins_start_from_the_same_values_and_see_the_same_batches(shards, substrates, tmp_path):
    arms = [Arm(shards, substrates[kind]) for kind in ("token_bits", "learned")]
    first, second = (initial_digest(arm.model) for arm in arms)
    for number, arm in enumerate(arms):
        arm.train(tmp_path / str(number), settings(steps=3))
    assert first == second
    assert arms[0].batches.digest == arms[1].batches.digest != "00000000"
    assert initial_digest(arms[0].model) != initial_digest(arms[1].model)
    other = Arm(shards, substrates["learned"], seed=2)
    assert initial_digest(other.model) != first
    other.train(tmp_path / "other", settings(steps=3))
    assert other.batches.digest != arms[0].batches.digest


def test_steps_come_from_steps_or_tokens():
    assert count_steps(settings(steps=7)) == 7
    assert count_steps(settings(steps=None, tokens=1e3, batch_tokens=128)) == 7
    for wrong in ({"tokens": 5.0}, {"steps": None}):
        with pytest.raises(InputError, match="one of the two"):
            count_steps(settings(**wrong))
    with pytest.raises(InputError, match="train.tokens 100 .*128 tokens; raise"):
        count_steps(settings(steps=None, tokens=100.0))


@pytest.mark.parametrize(
    ("name", "value", "limit"),
    [
        ("keep", -1, "at least 1"), ("keep", 0, "at least 1"), ("log_every", 0, "at least 1"),
        ("save_every", 0, "at least 1"), ("validate_every", 0, "at least 1"), ("validation_tokens", 0, "at least 1"),
        ("batch_tokens", 0, "at least 1"),
        ("batch_tokens", -128, "at least 1"), ("batch_tokens", 2**80, "at most"), ("micro_batch_tokens", 0, "at least 1"),
        ("steps", 0, "at least 1"), ("steps", 1.5, "whole"), ("tokens", math.inf, "at most"), ("tokens", -1, "at least"),
        ("lr", -1, "at least 0"), ("lr", math.nan, "at least 0"), ("lr", 1e30, "at most 10"), ("lr", True, "at least 0"),
        ("lr_floor", 2, "at most 1"), ("warmup", 5, "at most 1"), ("weight_decay", -0.1, "at least 0"),
        ("beta1", 2, "below 1"), ("beta2", 1.0, "below 1"), ("clip", 0, "above 0"), ("clip", math.nan, "above 0"),
        ("clip", math.inf, "at most"), ("seed", -1, "at least 0"), ("seed", 2**70, "at most"),
        ("flat_after", 0, "at least 1.*null"), ("flat_below", math.nan, "at least 0"), ("not_finite", None, "stop, skip"),
        ("schedule", "linear", "cosine, wsd, constant"), ("precision", "fp16", "auto, fp32, bf16"),
        ("trackers", ["tensorbored"], "tensorboard"),
    ],
)  # fmt: skip
def test_values_out_of_range_are_refused_with_value_and_limit(name, value, limit):
    shown = repr(value[0] if isinstance(value, list) else value)
    with pytest.raises(InputError, match=rf"train\.{name} {re.escape(shown)} must be .*{limit}"):
        settings(**{name: value})


def test_the_command_line_names_a_value_out_of_range(recipe, tmp_path, capsys):
    assert main(["train", str(recipe), "--train.keep", "-1", "--out", str(tmp_path / "run")]) == 2
    assert "train.keep -1 must be a whole number, at least 1" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_batches_that_do_not_split_are_refused():
    assert batch_rows(settings(micro_batch_tokens=8192), BLOCK) == 4
    for wrong in ({"batch_tokens": 100}, {"micro_batch_tokens": 40}):
        with pytest.raises(InputError, match="multiples of block_size 32"):
            batch_rows(settings(**wrong), BLOCK)
    with pytest.raises(InputError, match="not a multiple of micro_batch_tokens 96"):
        batch_rows(settings(micro_batch_tokens=96), BLOCK)


@pytest.fixture
def in_flight(monkeypatch) -> None:
    """A step's numbers are read when the next one is launched, and batches are made ahead, as on a GPU."""
    monkeypatch.setattr("glyphlm.training.loop.STEPS_IN_FLIGHT", {"cpu": 1})


@pytest.mark.usefixtures("in_flight")
def test_steps_read_late_give_the_same_run_and_stop_and_resume_exactly(shards, straight, tmp_path):
    def leave(state: TrainState) -> None:
        if state.step == 7:
            raise RuntimeError("out")

    whole, parts = Arm(shards), Arm(shards)
    torch.manual_seed(0)
    whole.train(tmp_path / "whole", settings())
    torch.manual_seed(0)
    with pytest.raises(RuntimeError, match="out"):
        parts.train(tmp_path / "parts", settings(), leave)
    assert parts.batches.state()["taken"] == [7 * 4]  # not what was made ahead
    parts.train(tmp_path / "parts", settings())
    assert_equal_runs(tmp_path / "parts", tmp_path / "whole")
    assert whole.batches.digest == parts.batches.digest
    newest = [list_states(run)[-1] / "state.json" for run in (tmp_path / "whole", straight)]
    ours, expected = (json.loads(path.read_text()) for path in newest)
    assert ours["batches"] == expected["batches"]
    for row, same in zip(rows(tmp_path / "whole"), rows(straight), strict=True):
        assert row == {key: value if key == "split" else pytest.approx(value, rel=1e-5) for key, value in same.items()}


@pytest.mark.usefixtures("in_flight")
def test_steps_read_late_are_stopped_or_skipped_where_they_are_no_number(shards, tmp_path, monkeypatch, capsys):
    from glyphlm.training import loss

    whole, calls = loss.head_loss, []

    def sometimes(*given):
        calls.append(1)
        return Exploding.apply(whole(*given)) if len(calls) in (3, 4) else whole(*given)

    monkeypatch.setattr(loss, "head_loss", sometimes)
    arm = Arm(shards)
    state = arm.train(tmp_path / "skip", settings(not_finite="skip"))
    assert (state.step, state.skipped) == (10, 2)
    assert "at step 3 (batch position [16]): skipped, 2 so far" in capsys.readouterr().err
    assert all(tensor.isfinite().all() for tensor in arm.model.state_dict().values())
    counts = load_tensors(list_states(tmp_path / "skip")[-1] / "optimizer.safetensors")
    assert {float(value) for name, value in counts.items() if name.endswith("/step")} == {8.0}
    calls.clear()
    with pytest.raises(InputError, match=r"at step 2 \(batch position \[12\]\); no checkpoint was written yet"):
        Arm(shards).train(tmp_path / "stop", settings())


# The command line in processes of its own, which can be killed.

@pytest.fixture(scope="module")
def recipe(shards, substrates, tokenizer_folder, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "recipe.yaml"
    path.write_text(yaml.safe_dump({
        "tokenizer": {"path": str(tokenizer_folder)},
        "substrate": {"path": str(substrates["learned"])},
        "model": {"d_model": 32, "n_layer": 1, "n_head": 2, "block_size": BLOCK},
        "data": [{"shards": str(shards)}],
        "train": {"steps": 120, "batch_tokens": 128, "micro_batch_tokens": 64, "precision": "fp32", "device": "cpu",
                  "log_every": 3, "validate_every": 20, "validation_tokens": 256, "save_every": 3},
    }))
    return path


@pytest.fixture(scope="module")
def straight_command(recipe, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("command") / "run"
    assert finish(recipe, out) == 0
    return out


def finish(recipe: Path, out: Path) -> int:
    process = start("train", recipe, "--out", out)
    process.join(120)
    return process.exitcode


def stop(recipe: Path, out: Path, number: int, delay: float) -> int:
    """Start the command, let it reach a new checkpoint, wait a little, send the signal; the exit code."""
    before, process, deadline = list_states(out), start("train", recipe, "--out", out), time.monotonic() + 60
    while list_states(out)[-1:] == before[-1:] and process.is_alive():
        assert time.monotonic() < deadline
        time.sleep(0.002)
    time.sleep(delay)
    os.kill(process.pid, number)
    process.join(60)
    assert not (out / "summary.json").exists(), "finished before it was stopped"
    return process.exitcode


@pytest.mark.parametrize(
    ("number", "times", "code"),
    [(signal.SIGTERM, 1, 143), (signal.SIGINT, 1, 130), (signal.SIGKILL, 4, -signal.SIGKILL)],
    ids=["SIGTERM", "SIGINT", "SIGKILL"],
)
def test_command_that_was_stopped_ends_as_if_it_had_not(recipe, straight_command, tmp_path, number, times, code):
    out, delays = tmp_path / "run", random.Random(0)
    assert [stop(recipe, out, number, delays.uniform(0, 0.02)) for _ in range(times)] == [code] * times
    assert finish(recipe, out) == 0
    found, expected = (json.loads((run / "summary.json").read_text()) for run in (out, straight_command))
    assert rows(out) == rows(straight_command)
    assert (out / "model.safetensors").read_bytes() == (straight_command / "model.safetensors").read_bytes()
    for key in ("bits_per_byte", "data_order", "init", "steps", "tokens"):
        assert found[key] == expected[key], key
    assert not list((out / "state").glob(".*"))
