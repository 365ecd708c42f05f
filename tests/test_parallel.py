"""Two processes train what one trains, and any number goes on from the checkpoint of another."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml

from glyphlm.base.errors import InputError
from glyphlm.base.tensors import load_tensors
from glyphlm.training import parallel
from glyphlm.training.checkpoint import list_states

BLOCK, STEPS = 32, 12
CLOCK = {"seconds", "tokens_per_second", "mfu"}  # the only values that differ between equal runs


@pytest.fixture(scope="module")
def recipe(tokenizer_folder, shards, substrates, tmp_path_factory) -> Path:
    """A model of two layers over a frozen table: 2 rows a process and step, in two micro-batches."""
    frozen = tmp_path_factory.mktemp("frozen") / "table"
    from glyphlm.substrate.build import SubstrateSettings, build_substrate
    from glyphlm.tokenizer.tokenizer import Tokenizer

    build_substrate(Tokenizer.load(tokenizer_folder), SubstrateSettings(kind="learned", n_embed=16), frozen)
    settings = {
        "tokenizer": {"path": str(tokenizer_folder)},
        "substrate": {"path": str(frozen)},
        "model": {"d_model": 32, "n_layer": 2, "n_head": 2, "block_size": BLOCK},
        "data": [{"shards": str(shards)}],
        "train": {
            "steps": STEPS, "batch_tokens": 4 * BLOCK, "micro_batch_tokens": BLOCK, "lr": 0.01, "precision": "fp32",
            "device": "cpu", "log_every": 1, "validate_every": 6, "save_every": 3, "keep": 9,
        },
    }  # fmt: skip
    path = tmp_path_factory.mktemp("recipe") / "recipe.yaml"
    path.write_text(yaml.safe_dump(settings), encoding="utf-8")
    return path


def command(recipe, out, processes, *options, verb="train"):
    start = [sys.executable, "-m"]
    if processes > 1:
        start += ["torch.distributed.run", "--standalone", "--nproc-per-node", str(processes), "-m"]
    return [*start, "glyphlm", verb, str(recipe), "--out", str(out), *options]


def run(recipe, out, processes, *options, verb="train"):
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    asked = command(recipe, out, processes, *options, verb=verb)
    ended = subprocess.run(asked, env=environment, capture_output=True, text=True, timeout=400)  # a deadlock is no end
    assert ended.returncode == 0, ended.stderr[-2000:]
    return out


def run_and_kill(recipe, out, processes, *options):
    """Kill all processes at once when there is a checkpoint."""
    started = subprocess.Popen(
        command(recipe, out, processes, *options), env=os.environ | {"OMP_NUM_THREADS": "1"}, start_new_session=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    until = time.monotonic() + 120
    while not list_states(out):
        assert time.monotonic() < until and started.poll() is None
        time.sleep(0.005)
    os.killpg(started.pid, signal.SIGKILL)
    started.wait()
    return out


def rows(out):
    found = [json.loads(line) for line in (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [{key: value for key, value in row.items() if key not in CLOCK} for row in found]


def same_rows(out, straight):
    assert [row.keys() for row in rows(out)] == [row.keys() for row in rows(straight)]
    for row, expected in zip(rows(out), rows(straight)):
        assert row["split"] == expected["split"]
        numbers = [key for key in row if key != "split"]
        assert [row[key] for key in numbers] == pytest.approx([expected[key] for key in numbers], rel=1e-4)


@pytest.fixture(scope="module")
def straight(recipe, tmp_path_factory) -> Path:
    """The run of a single process."""
    return run(recipe, tmp_path_factory.mktemp("runs") / "straight", 1)


@pytest.mark.parametrize("how", ["ddp", "fsdp2"])
def test_two_processes_train_what_one_trains(recipe, straight, tmp_path, how):
    out = run(recipe, tmp_path / "two", 2, "--train.parallel", how)
    same_rows(out, straight)
    ours, theirs = load_tensors(out / "model.safetensors"), load_tensors(straight / "model.safetensors")
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[name], rtol=1e-3, atol=1e-5)
    (table,) = (name for name in ours if name.endswith("table_VE"))
    assert torch.equal(ours[table], theirs[table])
    # Also those that follow a validation, which leaves weights gathered, hold every tensor and its moments.
    held = [{name for file in state.glob("*.safetensors") for name in load_tensors(file)} for state in list_states(out)]
    assert len(held) == 4 and all(names == held[0] for names in held) and "head.weight/exp_avg" in {
        name.removeprefix("gpt.") for name in held[0]}


@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2)])
def test_a_killed_run_continues_with_another_number_of_processes(recipe, straight, tmp_path, before, after):
    out = run_and_kill(recipe, tmp_path / "run", before, "--train.parallel", "fsdp2")
    files = {path.name for path in list_states(out)[0].iterdir()}
    assert ("model.safetensors" in files) == (before == 1)  # two processes wrote a file each
    run(recipe, out, after, "--train.parallel", "fsdp2")
    same_rows(out, straight)


def test_a_frozen_table_has_no_optimizer_state(straight):
    names = load_tensors(list_states(straight)[-1] / "optimizer.safetensors").keys()
    assert "head.weight/exp_avg" in names and not [name for name in names if "substrate" in name]


@pytest.mark.parametrize("how", ["ddp", "fsdp2"])
def test_two_processes_grow_what_one_grows(recipe, tmp_path, how):
    options = ("--stages", '[{"layers": 1, "steps": 4}, {"layers": 1, "steps": 4}]', "--controls", "[tokens]",
               "--growth.lora.rank", "2", "--train.steps", "4", "--train.parallel", how)  # fmt: skip
    two, one = (run(recipe, tmp_path / str(n), n, *options, verb="grow") for n in (2, 1))
    for name in ("stage-1", "stage-2", "monolithic-tokens"):
        same_rows(two / name, one / name)


@pytest.mark.parametrize(("device", "backend"), [("cpu", "gloo"), ("auto", "nccl"), ("cuda", "nccl")])
def test_the_backend_follows_the_device_that_was_asked_for(monkeypatch, device, backend):
    started = []
    monkeypatch.setattr(parallel.dist, "init_process_group", lambda name, **_: started.append(name))
    monkeypatch.setattr(parallel.dist, "destroy_process_group", lambda: None)
    monkeypatch.setattr(parallel, "resolve_device", lambda device: "cuda" if device == "auto" else device)  # there is a GPU
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", lambda place: None)
    for name in ("RANK", "LOCAL_RANK"):
        monkeypatch.setenv(name, "1")
    with parallel.joined(device):
        assert started == [backend]


def test_more_processes_than_gpus_are_refused(monkeypatch):
    monkeypatch.setattr(parallel, "resolve_device", lambda device: "cuda")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    for name in ("RANK", "LOCAL_RANK"):
        monkeypatch.setenv(name, "1")
    with pytest.raises(InputError, match="2 processes or more here, for 1 GPUs; lower --nproc-per-node, .*device cpu"):
        with parallel.joined("auto"):
            pass
