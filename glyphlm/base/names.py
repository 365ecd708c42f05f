"""Names that several packages share, each spelled once: files of a run folder, and prefixes of what is no file."""

# A finished run is a folder of the Hugging Face layout ..
CONFIG = "config.json"
WEIGHTS = "model.safetensors"  # the name that transformers looks for
TOKENIZER = "tokenizer.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
VOCABULARY = "vocab.txt"  # every piece of the tokenizer, for people
CARD = "README.md"
# .. with what it was made from ..
SETTINGS = "settings.yaml"  # the resolved recipe
INPUTS = "inputs.json"  # digests of tokenizer, substrate, shards and runs
MADE_INPUTS = "inputs"  # folder of what the recipe describes and no other command made
STATES = "state"  # folder of checkpoints, each step-NNNNNNNN
# .. and what came out
METRICS = "metrics.jsonl"
SUMMARY = "summary.json"
RESULTS = "results.jsonl"
SAMPLES = "samples.jsonl"
GLYPH_SHEET = "glyphs.png"
REPORT = "report.html"

BUILD = "build.json"  # in every folder that is made as a whole: settings, digests of inputs, result
LOCK = ".lock"  # ends the name of the file that the one writer of a folder holds

HUB = "hf:"  # a data set or model of the Hugging Face Hub
EMBEDDED = "embedded:"  # documents of the phrase book
