"""Small text and everything made from it, made once for all tests; real text where there is some."""

import json
import os
from pathlib import Path

import pytest
import torch

from glyphlm.corpus.phrasebook import phrases
from glyphlm.data import shards as preparation
from glyphlm.data.batches import Batches, TokenText, unigram_bits_per_byte, validation_batches
from glyphlm.data.shards import prepare
from glyphlm.modeling.model import GPT, ModelConfig
from glyphlm.modeling.substrate import Substrate, SubstrateConfig
from glyphlm.substrate.build import SubstrateSettings, build_substrate
from glyphlm.tokenizer.build import TokenizerSettings, build_tokenizer
from glyphlm.tokenizer.tokenizer import Tokenizer
from glyphlm.training.loop import train
from glyphlm.training.settings import TrainSettings, batch_rows

VOCAB_SIZE = 1024
VALIDATION_SHARE = 0.05
SUBSTRATES = {
    "token_bits": SubstrateSettings(kind="token_bits", n_embed=16),
    "learned": SubstrateSettings(kind="learned", n_embed=32, trainable=True),
}


# They come first, lest a worker begins one when the others have finished (`make test` gives each worker whole files).
SLOWEST = ("parallel", "whole_way", "study", "grow_recipe", "examples", "hf", "generate", "evaluate", "bytefusion", "report",
           "workflow", "training", "memory", "recipes", "layouts", "import_model", "bare_environment", "serve")


def pytest_configure(config) -> None:
    config.option.loadscopereorder = False  # of pytest-xdist: the files with most tests first


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places = {f"test_{name}.py": place for place, name in enumerate(SLOWEST)}
    items.sort(key=lambda item: places.get(item.path.name, len(places)))


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Two threads over models as small as these wait for each other more than they work."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory) -> None:
    """What is measured of this machine is kept apart from what runs of the user measured, also by commands of tests."""
    os.environ["GLYPHLM_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def texts(tmp_path_factory) -> list[str]:
    """1,200 phrases of the phrase book in three languages: most as JSON lines, the rest as one plain text."""
    folder = tmp_path_factory.mktemp("texts")
    documents = [phrase.text for phrase in phrases()[:1200]]
    lines = (json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in documents[:1000])
    (folder / "lines.jsonl").write_text("".join(lines), encoding="utf-8")
    (folder / "plain.txt").write_text("\n".join(documents[1000:]), encoding="utf-8")
    return [str(folder / "lines.jsonl"), str(folder / "plain.txt")]


@pytest.fixture(scope="session")
def tokenizer_folder(texts, tmp_path_factory) -> Path:
    """A compact tokenizer of 1,024 ids."""
    out = tmp_path_factory.mktemp("tokenizer") / "compact"
    build_tokenizer(texts, TokenizerSettings(vocab_size=VOCAB_SIZE), out)
    return out


@pytest.fixture(scope="session")
def tokenizer(tokenizer_folder) -> Tokenizer:
    return Tokenizer.load(tokenizer_folder)


@pytest.fixture(scope="session")
def shards(tokenizer, texts, tmp_path_factory) -> Path:
    """`texts` as token shards, about one document in twenty held out."""
    return prepare(tokenizer, texts, tmp_path_factory.mktemp("shards") / "prepared", VALIDATION_SHARE)


@pytest.fixture(scope="session")
def text(tmp_path_factory) -> str:
    """A file of 300 short documents."""
    path = tmp_path_factory.mktemp("text") / "a.jsonl"
    documents = (json.dumps({"text": phrase.text}) + "\n" for phrase in phrases()[:300])
    path.write_text("".join(documents), encoding="utf-8")
    return str(path)


@pytest.fixture(scope="session")
def prepared(tokenizer, text, tmp_path_factory) -> Path:
    """`text` as token shards, a fifth held out."""
    return prepare(tokenizer, [text], tmp_path_factory.mktemp("shards") / "prepared", 0.2)


@pytest.fixture
def several(tokenizer, text, tmp_path, monkeypatch) -> Path:
    """The same in several files a split, to be spoiled."""
    monkeypatch.setattr(preparation, "SHARD_TOKENS", 2000)
    return prepare(tokenizer, [text], tmp_path / "several", 0.2)


@pytest.fixture(scope="session")
def substrates(tokenizer, tmp_path_factory) -> dict[str, Path]:
    """Folders of a rule (token_bits, width 16) and of a trainable table (learned, width 32)."""
    folder = tmp_path_factory.mktemp("substrates")
    for kind, settings in SUBSTRATES.items():
        build_substrate(tokenizer, settings, folder / kind)
    return {kind: folder / kind for kind in SUBSTRATES}


@pytest.fixture(scope="session")
def trained(shards, tmp_path_factory) -> list[GPT]:
    """Two models of one shape that have learned to use context, so that a cache that is lost changes what they say."""
    text, held_out = TokenText(shards, "train"), TokenText(shards, "validation")

    def validation():
        return validation_batches([held_out], 64, 4, 2048)

    settings = TrainSettings(steps=150, batch_tokens=256, micro_batch_tokens=256, lr=1e-2, precision="fp32", device="cpu",
                             log_every=150, validate_every=150, validation_tokens=2048, save_every=150)
    models, unigram = [], unigram_bits_per_byte([text], validation())
    for seed in (1, 2):
        substrate = Substrate(SubstrateConfig(text.vocab_size, 64, "learned", trainable=True), 64)
        torch.nn.init.normal_(substrate.table_VE, generator=torch.Generator().manual_seed(seed))
        models.append(GPT(ModelConfig(64, 2, 4, 64, head_bias=True), substrate))
        models[-1].init_weights(seed)
        out = tmp_path_factory.mktemp("trained")
        train(models[-1], Batches([text], [1.0], 64, batch_rows(settings, 64), seed), settings, out, validation)
        rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        assert rows[-1]["split"] == "validation" and rows[-1]["bits_per_byte"] < unigram - 0.3
    return [model.eval() for model in models]


@pytest.fixture(scope="session")
def data() -> Path:
    """Real text: the folder in the environment variable GLYPHLM_DATA, else shared/data beside the checkout."""
    folder = Path(os.environ.get("GLYPHLM_DATA") or Path(__file__).parents[2] / "shared" / "data")
    if not folder.is_dir():
        pytest.skip(f"{folder} does not exist; name a folder of text in GLYPHLM_DATA")
    return folder
