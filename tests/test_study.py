"""A study is a list of commands that share what they can; it goes on after a kill and does without what fails."""

import json
import os
import shlex
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest
from forked import start

from glyphlm.base.errors import InputError
from glyphlm.base.records import read_json_lines
from glyphlm.cli.main import main
from glyphlm.experiments.recipe import load_recipe
from glyphlm.planning.plan import PlanSettings, make_plans
from glyphlm.studies.claims import Claim
from glyphlm.studies.commands import Study, StudyCommands, arm_recipe, arms_of, model_names
from glyphlm.studies.study import CommandsFailed, check, study
from glyphlm.studies.workflow import DONE, run_here

RECIPES = Path(__file__).parents[1] / "recipes"
STUDIES = [*sorted(path.stem for path in RECIPES.glob("study_*.yaml")), "repeats", "unseen"]
RECIPE = {
    "tokenizer": {"layout": "compact", "vocab_size": 512},
    "substrate": {"kind": "token_bits", "n_embed": 16},
    "model": {"d_model": 32, "n_layer": 1, "n_head": 1, "block_size": 32},
    "data": [{"text": "embedded:zh,qa"}],
    "train": {"steps": 3, "batch_tokens": 128, "micro_batch_tokens": 128, "precision": "fp32", "device": "cpu",
              "validation_tokens": 512},
}
LEARNED = {"substrate": {"kind": "learned", "trainable": True}}
SHUFFLED = {"substrate": {"shuffle_seed": 7}}
GROWN = {"stages": [{"layers": 1}, {"layers": 1}], "controls": ["tokens"]}


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def planned(*seeds, tuned=None, **arms):
    """The stages of a study without running them."""
    settings = Study(RECIPE, arms, seeds=list(seeds) or [1, 2])
    stages = StudyCommands(settings, Path("out"))
    for arm in arms:
        for seed in settings.seeds:
            stages.train(arm, seed, tuned or {})
    return stages


def commands(stages, verb):
    typed = [shlex.join(command.arguments) for command in stages.ordered]
    return [command for command in typed if command.startswith(f"glyphlm {verb}")]


def read_study(name, profile):
    return load_recipe(RECIPES / f"{name}.yaml", profile, kind=Study)


# The stages


def test_arms_share_tokenizer_shards_and_what_is_not_drawn():
    stages = planned(bits=None, learned=LEARNED)
    assert commands(stages, "tokenizer") == [
        "glyphlm tokenizer build --vocab-size 512 embedded:zh,qa --out out/inputs/tokenizer-51b0edfb"]
    assert len(commands(stages, "prepare")) == 1
    assert ["--kind token_bits" in command for command in commands(stages, "substrate")] == [True, False, False]
    assert len(commands(stages, "train")) == 4


def test_arms_with_other_data_share_the_tokenizer_of_the_recipe():
    stages = planned(1, zh=None, en={"data": [{"text": "embedded:en,qa"}]})
    assert len(commands(stages, "tokenizer")) == 1 and len(commands(stages, "prepare")) == 2


def test_a_stage_comes_after_what_it_needs():
    stages, seen = planned(bits=None, grown=GROWN), set()
    for stage in stages.ordered:
        assert seen.issuperset(stage.needs)
        seen.add(stage.name)
    assert all(len(stage.needs) == 3 for stage in stages.ordered if stage.name.startswith("train"))


def test_a_seed_draws_all_that_is_drawn():
    settings = Study(RECIPE, {})
    assert arm_recipe(settings, LEARNED, 5, {}).substrate.seed == 5
    assert arm_recipe(settings, SHUFFLED, 5, {}).substrate.shuffle_seed == 5
    recipe = arm_recipe(settings, {}, 5, {})
    assert (recipe.train.seed, recipe.substrate.seed, recipe.substrate.shuffle_seed) == (5, 1, None)


def test_values_are_set_by_their_dotted_names():
    recipe = arm_recipe(Study(RECIPE, {}), LEARNED, 1, {"train.lr": 0.25, "model.n_layer": 3})
    assert (recipe.train.lr, recipe.model.n_layer, recipe.substrate.kind) == (0.25, 3, "learned")


def test_other_texts_take_the_place_of_the_data():
    recipe = arm_recipe(Study(RECIPE, {}, data=["a.txt", "hf:b"]), {}, 1, {})
    assert [source.text for source in recipe.data] == ["a.txt", "hf:b"]


def test_beside_text_examples_are_no_part_of_the_validation():
    for name in ("a.txt", "c.txt"):
        Path(name).write_text(name)
    asked = Study(RECIPE, {"bits": None}, data=["a.txt", "arc_easy=b.jsonl", "c.txt"])
    commands = StudyCommands(asked, Path("out"))
    recipe, _ = commands._with_inputs(arm_recipe(asked, {}, 1, {}))
    assert recipe.validation == [recipe.data[0].shards, recipe.data[2].shards]
    recipe, _ = commands._with_inputs(arm_recipe(replace(asked, data=["a.txt"]), {}, 1, {}))
    assert recipe.validation == []


def test_an_arm_that_changes_gets_another_folder_and_others_keep_theirs():
    before, after = (planned(1, bits=None, learned=arm, tuned={"train.lr": 0.1}) for arm in (LEARNED, LEARNED | GROWN))
    assert before.models[0].run == after.models[0].run
    assert before.models[1].run.parent != after.models[1].run.parent
    assert planned(1, bits=None).models[0].run != before.models[0].run


def test_seeds_of_an_arm_stand_side_by_side():
    runs = [model.run for model in planned(1, 2, learned=LEARNED).models]
    assert [run.name for run in runs] == ["learned-1", "learned-2"] and runs[0].parent == runs[1].parent


def test_a_grown_arm_has_a_model_a_stage_and_its_control():
    stages = planned(1, grown=GROWN)
    assert [model.arm for model in stages.models] == ["grown.stage-1", "grown.stage-2", "grown.monolithic-tokens"]
    assert len(commands(stages, "grow")) == 1


def test_the_models_of_a_study_are_known_before_they_are_made():
    fuse = {"both": {"experts": ["bits", "learned"]}}
    settings = Study(RECIPE, {"bits": None, "grown": GROWN, "learned": LEARNED}, fuse=fuse)
    made = planned(1, **settings.arms)
    assert model_names(settings) == [*(model.arm for model in made.models), "both"]
    assert arms_of(settings, ("grown.stage-2", "both", "bits")) == ["grown", "bits", "learned"]


def test_experts_are_fused_seed_by_seed_after_their_training():
    stages = planned(1, 2, one=None, two=LEARNED)
    for seed in (1, 2):
        stages.fuse("both", {"experts": ["one", "two"], "method": "mean_logits", "allow_different_substrates": True}, seed)
    one, two, both = (next(model for model in stages.models if (model.arm, model.seed) == (arm, 2))
                      for arm in ("one", "two", "both"))
    assert commands(stages, "fuse")[1] == (f"glyphlm fuse {one.run} {two.run} --method mean_logits "
                                           f"--allow-different-substrates --out {both.run}")
    assert stages.ordered[-1].needs == (one.made_by, two.made_by)


def test_routers_of_a_fused_model_are_arms_of_its_seed():
    stages = planned(1, 2, one=None, two=None)
    stages.fuse("routed", {"experts": ["one", "two"], "method": "router", "routers": ["two", "one"]}, 2)
    one, two = (next(model.run for model in stages.models if (model.arm, model.seed) == (arm, 2)) for arm in ("one", "two"))
    assert f"fuse {one} {two} --method router --routers {two} {one} --out" in commands(stages, "fuse")[0]


def test_every_model_gets_the_same_tasks():
    settings = Study(RECIPE, {"bits": None}, evaluate=["bpb=embedded:en", "mmlu=hf:"])
    stages = StudyCommands(settings, Path("out"))
    model = stages.train("bits", 1, {})
    stages.evaluate()
    stage = stages.ordered[-1]
    asked = f"glyphlm eval {model.run} --tasks bpb=embedded:en mmlu=hf: --log-items out/items --out {stage.makes}"
    assert shlex.join(stage.arguments) == asked
    assert stage.needs == (model.made_by,) and stages.models[0].rows == stage.makes


def test_both_protocols_add_to_the_rows_of_a_model():
    settings = Study(RECIPE, {"bits": None}, evaluate=["bpb=embedded:en", "mmlu=hf:"], protocols=["likelihood", "sampled"])
    stages = StudyCommands(settings, Path("out"))
    stages.train("bits", 1, {})
    stages.evaluate()
    stages.evaluate()  # of what has been asked nothing is asked again
    likelihood, sampled = stages.ordered[-2:]
    assert "--protocol" not in likelihood.arguments and "bpb=embedded:en" in likelihood.arguments
    assert shlex.join(sampled.arguments).partition("--tasks ")[2].startswith("mmlu=hf: --protocol sampled --log-items")
    assert sampled.makes == likelihood.makes and sampled.needs == (likelihood.name,)
    assert stages.models[0].evaluated_by == sampled.name


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"arms": {}}, "a study needs arms and seeds"),
        ({"arms": {"a-b": None}}, "'a-b' cannot name an arm"),
        ({"seeds": [1, 1]}, "has one twice"),
        ({"fuse": {"bits": {"experts": ["bits", "bits"]}}}, "names an arm and a fused model"),
        ({"seeds": [-1]}, "seed -1 must be .*at least 0"),
        ({"tune": {"train.lr": []}}, "tune.train.lr has no values"),
        ({"tune": {"train.lr": [1, 2]}, "tune_seeds": [2]}, "seed 2 is in seeds and in tune_seeds; tune with another"),
        ({"tune": {"train.lr": [1, 2]}, "tune_seeds": []}, "tune_seeds is empty; give a seed"),
        ({"fuse": {"both": {"experts": ["bits"], "methot": "gate"}}}, "'methot' in fuse.both; did you mean method"),
        ({"evaluate": ["nonsense=x"]}, "nonsense=x"),
        ({"only": ["glyph"]}, "only names glyph; the arms are bits"),
        ({"fuse": {"both": {"experts": ["bits", "other"]}}}, "fuse both names other; the arms are bits"),
        ({"fuse": {"both": {"experts": ["bits"], "method": "router", "routers": ["no"]}}}, "names no; the arms are bits"),
        ({"claims": [Claim("it grows", "grown.stage-3", "bits")], "arms": {"bits": None, "grown": GROWN}},
         "'it grows' names grown.stage-3; the models are bits, grown.stage-1, grown.stage-2, grown.monolithic-tokens"),
    ],
)
def test_a_study_that_cannot_be_made_is_refused(change, message):
    with pytest.raises(InputError, match=message):
        check(replace(Study(RECIPE, {"bits": None}), **change), 1)


def test_a_value_that_a_recipe_does_not_have_is_refused():
    with pytest.raises(InputError, match="lrate"):
        arm_recipe(Study(RECIPE, {}), {}, 1, {"train.lrate": 1})


# The files in recipes/


@pytest.mark.parametrize("profile", [None, "laptop", "tiny"])
@pytest.mark.parametrize("name", STUDIES)
def test_every_arm_of_a_study_file_can_be_planned(name, profile, monkeypatch):
    monkeypatch.chdir(RECIPES.parent)
    settings, seen = read_study(name, profile), set()
    check(settings, 1)
    assert settings.compare is None or settings.compare.partition(".")[0] in [*settings.arms, *settings.fuse]
    for arm, changes in settings.arms.items():
        recipe = arm_recipe(settings, changes or {}, 1, {key: values[0] for key, values in settings.tune.items()})
        kind = (repr(recipe.model), recipe.substrate.kind, recipe.substrate.n_embed)
        if profile is None or kind not in seen:  # a plan takes a third of a second
            assert make_plans(recipe, PlanSettings(gpu="rtx4090", measure=False)), arm
        seen.add(kind)


def test_the_central_study_crosses_freezing_content_and_scale():
    arms = read_study("study_freezing", None).arms
    settings = read_study("study_freezing", None)
    seen = {(s.kind, s.trainable, s.shuffle_seed is not None, s.scale)
            for s in (arm_recipe(settings, changes, 1, {}).substrate for changes in arms.values())}
    contents = [("glyph", False), ("token_bits", False), ("token_bits", True), ("random_float", False), ("learned", False)]
    assert {(kind, trainable, shuffled, "unit_rms") for kind, shuffled in contents for trainable in (False, True)} <= seen
    assert {("glyph", False, False, "l2"), ("token_bits", False, False, "l2"), ("random_float", False, False, "l2")} <= seen


# Made, killed, gone on with


def flags():
    return {path.name: path.stat().st_mtime_ns for path in Path("out", DONE).iterdir()}


def test_a_killed_study_continues_without_an_arm_that_fails():
    broken = {"substrate": {"kind": "given", "file": "missing.npy"}}
    settings = {"recipe": RECIPE, "arms": {"bits": None, "broken": broken}, "seeds": [1], "title": "Two arms"}
    Path("study.json").write_text(json.dumps(settings))
    killed = start("study", "study.json", "--out", "out")
    while not list(Path("out", DONE).glob("tokenizer*")):
        assert killed.is_alive()
        time.sleep(0.02)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.join()
    begun = flags()

    with pytest.raises(CommandsFailed, match="1 of [0-9]+ commands failed .*missing.npy does not exist.*out/results.md"):
        study(Study(**settings), Path("out"), unlock=True)
    made = flags()
    assert begun.items() <= made.items() and len(made) == 4  # tokenizer, shards, a substrate, a training
    text = Path("out/results.md").read_text()
    assert "missing.npy does not exist; name a file that does" in text and "Not trained: broken 1.\n" in text
    assert "| bits | 1 | " in text and "# Two arms" in text and Path("out/report.html").is_file()
    study(Study(**settings | {"title": "Other words", "only": ["bits"]}), Path("out"))
    assert flags() == made and Path("out/results.md").read_text().startswith("# Other words\n")


def test_claims_are_decided_by_what_was_trained_before():
    def run(commands, out, **_):
        run_here(commands, out, lambda arguments: main([*arguments[1:]]))

    settings = {"recipe": RECIPE, "arms": {"bits": None, "learned": LEARNED}, "seeds": [1, 2]}
    settings |= {"evaluate": ["bpb=embedded:zh,qa,validation"]}
    study(Study(**settings), Path("out"), runner=run)
    made, rows = flags(), read_json_lines(Path("out/results.jsonl"))
    assert len(made) == 13  # tokenizer, shards, bits, a table for each seed, four trainings, four evaluations
    assert {row["arm"] for row in rows if row["measure"] == "bits per byte, validation"} == {"bits", "learned"}
    asked = {"claims": [Claim("bits do", "bits", "learned")], "title": "Other words", "compare": "learned"}
    text = study(Study(**settings | asked), Path("out"), command="glyphlm study s.yaml", runner=run).read_text()
    assert flags() == made
    assert text.startswith("# Other words\n\n## Claims\n") and "minus learned" in text
    assert "| --only bits learned |" in text and "`glyphlm study s.yaml`" in text
    verdicts = {row["measure"]: row for row in read_json_lines(Path("out/claims.jsonl"))}
    assert verdicts["bits per byte, validation"]["documents_low"] is None  # a validation has no log of its documents
    row = verdicts["bpb bits per byte, embedded:zh,qa,validation"]
    assert row["documents_low"] < row["difference"] < row["documents_high"]


def test_ctrl_c_in_a_command_ends_a_study_in_one_process():
    begun = []

    def run(arguments):
        begun.append(arguments)
        return 130  # what main() returns

    with pytest.raises(KeyboardInterrupt):
        run_here(planned(1, bits=None).ordered, Path("out"), run)
    assert len(begun) == 1 and not flags()


def test_a_study_without_any_success_fails(tmp_path, capsys):
    broken = RECIPE | {"tokenizer": {"layout": "compact", "vocab_size": 60000}}
    Path("s.yaml").write_text(json.dumps({"recipe": broken, "arms": {"a": None}, "seeds": [1]}))
    assert main(["study", "s.yaml", "--out", "out {x}"]) == 2  # Snakemake would take {x} for a wildcard
    last = capsys.readouterr().err.splitlines()[-1]
    assert "1 of 4 commands failed" in last and "larger than the text supports" in last
    assert "## Missing" in Path("out {x}", "results.md").read_text()


def stand_in_for_trainings(reached, ran):
    """In place of the commands: writes what a training of each learning rate would have reached."""

    def stand_in(stages, out, **engine):
        ran.append([stage.name for stage in stages if stage.name.startswith("train")])
        for stage in stages:
            (out / DONE).mkdir(parents=True, exist_ok=True)
            (out / DONE / stage.name).touch()
            if stage.name.startswith("train"):
                lr = arm_recipe(Study(str(stage.reads[0]), {}), {}, 1, {}).train.lr
                stage.makes.parent.mkdir(parents=True, exist_ok=True)
                summary = {"name": stage.makes.parent.name, "substrate": {}, "tokens": 1, "seconds": 1,
                           "parameters": {"trained": 1}, "bits_per_byte": {"validation": reached[lr]}}
                stage.makes.write_text(json.dumps(summary))

    return stand_in


def test_tuning_chooses_by_validation(monkeypatch):
    ran = []
    monkeypatch.setattr("glyphlm.studies.study.run_workflow", stand_in_for_trainings({0.1: 2.0, 0.01: 1.5}, ran))
    fixed = {"train": {"lr": 0.1}}
    asked = Study(RECIPE, {"bits": None, "fixed": fixed}, tune={"train.lr": [0.1, 0.01]}, tune_seeds=[8, 9])
    text = study(asked, Path("out")).read_text()
    assert [len(names) for names in ran] == [4, 6] and not set(ran[0]) & set(ran[1])
    assert all(name.startswith("train_bits") and name[-1] in "89" for name in ran[0])
    assert "| bits | train.lr 0.1 | 2.0000 |  |\n| bits | train.lr 0.01 | 1.5000 | chosen |" in text
    assert "| bits | 3 | 1.5000 | 1.5000 to 1.5000 |" in text and "| fixed | 3 | 2.0000 |" in text


def test_an_arm_that_cannot_be_tuned_is_named(monkeypatch):
    """Of a few long documents none is held out: no value is better than another, and the arm must not disappear."""
    monkeypatch.setattr("glyphlm.studies.study.run_workflow", stand_in_for_trainings({0.1: None, 0.01: None, 0.2: 2.0}, []))
    asked = Study(RECIPE, {"bits": None, "fixed": {"train": {"lr": 0.2}}}, tune={"train.lr": [0.1, 0.01]})
    with pytest.raises(InputError, match="^bits: of so few documents none was held out.*set train.lr in these arms"):
        study(asked, Path("out"))
