"""GPUs by name, and this machine."""

import pytest

from glyphlm.base.errors import InputError
from glyphlm.planning.machines import GPUS, choose_machine
from glyphlm.training.settings import TrainSettings


@pytest.mark.parametrize("name", GPUS)
def test_a_gpu_is_faster_in_bf16_which_auto_means_there(name):
    auto, settings = choose_machine(TrainSettings(), 64, name, 2)
    full, _ = choose_machine(TrainSettings(precision="fp32"), 64, name, 2)
    assert (settings.precision, settings.device) == ("bf16", "cuda")
    assert auto.rate > full.rate > 1e12 and auto.memory >= 24e9 and auto.count == 2 and not auto.here


def test_this_machine_has_what_torch_and_the_system_report():
    machine, settings = choose_machine(TrainSettings(device="cpu", precision="fp32"), 64, None, 1)
    assert (machine.name, machine.count, machine.here) == ("cpu", 1, True)
    assert machine.memory > 1e9 and machine.rate > 1e6 and settings.precision == "fp32"


def test_an_unknown_gpu_and_gpus_without_a_kind_are_refused_with_those_that_are_known():
    with pytest.raises(InputError, match="--gpu abacus is not known; it can be .*h200"):
        choose_machine(TrainSettings(), 64, "abacus", 1)
    with pytest.raises(InputError, match="--gpus 4 of which kind.*h200"):
        choose_machine(TrainSettings(), 64, None, 4)


def test_without_measuring_nothing_is_timed(monkeypatch, tmp_path):
    monkeypatch.setattr("glyphlm.base.devices._found", {})
    monkeypatch.setenv("GLYPHLM_CACHE", str(tmp_path))
    monkeypatch.setattr("glyphlm.base.devices._seconds", lambda *_: pytest.fail("was timed"))
    machine, settings = choose_machine(TrainSettings(device="cpu"), 4096, None, 1, measure=False)
    assert (machine.measured, settings.precision) == (False, "fp32") and machine.rate > 1e9
    _, settings = choose_machine(TrainSettings(device="cpu", precision="bf16"), 64, None, 1, measure=False)
    assert settings.precision == "bf16"
    monkeypatch.setattr("glyphlm.base.devices._found", {})
    monkeypatch.setattr("glyphlm.base.devices._known", lambda *_: 3e9)
    machine, _ = choose_machine(TrainSettings(device="cpu", precision="fp32"), 64, None, 1, measure=False)
    assert (machine.measured, machine.rate) == (True, 3e9)  # as it was measured before
