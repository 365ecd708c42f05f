"""Two processes train what one trains, and any number goes on from the checkpoint of another."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from forked import start
from torch.distributed import TCPStore

from glyphlm.base.errors import InputError
from glyphlm.base.tensors import load_tensors
from glyphlm.cli.main import main
from glyphlm.substrate.build import SubstrateSettings, build_substrate
from glyphlm.tokenizer.tokenizer import Tokenizer
from glyphlm.training import parallel
from glyphlm.training.checkpoint import list_states

BLOCK, STEPS = 32, 12
CLOCK = {"seconds", "tokens_per_second", "mfu"}  # the only values that differ between equal runs


@pytest.fixture(scope="module")
def recipe(tokenizer_folder, shards, substrates, tmp_path_factory) -> Path:
    """A model of two layers over a frozen table: 2 rows a process and step, in two micro-batches."""
    frozen = tmp_path_factory.mktemp("frozen") / "table"
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


def start_ranks(store, *asked, processes):
    """As torchrun starts them, but sooner; a single one as a user starts it."""
    if processes == 1:
        return [start(*asked)]
    place = {"WORLD_SIZE": processes, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": store.port, "OMP_NUM_THREADS": 1,
             "TORCHELASTIC_USE_AGENT_STORE": True, "TORCHELASTIC_RESTART_COUNT": 0}
    return [start(*asked, RANK=rank, LOCAL_RANK=rank, **place) for rank in range(processes)]


def run(recipe, out, processes, *options, verb="train"):
    """One process is this one."""
    asked = (verb, recipe, "--out", out, *options)
    if processes == 1:
        assert main([*map(str, asked)]) == 0
        return out
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    ranks = start_ranks(store, *asked, processes=processes)
    for rank in ranks:
        rank.join(200)  # a deadlock is no end
    assert [rank.exitcode for rank in ranks] == [0] * processes
    return out


def torchrun(recipe, out, *options):
    """Two processes that torchrun starts."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "glyphlm"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    ended = subprocess.run([*command, "train", str(recipe), "--out", str(out), *options], env=environment,
                           capture_output=True, text=True, timeout=400)
    assert ended.returncode == 0, ended.stderr[-2000:]
    return out


def run_and_kill(recipe, out, processes, *options):
    """Kill all processes at once when there is a checkpoint."""
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    ranks = start_ranks(store, "train", recipe, "--out", out, *options, processes=processes)
    until = time.monotonic() + 120
    while not list_states(out):
        assert time.monotonic() < until and all(rank.is_alive() for rank in ranks)
        time.sleep(0.005)
    for rank in ranks:
        rank.kill()
    for rank in ranks:
        rank.join()
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
    out, parallel = tmp_path / "two", ("--train.parallel", how)
    out = torchrun(recipe, out, *parallel) if how == "ddp" else run(recipe, out, 2, *parallel)
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


GROWTH = ("--stages", '[{"layers": 1, "steps": 4}, {"layers": 1, "steps": 4}]', "--growth.lora.rank", "2")


@pytest.fixture(scope="module")
def grown(recipe, tmp_path_factory) -> Path:
    """The growth of a single process."""
    return run(recipe, tmp_path_factory.mktemp("grown") / "one", 1, *GROWTH, verb="grow")


@pytest.mark.parametrize("how", ["ddp", "fsdp2"])
def test_two_processes_grow_what_one_grows(recipe, grown, tmp_path, how):
    two = run(recipe, tmp_path / "two", 2, *GROWTH, "--train.parallel", how, verb="grow")
    for name in ("stage-1", "stage-2"):
        same_rows(two / name, grown / name)


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
