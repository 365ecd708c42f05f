"""Rows of metrics reach the trackers that a run names."""

import sys
from types import SimpleNamespace

import pytest

from glyphlm.base.errors import InputError
from glyphlm.training.trackers import Trackers

ROW = {"step": 7, "tokens": 70, "seconds": 1.5, "split": "train", "loss": 2.5}
VALUES = {"train/step": 7, "train/tokens": 70, "train/seconds": 1.5, "train/loss": 2.5}


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_a_run_is_called_as_its_folder_and_gets_each_row(monkeypatch, tmp_path, name):
    started, logged = [], []
    run = SimpleNamespace(log=lambda values, step: logged.append((values, step)))
    stand_in = SimpleNamespace(init=lambda **given: started.append(given) or run)
    monkeypatch.setitem(sys.modules, name, stand_in)
    Trackers([name], tmp_path / "mine").log(ROW)
    assert (started[0]["project"], started[0]["name"]) == ("glyphlm", "mine")
    assert logged == [(VALUES, 7)]


def test_tensorboard_gets_each_number(monkeypatch, tmp_path):
    scalars = []
    writer = SimpleNamespace(add_scalar=lambda *given: scalars.append(given), flush=lambda: None)
    monkeypatch.setitem(sys.modules, "tensorboard", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", SimpleNamespace(SummaryWriter=lambda folder: writer))
    Trackers(["tensorboard"], tmp_path).log(ROW)
    assert scalars == [(name, value, 7) for name, value in VALUES.items()]


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "trackio"])
def test_a_tracker_that_is_not_installed_is_refused_with_the_cure(monkeypatch, tmp_path, name):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(InputError, match=f"{name} is not installed; pip install {name}, or leave it out"):
        Trackers([name], tmp_path)


def test_without_trackers_nothing_is_sent(tmp_path):
    Trackers([], tmp_path).log(ROW)
    assert not any(tmp_path.iterdir())
