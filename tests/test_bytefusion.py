"""Experts of different vocabularies as one model of bytes: exact, normalised, the same with a cache, scored as they are."""

import json
import shutil
from itertools import product
from pathlib import Path

import pytest
import tokenizers
import torch
import transformers
from small_models import make_foreign, make_run, randomise
from torch import nn

from glyphlm.base.errors import InputError
from glyphlm.composition.fuse import fuse
from glyphlm.composition.settings import FusionSettings
from glyphlm.evaluation.model import load_eval_model
from glyphlm.modeling.bytecover import FIRST_BYTE, UNKNOWN, ByteExpert, Pieces, incomplete
from glyphlm.runs.folder import load_run
from glyphlm.runs.generate import Sampling, generate
from glyphlm.tokenizer.build import TokenizerSettings, build_tokenizer
from glyphlm.tokenizer.tokenizer import Tokenizer
from glyphlm.training.bits_per_byte import document_scores

TEXTS = ["Hello, this is the weather.", "Привет, мир! Это ёж.", "中文 and ру, mixed: 𝄞 €5.", "a", "x" * 100]


def byte_level(folder: Path, texts: list[str]) -> Path:
    """A model and tokenizer as GPT-2 has: byte-level BPE behind a regular expression, tied head, 64 positions."""
    backend = tokenizers.Tokenizer(tokenizers.models.BPE())
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=500, special_tokens=["<|end|>"], initial_alphabet=alphabet,
                                             show_progress=False)
    backend.train_from_iterator(texts, trainer)
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|end|>", bos_token="<|end|>")
    fast.save_pretrained(folder)
    sizes = {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64, "vocab_size": 500}
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes, bos_token_id=0, eos_token_id=0)).eval()
    randomise(model, 4)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folders(tokenizer, tmp_path_factory) -> dict[str, str]:
    """Random models of three vocabularies; the preferences of `llama` are those of its tokenizer, of `run`."""
    folder = tmp_path_factory.mktemp("models")
    made = {"run": make_run(folder / "run", tokenizer, block_size=64),
            "again": make_run(folder / "again", tokenizer, seed=3),
            "llama": make_foreign(folder / "llama", tokenizer), "gpt2": byte_level(folder / "gpt2", TEXTS * 5)}
    return {name: str(path) for name, path in made.items()}


@pytest.fixture(scope="module")
def docked(folders, tmp_path_factory):
    """The fused runs, made once: names and method -> folder."""
    folder = tmp_path_factory.mktemp("docked")

    def made(names: str, method: str = "posterior", **settings) -> Path:
        out = folder / "-".join([method, *names.split(), *map(str, settings.values())])
        fuse(FusionSettings([folders[name] for name in names.split()], method, level="bytes", **settings), out)
        return out

    return made


def nats(name: str | Path, texts: list[str]) -> list[float]:
    """Of each text, as `glyphlm eval` computes them."""
    model = load_eval_model(str(name))
    pieces = model.tokenizer.encode_passages((text, True) for text in texts)  # type: ignore[misc]
    return [score.nats for score in document_scores(model.scorer, pieces, model.first_id, model.tokenizer.bytes_per_id_V)]


@pytest.mark.parametrize("name", ["run", "gpt2"])
def test_long_texts_of_characters_in_several_tokens_are_followed_all_the_way(name, docked, folders, monkeypatch):
    """Where the last ids, encoded alone, begin inside a character, all of them are compared."""
    monkeypatch.setattr("glyphlm.modeling.bytecover.RECENT", 3)
    texts = ["縣柳池鎮 𝄞𝄞 存正房三間，174.5 ёж ѣ ԙ" * 3]
    monkeypatch.setattr(ByteExpert, "_restart", lambda *_: pytest.fail("a text was lost"))
    assert nats(docked(f"{name} {name}"), texts) == pytest.approx(nats(folders[name], texts), rel=1e-5)


@pytest.mark.parametrize("name", ["run", "llama", "gpt2"])
@pytest.mark.parametrize("method", ["mean_logits", "mean_probs", "posterior"])
def test_a_model_fused_with_itself_gives_each_text_the_bits_that_it_gives(name, method, docked, folders):
    texts = TEXTS if method == "posterior" else TEXTS[:3]
    expected = nats(folders[name], texts)
    assert nats(docked(f"{name} {name}", method), texts) == pytest.approx(expected, rel=1e-5, abs=1e-3)


def test_the_posterior_is_the_mixture_of_what_the_experts_give_to_whole_texts(docked, folders):
    names = ["run", "llama", "gpt2"]
    each = torch.tensor([nats(folders[name], TEXTS[:3]) for name in names], dtype=torch.float64)
    expected = -((-each).logsumexp(0) - torch.tensor(3.0).log())
    assert nats(docked(" ".join(names)), TEXTS[:3]) == pytest.approx(expected.tolist(), rel=1e-5)


@pytest.mark.parametrize("method", ["mean_logits", "mean_probs", "max_confidence", "posterior"])
def test_what_comes_next_sums_to_one(method, docked):
    model, tokenizer = load_run(docked("run gpt2", method))
    ids_1T = torch.tensor([[tokenizer.end_id, *tokenizer.encode(TEXTS[2]), tokenizer.end_id, *tokenizer.encode("Hi")]])
    p_TO = model(ids_1T).logits[0].double().exp()
    torch.testing.assert_close(p_TO.sum(-1), torch.ones(ids_1T.shape[1], dtype=torch.float64), atol=1e-6, rtol=0)
    assert p_TO.shape[1] == tokenizer.vocab_size == 260 and float(p_TO[:, :2].max()) == 0


class Constant(nn.Module):
    """The same probabilities after anything."""

    def __init__(self, p_V: torch.Tensor):
        super().__init__()
        self.logp_V, self.device = nn.Parameter(p_V.log()), torch.device("cpu")

    def forward(self, ids_BT, **_):
        return transformers.modeling_outputs.CausalLMOutputWithPast(logits=self.logp_V.expand(*ids_BT.shape, -1))


def test_the_probability_of_a_byte_is_that_of_all_covers():
    """Against every sequence of tokens that the tokenizer can make, written out."""
    vocabulary = ["</s>", "a", "b", "ab", "ba", "bab"]
    merges = [("a", "b"), ("b", "a"), ("b", "ab")]
    backend = tokenizers.Tokenizer(tokenizers.models.BPE({one: n for n, one in enumerate(vocabulary)}, merges))
    spelled = [b"", *(token.encode() for token in vocabulary[1:])]
    expert = ByteExpert({"bytes": 9, "ids": 6, "start": 0, "end": 0, "lead": "", "block_size": 64})
    expert.bytes_X = torch.tensor([*b"".join(spelled)], dtype=torch.uint8)
    expert.lengths_V = torch.tensor([*map(len, spelled)], dtype=torch.int32)
    p_V = torch.tensor([0.05, 0.3, 0.2, 0.15, 0.1, 0.2], dtype=torch.float64)
    expert.attach(Constant(p_V), backend)

    def canonical(ids):
        text = b"".join(spelled[number] for number in ids).decode()
        return backend.encode(text).ids == list(ids)

    def covered(text: bytes) -> float:
        """Sum over covers: all but the last token inside the text and canonical, the last one reaching its end."""
        total = 0.0
        for length in range(1, len(text) + 1):
            for ids in product(range(1, 6), repeat=length):
                whole, inside = (b"".join(spelled[n] for n in part) for part in (ids, ids[:-1]))
                if whole.startswith(text) and len(inside) < len(text) and canonical(ids[:-1]):
                    total += float(p_V[list(ids)].prod())
        return total

    cover = expert.begin()
    for place, byte in enumerate(b"abbaba"):
        p = expert.log_probs(cover).exp()
        assert float(p.sum()) == pytest.approx(1, abs=1e-9)
        before = covered(b"abbaba"[:place]) if place else 1.0
        for other in b"ab":
            expected = covered(b"abbaba"[:place] + bytes([other])) / before
            assert float(p[other + FIRST_BYTE - 2]) == pytest.approx(expected, abs=1e-9)
        cover = expert.step(cover, byte)


def test_generation_with_a_cache_is_generation_without(docked):
    model, tokenizer = load_run(docked("run gpt2 again", "mean_probs"))
    ids_1T = torch.tensor([tokenizer.encode("The weath")])
    made = [model.generate(ids_1T, attention_mask=torch.ones_like(ids_1T), max_new_tokens=12, do_sample=False, use_cache=use)
            for use in (True, False)]
    assert torch.equal(*made) and UNKNOWN not in made[0]
    assert generate(docked("run gpt2 again", "mean_probs"), ["Hi"], Sampling(max_new_tokens=4))[0].startswith("Hi")


def test_rows_of_a_batch_padded_and_chosen_again_are_as_each_alone(docked):
    model = load_eval_model(str(docked("run gpt2")))
    prompts = [model.tokenizer.encode(text) for text in ("Hello", "中", "мир и")]
    logits_BO, seen = model.read_prompts(prompts)
    for row, ids in zip(logits_BO, prompts):
        torch.testing.assert_close(row, model.model(torch.tensor([ids])).logits[0, -1])
    more = model.tokenizer.encode("ж")
    logits_BO, _ = model.extend(seen.select([2, 0, 2]), torch.tensor([more] * 3))
    for row, number in zip(logits_BO, (2, 0, 2)):
        torch.testing.assert_close(row, model.model(torch.tensor([prompts[number] + more])).logits[0, -1])


def test_experts_stay_as_they_are_and_a_third_one_joins(docked, folders, tmp_path):
    two = docked("run gpt2")

    def weights_in(run: Path) -> dict[str, bytes]:
        return {number: (run / "experts" / number / "model.safetensors").read_bytes() for number in "12"}

    weights = weights_in(two)
    assert weights["1"] == (Path(folders["run"]) / "model.safetensors").read_bytes()
    fuse(FusionSettings([str(two), folders["llama"]], "posterior", level="bytes"), tmp_path / "three", "")
    assert weights_in(tmp_path / "three") == weights
    assert nats(tmp_path / "three", TEXTS[:1]) == pytest.approx(nats(docked("run gpt2 llama"), TEXTS[:1]), rel=1e-9)
    assert nats(two / "experts" / "1", TEXTS[:2]) == nats(folders["run"], TEXTS[:2])


def test_a_text_that_changes_its_language_is_followed_with_reset(docked):
    """Experts that each know one letter: without reset the first one's lead has to be made up for, byte by byte."""
    text = ["a" * 60 + "b" * 20]
    plain, reset = (nats(docked("run gpt2 llama", **how), text)[0] for how in ({}, {"reset": 0.02}))
    assert reset != plain
    assert nats(docked("run gpt2 llama", memory=1e8), text)[0] == pytest.approx(plain, rel=1e-5)


def test_changed_files_of_an_expert_are_refused(docked, tmp_path):
    run = shutil.copytree(docked("run gpt2"), tmp_path / "copy")
    path = run / "experts" / "2" / "config.json"
    path.write_text(path.read_text().replace('"n_positions": 64', '"n_positions": 32'))
    with pytest.raises(InputError, match="experts/2 holds .*put the files back"):
        load_run(run)


def test_a_text_that_an_expert_cannot_spell_costs_a_finite_price(tmp_path, folders):
    """The published layouts have <unk> for characters above U+FFFF; the next character is read as before."""
    run = shutil.copytree(folders["run"], tmp_path / "run")
    described = json.loads((run / "tokenizer.json").read_text())
    described["model"]["byte_fallback"] = False
    (run / "tokenizer.json").write_text(json.dumps(described))
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(config | {"tokenizer_fingerprint": Tokenizer.load(run).fingerprint}))
    fuse(FusionSettings([str(run), folders["gpt2"]], "mean_probs", level="bytes"), tmp_path / "fused", "")
    found = nats(tmp_path / "fused", ["Hello", "Hello 𝄞"])
    assert found[0] < found[1] < found[0] + 100


@pytest.mark.parametrize(("text", "number"), [(b"", 0), (b"a", 0), ("é".encode(), 0), ("é".encode()[:1], 1),
                                              ("中".encode()[:2], 2), ("𝄞".encode()[:3], 3), (b"\x80\x80", 0), (b"\xff", 0)])
def test_characters_that_are_not_whole_are_seen(text, number):
    assert incomplete(text) == number


def test_tokens_with_a_common_prefix_are_adjacent():
    spelled = [b"", b"b", b"ab", b"a", b"\xff\xff", b"\xff", b"abc"]
    pieces = Pieces(torch.tensor([*b"".join(spelled)], dtype=torch.uint8), torch.tensor([*map(len, spelled)]))
    assert [pieces.texts[slice(*pieces.narrow((0, 6), prefix))] for prefix in (b"a", b"ab", b"\xff", b"c")] == [
        [b"a", b"ab", b"abc"], [b"ab", b"abc"], [b"\xff", b"\xff\xff"], []]


@pytest.mark.parametrize(("settings", "refusal"), [
    ({"method": "gate"}, "method gate does not apply to level bytes; choose mean_logits"),
    ({"method": "mean_probs", "reset": 0.1}, "reset 0.1 applies only to method posterior"),
    ({"method": "posterior", "reset": 1.0}, "reset 1.0"),
])
def test_settings_that_do_not_fit_are_refused(settings, refusal):
    with pytest.raises(InputError, match=refusal):
        FusionSettings(["a", "b"], level="bytes", **settings)


def test_other_vocabularies_are_refused_at_the_level_of_tokens_with_the_cure(folders, texts, tmp_path):
    build_tokenizer(texts, TokenizerSettings(vocab_size=768), tmp_path / "tokenizer")
    other = make_run(tmp_path / "other", Tokenizer.load(tmp_path / "tokenizer"))
    with pytest.raises(InputError, match="vocabularies differ: .*--level bytes"):
        fuse(FusionSettings([folders["run"], str(other)]), tmp_path / "out")
