"""Devices: which one is taken, how fast it multiplies, and what is remembered of it."""

import json

import pytest
import torch

from glyphlm.base import devices
from glyphlm.base.devices import (
    GPUS,
    bf16_gain,
    device_memory,
    gpu_of_name,
    matrix_rate,
    peak_rate,
    probes_file,
    resolve_device,
    resolve_precision,
)
from glyphlm.base.errors import InputError


@pytest.fixture(autouse=True)
def nothing_known(monkeypatch, tmp_path):
    """No probe of this machine is remembered, and what is measured is remembered in a folder of the test."""
    monkeypatch.setattr(devices, "_found", {})
    monkeypatch.setenv("GLYPHLM_CACHE", str(tmp_path / "cache"))
    devices._warn.cache_clear()


def test_device_that_is_not_there_is_refused():
    assert resolve_device("cpu") == "cpu"
    for wrong in ("abacus", "cuda:77"):
        with pytest.raises(InputError, match=f"device '{wrong}' cannot be used .*try auto or cpu"):
            resolve_device(wrong)


@pytest.mark.parametrize(("there", "device"), [(True, "cuda"), (False, "cpu")])
def test_auto_is_the_gpu_where_there_is_one(monkeypatch, there, device):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    assert resolve_device("auto") == device


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("NVIDIA H200", "h200"), ("NVIDIA H100 80GB HBM3", "h100"), ("NVIDIA A100-SXM4-80GB", "a100"), ("NVIDIA L4", "l4"),
        ("NVIDIA L40S", "l40s"), ("NVIDIA GeForce RTX 4090", "rtx4090"), ("NVIDIA B200", "b200"), ("NVIDIA H100 PCIe", None),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None), ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None), ("Tesla V100-SXM2", None),
        ("NVIDIA GeForce RTX 4090 D", None), ("AMD Instinct MI300X", None),
    ],
)  # fmt: skip
def test_a_card_is_known_by_its_name_and_its_variants_are_not(name, kind):
    assert gpu_of_name(name) == (GPUS[kind] if kind else None)


def test_the_peak_of_a_gpu_is_that_of_its_data_sheet_and_a_cpu_has_none(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H200")
    assert peak_rate("bf16", "cuda:0") == 989e12 and peak_rate("fp32", "cuda") == 67e12
    assert resolve_precision("auto", "cuda") == "bf16" and bf16_gain("cuda") > 10
    assert peak_rate("bf16", "cpu") is None and peak_rate("fp32", "mps") is None


def test_the_peak_of_another_gpu_is_measured_with_products_that_fill_it(monkeypatch):
    asked = []

    def timed(precision, device, side):
        asked.append(side)
        return 2 * side**3 / 1e15  # so fast that the first size takes no longer than its launch

    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA X1")
    monkeypatch.setattr(devices, "_event_seconds", timed)
    devices._measured_on_gpu.cache_clear()
    assert peak_rate("bf16", "cuda") == peak_rate("bf16", "cuda") == pytest.approx(1e15)
    assert asked == [4096] * 3 + [8192] * 3
    devices._measured_on_gpu.cache_clear()


def test_the_rate_counts_the_operations_of_the_product(monkeypatch):
    monkeypatch.setattr(devices, "_seconds", lambda precision, device, rows, inner, columns: rows * 1e-4)
    assert matrix_rate(8, "bf16", "cpu") == pytest.approx(2 * 8 * 32 / 1e-4)
    assert matrix_rate(10**6, "fp32", "cpu") == pytest.approx(8 * devices.WIDEST**2 / 1e-4)


def test_automatic_precision_is_the_faster_one(monkeypatch):
    seconds = {"fp32": 1.0, "bf16": 0.5}
    monkeypatch.setattr(devices, "_seconds", lambda precision, *_: seconds[precision])
    assert resolve_precision("auto", "cpu") == "bf16"
    seconds["bf16"] = 0.9  # too little gain for what it loses
    monkeypatch.setattr(devices, "_found", {})
    probes_file().unlink(missing_ok=True)
    assert resolve_precision("auto", "cpu") == "fp32"


def test_a_precision_that_is_slower_here_is_reported_once_with_the_cure(monkeypatch, capsys):
    monkeypatch.setattr(devices, "_seconds", lambda precision, *_: 30.0 if precision == "bf16" else 1.0)
    assert (resolve_precision("fp32", "cpu"), resolve_precision("bf16", "cpu")) == ("fp32", "bf16")
    resolve_precision("bf16", "cpu")
    said = " ".join(capsys.readouterr().err.split())
    assert said.count("bf16 is 30 times slower than fp32") == 1 and "--train.precision fp32 or auto" in said


def test_a_probe_stops_after_its_time(monkeypatch):
    clock = iter(range(100))  # seconds: the first product already took too long
    monkeypatch.setattr(devices.time, "perf_counter", lambda: next(clock))
    assert devices._seconds("fp32", "cpu", 2, 2, 2) == 1
    assert next(clock) == 4


def test_a_probe_is_remembered_for_this_machine_but_not_one_beside_other_programs(monkeypatch):
    others, probes = [0.0], iter((2.0, 3.0, 4.0))
    monkeypatch.setattr(devices.Load, "others", lambda load: others[0])
    measured = lambda: devices._probed("gain", "cpu", lambda: next(probes))  # noqa: E731
    assert measured() == measured() == 2.0
    (key,) = json.loads(probes_file().read_text())
    assert torch.__version__ in key and "threads" in key and key.endswith("cpu: gain")
    devices._found.clear()
    assert measured() == 2.0  # another process
    probes_file().write_text("{damaged")
    devices._found.clear()
    others[0] = 1.0
    assert measured() == 3.0 and probes_file().read_text() == "{damaged"
    devices._found.clear()
    others[0] = 0.0
    assert measured() == 4.0 and list(json.loads(probes_file().read_text()).values()) == [4.0]


def test_a_home_folder_that_cannot_be_written_is_not_an_error(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("GLYPHLM_CACHE", str(tmp_path / "file"))
    assert devices._probed("gain", "cpu", lambda: 2.0) == 2.0


def test_memory_that_the_system_does_not_report_must_be_given(monkeypatch):
    assert device_memory("cpu") > 1e9
    monkeypatch.delattr(devices.os, "sysconf")
    with pytest.raises(InputError, match="memory of cpu is not known .*--gpu"):
        device_memory("cpu")
