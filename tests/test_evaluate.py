"""Tasks in, rows out: each with its interval; nothing is computed twice, and bits per byte depend on the text alone."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tokenizers
import torch
from small_models import make_foreign, make_run, spoil

from glyphlm.base.errors import InputError
from glyphlm.base.records import to_lines
from glyphlm.composition.fuse import fuse
from glyphlm.composition.settings import FusionSettings
from glyphlm.corpus.phrasebook import phrases
from glyphlm.corpus.reading import STRICT, passages
from glyphlm.evaluation import evaluate as evaluation
from glyphlm.evaluation.evaluate import EvalSettings, evaluate, parse_task
from glyphlm.evaluation.item_log import compare_items, read_log, result_rows
from glyphlm.evaluation.rows import read_results
from glyphlm.tokenizer.tokenizer import HF_CONFIG, Tokenizer
from glyphlm.training.bits_per_byte import score_documents

SAMPLED = EvalSettings(protocol="sampled", runs_per_item=3)
MATTERS = ["limit", "seed", "precision"]


@pytest.fixture(scope="module")
def runs(tokenizer, tmp_path_factory) -> list[Path]:
    folder = tmp_path_factory.mktemp("runs")
    return [make_run(folder / name, tokenizer, seed=seed) for seed, name in enumerate(("mine", "twin"))]


@pytest.fixture
def run(runs) -> Path:
    """A run without results."""
    (runs[0] / "results.jsonl").unlink(missing_ok=True)
    return runs[0]


@pytest.fixture
def tasks(tmp_path) -> dict[str, str]:
    """A few questions of each kind."""
    folder = tmp_path / "mmlu"
    folder.mkdir()
    for subject in ("virology", "astronomy"):
        rows = (f"What is {number}?,one,two,three,more,{'ABCD'[number % 3]}\n" for number in range(6))
        (folder / f"{subject}_test.csv").write_text("".join(rows))
    answers = [[{"text": "owls"}], []]
    questions = [{"question": "Who flies?", "answers": a, "is_impossible": not a} for a in answers]
    squad = {"data": [{"paragraphs": [{"context": "Owls fly.", "qas": questions}]}]}
    (tmp_path / "squad.json").write_text(json.dumps(squad))
    (tmp_path / "pairs.tsv").write_text("An owl.\tСова.\tme\nA cat.\tКот.\tme\n", encoding="utf-8")
    lines = (json.dumps({"text": phrase.text}) + "\n" for phrase in phrases()[:40])
    (tmp_path / "text.jsonl").write_text("".join(lines))
    return {"mmlu": f"mmlu={folder}", "squad": f"squad={tmp_path}/squad.json", "en-ru": f"en-ru={tmp_path}/pairs.tsv",
            "bpb": f"bpb={tmp_path}/text.jsonl"}  # fmt: skip


@pytest.mark.parametrize("method", ["mean_logits", "posterior"])
def test_a_fused_model_is_examined_like_any_other_and_a_model_fused_with_itself_like_itself(run, tasks, tmp_path, method):
    other = make_run(tmp_path / "other", Tokenizer.load(run), seed=0)  # the same weights under another name
    fuse(FusionSettings([str(run), str(other)], method), tmp_path / "fused", "")
    found = [evaluate([folder], list(tasks.values())).rows for folder in (run, tmp_path / "fused")]
    for alone, fused in zip(*found, strict=True):
        assert fused.value == pytest.approx(alone.value, rel=1e-4), alone.task


def test_every_row_has_a_value_an_interval_and_what_it_is_over(run, tasks, tmp_path):
    found = evaluate([run], list(tasks.values()), tmp_path / "out.jsonl")
    assert found.rows == read_results(tmp_path / "out.jsonl") and found.comparisons == []
    assert [replace(row, run=str(run)) for row in read_results(run / "results.jsonl")] == found.rows
    for row in found.rows:
        several = row.count > 1 or "Wilson" in row.interval
        assert row.low <= row.value <= row.high
        assert ("95%" if several else "none: a single") in row.interval
        assert row.protocol == "likelihood" and row.source and row.made_from["model"]
    kinds = {(row.task, row.scoring, row.metric, row.subject) for row in found.rows}
    assert {("mmlu", "texts", "accuracy", "virology"), ("squad", "greedy", "f1", "NoAns"), ("en-ru", "greedy", "chrf", ""),
            ("bpb", "", "bits_per_byte", "")} <= kinds  # fmt: skip
    mmlu = found.rows[0]
    assert (mmlu.items, mmlu.chance, mmlu.majority, mmlu.cut) == (12, 0.25, pytest.approx(1 / 3), 0)


def test_the_sampled_protocol_gives_the_published_interval(run, tasks):
    rows = evaluate([run], [tasks["mmlu"], tasks["squad"], tasks["en-ru"]], settings=SAMPLED).rows
    assert {row.metric for row in rows} == {"accuracy", "contains", "bleu"}
    assert all(row.runs == 3 and "decoding runs" in row.interval and row.sigma is not None for row in rows)
    assert rows[0].value <= rows[0].letter_mass + 0.2


@pytest.mark.parametrize("settings", [EvalSettings(), SAMPLED])
def test_what_is_done_is_not_computed_again(run, tasks, tmp_path, monkeypatch, settings):
    out, wanted = tmp_path / "out.jsonl", [tasks["mmlu"], tasks["squad"]]
    first = evaluate([run], wanted[:1], out, settings=settings)
    asked = []
    run_task = evaluation.run_task
    monkeypatch.setattr(evaluation, "run_task", lambda *given: asked.append(given[1].name) or run_task(*given))
    second = evaluate([run], wanted, out, settings=settings)
    assert asked == ["squad"] and second.rows[: len(first.rows)] == first.rows
    assert read_results(out) == second.rows and len(read_results(run / "results.jsonl")) == len(second.rows)
    evaluate([run], wanted, out, settings=settings)
    assert asked == ["squad"]


@pytest.mark.parametrize("change", ["model", "file", "settings", "log"])
def test_what_was_made_from_something_else_is_computed_again(tokenizer, tasks, tmp_path, change):
    run = make_run(tmp_path / "run", tokenizer)
    first = evaluate([run], [tasks["mmlu"]])
    if change == "model":
        make_run(run, tokenizer, seed=5)
    if change == "file":
        with (tmp_path / "mmlu" / "virology_test.csv").open("a") as file:
            file.write("What is more?,one,two,three,more,A\n")
    second = evaluate([run], [tasks["mmlu"]], settings=EvalSettings(limit=5 if change == "settings" else None),
                      log_items=tmp_path / "items" if change == "log" else None)  # fmt: skip
    assert (second.rows == first.rows) == (change == "log")
    assert read_results(run / "results.jsonl") == [replace(row, run=None) for row in second.rows]
    assert (tmp_path / "items").exists() == (change == "log")


def test_logs_give_the_rows_and_the_comparison_again(runs, tasks, tmp_path):
    found = evaluate(runs, list(tasks.values()), log_items=tmp_path / "items")
    a, b = (sorted(folder.iterdir()) for folder in sorted((tmp_path / "items").iterdir()))
    assert [path.name for path in a] == [path.name for path in b] and len(a) == len(tasks)
    assert {(row.a, row.b) for row in found.comparisons} == {tuple(map(str, runs))}
    for paths in zip(a, b):
        logs = [read_log(path) for path in paths]
        task = logs[0][0]["task"]
        for run, log in zip(runs, logs):
            rows = [row for row in found.rows if row.run == str(run) and row.task == task]
            assert result_rows(log) == [replace(row, run=None, source="", made_from=None) for row in rows]
        own = [row for row in found.comparisons if row.task == task]
        assert compare_items(*logs) == [replace(row, a="", b="", source="") for row in own]
    again = evaluate(runs, list(tasks.values()), log_items=tmp_path / "items")
    assert again == found


def test_models_are_not_compared_on_what_was_done_without_a_log(runs, tasks, capsys):
    evaluate(runs[:1], [tasks["mmlu"]], settings=EvalSettings(limit=3))
    assert evaluate(runs, [tasks["mmlu"]], settings=EvalSettings(limit=3)).comparisons == []
    assert "are not compared on mmlu: its results were kept without its items" in capsys.readouterr().err


def test_cut_prompts_are_reported(tokenizer, tasks, tmp_path, capsys):
    run = make_run(tmp_path / "short", tokenizer, block_size=24)
    rows = evaluate([run], [tasks["mmlu"]]).rows
    assert rows[0].cut == 12
    reported = capsys.readouterr().err
    assert "mmlu: 12 of 12 prompts are longer than the context of 24 tokens and lost their left end" in reported


def test_a_foreign_model_is_evaluated_the_same_way_and_its_bytes_are_those_of_the_text(tokenizer, tasks, tmp_path):
    foreign = make_foreign(tmp_path / "foreign", tokenizer)
    found = evaluate([foreign], list(tasks.values()), tmp_path / "out.jsonl")
    (bits,) = (row for row in found.rows if row.task == "bpb")
    texts = [json.loads(line)["text"] for line in (tmp_path / "text.jsonl").read_text().splitlines()]
    assert bits.bytes == sum(len(text.encode()) for text in texts) and bits.documents == len(texts)
    assert bits.bits_per_byte == bits.value == pytest.approx(bits.nats / math.log(2) / bits.bytes)
    assert not (foreign / "results.jsonl").exists()
    assert evaluate([foreign], list(tasks.values()), tmp_path / "out.jsonl") == found


# Bits per byte


def texts_in(folder: Path, documents: list[str], files: int) -> str:
    folder.mkdir()
    for number, part in enumerate(np.array_split(documents, files)):
        lines = (json.dumps({"text": str(text)}) + "\n" for text in part)
        (folder / f"{number}.jsonl").write_text("".join(lines))
    return str(folder)


def test_the_files_in_which_documents_come_change_nothing(run, tmp_path):
    documents = [phrase.text * (1 + number % 30) for number, phrase in enumerate(phrases()[:30])]
    one, many = (evaluate([run], [f"bpb={texts_in(tmp_path / str(n), documents, n)}"]).rows[0] for n in (1, 7))
    same = ("nats", "bytes", "tokens", "documents", "value", "low", "high")
    assert [getattr(one, key) for key in same] == [getattr(many, key) for key in same]


class Uniform:
    """Every byte is as likely as any other of four, whatever was before: a token of n letters has probability 1/4^n."""

    device, config = torch.device("cpu"), type("Config", (), {"block_size": 8})

    def __init__(self, tokenizer: Tokenizer):
        texts = [tokenizer.text_bytes(number) for number in range(tokenizer.vocab_size)]
        widest = max(map(len, texts))
        self.vocab_size = len(texts)
        self._logits_V = torch.tensor([0.0 if len(text) == widest else -math.inf for text in texts])

    def hidden(self, ids_BT):
        return self._logits_V.expand(*ids_BT.shape, -1)

    def logits(self, x_BTV):
        return x_BTV

    def nats(self, x_NV, y_N):
        return torch.nn.functional.cross_entropy(x_NV, y_N, reduction="none")


def letters_tokenizer(width: int) -> Tokenizer:
    """A vocabulary of all groups of `width` letters."""
    groups = [""]
    for _ in range(width):
        groups = [group + letter for group in groups for letter in "abcd"]
    vocabulary = {name: number for number, name in enumerate(["<pad>", "<s>", "</s>", "<unk>", *groups])}
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, "<unk>"))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Split(tokenizers.Regex("." * width), "isolated")
    backend.decoder = tokenizers.decoders.Fuse()
    backend.add_special_tokens(["<pad>", "<s>", "</s>", "<unk>"])
    return Tokenizer(backend, HF_CONFIG)


def test_two_tokenizers_give_equal_bits_where_the_model_ignores_the_difference(tmp_path):
    random = np.random.default_rng(0)
    documents = ["".join(random.choice(list("abcd"), 6 * random.integers(1, 20))) for _ in range(9)]
    source, found = texts_in(tmp_path / "texts", documents, 2), []
    for width in (1, 2, 3):
        tokenizer = letters_tokenizer(width)
        pieces = tokenizer.encode_passages(passages([source], STRICT, None))
        score = score_documents(Uniform(tokenizer), pieces, tokenizer.end_id, tokenizer.bytes_per_id_V)
        assert score.bytes == sum(map(len, documents)) == score.tokens * width
        found.append(score.bits_per_byte)
    assert found == pytest.approx([2.0, 2.0, 2.0], rel=1e-6)


# What is refused


@pytest.mark.parametrize("task", ["mmlu", "mmlu=", "=x", "instructions=x", "owls=x"])
def test_a_task_of_another_form_is_refused(task):
    with pytest.raises(InputError, match="is not of the form NAME=FILE with NAME one of bpb, mmlu,"):
        parse_task(task)


def test_a_damaged_task_file_is_named_before_a_model_is_loaded(tasks, tmp_path):
    (tmp_path / "mmlu" / "virology_test.csv").write_text("What?,one,two,three,more,A\nWhat?,one,two,three,more,E\n")
    with pytest.raises(InputError, match="virology_test.csv:2: the key 'E' is not one of the labels A, B, C, D"):
        evaluate([tmp_path / "nowhere"], [tasks["mmlu"]])


def test_a_file_without_short_answers_has_nothing_for_the_sampled_protocol(run, tmp_path):
    question = {"question": "Who?", "answers": [{"text": "nine owls"}], "is_impossible": False}
    squad = {"data": [{"paragraphs": [{"context": "Owls.", "qas": [question]}]}]}
    (tmp_path / "long.json").write_text(json.dumps(squad))
    with pytest.raises(InputError, match="no question for the sampled protocol"):
        evaluate([run], [f"squad={tmp_path}/long.json"], settings=SAMPLED)


@pytest.mark.parametrize("wrong", [{"limit": 0}, {"runs_per_item": 0}, {"new_tokens": 0}, {"seed": -1}, {"top_p": 0}])
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(InputError, match=next(iter(wrong))):
        EvalSettings(**wrong)


@pytest.mark.parametrize("setting", MATTERS)
def test_what_matters_is_kept_with_the_rows(setting):
    assert setting in EvalSettings().of("mmlu") and setting in SAMPLED.of("mmlu")
    assert EvalSettings().of("bpb") == {"precision": "fp32"}
    assert "between" not in SAMPLED.of("mmlu") and "top_k" not in EvalSettings().of("mmlu")


def test_a_model_of_nan_gives_no_results(tokenizer, tasks, tmp_path):
    foreign, out = make_foreign(tmp_path / "nan", tokenizer), tmp_path / "rows.jsonl"
    spoil(foreign, lambda tensors: tensors | {"lm_head.weight": tensors["lm_head.weight"] * float("nan")})
    for settings in (EvalSettings(), SAMPLED):
        for task in tasks.values():
            with pytest.raises(InputError, match="nan gives no probabilities.*NaN"):
                evaluate([foreign], [task], out, settings=settings)
    assert not out.exists()


def test_unknown_characters_are_counted_and_their_bytes_too(tokenizer_folder, tmp_path, capsys):
    """A vocabulary without a character spells it <unk>: it pays for it, and the bytes of the text stay those of the text."""
    parts = json.loads((tokenizer_folder / "tokenizer.json").read_text())
    parts["model"]["byte_fallback"] = False
    folder = tmp_path / "poor"
    folder.mkdir()
    (folder / "tokenizer.json").write_text(json.dumps(parts))
    poor, text = Tokenizer.load(folder), "ab \U0001f600 c"
    assert poor.encode(text).count(poor.unknown_id) == 1 and len(text.encode()) == 9
    (tmp_path / "text.jsonl").write_text("".join(json.dumps({"text": each}) + "\n" for each in (text, "", "plain")))
    (row,) = evaluate([make_run(tmp_path / "run", poor)], [f"bpb={tmp_path}/text.jsonl"], log_items=tmp_path / "logs").rows
    assert (row.unknown, row.bytes, row.documents) == (1, 9 + 5, 2)
    assert row.bits_per_byte == pytest.approx(row.nats / math.log(2) / 14)
    assert "1 tokens of" in (said := capsys.readouterr().err) and "<unk>" in said


# Each output for itself


def test_each_output_is_completed_for_itself(run, tasks, tmp_path, monkeypatch):
    first = evaluate([run], [tasks["mmlu"]])
    monkeypatch.setattr(evaluation, "run_task", lambda *given: pytest.fail("it was made before"))
    out = tmp_path / "new" / "all.jsonl"
    assert evaluate([run], [tasks["mmlu"]], out).rows == first.rows == read_results(out)
    (run / "results.jsonl").unlink()
    assert evaluate([run], [tasks["mmlu"]], out).rows == first.rows
    assert read_results(run / "results.jsonl") == [replace(row, run=None) for row in first.rows]


def test_bad_outputs_are_refused_before_the_work(run, tasks, tmp_path):
    notes = tmp_path / "notes.jsonl"
    notes.write_text('{"text": "my own"}\n')
    (tmp_path / "folder").mkdir()
    for out, logs, said in ((tmp_path / "folder", None, "folder is a folder"), (notes, None, "notes.jsonl line 1"),
                            (None, notes, "notes.jsonl is a file")):  # fmt: skip
        with pytest.raises(InputError, match=said):
            evaluate([run], ["mmlu=nowhere"], out, log_items=logs)
    assert notes.read_text() == '{"text": "my own"}\n'


def test_logs_are_those_of_the_model_whatever_its_name(tokenizer, tasks, tmp_path):
    """Folders whose names make the same file name, copies of one model, and a model retrained in its place."""
    one, other, copy = (make_run(tmp_path / name, tokenizer, seed=seed) for name, seed in (("a b", 0), ("a_b", 1), ("c", 0)))
    logs = tmp_path / "logs"
    first = evaluate([one, copy], [tasks["mmlu"]], log_items=logs).comparisons
    evaluate([other], [tasks["mmlu"]], log_items=logs)
    assert evaluate([one, copy], [tasks["mmlu"]], log_items=logs).comparisons == first
    assert {row.difference for row in first} == {0.0} and len(list(logs.iterdir())) == 2
    of_other = evaluate([other], [tasks["mmlu"]]).rows[0].letter_mass
    changed = evaluate([one, make_run(copy, tokenizer, seed=1)], [tasks["mmlu"]], log_items=logs).rows
    assert {row.run: row.letter_mass for row in changed if not row.subject}[str(copy)] == of_other
    assert changed[0].letter_mass != of_other and len(list(logs.iterdir())) == 2


def test_a_log_that_gives_other_results_is_made_again(run, tasks, tmp_path):
    first = evaluate([run], [tasks["mmlu"]], log_items=tmp_path)
    (path,) = tmp_path.glob("*/mmlu.*.jsonl")
    good = path.read_bytes()
    path.write_text(to_lines(row | {"correct": int(np.argmax(row["letters"]))} for row in read_log(path)))  # all right
    assert evaluate([run], [tasks["mmlu"]], log_items=tmp_path).rows == first.rows and path.read_bytes() == good
