"""The command line: help with examples, and one line with a cure and exit code 2 for what the user can fix."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from glyphlm.base.hub import Pulled
from glyphlm.base.records import to_json
from glyphlm.cli.completion import options_of
from glyphlm.cli.main import VERBS, main
from glyphlm.substrate.build import SubstrateSettings, build_substrate

HUGE = Path("/sys/kernel/mm/transparent_hugepage/enabled")
RECIPE = """
tokenizer: {path: TOKENIZER}
substrate: {path: SUBSTRATE}
model: {d_model: 32, n_layer: 1, n_head: 2, block_size: 32}
data: [{shards: SHARDS}]
train: {steps: 4, batch_tokens: 128, micro_batch_tokens: 64, save_every: 2, log_every: 2, validate_every: 4}
"""


@pytest.fixture
def recipe(tmp_path, tokenizer_folder, substrates, shards):
    text = RECIPE.replace("TOKENIZER", str(tokenizer_folder)).replace("SHARDS", str(shards))
    path = tmp_path / "recipe.yaml"
    path.write_text(text.replace("SUBSTRATE", str(substrates["token_bits"])))
    return str(path)


@pytest.fixture(scope="module")
def finished(tmp_path_factory, tokenizer_folder, substrates, shards):
    """A finished run."""
    folder = tmp_path_factory.mktemp("finished")
    text = RECIPE.replace("TOKENIZER", str(tokenizer_folder)).replace("SHARDS", str(shards))
    (folder / "recipe.yaml").write_text(text.replace("SUBSTRATE", str(substrates["token_bits"])))
    assert main(["train", str(folder / "recipe.yaml"), "--out", str(folder / "run")]) == 0
    return folder / "run"


def refusal(capsys, *arguments):
    """The one line that a refused command prints."""
    assert main([str(argument) for argument in arguments]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert lines[-1].startswith("glyphlm: ")
    assert not any("Traceback" in line for line in lines)
    return lines[-1]


def test_help_names_every_verb(capsys):
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(verb in text for verb in VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_with_an_example(verb, capsys):
    with pytest.raises(SystemExit) as stop:
        main([*verb.split(), "--help"])
    assert stop.value.code == 0
    assert f"example:\n  glyphlm {verb}" in capsys.readouterr().out


def test_help_shows_defaults_and_no_types_that_a_reader_sees_anyway(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit):
        main(["substrate", "build", "--help"])
    shown = capsys.readouterr().out
    assert "(default: glyph)" in shown and "folder of the tokenizer (required)" in shown
    assert not any(word in shown for word in ("Literal", "<class", "default: null", "default: False"))
    options, example = shown.split("example:")
    assert max(map(len, options.splitlines())) <= 110 and example.startswith("\n  glyphlm substrate build --tokenizer")


def test_help_of_no_verb_imports_torch():
    """torch and transformers take seconds; one process asks every verb for its help."""
    code = """
import sys
from contextlib import suppress
from glyphlm.cli.completion import options_of
from glyphlm.cli.main import VERBS, main
for verb in [None, *VERBS]:
    with suppress(SystemExit):
        main([*(verb or "").split(), "--help"])
    loaded = {"torch", "transformers", "scipy", "matplotlib", "datasets", "babel"} & {*sys.modules}
    assert not loaded, (verb, loaded)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(not HUGE.is_file() or "[never]" in HUGE.read_text(), reason="the system has no huge pages")
def test_tensors_of_a_verb_are_in_huge_pages():
    code = """
import resource
from glyphlm.cli.main import main
main(["generate", "missing", "--prompt", "a"])
import torch
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
torch.empty(256 << 20, dtype=torch.uint8).fill_(1)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before, (256 << 20) // resource.getpagesize())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    faults, pages = map(int, done.stdout.split())
    assert faults < pages / 4


def test_an_unknown_verb_is_refused_with_the_known_ones(capsys):
    assert "tokenizer build" in refusal(capsys, "tokenise")


def test_a_word_that_is_nearly_a_verb_is_suggested(capsys):
    assert "did you mean quickstart?" in refusal(capsys, "quickstrat")


@pytest.mark.parametrize("error", [MemoryError(), RecursionError("too deep"), ValueError("odd\nvalue"), KeyError("x"),
                                   type("PanicException", (BaseException,), {})("index out of bounds")])
def test_every_error_ends_in_one_line(capsys, monkeypatch, error):
    def fail(arguments):
        raise error

    monkeypatch.setattr("glyphlm.cli.main._run", fail)
    line = refusal(capsys, "train")
    assert type(error).__name__ in line or "out of memory" in line
    monkeypatch.setenv("GLYPHLM_TRACEBACK", "1")
    with pytest.raises(type(error)):
        main(["train"])


def test_on_a_terminal_the_first_line_comes_before_libraries_are_loaded(capsys, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    monkeypatch.setattr("glyphlm.cli.main.importlib.import_module", lambda name: print(name, file=sys.stderr))
    assert main(["train"]) == 2
    assert capsys.readouterr().err.splitlines()[:2] == ["glyphlm train: loading", "glyphlm.cli.models"]


@pytest.mark.parametrize(("shell", "code", "said"), [
    ("PYTHONIOENCODING=ascii {0} generate {1} --prompt 'a мир' --max_new_tokens 1", 0, r"a \u043c\u0438\u0440"),
    ("{0} --version | true; exit ${{PIPESTATUS[0]}}", 141, ""),
    ("{0} --version > /dev/full", 2, "the disk is full"),
])  # fmt: skip
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs bash and /dev/full")
def test_what_cannot_be_printed_is_no_traceback(finished, shell, code, said):
    command = shell.format(f"{sys.executable} -m glyphlm", finished)
    ended = subprocess.run(["bash", "-c", command], capture_output=True, text=True, cwd=Path(__file__).parents[1])
    assert (ended.returncode, "Traceback" in ended.stderr, "Exception" in ended.stderr) == (code, False, False)
    assert said in ended.stdout + ended.stderr


def test_a_stop_keeps_its_exit_code(monkeypatch):
    def stop(arguments):
        raise SystemExit(143)

    monkeypatch.setattr("glyphlm.cli.main._run", stop)
    with pytest.raises(SystemExit) as stopped:
        main(["train"])
    assert stopped.value.code == 143


@pytest.mark.parametrize("typed", ["RECIPE --no_measure {0}", "--no_measure {0} RECIPE", "{0} --no_measure --recipe RECIPE"])
def test_the_recipe_may_stand_anywhere(recipe, capsys, typed):
    assert main(["plan", *typed.format("--train.steps 3").replace("RECIPE", recipe).split()]) == 0
    assert "3 steps of 128" in capsys.readouterr().out


@pytest.mark.parametrize(("options", "said"), [
    (["--train.steps"], "--train.steps has no value"), (["--train.steps", "--profile", "x"], "--train.steps has no value"),
    (["--train.steps", "1:30"], "'1:30'"), (["--model", "this.d"], "mapping"),
    (["--model.class_path", "this.d"], "class_path"), (["--train.lr", "["], "--train.lr is damaged"),
    (["--data+", "[]"], "unrecognized arguments: --data+"),
])  # fmt: skip
def test_odd_overrides_are_refused(recipe, capsys, options, said):
    assert said in refusal(capsys, "plan", recipe, "--no_measure", *options)
    assert "this" not in sys.modules


@pytest.mark.parametrize("typed", [("--steps", "1:30"), ("--steps=1_000",), ("--n-embed", "0b1")])
def test_numbers_of_yaml_1_1_are_not_numbers(tokenizer_folder, tmp_path, capsys, typed):
    verb = ["quickstart"] if "steps" in typed[0] else ["substrate", "build", "--tokenizer", str(tokenizer_folder)]
    line = refusal(capsys, *verb, *typed, "--out", tmp_path / "out")
    assert "nor true or false" in line and not (tmp_path / "out").exists()


def test_a_home_folder_that_is_not_expanded_is_refused(capsys):
    assert "expand" in refusal(capsys, "report", "run", "--out=~/page.html")


def test_an_output_whose_name_is_not_utf_8_is_refused(recipe, tmp_path, capsys):
    assert "not UTF-8" in refusal(capsys, "train", recipe, "--out", f"{tmp_path}/x\udcff")
    assert not [*tmp_path.glob("x*")]


def test_help_of_a_section_does_not_mind_other_options(recipe, capsys):
    with pytest.raises(SystemExit) as end:
        main(["train", str(recipe), "--data.help", "--substrate.n_embed", "16", "--out", "x"])
    assert end.value.code == 0 and "--data.exclude" in capsys.readouterr().out


def test_a_number_may_stand_before_other_arguments(tokenizer_folder, tmp_path):
    (text := tmp_path / "1_000.txt").write_text("a text")
    arguments = ["--tokenizer", str(tokenizer_folder), "--validation-share", "0", str(text), "--skip-empty"]
    assert main(["prepare", *arguments, "--out", str(tmp_path / "out")]) == 0


def test_a_missing_recipe_is_named(capsys):
    assert "nowhere.yaml does not exist" in refusal(capsys, "train", "nowhere.yaml", "--out", "x")


@pytest.mark.parametrize("key", ["train.stepz", "model.width", "colour"])
def test_an_unknown_key_is_refused(recipe, tmp_path, capsys, key):
    assert key.split(".")[-1] in refusal(capsys, "train", recipe, f"--{key}", "3", "--out", tmp_path / "run")


def test_an_unknown_key_in_the_recipe_is_refused(recipe, tmp_path, capsys):
    Path(recipe).write_text(Path(recipe).read_text().replace("n_layer", "n_layers"))
    assert "n_layers" in refusal(capsys, "train", recipe, "--out", tmp_path / "run")


def test_a_value_of_the_wrong_type_is_refused(recipe, tmp_path, capsys):
    assert "many" in refusal(capsys, "train", recipe, "--train.steps", "many", "--out", tmp_path / "run")


def test_steps_and_tokens_together_are_refused(recipe, tmp_path, capsys):
    assert "one of the two" in refusal(capsys, "train", recipe, "--train.tokens", "1e6", "--out", tmp_path / "run")


def test_heads_that_do_not_divide_the_width_are_refused_with_those_that_do(recipe, tmp_path, capsys):
    line = refusal(capsys, "train", recipe, "--model.n_head", "5", "--out", tmp_path / "run")
    assert "d_model 32" in line and "1, 2, 4, 8, 16" in line


@pytest.mark.parametrize("name", ["d_model", "n_layer", "n_head", "block_size"])
def test_sizes_far_above_every_model_end_at_once(recipe, tmp_path, capsys, name):
    said = refusal(capsys, "train", recipe, f"--model.{name}", 10**9, "--out", tmp_path / "run")
    assert f"{name} 1000000000 must be at most" in said


def test_a_width_that_codes_do_not_divide_is_refused(recipe, tmp_path, capsys):
    line = refusal(capsys, "train", recipe, "--model.d_model", "40", "--out", tmp_path / "run")
    assert "n_embed 16 does not divide d_model 40" in line


def test_dashes_stand_for_underscores(recipe, tmp_path, capsys):
    assert "batch_tokens 100" in refusal(capsys, "train", recipe, "--train.batch-tokens", "100", "--out", tmp_path / "run")


def test_an_output_folder_with_something_else_is_left_alone(texts, tmp_path, capsys):
    (tmp_path / "thesis.txt").write_text("years of work")
    line = refusal(capsys, "tokenizer", "build", "--vocab-size", "600", "--out", tmp_path, *texts)
    assert "no build.json" in line and (tmp_path / "thesis.txt").read_text() == "years of work"


def test_a_tokenizer_of_another_size_is_not_overwritten(texts, tmp_path, capsys):
    out = tmp_path / "tok"
    assert main(["tokenizer", "build", "--vocab-size", "600", "--out", str(out), *texts]) == 0
    before = (out / "tokenizer.json").read_bytes()
    line = refusal(capsys, "tokenizer", "build", "--vocab-size", "700", "--out", out, *texts)
    assert "vocab_size = 600, not 700" in line and (out / "tokenizer.json").read_bytes() == before


def test_a_vocabulary_larger_than_the_text_supports_is_refused_with_the_size_that_fits(tmp_path, capsys):
    text = tmp_path / "short.txt"
    text.write_text("the same words, the same words")
    assert "larger than the text supports" in refusal(
        capsys, "tokenizer", "build", "--vocab-size", "4096", "--out", tmp_path / "tok", text
    )


@pytest.mark.parametrize(
    ("content", "said"), [(b"", "holds no text"), (b"good \xff bad", "not UTF-8 at byte 5"), (None, "does not exist")]
)
def test_bad_text_is_named(tokenizer_folder, tmp_path, capsys, content, said):
    path = tmp_path / "bad.txt"
    if content is not None:
        path.write_bytes(content)
    line = refusal(capsys, "prepare", "--tokenizer", tokenizer_folder, "--out", tmp_path / "shards", path)
    assert str(path) in line and said in line and not (tmp_path / "shards").exists()


def test_replace_continues_where_bytes_are_not_utf8(tokenizer_folder, tmp_path):
    path = tmp_path / "bad.txt"
    path.write_bytes(b"good \xff bad")
    out = tmp_path / "shards"
    assert main(["prepare", "--tokenizer", str(tokenizer_folder), "--errors", "replace", "--out", str(out), str(path)]) == 0
    train = json.loads((out / "build.json").read_text())["result"]["splits"]["train"]
    assert train["bytes"] == len("good \ufffd bad".encode())


def test_a_substrate_of_another_tokenizer_is_refused_with_both_fingerprints(recipe, texts, tmp_path, capsys):
    other = tmp_path / "other"
    assert main(["tokenizer", "build", "--vocab-size", "600", "--out", str(other), *texts]) == 0
    line = refusal(capsys, "train", recipe, "--tokenizer.path", other, "--out", tmp_path / "run")
    assert "was made for tokenizer" in line


def test_a_run_is_resumed_skipped_or_refused(recipe, tmp_path, capsys):
    out = tmp_path / "run"
    assert main(["train", recipe, "--out", str(out)]) == 0
    assert main(["train", recipe, "--out", str(out)]) == 0
    assert "is done already" in capsys.readouterr().err
    line = refusal(capsys, "train", recipe, "--train.lr", "0.5", "--out", out)
    assert "train.lr was 0.001, is now 0.5" in line


def test_a_run_that_was_refused_before_its_first_step_does_not_stand_in_the_way(recipe, tmp_path, capsys):
    out = tmp_path / "run"
    refusal(capsys, "train", recipe, "--model.d_model", "40", "--out", out)
    assert main(["train", recipe, "--out", str(out)]) == 0


def test_a_run_continues_with_the_precision_that_was_found_when_it_began(recipe, tmp_path, capsys, monkeypatch):
    out = tmp_path / "run"
    found = iter(["fp32", "bf16"])
    monkeypatch.setattr(
        "glyphlm.base.devices.resolve_precision", lambda asked, _: next(found) if asked == "auto" else asked
    )
    assert main(["train", recipe, "--out", str(out)]) == main(["train", recipe, "--out", str(out)]) == 0
    assert "is done already" in capsys.readouterr().err


def test_a_run_does_not_continue_with_a_substrate_that_was_made_again(recipe, substrates, tokenizer, tmp_path, capsys):
    sub, out = tmp_path / "sub", tmp_path / "run"
    shutil.copytree(substrates["learned"], sub)
    arguments = ["train", recipe, "--substrate.path", str(sub), "--out", str(out)]
    assert main(arguments) == 0
    (out / "summary.json").unlink()  # as if it had been stopped before its end
    shutil.rmtree(sub)
    build_substrate(tokenizer, SubstrateSettings(kind="learned", n_embed=32, trainable=True, seed=2), sub)
    assert "begun with other inputs: substrate was" in refusal(capsys, *arguments)


def test_an_unknown_task_and_an_unfinished_run_are_refused(tmp_path, capsys):
    assert "nonsense" in refusal(capsys, "eval", tmp_path, "--tasks", "nonsense=x")
    assert "mmlu needs a .csv file" in refusal(capsys, "eval", tmp_path, "--tasks", "mmlu=x")
    (tmp_path / "x.txt").write_text("some text")
    assert "not a finished run" in refusal(capsys, "eval", tmp_path, "--tasks", f"bpb={tmp_path / 'x.txt'}")


@pytest.mark.skipif(os.geteuid() != 0 if hasattr(os, "geteuid") else True, reason="mounting a small disk needs root")
def test_a_full_disk_is_reported_and_leaves_nothing_half_done(tokenizer_folder, tmp_path, capsys):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(disk)], capture_output=True).returncode:
        pytest.skip("no small disk can be mounted here")
    try:
        text = tmp_path / "long.txt"
        text.write_text("one more line of text\n" * 40_000)
        line = refusal(capsys, "prepare", "--tokenizer", tokenizer_folder, "--out", disk / "shards", text)
        assert "the disk is full" in line and not list(disk.iterdir())
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.parametrize("verb", ["plan", "report"])
def test_a_file_that_is_not_ours_is_not_overwritten(recipe, finished, tmp_path, capsys, verb):
    options = ["plan", recipe, "--no_measure"] if verb == "plan" else ["report", str(finished)]
    notes = tmp_path / "notes.txt"
    notes.write_text("my only copy")
    assert f"{notes} exists" in refusal(capsys, *options, "--out", notes) and notes.read_text() == "my only copy"
    assert f"{tmp_path} is a folder" in refusal(capsys, *options, "--out", tmp_path)
    assert f"{notes} is a file" in refusal(capsys, *options, "--out", notes / "x")
    for _ in range(2):  # what the verb made itself it makes again
        assert main([*options, "--out", str(tmp_path / "new" / "made")]) == 0


def test_json_is_stable():
    assert to_json({"b": 1, "a": "ю"}) == '{\n  "a": "ю",\n  "b": 1\n}\n'


@pytest.mark.parametrize("out", [[], ["--out", "unused"]])
def test_print_config_shows_every_value_and_does_nothing(recipe, tmp_path, capsys, monkeypatch, out):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="0"):
        main(["train", str(recipe), "--print-config", "--train.lr", "0.5", *out])
    shown = yaml.safe_load(capsys.readouterr().out)
    assert shown["train"]["lr"] == 0.5 and shown["substrate"].keys() >= {"kind", "trainable"}
    assert not (tmp_path / "unused").exists()


def test_a_profile_is_laid_over_the_recipe(recipe, tmp_path, capsys):
    Path(recipe).write_text(Path(recipe).read_text() + "\nprofiles: {tiny: {model: {n_layer: 2}, train: {steps: 1}}}\n")
    assert main(["train", recipe, "--profile", "tiny", "--out", str(tmp_path / "run")]) == 0
    settings = yaml.safe_load((tmp_path / "run" / "settings.yaml").read_text())
    plain = yaml.safe_load(Path(recipe).read_text())
    assert (settings["model"]["n_layer"], settings["train"]["steps"]) == (2, 1)
    assert settings["model"]["d_model"] == plain["model"]["d_model"] and "profiles" not in settings
    assert "tiny" in refusal(capsys, "train", recipe, "--profile", "huge", "--out", tmp_path / "other")


@pytest.mark.parametrize(("typed", "cure"), [
    (["generate", "run", "--prompt", "a", "--max-tokens", "3"], "did you mean --max-new-tokens?"),
    (["train", "r.yaml", "--trian.steps", "3", "--out", "x"], "did you mean --train.steps?"),
    (["eval", "run", "--taskz", "bpb=x"], "did you mean --tasks?"),
])  # fmt: skip
def test_an_option_that_is_nearly_one_is_suggested(capsys, typed, cure):
    assert cure in refusal(capsys, *typed)


def test_options_are_shown_with_dashes_and_read_with_both(capsys, finished):
    with pytest.raises(SystemExit):
        main(["generate", "--help"])
    assert "--max-new-tokens" in (shown := capsys.readouterr().out) and "--max_new_tokens" not in shown
    texts = []
    for spelled in ("--max-new-tokens", "--max_new_tokens"):
        assert main(["generate", str(finished), "--prompt", "Hello", spelled, "4", "--device", "cpu"]) == 0
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1] and texts[0].startswith("Hello")


WITHOUT_RESULTS = {"serve", "completion"}


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_that_prints_results_prints_them_as_json(verb):
    assert ("--json" in options_of(verb)) == (verb not in WITHOUT_RESULTS)


def test_results_are_printed_as_json(capsys, finished, recipe, tmp_path, substrates, tokenizer_folder, texts):
    (tmp_path / "held.txt").write_text("A text that was held out.")
    out = tmp_path / "out"
    commands = {
        f"generate {finished} --prompt Hello --max-new-tokens 3": "text",
        f"eval {finished} --tasks bpb={tmp_path / 'held.txt'}": "value",
        f"plan {recipe} --no-measure": "forecast",
        f"tokenizer compare {tokenizer_folder} en={texts[1]}": "tokens",
        f"tokenizer ngrams --lang en={texts[1]} --sizes 2 --out {out}/ngrams.txt": "ngrams",
        f"substrate inspect {substrates['token_bits']}": "distinct",
        f"substrate build --tokenizer {tokenizer_folder} --kind token_bits --n-embed 16 --out {out}/substrate": "config",
        f"prepare --tokenizer {tokenizer_folder} {texts[1]} --out {out}/shards": "splits",
        f"train {recipe} --out {finished}": "parameters",  # it is done already
        f"import {finished} --out {out}/copy": "parameters",
        f"export {finished} --to gpt_neox --fold-head-bias --out {out}/neox": "folder",
        f"fuse {finished} {finished} --out {out}/fused": "fusion",
        f"report {finished} --out {out}/report.html": "page",
        f"show {finished} --text Hello --out {out}/show.html": "page",
    }
    for command, key in commands.items():
        assert main([*command.split(), "--json"]) == 0
        assert key in json.loads(capsys.readouterr().out.splitlines()[0]), command


@pytest.mark.parametrize(("typed", "parts"), [
    ("tokenizer bild", ["did you mean tokenizer build?"]),
    ("substrate build --tokenizer t --kind glph --out o", ["--kind glph", "token_bits", "did you mean glyph?"]),
    ("plan r.yaml --parallel fsdp", ["--parallel fsdp", "ddp", "did you mean fsdp2?"]),
    ("export r --to gguff --out o", ["--to gguff", "gpt_neox", "did you mean gguf?"]),
    ("generate r --prompt a --temperature hot", ["--temperature", "number", "hot"]),
    ("train --out o", ["recipe missing", "yaml"]),
    ("generate --prompt a", ["run missing"]), ("generate r", ["--prompt missing"]),
    ("fuse a b --method mean_logit --out o", ["did you mean mean_logits?"]),
])  # fmt: skip
def test_a_wrong_word_is_refused_with_what_would_do(capsys, typed, parts):
    line = refusal(capsys, *typed.split()).lower()
    assert all(part in line for part in parts) and "typing" not in line and "--help" in line


def test_a_family_of_verbs_has_help(capsys):
    for typed in (["tokenizer"], ["tokenizer", "--help"]):
        assert main(typed) == 0
        shown = capsys.readouterr().out
        assert "glyphlm tokenizer VERB" in shown and "tokenizer compare" in shown and "quickstart: " not in shown


def test_a_device_that_is_not_there_is_refused(capsys, finished):
    assert "cuda" in refusal(capsys, "generate", finished, "--prompt", "a", "--device", "cuda:9")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_knows_verbs_and_options(capsys, shell):
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert all(word in script for word in ("quickstart", "max-new-tokens", "vocab-size", "inspect"))


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
def test_bash_completes(capsys, tmp_path):
    main(["completion", "bash"])
    (tmp_path / "script").write_text(capsys.readouterr().out)
    ask = 'source ./script; COMP_WORDS=(glyphlm tokenizer build --vo); COMP_CWORD=3; _glyphlm; echo "${COMPREPLY[@]}"'
    assert subprocess.run(["bash", "-c", ask], cwd=tmp_path, capture_output=True, text=True).stdout.strip() == "--vocab-size"


def test_a_pull_names_revision_and_digest(capsys, monkeypatch, finished):
    monkeypatch.setattr("glyphlm.base.hub.pull", lambda name: Pulled(finished, "me/mine", "abc123"))
    assert main(["pull", "hf:me/mine@v1", "--json"]) == 0
    row = json.loads(capsys.readouterr().out)
    assert (row["revision"], row["repo"]) == ("abc123", "me/mine") and len(row["sha256"]["model.safetensors"]) == 64
