"""Names that several packages share, each spelled once: files of a run folder, prefixes of sources that are not files."""

from pathlib import Path

# A finished run is a folder of the Hugging Face layout ..
CONFIG = "config.json"
WEIGHTS = "model.safetensors"  # the name that transformers looks for
TOKENIZER = "tokenizer.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
VOCABULARY = "vocab.txt"  # every token of the tokenizer, for people
CARD = "README.md"
# .. with what it was made from ..
SETTINGS = "settings.yaml"  # the resolved recipe
INPUTS = "inputs.json"  # digests of tokenizer, substrate, shards and runs
MADE_INPUTS = "inputs"  # folder of inputs that the training command built from the recipe
STATES = "state"  # folder of checkpoints, each step-NNNNNNNN
# .. and the results
METRICS = "metrics.jsonl"
SUMMARY = "summary.json"
RESULTS = "results.jsonl"
SAMPLES = "samples.jsonl"
GLYPH_SHEET = "glyphs.png"
REPORT = "report.html"

BUILD = "build.json"  # in every output folder: settings, digests of inputs, result
ITEMS = "items"  # folder of the item logs of a study
LOCK = ".lock"  # suffix of the lock file of an output folder

HUB = "hf:"  # a data set or model of the Hugging Face Hub
EMBEDDED = "embedded:"  # documents of the phrase book


def shipped_recipes() -> Path:
    """The folder of the recipes that come with glyphlm, of what they name, and of the JSON schemas of recipes."""
    package = Path(__file__).parents[1]
    return next(folder for folder in (package / "recipes", package.parent / "recipes") if folder.is_dir())
