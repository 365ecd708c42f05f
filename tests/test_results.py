"""The numbers of a study: rows of what was measured, means over seeds, paired differences, what they would find."""

import json
from dataclasses import replace

import pytest

from glyphlm.base.outputs import write_atomic
from glyphlm.base.records import read_json_lines, to_lines
from glyphlm.evaluation.rows import ResultRow
from glyphlm.evaluation.stats import over_seeds, power, seeds_for, student_p
from glyphlm.studies.claims import Claim, detectable
from glyphlm.studies.commands import Model, Study
from glyphlm.studies.registration import REGISTERED, planned_power, register
from glyphlm.studies.results import VALIDATION, Choice, gaps_of, measured, write_results
from glyphlm.studies.workflow import DONE, LOGS, Command

BITS = {
    **{("frozen", seed): bits for seed, bits in enumerate((2.0, 2.2, 2.1), 1)},
    **{("trained", seed): bits for seed, bits in enumerate((2.3, 2.6, 2.5), 1)},
}


def add_run(place, arm, seed, bits):
    """A finished run, its evaluation, its model and its stages."""
    run, rows = place / "runs" / f"{arm}-{seed}", place / f"{arm}-{seed}.jsonl"
    run.mkdir(parents=True)
    summary = {
        "name": run.name,
        "substrate": {"kind": "learned", "trainable": arm == "trained"},
        "tokens": 768,
        "seconds": 2.0,
        "clipped": 0.5,
        "parameters": {"trained": 1000, "frozen": 0, "total": 1000},
        "cost": {"flops_total": 4e15},
        "bits_per_byte": {"train": bits, "validation": bits},
        "unigram_bits_per_byte": {"validation": 3.0},
    }
    write_atomic(run / "summary.json", json.dumps(summary))
    scored = ResultRow("boolq", "likelihood", "letters", "", "accuracy", 0.5, 0.4, 0.6, "Wilson 95% over items", items=90,
                       cut=2, chance=0.5, majority=0.625, letter_mass=0.25, source="boolq.jsonl")
    others = replace(scored, scoring="texts"), replace(scored, task="mmlu", subject="anatomy")
    write_atomic(rows, to_lines(row.to_json() for row in (scored, *others)))
    model = Model(arm, seed, run, f"train_{arm}_{seed}", rows=rows, evaluated_by=f"eval_{arm}_{seed}")
    return model, [Command(name, ("glyphlm", name), rows, needs)
                   for name, needs in ((model.made_by, ()), (model.evaluated_by, (model.made_by,)))]


@pytest.fixture
def found(tmp_path):
    """Models and stages of two arms and three seeds, all done, in the folder `tmp_path`."""
    (tmp_path / DONE).mkdir()
    (tmp_path / LOGS).mkdir()
    pairs = [add_run(tmp_path, arm, seed, bits) for (arm, seed), bits in BITS.items()]
    models, stages = [model for model, _ in pairs], [stage for _, two in pairs for stage in two]
    for stage in stages:
        (tmp_path / DONE / stage.name).touch()
    return models, stages


def write(found, out, choices=None, **asked):
    """The text of results.md of a study that asks so."""
    settings = Study({}, dict.fromkeys(("frozen", "trained")), title="Title", **asked)
    return write_results(settings, choices or {}, *found, out, "glyphlm study s.yaml --out out").read_text()


def test_every_arm_seed_and_measure_is_a_row(found):
    models, stages = found
    rows = measured(models, {stage.name for stage in stages})
    assert [row["value"] for row in rows if row["measure"] == VALIDATION] == list(BITS.values())
    boolq = [row for row in rows if row["measure"] == "boolq letters accuracy, boolq.jsonl"]
    assert len(boolq) == 6 and boolq[0] | {"value": 0.5, "low": 0.4, "high": 0.6, "items": 90} == boolq[0]
    assert [row["value"] for row in rows if row["measure"] == "boolq letter mass, boolq.jsonl"] == [0.25] * 6
    run = str(models[0].run)
    assert rows[0] == {"arm": "frozen", "seed": 1, "run": run, "measure": VALIDATION, "value": 2.0, "unigram": 3.0}
    assert boolq[0]["cut"] == 2 and [row["value"] for row in rows if row["measure"] == "clipped steps"] == [0.5] * 6
    keys = [(row["arm"], row["seed"], row["measure"]) for row in rows]
    assert len(keys) == len(set(keys))


def test_the_table_has_means_and_paired_differences(found, tmp_path):
    text = write(found, tmp_path, {"frozen": Choice({}), "trained": Choice({})})
    paired = over_seeds([0.3, 0.4, 0.4])
    assert text.startswith("# Title\n") and "## Missing" not in text
    assert "| frozen | 3 | 2.1000 |" in text
    assert f"| +0.3667 | {paired.low:+.4f} to {paired.high:+.4f} | {detectable([0.3, 0.4, 0.4]):.4f} |" in text
    assert "## boolq letters accuracy, boolq.jsonl\n\nChance 0.5000, majority 0.6250.\n\n| arm |" in text
    assert "anatomy" not in text
    assert "anatomy" in (tmp_path / "results.jsonl").read_text()
    assert "| trained | 768 | 1,000 | 4 | 2 | 0.5 |" in text and (tmp_path / "report.html").is_file()


def test_curves_are_means_over_the_seeds_that_got_so_far(found, tmp_path, monkeypatch):
    drawn = {}
    monkeypatch.setattr("glyphlm.studies.results.draw_held_out", lambda curves: drawn.update(curves) or "<svg/>")
    assert "curves.svg" not in write(found, tmp_path)
    for seed, values in enumerate(([3.0, 2.0], [4.0, 2.5], [5.0]), 1):
        rows = [{"split": split, "step": step, "tokens": 100 * step, "seconds": 1.0, "loss": 5.0, "bits_per_byte": bits}
                for step, bits in enumerate(values, 1) for split in ("train", "validation")]
        write_atomic(tmp_path / f"runs/frozen-{seed}/metrics.jsonl", to_lines(rows))
    text = write(found, tmp_path)
    assert "(curves.svg)" in text and (tmp_path / "curves.svg").read_text() == "<svg/>"
    every = read_json_lines(tmp_path / "results.jsonl")
    rows = {row["seed"]: row for row in every if row["measure"] == "tokens to threshold"}
    assert {seed: (row["value"], row["threshold"]) for seed, row in rows.items()} == {1: (150, 2.5), 2: (200, 2.5)}
    assert drawn == {"frozen": [(100, 4.0), (200, 2.25)]}


@pytest.mark.parametrize("seeds", [1, 3])
def test_a_grown_arm_has_the_loss_of_its_last_stage_and_the_operations_of_all(seeds):
    found = {"whole": (4.0, 2.5), "whole_half": (2.0, 2.9), "grown.stage-1": (1.0, 3.5), "grown.stage-2": (0.6, 2.6),
             "grown.monolithic-flops": (1.6, 2.8)}
    rows = [{"arm": arm, "seed": seed, "measure": measure, "value": value}
            for seed in range(seeds) for arm, values in found.items()
            for measure, value in zip(("petaFLOP", "bpb bits per byte, x.txt"), values)]
    drawing, section = gaps_of(rows, "whole")
    assert drawing.startswith("<?xml") and "(gaps.svg)" in section
    assert "| whole_half | 50.0% | +0.4000 |" in section and "| grown | 40.0% | +0.1000 |" in section
    assert "| grown | 100.0% | -0.2000 |" in gaps_of(rows, "grown.monolithic-flops")[1]
    assert gaps_of([row for row in rows if "grown" not in row["arm"]], "whole") == ()


def test_another_arm_can_be_the_reference(found, tmp_path):
    text = write(found, tmp_path, compare="trained")
    assert "| arm | seeds | mean | 95% | minus trained |" in text and "| -0.3667 |" in text


def test_claims_stand_first_and_in_a_file_and_in_the_report(found, tmp_path):
    claims = [Claim("frozen | is as good", "frozen", "trained", "a paper", margin=0.02),
              Claim("more is known", "trained", "both", measures=["boolq"], kind="better")]
    text = write(found, tmp_path, claims=claims, fuse={"both": {"experts": ["frozen", "trained"]}})
    low, high = over_seeds([-0.3, -0.4, -0.4])[:2]
    p = student_p([-0.3, -0.4, -0.4], 0.02)
    assert text.startswith("# Title\n\n## Claims\n\n1 supported, 1 not decidable. ")
    assert "is made again by `glyphlm study s.yaml --out out` with its last column." in text
    assert "](claims.svg)" in text and (tmp_path / "claims.svg").read_text().startswith("<?xml")
    assert ("| frozen \\| is as good | a paper | frozen − trained | bits per byte, validation | -0.3667 "
            f"| {low:+.4f} to {high:+.4f} | {low:+.4f} to {high:+.4f} | – | {p:.2g} | 0.02 | supported "
            "| --only frozen trained |\n") in text
    assert ("| more is known | – | trained − both | boolq | – | – | – | – | – | better "
            "| not decidable: arm both was not made | --only trained frozen |\n") in text
    rows = read_json_lines(tmp_path / "claims.jsonl")
    assert [row["verdict"] for row in rows] == ["supported", "not decidable"]
    assert rows[0]["command"] == "glyphlm study s.yaml --out out --only frozen trained"
    page = (tmp_path / "report.html").read_text()
    assert page.index("<h2") == page.index('<h2 id="claims">') and '<td class="yes">supported</td>' in page


def test_claims_that_were_registered_late_are_marked(found, tmp_path):
    claims = [Claim("frozen is as good", "frozen", "trained", margin=0.02)]
    settings = Study({}, {}, claims=claims, margin_reason="a table of random numbers varies as much")
    row = register(settings, tmp_path)
    assert row["trainings"] == 6 and row == register(settings, tmp_path)
    assert len(read_json_lines(tmp_path / REGISTERED)) == 1
    other = register(Study({}, {}, claims=[], seeds=[4]), tmp_path)
    assert other["digest"] != row["digest"] and len(read_json_lines(tmp_path / REGISTERED)) == 2
    study = replace(settings, arms=dict.fromkeys(("frozen", "trained")))
    text = write_results(study, {}, *found, tmp_path, "glyphlm study s.yaml", row).read_text()
    assert f"when 6 trainings had finished; their digest is `{row['digest']}`. Margins: a table of random numbers" in text
    assert read_json_lines(tmp_path / "claims.jsonl")[0]["registered"] == row["digest"]
    assert "(claims.svg)" in text and (tmp_path / "claims.svg").is_file()


def test_the_power_of_the_planned_seeds_is_printed_before_anything_runs():
    claims = [Claim("", "a", "b", margin=0.02), Claim("", "a", "b", kind="better"), Claim("", "a", "b", measures=["mmlu"])]
    settings = Study({}, {}, claims=claims, seeds=[1, 2, 3])
    assert len(unknown := list(planned_power(settings))) == 2 and "not known: give `spread`" in unknown[0]
    equal, better = planned_power(replace(settings, spread=0.02, effect=0.1))
    assert f"equal within 0.02 with probability {power(3, 0.02, 0.02):.0%}" in equal and "WARNING: under 80%" in equal
    assert f"takes {seeds_for(0.02, 0.02)} seeds" in equal
    assert "0.1 better with probability 98%" in better and "WARNING" not in better


def test_without_claims_nothing_is_reported_of_them(found, tmp_path):
    assert "## Claims" not in write(found, tmp_path)
    assert not read_json_lines(tmp_path / "claims.jsonl") and 'id="claims"' not in (tmp_path / "report.html").read_text()


def test_what_failed_is_reported_with_its_reason_and_not_measured(found, tmp_path):
    (tmp_path / DONE / "train_trained_2").unlink()
    write_atomic(tmp_path / LOGS / "train_trained_2.txt", "step 3\nglyphlm: the loss is | no number\n\n")
    text = write(found, tmp_path)
    assert "| train_trained_2 | glyphlm: the loss is \\| no number | glyphlm train_trained_2 |" in text
    assert "Not trained: trained 2.\n" in text and "eval_trained_2 |" not in text
    assert "| trained | 2 | 2.4000 |" in text


def test_what_was_tuned_is_reported(found, tmp_path):
    choice = Choice({"train.lr": 0.01}, (({"train.lr": 0.01}, 2.0), ({"train.lr": 0.1}, None)))
    text = write(found, tmp_path, {"frozen": choice, "trained": Choice(None)})
    assert "| frozen | train.lr 0.01 | 2.0000 | chosen |\n| frozen | train.lr 0.1 | failed |" in text


def test_one_seed_has_no_interval(found, tmp_path):
    models, stages = found
    text = write(([models[0], models[3]], stages), tmp_path)
    assert "| trained | 1 | 2.3000 | – | +0.3000 | – | – |" in text
