"""quickstart(): phrase book -> tokenizer -> substrates -> shards -> three arms -> report, in minutes.

It calls the functions of the other verbs, and writes recipes for `glyphlm train`.
"""

import os
import re
import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from glyphlm.base.outputs import one_writer, write_atomic
from glyphlm.base.progress import say
from glyphlm.corpus.phrasebook import write_phrasebook
from glyphlm.data.shards import prepare
from glyphlm.data.source import Source
from glyphlm.experiments.recipe import Recipe, settings_text
from glyphlm.experiments.train_recipe import run_recipe
from glyphlm.modeling.config import ModelConfig
from glyphlm.pages.report import write_report
from glyphlm.substrate.build import build_substrate
from glyphlm.substrate.fonts import unifont_or_others
from glyphlm.substrate.settings import SubstrateSettings
from glyphlm.tokenizer.build import build_tokenizer
from glyphlm.tokenizer.settings import TokenizerSettings
from glyphlm.tokenizer.tokenizer import Tokenizer
from glyphlm.training.settings import TrainSettings

VOCAB_SIZE = 2048
MODEL = ModelConfig(d_model=128, n_layer=4, n_head=2, block_size=128)
STEPS = 700  # of 1,024 tokens: once over the text, about a minute for each arm on 2 CPU cores
TRAIN = TrainSettings(batch_tokens=1024, micro_batch_tokens=1024, lr=4e-3, validate_every=100, save_every=100)
# With the published norm of 1 the codes are small relative to the outputs of the blocks: on frozen glyphs this training then
# ends anywhere between 0.99 and 1.21 bits per byte, with and without clipping.
ARMS = {
    "glyph": SubstrateSettings(kind="glyph", n_embed=128, scale="unit_rms"),
    "twin": SubstrateSettings(kind="learned", n_embed=128, scale="unit_rms", trainable=True),
    "token_bits": SubstrateSettings(kind="token_bits", n_embed=16, scale="unit_rms"),
}
PROMPTS = ["The currency of ", "Question: What is the Russian name of ", "Валюта: ", "Вопрос: ", "在", "问题："]

# Name -> validation share. Running text, examples (10% of the training data), and what is held out of both.
SHARDS = {"text": 0.0, "qa": 0.0, "validation_text": 1.0, "validation_qa": 1.0}
SOURCE_WEIGHTS = {"text": 0.9, "qa": 0.1}


def quickstart(out: Path, steps: int | None = None, font: Sequence[str] = ()) -> Path:
    """Make everything under `out` and return the path of the report; finished steps are skipped.

    If neither `font` is given nor GNU Unifont installed, glyphs are drawn with fonts of the system that cover the text.

    Raises:
        InputError: no font is installed, or `out` holds something else.
    """
    with one_writer(out):
        texts = write_phrasebook(out / "text")
        tokenizer = build_tokenizer([str(texts["text"])], TokenizerSettings(vocab_size=VOCAB_SIZE), out / "tokenizer")
        chain, notes = (list(font), []) if font else _fonts(tokenizer)
        for name, share in SHARDS.items():
            prepare(tokenizer, [str(texts[name])], out / "shards" / name, share)
        train = replace(TRAIN, steps=steps or STEPS)
        runs = [_train_arm(name, replace(arm, font=chain), tokenizer, train, out) for name, arm in ARMS.items()]
        lines = [*notes, *commands(out, chain, steps)]
        return write_report(runs, out / "report.html", "GlyphLM quickstart", lines)


def _fonts(tokenizer: Tokenizer) -> tuple[list[str], list[str]]:
    """Fonts to use in place of GNU Unifont and a note about them; both empty if it is installed."""
    characters = {*"".join(tokenizer.pictured("decoded"))}
    paths, missing = unifont_or_others(characters)
    if re.match("unifont", paths[0].name) or os.environ.get("GLYPHLM_FONT"):
        return [], []
    note = (f"GNU Unifont is not installed: glyphs are drawn with {', '.join(path.name for path in paths)}, which have "
            f"{len(characters) - missing:,} of {len(characters):,} characters; the numbers differ from those of Unifont")
    say(note)
    return [str(path) for path in paths], [f"# {note}"]


def commands(out: Path, font: Sequence[str] = (), steps: int | None = None) -> list[str]:
    """The commands that make the same inputs step by step."""
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
        options = (f"--kind {settings.kind} --n-embed {settings.n_embed} --scale {settings.scale}"
                   f"{' --trainable' * settings.trainable}")
        lines.append(f"glyphlm substrate build --tokenizer {out}/tokenizer {options}{fonts} --out {out}/substrates/{name}")
    return lines


def _train_arm(name: str, settings: SubstrateSettings, tokenizer: Tokenizer, train: TrainSettings, out: Path) -> Path:
    """Build the substrate of an arm, write its recipe and train it; the run folder."""
    substrate, run, file = out / "substrates" / name, out / "runs" / name, out / "recipes" / f"{name}.yaml"
    build_substrate(tokenizer, settings, substrate)
    recipe = Recipe(
        tokenizer=TokenizerSettings(path=str(out / "tokenizer")),
        substrate=SubstrateSettings(path=str(substrate)),
        model=MODEL,
        data=[Source(shards=str(out / "shards" / part), weight=weight) for part, weight in SOURCE_WEIGHTS.items()],
        validation=[str(out / "shards" / part) for part, share in SHARDS.items() if share],
        prompts=PROMPTS,
        train=train,
    )
    file.parent.mkdir(exist_ok=True)
    write_atomic(file, settings_text(recipe))
    run_recipe(recipe, run, f"glyphlm train {file} --out {run}")
    return run
