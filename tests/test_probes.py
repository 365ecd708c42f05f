"""Probes of layers beside an untrained control; how well classes and translations separate in states."""

import json
import xml.etree.ElementTree as ET
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as some

from glyphlm.analysis import probes
from glyphlm.analysis.inspection import script
from glyphlm.analysis.layer_plots import draw_layers
from glyphlm.analysis.probe_texts import ProbeSettings, Texts, find_names, find_texts
from glyphlm.analysis.probes import (
    FOLDS,
    RIDGE,
    VOTERS,
    class_mean,
    class_sums,
    gain,
    knn_right,
    layer_states,
    linear_right,
    neighbours_text,
    probe,
    probe_model,
    reciprocal_ranks,
    table,
    untrained,
)
from glyphlm.analysis.tokenizers import named
from glyphlm.analysis.tsne import coloured_tokens, layer_maps
from glyphlm.base.errors import InputError
from glyphlm.modeling.model import GPT, ModelConfig
from glyphlm.runs.folder import export_model
from glyphlm.substrate.build import load_substrate

PAIRS = "en\tru\nGermany\tГермания\nFrance\tФранция\nChina\tКитай\n"
LAYERS = 4  # of models of two blocks
LABELS = np.repeat([0, 1, 2], [40, 30, 20])


def made(substrate, seed=1):
    model = GPT(ModelConfig(32, 2, 2, 32), load_substrate(substrate, 32)).eval()
    model.init_weights(seed)
    return model


@pytest.fixture(scope="module")
def models(substrates):
    """Frozen bits, and a trainable table; as they begin."""
    return {name: made(folder) for name, folder in substrates.items()}


@pytest.fixture(scope="module")
def runs(models, tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    for name, model in models.items():
        export_model(model, tokenizer, folder / name)
    return [folder / name for name in models]


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    path = tmp_path_factory.mktemp("pairs") / "pairs.tsv"
    path.write_text(PAIRS, encoding="utf-8")
    return ProbeSettings(words=["Germany", "国"], pairs=str(path), per_class=20)


@pytest.fixture(scope="module")
def probed(runs, settings, tmp_path_factory):
    out = tmp_path_factory.mktemp("out") / "probed"
    return out, probe(runs, out, settings)


def of(rows, **wanted):
    return [row for row in rows if all(row.get(key) == value for key, value in wanted.items())]


@pytest.mark.parametrize("batch", [1, 256])
@pytest.mark.parametrize("name", ["token_bits", "learned"])
def test_states_are_those_of_each_text_alone_after_the_end_of_another(monkeypatch, models, batch, name):
    monkeypatch.setattr(probes, "BATCH", batch)
    model, ids = models[name], [[5], [6, 7, 8], [9], [10, 11, 12], [3, 4]]
    states_LND = layer_states(model, ids, 2)
    assert states_LND.shape == (LAYERS, 5, 32) and states_LND.dtype == torch.float32
    for number, each in enumerate(ids):
        ids_BT = torch.tensor([[2, *each]])
        torch.testing.assert_close(states_LND[0, number], model.substrate(ids_BT)[0, 1:].mean(0))
        torch.testing.assert_close(states_LND[-1, number], model.hidden(ids_BT)[0, 1:].mean(0), atol=1e-5, rtol=1e-5)
    shorter = GPT(ModelConfig(32, 1, 2, 32), model.substrate).eval()
    shorter.load_state_dict(model.state_dict(), strict=False)
    torch.testing.assert_close(layer_states(shorter, ids, 2)[:2], states_LND[:2])
    torch.testing.assert_close(model.norm(states_LND[-2, [0, 2]]), states_LND[-1, [0, 2]])  # of one id the mean is itself


def test_no_hook_is_left_behind(models):
    layer_states(models["learned"], [[5]], 2)
    assert not any(module._forward_hooks for module in models["learned"].modules())


def test_the_control_keeps_frozen_codes_and_draws_everything_else_again(models):
    for name, model in models.items():
        before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
        control, ids_BT = untrained(model), torch.arange(9)[None]
        assert torch.equal(control.substrate(ids_BT), model.substrate(ids_BT)) == (name == "token_bits")
        assert not torch.equal(control.head.weight, model.head.weight)
        assert not torch.equal(control.blocks[1].mlp.up.weight, model.blocks[1].mlp.up.weight)
        assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())
    lengths = control.substrate.table_VE.norm(dim=1), model.substrate.table_VE.norm(dim=1)
    torch.testing.assert_close(*lengths)  # drawn anew at the scale of the substrate


def test_there_is_a_row_for_each_run_layer_task_and_measure(probed, runs):
    out, rows = probed
    assert {row["run"] for row in rows} == {"token_bits", "learned"} and {row["layer"] for row in rows} == set(range(LAYERS))
    expected = {(task, measure) for task in ("script", "case", "category") for measure in ("knn", "linear")}
    expected |= {("translation en-ru", "mrr")}
    for run in ("token_bits", "learned"):
        for layer in range(LAYERS):
            scored = [row for row in of(rows, run=run, layer=layer) if row["task"] != "nearest"]
            assert {(row["task"], row["measure"]) for row in scored} <= expected and len(scored) >= 5
            for row in scored:
                assert 0 <= row["low"] <= row["value"] <= row["high"] <= 1 and 0 <= row["control"] <= 1
                assert row["gain_low"] <= row["gain"] == row["value"] - row["control"] <= row["gain_high"]
    assert [json.loads(line) for line in (out / "probes.jsonl").read_text(encoding="utf-8").splitlines()] == rows
    assert of(rows, task="translation en-ru")[0]["chance"] == pytest.approx((1 + 1 / 2 + 1 / 3) / 3)
    assert {row["chance"] for row in of(rows, task="script")} == {1 / 3}


def test_codes_that_are_frozen_gain_nothing_at_the_codes(probed):
    rows = [row for row in of(probed[1], run="token_bits", layer=0) if row["task"] != "nearest"]
    assert all(row["gain"] == row["gain_low"] == row["gain_high"] == 0 for row in rows)
    assert any(row["gain"] for row in of(probed[1], run="learned", layer=0, measure="knn"))


def test_what_is_put_into_the_codes_is_found_in_them_and_not_in_the_control(tokenizer, substrates, settings):
    texts = find_texts(tokenizer, {"en": ["Germany", "France"], "ru": ["Германия", "Франция"]}, settings)
    model = made(substrates["learned"])
    with torch.no_grad():
        for number, group in enumerate(texts.classes["script"].values()):
            for token in group:
                model.substrate.table_VE[tokenizer.encode(token)[0]] *= 0.3
                model.substrate.table_VE[tokenizer.encode(token)[0], number] += 2
    rows = of(list(probe_model(model, tokenizer, texts)), layer=0, task="script")
    assert {row["measure"] for row in rows} == {"knn", "linear"}
    for row in rows:
        assert row["value"] > 0.9 and row["control"] < 0.6 and row["gain_low"] > 0.3 and row["items"] == 60


def test_the_neighbours_of_a_word_are_other_texts_the_nearest_first(probed, models, tokenizer, settings, runs):
    out, rows = probed
    found = of(rows, task="nearest", run="learned", word="Germany", layer=0)[0]["neighbours"]
    cosines = [each["cosine"] for each in found]
    assert cosines == sorted(cosines, reverse=True) and "Germany" not in [each["text"] for each in found]
    state, near = (models["learned"].substrate(torch.tensor([tokenizer.encode(text)])).mean(1)[0]
                   for text in ("Germany", found[0]["text"]))
    assert F.cosine_similarity(state, near, dim=0).item() == pytest.approx(cosines[0], abs=1e-5)
    lines = (out / "neighbours.txt").read_text(encoding="utf-8").splitlines()
    assert lines[0] == "'Germany'" and len(lines) == 2 * (1 + 2 * LAYERS)
    assert lines[1].startswith("  layer  0  token_bits  ")
    assert lines[2].startswith(f"  layer  0  learned     {cosines[0]:.3f} {found[0]['text']!r}  ")


def test_the_plot_has_a_panel_a_task_and_follows_the_numbers(probed):
    out, rows = probed
    ET.fromstring((out / "probes.svg").read_text(encoding="utf-8"))
    found = of(rows, task="script", measure="knn")
    drawn = draw_layers({("script", "accuracy"): found})
    assert drawn == draw_layers({("script", "accuracy"): found})
    for key in ("value", "control", "chance", "low"):
        moved = [row | {key: row[key] / 2} if row["layer"] == 1 else row for row in found]
        assert draw_layers({("script", "accuracy"): moved}) != drawn
    two = draw_layers(dict.fromkeys([("script", "accuracy"), ("case", "accuracy")], found))
    assert (drawn.count('id="axes_'), two.count('id="axes_')) == (1, 2)


def test_a_map_keeps_near_what_is_near():
    """Two classes far apart at every layer lie apart in the plane, too; equal seeds give equal maps."""
    x_ND = far_apart()
    maps, again = (layer_maps(np.stack([x_ND] * 5), seed=1) for _ in range(2))
    assert [*maps] == ["codes", "block 2", "final norm"]
    for layer, x_N2 in maps.items():
        assert x_N2.shape == (len(x_ND), 2) and knn_right(x_N2, LABELS).all()
        assert np.array_equal(x_N2, again[layer])


def test_tokens_on_the_map_are_coloured_by_script(runs, settings, tokenizer, tmp_path):
    probe(runs[:1], tmp_path / "out", replace(settings, tsne=True))
    assert (tmp_path / "out" / "tsne.png").read_bytes().startswith(b"\x89PNG")
    tokens = coloured_tokens(find_texts(tokenizer, find_names(settings), settings))
    assert {"Latin", "Cyrillic"} <= set(tokens.values()) and all(
        script(next(filter(str.isalpha, token))) == name for token, name in tokens.items())


def test_a_vocabulary_of_one_script_has_no_map():
    with pytest.raises(InputError, match="--tsne colours tokens by script"):
        coloured_tokens(Texts({"case": {"lower": ["a"], "upper": ["A"]}}, {}, []))


def test_the_table_names_the_last_layer_and_the_gain(probed):
    lines = table(probed[1]).splitlines()
    last = of(probed[1], run="learned", layer=LAYERS - 1, task="script", measure="knn")[0]
    line = next(line for line in lines if "accuracy of 5 nearest" in line and "learned" in line and "script" in line)
    assert f"{last['value']:.3f} ({last['low']:.3f} to {last['high']:.3f})" in line and f"{last['gain']:+.3f} (" in line
    assert lines[0].split()[:4] == ["task", "measure", "run", "chance"]


def test_probes_of_the_same_are_not_computed_again_and_others_are_refused(monkeypatch, probed, runs, settings):
    out, rows = probed
    monkeypatch.setattr(probes, "probe_model", None)
    assert probe(runs, out, settings) == rows
    with pytest.raises(InputError, match="already holds other work: seed"):
        probe(runs, out, ProbeSettings(settings.words, settings.pairs, per_class=20, seed=2))
    with pytest.raises(InputError, match="already holds other work: learned"):
        probe(runs[:1], out, settings)


def test_a_text_or_pairs_that_have_changed_are_other_work(monkeypatch, runs, tmp_path, tokenizer):
    monkeypatch.setattr(probes, "probe_model", lambda *_: [{"layer": 0, "task": "nearest", "word": "a", "neighbours": []}])
    given = {"text": tmp_path / "a.txt", "pairs": tmp_path / "b.tsv"}
    contents = {"text": "".join(f"{letter} " for letter in "abcdefghijkl"), "pairs": PAIRS}
    settings = ProbeSettings(**{name: str(path) for name, path in given.items()})
    for changed in (None, "text", "pairs"):
        for name, path in given.items():
            path.write_text(contents[name] + "x\ty" * (name == changed), encoding="utf-8")
        if changed is None:
            probe(runs[:1], tmp_path / "out", settings)
            continue
        with pytest.raises(InputError, match=f"already holds other work: {changed}"):
            probe(runs[:1], tmp_path / "out", settings)


def test_runs_of_the_same_name_go_by_their_whole_path():
    assert named(["a/one", "a/two"]) == {"one": "a/one", "two": "a/two"}
    assert named(["a/one", "b/one", "b/two/"]) == {"a/one": "a/one", "b/one": "b/one", "two": "b/two/"}


@pytest.mark.parametrize("words", [["x" * 200], [""]])
def test_a_word_that_does_not_fit_is_refused(runs, tmp_path, settings, words):
    with pytest.raises(InputError, match="has (0|[0-9]{2,}) tokens; give texts of 1 to 31 tokens"):
        probe(runs, tmp_path / "out", ProbeSettings(words, settings.pairs))
    assert not list(tmp_path.iterdir())


def test_what_is_not_a_run_is_refused(tmp_path):
    with pytest.raises(InputError, match="is not a finished run"):
        probe([tmp_path / "none"], tmp_path / "out")


def test_a_vocabulary_without_classes_still_has_neighbours(models, tokenizer, tmp_path):
    rows = list(probe_model(models["learned"], tokenizer, Texts({}, {}, ["a", "国", "да"])))
    assert len(rows) == 3 * LAYERS and all(len(row["neighbours"]) == 2 for row in rows)
    probes._write(tmp_path, [{"run": "r", **row} for row in rows], lambda panels: "")
    assert not (tmp_path / "probes.svg").exists() and "'да'" in neighbours_text([{"run": "r", **row} for row in rows])


def test_the_states_of_a_model_on_another_type_are_float32(models):
    half = untrained(models["learned"]).to(torch.bfloat16)
    states_LND = layer_states(half, [[5], [6, 7]], 2)
    assert states_LND.dtype == torch.float32 and np.isfinite(states_LND.numpy()).all()


# How well classes and translations separate in the states of one layer


def noise(width, seed=1):
    return np.random.default_rng(seed).standard_normal((len(LABELS), width)).astype(np.float32)


def far_apart(width=8):
    return noise(width) + 20 * np.eye(3, width, dtype=np.float32)[LABELS]


@pytest.mark.parametrize("right_of", [knn_right, linear_right])
def test_classes_far_apart_are_all_distinguished(right_of):
    assert right_of(far_apart(), LABELS).all()


@pytest.mark.parametrize("right_of", [knn_right, linear_right])
@pytest.mark.parametrize("width", [4, 400])  # with more channels than texts a fit that saw its test would be perfect
def test_in_noise_nothing_is_found(right_of, width):
    found = [class_mean(class_sums(right_of(noise(width, seed), LABELS), LABELS).sum(0)) for seed in range(10)]
    assert np.mean(found) == pytest.approx(1 / 3, abs=0.05)


@pytest.mark.parametrize("right_of", [knn_right, linear_right])
def test_states_that_are_all_equal_or_zero_are_not_an_error(right_of):
    for value in (0, 1):
        assert right_of(np.full((len(LABELS), 4), value, np.float32), LABELS).mean() <= 40 / 90


def test_neighbours_vote_as_by_hand():
    x_ND = noise(3)
    unit_ND = x_ND / np.linalg.norm(x_ND, axis=1)[:, None]
    for number, right in enumerate(knn_right(x_ND, LABELS)):
        cosine_N = unit_ND @ unit_ND[number]
        near = [other for other in np.argsort(-cosine_N) if other != number][:VOTERS]
        votes = [sum(1 + 1e-3 * cosine_N[other] for other in near if LABELS[other] == label) for label in range(3)]
        assert right == (np.argmax(votes) == LABELS[number])


def test_the_nearer_decide_a_tie():
    angle_N = np.array([0, 1, 2, 30, 31, 200])  # of class 1 two are near, of class 0 two are farther, and one opposite
    label_N = np.array([1, 1, 1, 0, 0, 2])
    assert knn_right(np.stack([np.cos(np.radians(angle_N)), np.sin(np.radians(angle_N))], 1), label_N)[0]
    assert not knn_right(np.stack([np.cos(np.radians(angle_N)), np.sin(np.radians(angle_N))], 1), label_N)[3]


def test_a_linear_probe_finds_what_neighbours_do_not_see():
    x_ND = 10 * noise(30)
    x_ND[:, 0] = LABELS == 0
    x_ND[:, 1] = LABELS == 1
    x_ND *= np.r_[20, 20, np.ones(28)]
    assert linear_right(x_ND, LABELS).mean() > knn_right(x_ND, LABELS).mean() + 0.1


def test_the_linear_probe_is_ridge_regression_whichever_side_it_is_solved_on():
    x_ND, seed = noise(6) + 0.5 * np.eye(3, 6)[LABELS], 5
    fold_N = np.random.default_rng(seed).permutation(len(LABELS)) % FOLDS
    right_N = np.zeros(len(LABELS), bool)
    for fold in range(FOLDS):
        fit = fold_N != fold
        a_ND, y_NC = x_ND[fit] - x_ND[fit].mean(0), np.eye(3)[LABELS[fit]]
        ridge = RIDGE * (a_ND**2).sum(1).mean()
        weight_DC = np.linalg.solve(a_ND.T @ a_ND + ridge * np.eye(6), a_ND.T @ (y_NC - y_NC.mean(0)))
        score_NC = (x_ND[~fit] - x_ND[fit].mean(0)) @ weight_DC + y_NC.mean(0)
        right_N[~fit] = score_NC.argmax(1) == LABELS[~fit]
    np.testing.assert_array_equal(linear_right(x_ND, LABELS, seed), right_N)
    assert 0.4 < right_N.mean() < 0.95


def test_the_folds_follow_the_seed():
    x_ND = noise(6) + 0.5 * np.eye(3, 6)[LABELS]
    np.testing.assert_array_equal(linear_right(x_ND, LABELS, 1), linear_right(x_ND, LABELS, 1))
    assert (linear_right(x_ND, LABELS, 1) != linear_right(x_ND, LABELS, 2)).any()


@pytest.mark.parametrize("right_of", [knn_right, linear_right])
def test_the_scale_of_the_states_changes_nothing(right_of):
    x_ND = noise(6) + 0.5 * np.eye(3, 6)[LABELS]
    np.testing.assert_array_equal(right_of(x_ND, LABELS), right_of(1024 * x_ND, LABELS))


def test_partners_in_the_same_place_come_first_wherever_their_language_lies():
    ours_ND, far_2D = noise(8), 100 * noise(8, seed=2)[:2]
    np.testing.assert_allclose(reciprocal_ranks(ours_ND + far_2D[0], 2 * ours_ND + far_2D[1]), 1)


def test_ranks_are_those_of_both_directions_counted_one_by_one():
    ours_ND, theirs_ND = noise(3), noise(3, seed=2)
    a_ND, b_ND = ours_ND - ours_ND.mean(0), theirs_ND - theirs_ND.mean(0)
    for number, found in enumerate(reciprocal_ranks(ours_ND, theirs_ND)):
        ranks = []
        for query_D, others_ND in ((a_ND[number], b_ND), (b_ND[number], a_ND)):
            cosine_N = others_ND @ query_D / np.linalg.norm(others_ND, axis=1)
            ranks.append(1 + (cosine_N > cosine_N[number] + 1e-6).sum())
        assert found == pytest.approx((1 / ranks[0] + 1 / ranks[1]) / 2)


def test_a_tie_counts_half():
    ours_ND = np.array([[1.0, 0], [-1, 0], [0, 1], [0, -1]])
    theirs_ND = ours_ND[[0, 1, 3, 2]]  # the last two are exchanged: three are nearer than the partner, two of them alike
    np.testing.assert_allclose(reciprocal_ranks(ours_ND, theirs_ND), [1, 1, 1 / 4, 1 / 4])


def test_where_all_are_equal_every_partner_has_the_middle_rank():
    np.testing.assert_allclose(reciprocal_ranks(np.ones((5, 3)), np.ones((5, 3))), 1 / 3)


def test_every_class_counts_the_same():
    score_N, label_N = np.array([1, 1, 1, 1, 0.0, 0]), np.array([0, 0, 0, 0, 1, 1])
    sums_NS = class_sums(score_N, label_N)
    assert class_mean(sums_NS.sum(0)) == 0.5 and class_mean(sums_NS[:4].sum(0)) == 0.5  # a class without items scores 0
    assert gain(np.concatenate([sums_NS, class_sums(1 - score_N, label_N)], 1).sum(0)) == 0
    assert gain(np.concatenate([class_sums(score_N**0, label_N), sums_NS], 1).sum(0)) == 0.5


@given(some.lists(some.tuples(some.booleans(), some.integers(0, 2)), min_size=1), some.randoms())
def test_the_mean_of_any_draw_lies_between_0_and_1(items, random):
    score_N, label_N = np.array(items).T
    sums_NS = class_sums(score_N, label_N)
    assert 0 <= class_mean(sums_NS[[random.randrange(len(items)) for _ in items]].sum(0)) <= 1
