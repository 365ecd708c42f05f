"""Generated text is the same with and without a cache, alone and in a batch, by one model and by every fusion of two."""

import copy
import logging
import shutil
from pathlib import Path

import pytest
import torch
import transformers
from torch import Tensor
from transformers import DynamicCache, pipeline

from glyphlm.base.errors import InputError
from glyphlm.cli.main import main
from glyphlm.corpus.phrasebook import phrases
from glyphlm.modeling.config import FusionConfig, Method
from glyphlm.modeling.fusion import Fusion
from glyphlm.modeling.hf import CACHE, GlyphLMForCausalLM
from glyphlm.modeling.stitching import make_fusion
from glyphlm.runs.folder import export_model, load_run
from glyphlm.runs.generate import continue_text, generate
from glyphlm.runs.sampling import Sampling

FUSIONS = {method: {"method": method} for method in Method.__args__} | {
    "weighted_logits": {"method": "weighted_logits", "weights": [0.7, 0.3]},
    "posterior": {"method": "posterior", "temperature": 20.0},
    "router": {"method": "router", "routers": 1},
    "sparse gate": {"method": "gate", "top_k": 1, "route_after": 4},
}
GREEDY = {"do_sample": False, "temperature": None, "top_k": None, "top_p": None}
SAMPLED = {"do_sample": True, "temperature": 0.8, "top_k": 50, "top_p": 0.95}
WAYS = {"greedy": GREEDY, "beams": GREEDY | {"num_beams": 3}, "sampled": SAMPLED}
TEXTS = [phrase.text[:length] for phrase, length in zip(phrases()[5:8], (28, 12, 48))]
NEW = 12


def fuse(config: dict, models: list) -> Fusion:
    fusion = make_fusion(FusionConfig(**config), copy.deepcopy(models))
    fusion.init_weights(1)
    generator = torch.Generator().manual_seed(4)
    trained = [*getattr(fusion, "gates", []), *getattr(fusion, "adapter", [])]
    for values in (values for layer in trained for values in layer.parameters()):
        values.data.normal_(std=0.3, generator=generator)
    return fusion.eval()


@pytest.fixture(scope="session")
def folders(trained, tokenizer, tmp_path_factory) -> dict[str, Path]:
    """A run folder of one trained model, and of the two fused by each method."""
    models = {"single": trained[0]} | {name: fuse(config, trained) for name, config in FUSIONS.items()}
    made = {name: tmp_path_factory.mktemp("run") / name for name in models}
    for name, model in models.items():
        export_model(model, tokenizer, made[name])
    return made


@pytest.fixture(scope="session")
def loaded(folders) -> dict[str, GlyphLMForCausalLM]:
    return {name: load_run(folder)[0] for name, folder in folders.items()}


@pytest.fixture(params=["single", *FUSIONS])
def name(request) -> str:
    return request.param


@pytest.fixture
def model(loaded, name) -> GlyphLMForCausalLM:
    return loaded[name]


@pytest.fixture
def prompts(tokenizer) -> list[Tensor]:
    """Three, of different lengths."""
    ids = [torch.tensor(tokenizer.encode(text)) for text in TEXTS]
    assert len({len(ids_T) for ids_T in ids}) == 3
    return ids


@pytest.fixture(autouse=True)
def said():
    """Whatever transformers warn of fails the test, also what they say only once in a process."""
    records = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = records.append
    transformers.utils.logging.warning_once.cache_clear()
    logging.getLogger("transformers").addHandler(handler)
    yield records
    logging.getLogger("transformers").removeHandler(handler)
    assert [record.getMessage() for record in records] == []


def extend(model: GlyphLMForCausalLM, ids_BT: Tensor, mask_BT: Tensor | None = None, seed: int = 1, **options) -> Tensor:
    """The new tokens, [B, NEW]."""
    mask_BT = torch.ones_like(ids_BT) if mask_BT is None else mask_BT
    torch.manual_seed(seed)
    options = {"max_new_tokens": NEW, "min_new_tokens": NEW, **options}
    return model.generate(ids_BT, attention_mask=mask_BT, **options)[:, ids_BT.shape[1] :]


def pad_left(prompts: list[Tensor], pad: int) -> tuple[Tensor, Tensor]:
    width = max(map(len, prompts))
    rows = [torch.cat([ids_T.new_full((width - len(ids_T),), pad), ids_T]) for ids_T in prompts]
    masks = [torch.cat([ids_T.new_zeros(width - len(ids_T)), torch.ones_like(ids_T)]) for ids_T in prompts]
    return torch.stack(rows), torch.stack(masks)


def test_a_lost_cache_would_change_the_text(model, prompts):
    """Or no test below could fail."""
    texts, chains = [], []
    for ids_T in prompts:
        chain_BT = ids_T[None, -1:]
        with torch.no_grad():
            for _ in range(NEW):  # each token from the one before it
                chain_BT = torch.cat([chain_BT, model.gpt(chain_BT[:, -1:]).argmax(-1)], 1)
        chains.append(chain_BT[0, 1:].tolist())
        texts.append(extend(model, ids_T[None], **GREEDY)[0].tolist())
    assert texts != chains


@pytest.mark.parametrize("way", WAYS)
def test_cached_text_is_the_uncached_text(model, prompts, way):
    for ids_T in prompts:
        cached, uncached = (extend(model, ids_T[None], use_cache=use, **WAYS[way]) for use in (True, False))
        assert cached.tolist() == uncached.tolist()


def test_greedy_text_is_the_likeliest_token_each_time(model, prompts):
    ids_BT = prompts[0][None]
    found = extend(model, ids_BT, **GREEDY | {"min_new_tokens": 0, "eos_token_id": []})
    with torch.no_grad():
        for _ in range(NEW):
            ids_BT = torch.cat([ids_BT, model.gpt(ids_BT)[:, -1:].argmax(-1)], 1)
    assert found.tolist() == ids_BT[:, -NEW:].tolist()


@pytest.mark.parametrize("way", ["greedy", "beams"])
def test_each_row_of_a_left_padded_batch_continues_as_alone(model, prompts, way):
    ids_BT, mask_BT = pad_left(prompts, model.config.pad_token_id)
    alone = [extend(model, ids_T[None], use_cache=False, **WAYS[way])[0].tolist() for ids_T in prompts]
    for use in (True, False):
        assert extend(model, ids_BT, mask_BT, use_cache=use, **WAYS[way]).tolist() == alone


def test_a_sampled_batch_is_the_same_with_and_without_a_cache(model, prompts):
    ids_BT, mask_BT = pad_left(prompts, model.config.pad_token_id)
    cached, uncached = (extend(model, ids_BT, mask_BT, use_cache=use, **SAMPLED) for use in (True, False))
    assert cached.tolist() == uncached.tolist()
    assert extend(model, ids_BT, mask_BT, seed=2, **SAMPLED).tolist() != cached.tolist()


def test_a_prefix_that_was_kept_continues_as_the_whole(model, prompts):
    ids_BT = prompts[1][None]
    expected = extend(model, ids_BT, use_cache=False, **GREEDY).tolist()
    with torch.no_grad():
        kept = getattr(model(ids_BT[:, :5], use_cache=True), CACHE)
    assert kept.get_seq_length() == 5
    assert extend(model, ids_BT, **{CACHE: copy.deepcopy(kept)}, **GREEDY).tolist() == expected
    kept.crop(-2)
    assert extend(model, ids_BT, **{CACHE: kept}, **GREEDY).tolist() == expected


def test_drafted_tokens_give_the_same_text(model, prompts):
    """Those that are refused are cropped from the cache."""
    for ids_T in prompts:
        expected = extend(model, ids_T[None], use_cache=False, **GREEDY).tolist()
        assert extend(model, ids_T[None], prompt_lookup_num_tokens=3, **GREEDY).tolist() == expected


@pytest.mark.parametrize("name", ["single", "posterior", "sparse gate"])
def test_tokens_drafted_by_another_model_give_the_same_text(model, loaded, prompts, said):
    for ids_T in prompts:
        expected = extend(model, ids_T[None], use_cache=False, **GREEDY).tolist()
        assert extend(model, ids_T[None], assistant_model=loaded["single"], **GREEDY).tolist() == expected
    said.clear()  # transformers 5.24 warn of their own call of the assistant


def test_pipeline_gives_the_same_text(folders, loaded, name, tokenizer, prompts, said):
    write = pipeline("text-generation", model=str(folders[name]), device="cpu")
    found = write(TEXTS, max_new_tokens=NEW, **GREEDY)
    for text, ids_T, [row] in zip(TEXTS, prompts, found):
        ids = extend(loaded[name], ids_T[None], use_cache=False, min_new_tokens=0, **GREEDY)[0].tolist()
        assert row["generated_text"] == text + tokenizer.decode(ids)
    if CACHE == "past_key_values":
        said.clear()  # before 5.24 the pipeline warns of the settings that it makes itself


@pytest.mark.parametrize("cache", ["cache", "past_key_values"])
def test_the_cache_has_two_names(loaded, prompts, cache):
    model, ids_BT = loaded["single"], prompts[0][None]
    with torch.no_grad():
        whole, kept = model(ids_BT).logits, DynamicCache()
        first = model(ids_BT[:, :4], **{cache: kept}).logits
        rest = model(ids_BT[:, 4:], **{cache: kept}).logits
    assert kept.get_seq_length() == ids_BT.shape[1]
    torch.testing.assert_close(torch.cat([first, rest], 1), whole, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"cach": None}, TypeError, "cach"),
        ({"cache": DynamicCache(), "past_key_values": DynamicCache()}, ValueError, "cache and past_key_values.*one of them"),
        ({"inputs_embeds": torch.zeros(1, 2, 64)}, ValueError, "inputs_embeds"),
        ({"output_attentions": True}, ValueError, "output_attentions.*leave"),
        ({"output_hidden_states": True}, ValueError, "output_hidden_states.*leave"),
        ({"attention_mask": torch.ones(1, 1)}, ValueError, r"\(1, 1\).*\(1, 2\)"),
        ({"attention_mask": torch.ones(1, 1, 2, 2)}, ValueError, r"\(1, 1, 2, 2\).*\(1, 2\)"),
        ({"seq_idx": torch.zeros(1, 2)}, ValueError, "position_ids"),
        ({"input_ids": None}, ValueError, "input_ids"),
    ],
)
def test_what_the_model_cannot_use_is_refused(loaded, given, error, message):
    with pytest.raises(error, match=message):
        loaded["single"](**{"input_ids": torch.tensor([[5, 6]])} | given)


@pytest.mark.parametrize("way", ["greedy", "beams"])
def test_a_cache_of_a_fixed_length_gives_the_same_text(model, prompts, way):
    ids_BT, mask_BT = pad_left(prompts, model.config.pad_token_id)
    expected = extend(model, ids_BT, mask_BT, use_cache=False, **WAYS[way]).tolist()
    assert extend(model, ids_BT, mask_BT, cache_implementation="static", **WAYS[way]).tolist() == expected


def test_a_tuple_comes_back_where_one_is_asked_for(loaded, prompts):
    expected = loaded["single"](prompts[0][None], labels=prompts[0][None])
    loss, logits = loaded["single"](prompts[0][None], labels=prompts[0][None], return_dict=False)
    assert torch.equal(loss, expected.loss) and torch.equal(logits, expected.logits)


def test_same_seed_gives_the_same_text_and_another_seed_another(folders, loaded, tokenizer):
    first, second = (generate(folders["single"], ["Hello", ""], Sampling(max_new_tokens=12)) for _ in range(2))
    assert first == second and first[0].startswith("Hello")
    assert first[0] != continue_text(loaded["single"], tokenizer, "Hello", Sampling(max_new_tokens=12, seed=2))


def test_temperature_0_takes_the_likeliest_token(model, tokenizer):
    text = continue_text(model, tokenizer, "Hello", Sampling(max_new_tokens=1, temperature=0))
    with torch.no_grad():
        likeliest = model(torch.tensor([tokenizer.encode("Hello")])).logits[0, -1].argmax().item()
    assert text == tokenizer.decode([*tokenizer.encode("Hello"), likeliest])


def test_logits_that_are_not_numbers_are_refused(loaded, tokenizer):
    """Of finite weights, too: activations can overflow."""
    model = copy.deepcopy(loaded["single"])
    model.gpt.norm.weight.data.fill_(3e38)
    for temperature in (0, 1.0):
        with pytest.raises(InputError, match="no probabilities.*token.*another checkpoint"):
            continue_text(model, tokenizer, "Hello", Sampling(max_new_tokens=3, temperature=temperature))


def test_an_error_after_the_prompt_has_a_line_of_its_own(folders, tmp_path, capsys):
    run = shutil.copytree(folders["single"], tmp_path / "run")
    path = run / "tokenizer_config.json"
    path.write_text(path.read_text().replace('"eos_token": "</s>"', '"eos_token": null'))
    assert main(["generate", str(run), "--prompt", "Hello", "--device", "cpu"]) == 2
    printed = capsys.readouterr()
    assert printed.out == "Hello\n" and printed.err.startswith("glyphlm: the tokenizer has no eos_token")


def test_without_a_prompt_a_document_begins_as_in_training(loaded, tokenizer):
    found = continue_text(loaded["single"], tokenizer, "", Sampling(max_new_tokens=NEW, temperature=0))
    ids = extend(loaded["single"], torch.tensor([[tokenizer.end_id]]), min_new_tokens=0, **GREEDY)[0].tolist()
    assert found == tokenizer.decode(ids)


@pytest.mark.parametrize("wrong", [
    {"max_new_tokens": 0}, {"temperature": -1}, {"temperature": float("nan")}, {"top_k": -1}, {"top_p": 0}, {"top_p": 1.1},
    {"seed": -1}, {"seed": 1.5},
])  # fmt: skip
def test_sampling_out_of_range_is_refused(wrong):
    with pytest.raises(InputError, match=next(iter(wrong))):
        Sampling(**wrong)
