"""Run folders become one run folder: it loads as any other, knows what it is made from; bad input is refused by name."""

import copy
import json
import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor

from glyphlm.base.errors import InputError
from glyphlm.base.outputs import read_build
from glyphlm.composition.fuse import build_fusion, fuse
from glyphlm.composition.settings import FusionSettings
from glyphlm.modeling.attention import KVCache
from glyphlm.modeling.config import FusionConfig
from glyphlm.modeling.fusion import Fusion
from glyphlm.modeling.model import GPT, ModelConfig
from glyphlm.modeling.substrate import Substrate, SubstrateConfig
from glyphlm.runs.folder import export_model, load_run, read_summary
from glyphlm.runs.generate import Sampling, generate
from glyphlm.tokenizer.build import TokenizerSettings, build_tokenizer
from glyphlm.tokenizer.tokenizer import Tokenizer

# name: seed, shape, substrate; equal fingerprints mean equal tables unless those were trained
EXPERTS = {
    "a": (1, {}, {"fingerprint": "f" * 64}),
    "b": (2, {}, {"fingerprint": "f" * 64}),
    "c": (3, {"n_layer": 1}, {"fingerprint": "f" * 64}),
    "wide": (4, {"d_model": 64, "block_size": 32, "head_bias": False}, {"fingerprint": "f" * 64}),
    "other": (5, {}, {"fingerprint": "0" * 64}),
    "trained": (6, {}, {"fingerprint": "f" * 64, "trainable": True, "kind": "learned"}),
}


def make_model(name: str, vocab_size: int) -> GPT:
    """Random weights; tables of one fingerprint are equal, but for the one that was trained."""
    seed, shape, substrate = EXPERTS[name]
    config = ModelConfig(**{"d_model": 32, "n_layer": 2, "n_head": 4, "block_size": 64, "head_bias": True} | shape)
    model = GPT(config, Substrate(SubstrateConfig(vocab_size, 16, **substrate), config.d_model)).eval()
    generator, table = torch.Generator().manual_seed(seed), torch.Generator().manual_seed(len(set(substrate.items())))
    for key, values in model.state_dict().items():
        chosen = table if key == "substrate.table_VE" and name != "other" else generator
        values.copy_(torch.randn(values.shape, generator=chosen) / 3)
    return model


@pytest.fixture(scope="module")
def models(tokenizer) -> dict[str, GPT]:
    return {name: make_model(name, tokenizer.vocab_size) for name in EXPERTS}


@pytest.fixture(scope="module")
def runs(models, tokenizer, tmp_path_factory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("experts")
    for name, model in models.items():
        export_model(model, tokenizer, folder / name)
    return {name: str(folder / name) for name in models}


@pytest.fixture(scope="module")
def logits(models) -> dict[str, Tensor]:
    with torch.no_grad():
        return {name: model(some_ids()) for name, model in models.items()}


def some_ids() -> Tensor:
    return torch.randint(300, 1000, (2, 12), generator=torch.Generator().manual_seed(5))


def logits_of(run: str | Path) -> Tensor:
    with torch.no_grad():
        return load_run(run)[0](some_ids()).logits


def fused(runs: dict[str, str], names: str, out: Path, **settings) -> dict:
    return fuse(FusionSettings([runs[name] for name in names.split()], **settings), out, "glyphlm fuse ...")


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_fused_run_is_a_run_folder(runs, logits, tokenizer, tmp_path):
    summary = fused(runs, "a b", tmp_path / "moe")
    close(logits_of(tmp_path / "moe"), (logits["a"] + logits["b"]) / 2)
    assert summary == read_summary(tmp_path / "moe") and summary["fusion"]["weights"] == [0.5, 0.5]
    assert summary["parameters"]["total"] == sum(t.numel() for t in load_run(tmp_path / "moe")[0].state_dict().values())
    files = {path.name for path in (tmp_path / "moe").iterdir()}
    assert files >= {"config.json", "model.safetensors", "tokenizer.json", "README.md", "summary.json", "settings.yaml",
                     "build.json", "hf.py", "model.py", "substrate.py", "fusion.py", "together.py"}
    assert not list(tmp_path.glob(".*"))
    assert json.loads((tmp_path / "moe" / "settings.yaml").read_text())["experts"] == [runs["a"], runs["b"]]
    assert generate(tmp_path / "moe", ["Hello"], Sampling(max_new_tokens=5))[0].startswith("Hello")


def test_the_same_call_finds_it_done_and_another_is_refused(runs, tmp_path):
    out = tmp_path / "moe"
    first = fused(runs, "a b", out)
    written = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    assert fused(runs, "a b", out) == first
    assert written == {path: path.stat().st_mtime_ns for path in out.iterdir()}
    with pytest.raises(InputError, match="already holds other work: method = 'mean_logits', not 'mean_probs'"):
        fused(runs, "a b", out, method="mean_probs")
    with pytest.raises(InputError, match="already holds other work: experts"):
        fused(runs, "b a", out)


def test_build_json_names_the_experts_by_their_bytes(runs, tmp_path):
    copied = shutil.copytree(runs["a"], tmp_path / "copy")
    given = FusionSettings([str(copied), runs["b"]])
    fuse(given, tmp_path / "moe", "")
    assert set(read_build(tmp_path / "moe").inputs) == set(given.experts)
    shutil.copyfile(Path(runs["c"]) / "model.safetensors", copied / "model.safetensors")
    with pytest.raises(InputError, match="already holds other work"):
        fuse(given, tmp_path / "moe", "")


def test_experts_that_were_moved_are_known_by_their_bytes_and_order(runs, tmp_path):
    moved = [shutil.copytree(runs[name], tmp_path / f"moved-{name}") for name in "ab"]
    first = fused(runs, "a b", tmp_path / "moe")
    assert fuse(FusionSettings([str(path) for path in moved]), tmp_path / "moe", "") == first
    with pytest.raises(InputError, match="already holds other work: experts"):
        fuse(FusionSettings([str(path) for path in reversed(moved)]), tmp_path / "moe", "")


def test_equal_substrates_are_stored_once(runs, tmp_path):
    summary = fused(runs, "a b wide c", tmp_path / "moe")
    model = load_run(tmp_path / "moe")[0].gpt
    assert model.reads == [0, 0, 1, 0] and summary["fusion"]["substrates"] == 2  # the same table, lifted to two widths
    experts = json.loads((tmp_path / "moe" / "config.json").read_text())["experts"]
    assert [expert["substrate"] if isinstance(expert["substrate"], int) else "" for expert in experts] == ["", 0, "", 0]


def test_trained_tables_are_one_only_where_their_values_are(models, tokenizer, runs, tmp_path):
    changed = copy.deepcopy(models["trained"])
    changed.substrate.table_VE.data[7, 3] += 1
    for name, model in {"same": models["trained"], "changed": changed}.items():
        export_model(model, tokenizer, tmp_path / name)
    same, changed = ({"trained": runs["trained"], "again": str(tmp_path / name)} for name in ("same", "changed"))
    assert fused(same, "trained again", tmp_path / "one")["fusion"]["substrates"] == 1
    with pytest.raises(InputError, match="substrates differ: .* learned ffffffffffff before it was trained"):
        fused(changed, "trained again", tmp_path / "two")
    found = fused(changed, "trained again", tmp_path / "two", allow_different_substrates=True)
    assert found["fusion"]["substrates"] == 2


def test_a_third_expert_joins_a_fused_run(runs, logits, tmp_path):
    fused(runs, "a b", tmp_path / "moe")
    summary = fused(runs | {"moe": str(tmp_path / "moe")}, "moe wide", tmp_path / "three")
    close(logits_of(tmp_path / "three"), (logits["a"] + logits["b"] + logits["wide"]) / 3)
    assert summary["fusion"]["weights"] == pytest.approx([1 / 3] * 3)
    assert load_run(tmp_path / "three")[0].gpt.config.block_size == 32
    fused(runs, "a b wide", tmp_path / "at once")
    close(logits_of(tmp_path / "three"), logits_of(tmp_path / "at once"))


def test_the_upper_half_of_a_run_stands_on_its_own_lower_half_as_before(runs, logits, tmp_path):
    summary = fused(runs, "a a", tmp_path / "same", method="stitch")
    close(logits_of(tmp_path / "same"), logits["a"])
    assert summary["model"]["n_layer"] == 2 and summary["parameters"]["trained"] == 0
    fused(runs, "a b", tmp_path / "two", method="stitch")
    found = logits_of(tmp_path / "two")
    assert not torch.allclose(found, logits["a"]) and not torch.allclose(found, logits["b"])
    with torch.no_grad():  # with a cache
        model, cache = load_run(tmp_path / "two")[0].gpt, KVCache()
        parts = [model.hidden(some_ids()[:, at], cache=cache) for at in (slice(0, 7), slice(7, 12))]
        close(model.logits(torch.cat(parts, 1)), found)


def test_stitching_runs_of_two_widths_needs_training(runs, models, tmp_path):
    with pytest.raises(InputError, match="32 wide, .* 64, so the map .*run glyphlm train"):
        fused(runs, "a wide", tmp_path / "out", method="stitch")
    fusion, _ = build_fusion(FusionSettings([runs["a"], runs["wide"]], "stitch"))
    assert tuple(fusion.map.weight.shape) == (64, 32) and [len(expert.blocks) for expert in fusion.experts] == [1, 1]
    with pytest.raises(InputError, match="cut 2 .*give 1 to 1"):
        fused(runs, "a b", tmp_path / "out", method="stitch", cut=2)
    with pytest.raises(InputError, match="give 2, not 3"):
        fused(runs, "a b c", tmp_path / "out", method="stitch")
    fused(runs, "a b", tmp_path / "moe")
    with pytest.raises(InputError, match="give 2, not 3"):
        fused(runs | {"moe": str(tmp_path / "moe")}, "moe a", tmp_path / "out", method="stitch")


def test_experts_that_leave_leave_the_others_as_they_were(runs, logits, tmp_path):
    fused(runs, "a wide c", tmp_path / "moe")
    moe = {"moe": str(tmp_path / "moe")}
    fused(moe, "moe", tmp_path / "two", without=[2])
    close(logits_of(tmp_path / "two"), (logits["a"] + logits["c"]) / 2)
    for number, name in ((1, "a"), (2, "wide")):  # also one whose head has no bias beside heads that have
        others = [other for other in (1, 2, 3) if other != number]
        summary = fused(moe, "moe", tmp_path / name, without=others)
        assert summary["taken_from"] == {"experts": [moe["moe"]], "without": others}
        for file in ("model.safetensors", "config.json"):
            assert (tmp_path / name / file).read_bytes() == (Path(runs[name]) / file).read_bytes(), (name, file)


@pytest.mark.parametrize(("without", "refusal"), [([4], "without 4 names no expert; give numbers from 1 to 2"),
                                                  ([1, 2], "leaves none of 2 experts")])
def test_experts_that_are_not_there_cannot_leave(without, refusal, runs, tmp_path):
    with pytest.raises(InputError, match=refusal):
        fused(runs, "a b", tmp_path / "out", without=without)


def test_a_fused_run_hands_its_weight_on(runs, logits, tmp_path):
    fused(runs, "a b", tmp_path / "moe", method="weighted_logits", weights=[0.8, 0.2])
    runs = runs | {"moe": str(tmp_path / "moe")}
    summary = fused(runs, "moe c", tmp_path / "three", method="weighted_logits", weights=[0.5, 0.5])
    assert summary["fusion"]["weights"] == pytest.approx([0.4, 0.1, 0.5])
    close(logits_of(tmp_path / "three"), 0.4 * logits["a"] + 0.1 * logits["b"] + 0.5 * logits["c"])


def test_experts_of_a_trained_head_keep_what_it_learned(runs, logits, tokenizer, tmp_path):
    fusion, _ = build_fusion(FusionSettings([runs["a"], runs["wide"]], "head"))
    with torch.no_grad():
        fusion.head.weight += torch.randn(fusion.head.weight.shape, generator=torch.Generator().manual_seed(1)) / 10
        expected = (2 * fusion(some_ids()) + logits["c"]) / 3
    export_model(fusion, tokenizer, tmp_path / "moe")
    fused(runs | {"moe": str(tmp_path / "moe")}, "moe c", tmp_path / "three")
    close(logits_of(tmp_path / "three"), expected)


@pytest.mark.parametrize("method", ["gate", "head", "adapter"])
def test_trained_methods_begin_at_the_mean(method, runs, logits, tokenizer, tmp_path):
    fusion, found = build_fusion(FusionSettings([runs["a"], runs["b"]], method), seed=3)
    with torch.no_grad():
        close(fusion(some_ids()), (logits["a"] + logits["b"]) / 2)
    assert found.fingerprint == tokenizer.fingerprint and isinstance(fusion, Fusion)
    assert {name.split(".")[0] for name, p in fusion.named_parameters() if p.requires_grad} <= {"gates", "head", "adapter"}
    with pytest.raises(InputError, match=f"method {method} is trained: name it in a recipe"):
        fused(runs, "a b", tmp_path / "moe", method=method)


@pytest.mark.parametrize("method", ["gate", "adapter", "stitch"])
def test_a_trained_gate_is_not_thrown_away(method, runs, tokenizer, tmp_path):
    fusion, _ = build_fusion(FusionSettings([runs["a"], runs["b"]], method))
    export_model(fusion, tokenizer, tmp_path / "moe")
    with pytest.raises(InputError, match=f"moe has a trained {method}, which would be lost"):
        fused(runs | {"moe": str(tmp_path / "moe")}, "moe c", tmp_path / "three")


WRONG = {
    "one expert": ("a", {}, "1 expert .*at least two"),
    "weights of the wrong sum": ("a b", {"method": "weighted_logits", "weights": [0.5, 0.6]}, r"sum to 1.1; .*sum to 1$"),
    "a negative weight": ("a b", {"method": "weighted_logits", "weights": [1.5, -0.5]}, "numbers from 0"),
    "a weight that is none": ("a b", {"method": "posterior", "weights": [float("nan"), 1.0]}, "sum to nan"),
    "too few weights": ("a b c", {"method": "mean_probs", "weights": [0.5, 0.5]}, r"2 weights .* for 3 runs"),
    "no weights": ("a b", {"method": "weighted_logits"}, "needs weights, one a run"),
    "weights of a plain mean": ("a b", {"weights": [0.5, 0.5]}, "mean_logits takes no weights.*choose weighted_logits"),
    "an unknown method": ("a b", {"method": "median"}, "method 'median' .*mean_logits, "),
    "top_k without a gate": ("a b", {"top_k": 1}, "top_k 1 .*gate.*mean_logits"),
    "temperature": ("a b", {"method": "posterior", "temperature": 0.0}, "temperature 0.0 .*above 0"),
    "no top": ("a b", {"method": "gate", "top_k": 0}, "top_k 0 .*at least 1"),
    "no rank": ("a b", {"method": "mean_logits", "rank": 0}, "rank 0 .*at least 1"),
    "no prompt": ("a b", {"route_after": -5}, "route_after -5 .*at least 1"),
    "other codes": ("a other", {}, "a has glyph ffffffffffff, .*other has glyph 000000000000; .*allow-different"),
}


@pytest.mark.parametrize("name", WRONG)
def test_settings_that_do_not_fit_are_refused(name, runs, tmp_path):
    names, settings, message = WRONG[name]
    with pytest.raises(InputError, match=message) as refused:
        fused(runs, names, tmp_path / "moe", **settings)
    assert "\n" not in str(refused.value) and not list(tmp_path.iterdir())


def test_top_k_is_at_most_all_experts(runs):
    with pytest.raises(InputError, match="top_k 3 is more than the 2 experts"):
        build_fusion(FusionSettings([runs["a"], runs["b"]], "gate", top_k=3))
    fusion, _ = build_fusion(FusionSettings([runs["a"], runs["b"]], "gate", top_k=1, route_after=8))
    assert fusion.fusion == FusionConfig("gate", top_k=1, route_after=8)


def test_different_codes_fuse_where_that_is_allowed(runs, logits, tmp_path):
    fused(runs, "a other", tmp_path / "moe", allow_different_substrates=True)
    close(logits_of(tmp_path / "moe"), (logits["a"] + logits["other"]) / 2)


def test_vocabularies_that_differ_are_reported_by_their_first_id(runs, models, texts, tokenizer, tmp_path):
    build_tokenizer(texts[1:], TokenizerSettings(vocab_size=tokenizer.vocab_size), tmp_path / "tokenizer")
    another = Tokenizer.load(tmp_path / "tokenizer")
    export_model(models["b"], another, tmp_path / "b")
    number = next(i for i, (one, two) in enumerate(zip(tokenizer.tokens, another.tokens)) if one != two)
    with pytest.raises(InputError) as refused:
        fused({"a": runs["a"], "b": str(tmp_path / "b")}, "a b", tmp_path / "moe")
    reported = str(refused.value)
    assert f"id {number} is {tokenizer.tokens[number]!r}" in reported and repr(another.tokens[number]) in reported
    assert not (tmp_path / "moe").exists()


@pytest.mark.parametrize("damage", ["model.safetensors", "config.json", "tokenizer.json"])
def test_damaged_expert_is_refused_by_name(damage, runs, tmp_path):
    run = shutil.copytree(runs["b"], tmp_path / "run")
    (run / damage).write_bytes((run / damage).read_bytes()[:99])
    with pytest.raises(InputError, match=str(run)):
        fused({"a": runs["a"], "b": str(run)}, "a b", tmp_path / "moe")
    with pytest.raises(InputError, match="not a finished run"):
        fused({"a": runs["a"], "b": str(tmp_path / "nowhere")}, "a b", tmp_path / "moe")
    assert not (tmp_path / "moe").exists()


def test_a_folder_of_something_else_is_left_alone(runs, tmp_path):
    (tmp_path / "moe").mkdir()
    (tmp_path / "moe" / "mine.txt").write_text("mine")
    with pytest.raises(InputError, match="holds no build.json"):
        fused(runs, "a b", tmp_path / "moe")
    assert [path.name for path in (tmp_path / "moe").iterdir()] == ["mine.txt"]
