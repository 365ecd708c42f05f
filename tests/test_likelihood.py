"""Options are scored as by reading each whole text anew, and chosen as lm-eval chooses; answers end with their line."""

import importlib.util
import json
import math
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from small_models import make_run

from glyphlm.base.errors import InputError
from glyphlm.corpus.tasks import Item, read_task
from glyphlm.data.batches import TokenText
from glyphlm.data.shards import prepare_examples
from glyphlm.evaluation.item_log import chosen_text
from glyphlm.evaluation.likelihood import generate_answers, score_options, split_options
from glyphlm.evaluation.model import EvalModel, load_eval_model
from glyphlm.modeling.config import HeadConfig
from glyphlm.tokenizer.tokenizer import Piece
from glyphlm.training.bits_per_byte import score_documents

WORDS = ["мир", "good evening", "rain", "два", "thank you", "谢谢", "no", "a longer answer than the others"]
# Scores a task with lm-eval: the folder by its name, and objects in memory.
LM_EVAL = """
import json, sys
from lm_eval import evaluate
from lm_eval.api.instance import Instance
from lm_eval.api.task import ConfigurableTask
from lm_eval.models.huggingface import HFLM
from transformers import AutoModelForCausalLM, AutoTokenizer
run, folder = sys.argv[1:]
live = AutoModelForCausalLM.from_pretrained(run, trust_remote_code=True), AutoTokenizer.from_pretrained(run)
found = []
for lm in (
    HFLM(pretrained=run, trust_remote_code=True, dtype="float32", device="cpu"),
    HFLM(pretrained=live[0], tokenizer=live[1]),
):
    tasks = {name: ConfigurableTask(config={
        "task": name, "dataset_path": "json", "dataset_kwargs": {"data_files": {"test": f"{folder}/items.jsonl"}},
        "test_split": "test", "output_type": "multiple_choice", "doc_to_text": "{{prompt}}", "target_delimiter": "",
        "doc_to_choice": "{{%s}}" % name, "doc_to_target": "{{correct}}",
    }) for name in ("labels", "choices")}
    ended = evaluate(lm, tasks, bootstrap_iters=0)
    found.append({name: sorted(ended["samples"][name], key=lambda sample: sample["doc_id"]) for name in tasks})
    texts = [Instance("loglikelihood_rolling", {}, (text,), 0) for text in json.load(open(f"{folder}/texts.json"))]
    found[-1]["nats"] = [-float(score) for score in lm.loglikelihood_rolling(texts)]
json.dump(found, open(f"{folder}/found.json", "w"), default=str)
"""


@pytest.fixture(scope="module")
def run(tokenizer, tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("runs") / "run", tokenizer)


@pytest.fixture(scope="module")
def model(run) -> EvalModel:
    return load_eval_model(str(run))


def some_items(count: int) -> list[Item]:
    random, labels = np.random.default_rng(0), ("A", "B", "C", "D")
    found = []
    for number in range(count):
        choices = tuple(random.choice(WORDS, 4, replace=False).tolist())
        question = " ".join(random.choice(WORDS, number % 7 + 1).tolist())
        options = "\n".join(f"{label}) {choice}" for label, choice in zip(labels, choices))
        prompt = f"Question: {question}\nOptions:\n{options}\nAnswer:"
        found.append(Item("arc_easy", prompt, (labels[number % 4],), labels, choices))
    return found


def ask(model, items, between=""):
    done = []
    logs = score_options(model, items, between, done.append)
    assert sum(done) == len(items)
    return logs


def plain(model, prompt, option):
    """The log-probability of an option, the whole text read at once."""
    start, ids = len(model.tokenizer.encode(prompt)), model.tokenizer.encode(prompt + option)
    with torch.no_grad():
        logp_TV = model.model(torch.tensor([ids])).logits[0].log_softmax(-1)
    return float(sum(logp_TV[at - 1, ids[at]] for at in range(start, len(ids))))


@pytest.mark.parametrize("between", ["", " "])
def test_options_are_scored_as_whole_texts(model, between):
    for item, log in zip(some_items(4), ask(model, some_items(4), between)):
        for found, options in ((log["letters"], item.labels), (log["texts"], item.choices)):
            assert found == pytest.approx([plain(model, item.prompt, between + option) for option in options], abs=1e-4)
        assert log["cut"] is False and 0 < log["letter_mass"] < 1


@pytest.mark.parametrize("head", [HeadConfig("tied"), HeadConfig("code", width=24)], ids=str)
def test_options_are_scored_equally_by_heads_that_compute_no_logits_of_all_ids(tokenizer, tmp_path, monkeypatch, head):
    model = load_eval_model(str(make_run(tmp_path / "run", tokenizer, head=head)))
    items, logits = some_items(3), []
    forward = type(model.model).forward
    monkeypatch.setattr(type(model.model), "forward", lambda self, *given, **named: logits.append(
        forward(self, *given, **named)) or logits[-1])
    found = [log["letters"] + log["texts"] for log in ask(model, items)]
    if head.kind == "code":
        assert all(out.logits.shape[1] == 1 for out in logits)  # after the prompt, for the letter mass
    monkeypatch.undo()
    for item, scores in zip(items, found):
        assert scores == pytest.approx([plain(model, item.prompt, o) for o in (*item.labels, *item.choices)], abs=1e-4)


def test_a_batch_of_items_is_scored_as_each_alone(model, monkeypatch):
    alone = ask(model, some_items(9))
    monkeypatch.setattr("glyphlm.evaluation.likelihood.READ_TOKENS", {"cpu": 4000})
    for one, other in zip(alone, ask(model, some_items(9))):
        assert one["letters"] + one["texts"] == pytest.approx(other["letters"] + other["texts"], abs=1e-4)
        assert one["letter_mass"] == pytest.approx(other["letter_mass"], abs=1e-6)


def test_labels_that_are_the_choices_are_scored_once(model):
    (log,) = ask(model, [Item("boolq", "Is it?\nAnswer:", ("True",), ("False", "True"), ("False", "True"))])
    assert "texts" not in log and len(log["letters"]) == 2


def test_a_merge_across_the_border_is_not_scored_because_none_is_trained_or_generated(model):
    encode = model.tokenizer.encode
    prompt, options = next(
        (f"one {token[:cut]}", (token[cut:], "?!"))
        for token in model.tokenizer.tokens[300:]
        for cut in range(1, len(token))
        if token.isalpha() and encode(f"one {token}")[: len(encode(f"one {token[:cut]}"))] != encode(f"one {token[:cut]}")
    )
    found = split_options(model, prompt, options)
    assert found.context == encode(prompt) and found.rests == [encode(option) for option in options]


def test_what_is_scored_is_what_was_trained(model, tokenizer, tmp_path):
    rows = [{"question": {"stem": item.prompt, "choices": [{"label": label, "text": text} for label, text
             in zip(item.labels, item.choices)]}, "answerKey": item.answers[0]} for item in some_items(6)]
    (tmp_path / "arc.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    spec = f"arc_easy={tmp_path}/arc.jsonl"
    shards = TokenText(prepare_examples(tokenizer, [spec], tmp_path / "shards", 0), "train")
    ids, at = shards.read(0, shards.tokens).tolist(), 0
    for item in read_task(*spec.split("=")):
        parts = split_options(model, item.prompt, item.labels)
        trained = [*parts.context, *parts.rests[item.correct], tokenizer.end_id]
        assert ids[at : at + len(trained)] == trained
        at += len(trained)
    assert at == len(ids)


def test_an_option_without_a_token_is_refused(model):
    with pytest.raises(InputError, match="run.*option ''.*remove"):
        split_options(model, "one", ["", "two"])


def test_an_option_that_gets_no_number_is_refused(model, monkeypatch):
    score = EvalModel.score
    monkeypatch.setattr(EvalModel, "score", lambda *given: score(*given) * float("nan"))
    with pytest.raises(InputError, match="run gives no probabilities.*NaN.*Answer:.*another checkpoint"):
        ask(model, some_items(2))


def test_a_prompt_that_is_too_long_loses_its_left_end_and_is_counted(model, tokenizer):
    item = some_items(1)[0]
    long = Item(item.task, "?" * 400 + item.prompt, item.answers, item.labels, item.choices)
    (log,) = ask(model, [long])
    parts = split_options(model, long.prompt, long.choices)
    assert log["cut"] and parts.was_cut
    assert len(parts.context) + max(map(len, parts.rests)) == model.block_size + 1  # the last id is not read
    assert tokenizer.decode(parts.context).endswith(item.prompt)
    assert split_options(model, "one", ["?" * 400, "no"]).was_cut


@pytest.mark.skipif(importlib.util.find_spec("lm_eval") is None, reason="lm_eval is not installed")
def test_choices_and_bits_per_byte_are_those_of_lm_eval_by_name_and_in_memory(model, run, tmp_path):
    items, texts = some_items(12), ["a", " ".join(WORDS), "good evening\nrain"]
    (tmp_path / "texts.json").write_text(json.dumps(texts), encoding="utf-8")
    bits = [score_documents(model.scorer, [Piece(np.array(model.tokenizer.encode(text)), True)], model.first_id,
                            model.tokenizer.bytes_per_id_V).bits_per_byte for text in texts]
    rows = [{"prompt": i.prompt, "labels": i.labels, "choices": i.choices, "correct": i.correct} for i in items]
    (tmp_path / "items.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    folders = {"HF_HOME": str(tmp_path / "hub"), "HF_MODULES_CACHE": str(tmp_path / "modules")}
    env = os.environ | folders | {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", LM_EVAL, str(run), str(tmp_path)]
    ended = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr[-2000:]
    logs = ask(model, items)
    for found in json.loads((tmp_path / "found.json").read_text()):
        sizes = [len(text.encode()) for text in texts]
        assert bits == pytest.approx([nats / math.log(2) / size for nats, size in zip(found["nats"], sizes)], abs=1e-4)
        for log, letters, choices in zip(logs, found["labels"], found["choices"], strict=True):
            for own, theirs in ((log["letters"], letters), (log["texts"], choices)):
                assert own == pytest.approx([float(score) for score, _ in theirs["filtered_resps"]], abs=1e-4)
            assert letters["acc"] == (np.argmax(log["letters"]) == log["correct"])
            assert choices["acc_norm"] == (chosen_text(log) == log["correct"])


def test_answers_are_the_likeliest_text_up_to_the_end_of_the_line(model, tokenizer):
    items = [Item("squad", f"Context: {word}\nQuestion: {word}?\nAnswer:", (word,)) for word in WORDS]
    logs = generate_answers(model, items, 40, lambda _: None)
    for item, log in zip(items, logs):
        ids = tokenizer.encode(item.prompt)
        options = {"do_sample": False, "temperature": None, "top_k": None, "top_p": None, "max_new_tokens": 40}
        out = model.model.generate(torch.tensor([ids]), attention_mask=torch.ones(1, len(ids)), **options)
        whole = out[0, len(ids) :].tolist()
        end = next((at for at, number in enumerate(whole) if number in model.line_ends), len(whole))
        assert log == {"answers": item.answers, "output": tokenizer.decode(whole[:end]).strip(), "cut": False}
