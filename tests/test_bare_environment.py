"""Where nothing but torch, transformers and what these need is installed, everything in a run folder opens.

The environment is a folder of links to just those packages, the only place from which a fresh interpreter may import.
"""

import json
import os
import subprocess
import sys
from importlib.metadata import Distribution, distribution
from pathlib import Path

import pytest
import torch
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from small_models import make_run

from glyphlm.cli.main import main
from glyphlm.composition.fuse import fuse
from glyphlm.composition.settings import FusionSettings
from glyphlm.runs.folder import load_run
from glyphlm.runs.generate import Sampling, continue_text

INSTALLED = ("torch", "transformers")
OURS = ("glyphlm", "accelerate", "babel", "datasets", "freetype", "jsonargparse", "matplotlib", "peft", "scipy", "wrapt")
PROMPT, NEW = "Hello, мир! ", 12
RECIPE = """
tokenizer: {path: TOKENIZER}
substrate: {path: SUBSTRATE}
model: {d_model: 32, n_layer: 2, n_head: 4, block_size: 32}
data: [{shards: SHARDS}]
train: {steps: 4, batch_tokens: 128, micro_batch_tokens: 64, save_every: 2, log_every: 2, validate_every: 4}
"""
# What a user does there, and every file read by what a file of its kind is read by.
STRANGER = """
import json, sys
from importlib.util import find_spec
from pathlib import Path
site, runs, ours, prompt, new, out = sys.argv[1], *map(json.loads, sys.argv[2:6]), sys.argv[6]
sys.path.append(site)
found = {"importable": [name for name in ours if find_spec(name)]}
import torch, yaml
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer
text = lambda path: path.read_text(encoding="utf-8")
readers = {
    ".json": lambda path: json.loads(text(path)),
    ".jsonl": lambda path: [json.loads(line) for line in text(path).split("\\n") if line],
    ".yaml": lambda path: yaml.safe_load(text(path)),
    ".safetensors": load_file, ".txt": text, ".md": text, ".py": text,
}
for name, run in runs.items():
    tokenizer = AutoTokenizer.from_pretrained(run)
    model = AutoModelForCausalLM.from_pretrained(run, trust_remote_code=True).eval()
    ids = tokenizer(prompt, return_tensors="pt").input_ids
    with torch.no_grad():
        logits = model(ids).logits[0].tolist()
    likeliest = model.generate(ids, max_new_tokens=new, do_sample=False, temperature=None, top_k=None, top_p=None)
    files = [path for path in sorted(Path(run).rglob("*")) if path.is_file()]
    for path in files:
        readers[path.suffix](path)
    found[name] = {
        "module": type(model).__module__.split(".")[0], "ids": ids[0].tolist(), "logits": logits,
        "text": tokenizer.decode(likeliest[0], skip_special_tokens=True), "sampled": len(model.generate(ids)[0]),
        "read": sorted({path.suffix for path in files}),
    }
json.dump(found, open(out, "w"))
"""


def needed_by(names: tuple[str, ...]) -> list[Distribution]:
    """The installed packages of these names, and all that they need without any extra."""
    found, waiting = {}, [*names]
    while waiting:
        name = canonicalize_name(waiting.pop())
        if name not in found:
            found[name] = distribution(name)
            requirements = map(Requirement, found[name].requires or [])
            waiting += [r.name for r in requirements if r.marker is None or r.marker.evaluate({"extra": ""})]
    return list(found.values())


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """A folder as site-packages would be after installing INSTALLED and nothing else."""
    folder = tmp_path_factory.mktemp("site")
    for package in needed_by(INSTALLED):
        for top in {file.parts[0] for file in package.files} - {"..", "__pycache__"}:
            if not (folder / top).exists():  # a namespace that packages share
                (folder / top).symlink_to(package.locate_file(top))
    return folder


@pytest.fixture(scope="module")
def runs(tokenizer, tokenizer_folder, substrates, shards, tmp_path_factory) -> dict[str, Path]:
    """A run as training leaves it, and one that was fused of two."""
    folder = tmp_path_factory.mktemp("runs")
    recipe, places = RECIPE, {"TOKENIZER": tokenizer_folder, "SUBSTRATE": substrates["token_bits"], "SHARDS": shards}
    for name, path in places.items():
        recipe = recipe.replace(name, str(path))
    (folder / "recipe.yaml").write_text(recipe)
    assert main(["train", str(folder / "recipe.yaml"), "--out", str(folder / "trained")]) == 0
    experts = [str(make_run(folder / f"expert-{seed}", tokenizer, seed=seed)) for seed in (1, 2)]
    fuse(FusionSettings(experts, allow_different_substrates=True), folder / "fused", "glyphlm fuse")
    return {name: folder / name for name in ("trained", "fused")}


@pytest.fixture(scope="module")
def found(site, runs, tmp_path_factory) -> dict:
    """What a stranger finds there."""
    folder = tmp_path_factory.mktemp("stranger")
    reported = [json.dumps(value) for value in ({name: str(run) for name, run in runs.items()}, OURS, PROMPT, NEW)]
    command = [sys.executable, "-I", "-S", "-c", STRANGER, site, *reported, folder / "found.json"]
    env = os.environ | {"HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(folder / "modules"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=folder, env=env, stderr=subprocess.PIPE, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return json.loads((folder / "found.json").read_text())


def test_nothing_of_ours_can_be_imported_there(found):
    assert found["importable"] == []


@pytest.mark.parametrize("name", ["trained", "fused"])
def test_a_run_computes_and_writes_the_same_there(found, runs, name):
    model, tokenizer = load_run(runs[name])
    ids = tokenizer.encode(PROMPT)
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0]
    assert (found[name]["module"], found[name]["ids"]) == ("transformers_modules", ids)
    torch.testing.assert_close(torch.tensor(found[name]["logits"]), logits, atol=1e-5, rtol=1e-5)
    assert found[name]["text"] == continue_text(model, tokenizer, PROMPT, Sampling(max_new_tokens=NEW, temperature=0))
    assert found[name]["sampled"] > len(ids)


def test_every_file_of_a_run_is_read_there(found):
    assert found["trained"]["read"] == [".json", ".jsonl", ".md", ".py", ".safetensors", ".txt", ".yaml"]
    assert set(found["fused"]["read"]) <= set(found["trained"]["read"])
