"""The whole way in minutes: phrase book -> tokenizer -> substrates -> shards -> three arms -> report.

It only calls what the other verbs call. The recipes it writes are files that `glyphlm train` takes.
"""

import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from glyphlm.base.outputs import write_atomic
from glyphlm.corpus.phrasebook import write_phrasebook
from glyphlm.data.batches import Source
from glyphlm.data.shards import prepare
from glyphlm.experiments.recipe import Recipe, settings_text
from glyphlm.experiments.train_recipe import run_recipe
from glyphlm.modeling.model import ModelConfig
from glyphlm.substrate.build import SubstrateSettings, build_substrate
from glyphlm.tokenizer.build import TokenizerSettings, build_tokenizer
from glyphlm.tokenizer.tokenizer import Tokenizer
from glyphlm.training.settings import TrainSettings

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


# Running text, examples (10% of what is trained on), and what is held out of both.
SHARDS = {"text": 0.0, "qa": 0.0, "validation_text": 1.0, "validation_qa": 1.0}
WEIGHTS = {"text": 0.9, "qa": 0.1}


def quickstart(out: Path, steps: int | None = None, font: Sequence[str] = ()) -> Path:
    """Make everything under `out` and return the report's path; what is done already is not done again.

    Raises:
        InputError: no font is found, or `out` holds something else.
    """
    from glyphlm.analysis.report import write_report  # loads matplotlib, needed only at the end

    texts = write_phrasebook(out / "text")
    tokenizer = build_tokenizer([str(texts["text"])], TokenizerSettings(vocab_size=VOCAB_SIZE), out / "tokenizer")
    for name, share in SHARDS.items():
        prepare(tokenizer, [str(texts[name])], out / "shards" / name, share)
    train = replace(TRAIN, steps=steps or STEPS)
    runs = [_train_arm(name, replace(settings, font=list(font)), tokenizer, train, out) for name, settings in ARMS.items()]
    return write_report(runs, out / "report.html", "GlyphLM quickstart", commands(out, font, steps))


def commands(out: Path, font: Sequence[str] = (), steps: int | None = None) -> list[str]:
    """What a reader types to make the same inputs step by step."""
    fonts = f" --font {shlex.join(font)}" if font else ""
    length = f" --steps {steps}" if steps else ""
    lines = [
        f"glyphlm quickstart{length}{fonts} --out {out}    # writes {out}/text and {out}/recipes, and does all of this:",
        f"glyphlm tokenizer build --vocab-size {VOCAB_SIZE} --out {out}/tokenizer {out}/text/text.jsonl",
    ]
    for name, share in SHARDS.items():
        lines.append(f"glyphlm prepare --tokenizer {out}/tokenizer --validation-share {share} "
                     f"--out {out}/shards/{name} {out}/text/{name}.jsonl")
    for name, settings in ARMS.items():
        options = f"--kind {settings.kind} --n-embed {settings.n_embed}{' --trainable' * settings.trainable}"
        lines.append(f"glyphlm substrate build --tokenizer {out}/tokenizer {options}{fonts} --out {out}/substrates/{name}")
    return lines


def _train_arm(name: str, settings: SubstrateSettings, tokenizer: Tokenizer, train: TrainSettings, out: Path) -> Path:
    """Build the arm's substrate, write its recipe to a file and train it; its run folder."""
    substrate, run, file = out / "substrates" / name, out / "runs" / name, out / "recipes" / f"{name}.yaml"
    build_substrate(tokenizer, settings, substrate)
    recipe = Recipe(
        tokenizer=TokenizerSettings(path=str(out / "tokenizer")),
        substrate=SubstrateSettings(path=str(substrate)),
        model=MODEL,
        data=[Source(shards=str(out / "shards" / part), weight=weight) for part, weight in WEIGHTS.items()],
        validation=[str(out / "shards" / part) for part, share in SHARDS.items() if share],
        prompts=PROMPTS,
        train=train,
    )
    file.parent.mkdir(exist_ok=True)
    write_atomic(file, settings_text(recipe))
    run_recipe(recipe, run, f"glyphlm train {file} --out {run}")
    return run
