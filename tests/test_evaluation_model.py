"""Models of any library are read alike; padding, caches and cut prompts change nothing that they should not."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from small_models import make_foreign, make_run, spoil

from glyphlm.base.errors import InputError
from glyphlm.evaluation.model import EvalModel, load_eval_model
from glyphlm.runs.opening import open_model

PROMPTS = [[300, 301, 302, 303, 304], [400, 401], [500, 501, 502]]


@pytest.fixture(scope="module")
def folders(tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return {"run": make_run(folder / "run", tokenizer), "foreign": make_foreign(folder / "foreign", tokenizer)}


@pytest.fixture(scope="module", params=["run", "foreign"])
def model(request, folders) -> EvalModel:
    return load_eval_model(str(folders[request.param]))


def plain_logits(model, ids):
    with torch.no_grad():
        return model.model(torch.tensor([ids])).logits[0]


def test_a_batch_of_prompts_is_read_as_each_alone(model):
    logits_BV, seen = model.read_prompts(PROMPTS)
    for row, ids in zip(logits_BV, PROMPTS):
        torch.testing.assert_close(row, plain_logits(model, ids)[-1], atol=1e-4, rtol=1e-4)
    assert seen.attended_BS.sum(1).tolist() == [5, 2, 3]


def test_what_was_seen_is_continued_in_any_row(model):
    _, seen = model.read_prompts(PROMPTS)
    rows, ids_BT = [1, 2, 1], torch.tensor([[7, 8], [9, 10], [12, 5]])
    logits_BV, longer = model.extend(seen.select(rows), ids_BT)
    for row, new, number in zip(logits_BV, ids_BT, rows):
        torch.testing.assert_close(row, plain_logits(model, PROMPTS[number] + new.tolist())[-1], atol=1e-4, rtol=1e-4)
    assert longer.attended_BS.shape == (3, 7)


def test_targets_are_scored_in_any_row_up_to_its_padding(model):
    _, seen = model.read_prompts(PROMPTS)
    rows, ids_BT = [1, 2, 1], torch.tensor([[7, 8, 0], [9, 10, 11], [12, 0, 0]])
    text_BT, y_BT = torch.tensor([[1, 1, 0], [1, 1, 1], [1, 0, 0]]), torch.tensor([[8, 9, 0], [10, 11, 12], [3, 0, 0]])
    nats_BT = model.score(seen.select(rows), ids_BT, text_BT, y_BT)
    for nats_T, new, kept, y_T, number in zip(nats_BT, ids_BT, text_BT, y_BT, rows):
        count = int(kept.sum())
        logits_TV = plain_logits(model, PROMPTS[number] + new[:count].tolist())[-count:]
        expected = torch.nn.functional.cross_entropy(logits_TV, y_T[:count], reduction="none")
        torch.testing.assert_close(nats_T[:count], expected, atol=1e-4, rtol=1e-4)


def test_both_kinds_know_their_context_their_folder_and_what_they_are_made_of(folders, tokenizer, tmp_path):
    run, foreign = (load_eval_model(str(folders[name])) for name in ("run", "foreign"))
    assert (run.block_size, foreign.block_size) == (256, 256)
    assert (run.folder, foreign.folder) == (folders["run"], None)
    assert (run.first_id, foreign.first_id) == (tokenizer.end_id, tokenizer.start_id)
    assert run.tokenizer.encode("Hello, мир") == foreign.tokenizer.encode("Hello, мир")
    again = make_run(tmp_path / "again", tokenizer, seed=1)
    assert len({run.digest, foreign.digest, load_eval_model(str(again)).digest}) == 3
    assert load_eval_model(str(folders["run"])).digest == run.digest


def test_a_long_prompt_loses_its_left_end_but_not_what_the_tokenizer_puts_first(model):
    assert model.last_ids([5, 6, 7], 3) == ([5, 6, 7], False)
    assert model.last_ids([5, 6, 7], 2) == ([6, 7], True)
    assert model.last_ids([5, 6, 7], -1) == ([7], True)
    assert model.last_ids([], 4) == ([model.first_id], False)
    started = replace(model, start=(1,))
    assert started.last_ids([5, 6, 7], 3) == ([1, 6, 7], True)


def test_letters_and_line_ends_are_found_by_the_text_of_ids(model, tokenizer):
    found = {tokenizer.text_bytes(number).decode() for number in model.begin_with(("A", "B")).tolist()}
    assert {"A", "a", "B", "b"} <= found and all(text.strip()[0] in "AaBb" for text in found)
    of_b, of_a = (model.begin_with((letter,)).tolist() for letter in "BA")
    assert model.begin_with(("B", "A", "b")).tolist() == of_b + of_a  # sums over them are the same in every process
    assert {tokenizer.text_bytes(number) for number in model.line_ends} == {b"\n"}
    p_V = torch.zeros(tokenizer.vocab_size)
    p_V[tokenizer.encode("a")], p_V[tokenizer.encode("z")] = 0.25, 0.75
    assert model.letter_mass(p_V, ("A", "B")) == 0.25


@pytest.mark.parametrize(("change", "message"), [
    (lambda folder: shutil.rmtree(folder), "is not a finished run"),
    (lambda folder: (folder / "config.json").write_text("{"), "cannot be loaded|config.json is damaged"),
    (lambda folder: (folder / "model.safetensors").unlink(), "cannot be loaded|holds no model.safetensors"),
    (lambda folder: (folder / "tokenizer.json").unlink(), "tokenizer"),
    (lambda folder: (folder / "config.json").write_text(json.dumps(
        {"model_type": "odd", "auto_map": {"AutoConfig": "odd.OddConfig"}})), "cannot be loaded|model_type 'odd'"),
])  # fmt: skip
@pytest.mark.parametrize("kind", ["run", "foreign"])
def test_what_cannot_be_loaded_is_refused_on_one_line(folders, tmp_path, kind, change, message):
    folder = shutil.copytree(folders[kind], tmp_path / "copy")
    change(folder)
    with pytest.raises(InputError, match=message) as refused:
        load_eval_model(str(folder))
    assert "\n" not in str(refused.value) and str(folder) in str(refused.value)


def without(tensors, name):
    return {key: tensor for key, tensor in tensors.items() if key != name}


@pytest.mark.parametrize(("change", "said"), [
    (lambda tensors: without(tensors, "model.norm.weight"), r"missing tensors \(model.norm.weight\)"),
    (lambda tensors: {key.replace("layers.0", "blocks.0"): x for key, x in tensors.items()}, "missing tensors .*8 more"),
    (lambda tensors: tensors | {"model.extra": torch.ones(3)}, r"unexpected tensors \(model.extra\)"),
    (lambda tensors: tensors | {"model.norm.weight": torch.ones(3)}, "mismatch"),
])  # fmt: skip
def test_a_foreign_model_with_other_tensors_than_its_config_is_refused(folders, tmp_path, change, said):
    """transformers would fill in random values, and every run would give other results."""
    folder = spoil(shutil.copytree(folders["foreign"], tmp_path / "copy"), change)
    with pytest.raises(InputError, match=said) as refused:
        load_eval_model(str(folder))
    assert str(folder) in str(refused.value) and "\n" not in str(refused.value)


def test_weights_that_were_rounded_or_lie_elsewhere_are_refused(folders, tmp_path):
    run = shutil.copytree(folders["run"], tmp_path / "run")
    spoil(run, lambda tensors: {name: values.to(torch.int8) for name, values in tensors.items()})
    for load in (load_eval_model, open_model):
        with pytest.raises(InputError, match="has the type I8"):
            load(str(run))
    (run / "model.safetensors").rename(tmp_path / "elsewhere.safetensors")
    (run / "model.safetensors.index.json").write_text('{"weight_map": {"gpt.norm.weight": "../elsewhere.safetensors"}}')
    with pytest.raises(InputError, match="names '../elsewhere.safetensors', which is not a file of"):
        load_eval_model(str(run))


@pytest.mark.parametrize(("file", "said"), [("config.json", "attention 'someone/kernel'"), ("adapter_config.json", "merge")])
def test_a_foreign_folder_chooses_no_code_and_no_other_model(folders, tmp_path, file, said):
    folder = shutil.copytree(folders["foreign"], tmp_path / "foreign")
    written = json.loads((folder / "config.json").read_text()) if file == "config.json" else {"peft_type": "LORA"}
    (folder / file).write_text(json.dumps(written | {"attn_implementation": "someone/kernel"}))
    with pytest.raises(InputError, match=said):
        load_eval_model(str(folder))


def test_a_foreign_model_whose_tokenizer_is_larger_is_refused(folders, tmp_path, tokenizer):
    folder = shutil.copytree(folders["foreign"], tmp_path / "copy")
    path = folder / "tokenizer.json"
    parts = json.loads(path.read_text())
    parts["added_tokens"].append(parts["added_tokens"][0] | {"id": tokenizer.vocab_size, "content": "<more>"})
    path.write_text(json.dumps(parts))
    with pytest.raises(InputError, match=f"{tokenizer.vocab_size + 1:,} ids.*{tokenizer.vocab_size:,}.*tokenizer"):
        load_eval_model(str(folder))


def test_a_text_is_scored_after_what_stood_before_texts_in_training(folders, tmp_path, tokenizer):
    """After </s> in a run, also one whose config.json names <s>; after the bos, else the eos token of others."""
    config = json.loads((folders["run"] / "config.json").read_text()) | {"bos_token_id": tokenizer.encode("a")[0]}
    run = shutil.copytree(folders["run"], tmp_path / "run")
    (run / "config.json").write_text(json.dumps(config))
    assert load_eval_model(str(run)).first_id == tokenizer.end_id
    foreign = shutil.copytree(folders["foreign"], tmp_path / "foreign")
    path = foreign / "tokenizer_config.json"
    for bos, first in (("<s>", "<s>"), (None, "</s>"), ("</s>", "</s>")):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"bos_token": bos}))
        assert tokenizer.tokens[load_eval_model(str(foreign)).first_id] == first


@pytest.mark.parametrize("kind", ["run", "foreign"])
def test_a_model_of_nan_is_refused_by_its_name_and_the_text(folders, tmp_path, kind):
    head = {"run": "gpt.head.weight", "foreign": "lm_head.weight"}[kind]
    folder = shutil.copytree(folders[kind], tmp_path / "nan")
    spoil(folder, lambda tensors: tensors | {head: tensors[head] * float("nan")})
    text = "nan gives no probabilities.*after '.*one'.*another checkpoint"  # a run is refused when it is loaded
    with pytest.raises(InputError, match={"run": f"tensor {head}.*another checkpoint", "foreign": text}[kind]):
        model = load_eval_model(str(folder))
        model.read_prompts([model.tokenizer.encode("one"), model.tokenizer.encode("two")])
