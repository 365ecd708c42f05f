"""The whole way in minutes: phrase book -> tokenizer -> substrates -> shards -> three arms -> report.

It only calls what the other verbs call. The recipes it writes are files that `glyphlm train` takes.
"""

from dataclasses import replace
from pathlib import Path

from glyphlm.arm import run_recipe
from glyphlm.dataset import Source, prepare
from glyphlm.model import ModelConfig
from glyphlm.outputs import write_atomic
from glyphlm.phrasebook import write_phrasebook
from glyphlm.recipe import Recipe, settings_text
from glyphlm.substrate import SubstrateSettings, build_substrate
from glyphlm.tokenizer import Tokenizer, TokenizerSettings, build_tokenizer
from glyphlm.training import TrainSettings

VOCAB_SIZE = 2048
MODEL = ModelConfig(d_model=128, n_layer=4, n_head=2, block_size=128)
STEPS = 700  # of 1,024 tokens: once over the text, about a minute for each arm on 2 CPU cores
TRAIN = TrainSettings(batch_tokens=1024, micro_batch_tokens=1024, lr=4e-3, validate_every=100, save_every=100)
ARMS = {
    "glyph": SubstrateSettings(kind="glyph", n_embed=128),
    "twin": SubstrateSettings(kind="learned", n_embed=128, trainable=True),
    "token_bits": SubstrateSettings(kind="token_bits", n_embed=16),
}
PROMPTS = ["The currency of ", "Question: What is the Russian name of ", "Валюта: ", "Вопрос: ", "在", "问题："]


def quickstart(out: Path, steps: int | None = None, font: list[str] | None = None) -> Path:
    """Make everything under `out` and return the report's path; what is done already is not done again.

    Raises:
        InputError: no font is found, or `out` holds something else.
    """
    from glyphlm.report import write_report  # loads matplotlib, needed only at the end

    train = replace(TRAIN, steps=steps or STEPS)
    texts = write_phrasebook(out / "text")
    tokenizer = build_tokenizer([str(texts["text"])], TokenizerSettings(vocab_size=VOCAB_SIZE), out / "tokenizer")
    data = _shards(tokenizer, texts, out)
    runs = []
    for name, settings in ARMS.items():
        folder = out / "substrates" / name
        build_substrate(tokenizer, replace(settings, font=list(font or [])), folder)
        recipe = Recipe(
            tokenizer=TokenizerSettings(path=str(out / "tokenizer")),
            substrate=SubstrateSettings(path=str(folder)),
            model=MODEL,
            data=data[:2],
            validation=[source.shards for source in data[2:]],
            prompts=PROMPTS,
            train=train,
        )
        file = out / "recipes" / f"{name}.yaml"
        file.parent.mkdir(exist_ok=True)
        write_atomic(file, settings_text(recipe))
        run = out / "runs" / name
        run_recipe(recipe, run, f"glyphlm train {file} --out {run}")
        runs.append(run)
    return write_report(runs, out / "report.html", "GlyphLM quickstart")


def _shards(tokenizer: Tokenizer, texts: dict[str, Path], out: Path) -> list[Source]:
    """Shards of running text, of examples (10% of what is trained on), and of what is held out of both."""
    shares = {"text": 0.0, "qa": 0.0, "validation_text": 1.0, "validation_qa": 1.0}
    weights = {"text": 0.9, "qa": 0.1}
    folders = {name: prepare(tokenizer, [str(texts[name])], out / "shards" / name, share) for name, share in shares.items()}
    return [Source(shards=str(folder), weight=weights.get(name)) for name, folder in folders.items()]
