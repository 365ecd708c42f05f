"""GlyphLM: language models over frozen, deterministic codes of Unicode text, next to their trainable twins.

Names are imported when first used, so that `glyphlm --help` does not wait for torch. `import glyphlm` also lets
AutoModelForCausalLM.from_pretrained(run) open run folders without remote code.
"""

import importlib
from typing import Any

import wrapt

_HOMES = {
    "InputError": "errors",
    "Tokenizer": "tokenizer",
    "TokenizerSettings": "vocabulary",
    "build_tokenizer": "vocabulary",
    "SubstrateSettings": "substrate",
    "build_substrate": "substrate",
    "load_substrate": "substrate",
    "prepare": "preparation",
    "Batches": "dataset",
    "TokenText": "dataset",
    "GPT": "model",
    "ModelConfig": "model",
    "Substrate": "model",
    "SubstrateConfig": "model",
    "TrainSettings": "trainsettings",
    "train": "training",
    "Recipe": "recipe",
    "run_recipe": "arm",
    "PlanSettings": "plan",
    "make_plan": "plan",
    "Sampling": "generation",
    "generate": "generation",
    "evaluate": "evaluation",
    "EvalSettings": "examination",
    "compare_items": "itemlog",
    "read_published": "publishedresults",
    "probe": "probes",
    "ProbeSettings": "probetexts",
    "fuse": "fusing",
    "FusionSettings": "fusionsettings",
    "Fusion": "fusion",
    "FusionConfig": "fusion",
    "ImportSettings": "importmodel",
    "import_checkpoint": "importing",
    "export_gpt_neox": "exporting",
    "export_gguf": "gguffile",
    "push": "hub",
    "ServeSettings": "serving",
    "serve": "serving",
    "CardSettings": "card",
    "write_card": "card",
    "study": "studying",
    "Study": "studyplan",
    "Claim": "claims",
    "run_growth": "staging",
    "GrowthRecipe": "recipe",
    "write_report": "report",
}
__all__ = sorted(_HOMES)


@wrapt.when_imported("transformers")
def _register(_: Any) -> None:
    """Make transformers' Auto classes know our model; importing transformers here would cost every start 3 seconds."""
    importlib.import_module("glyphlm.hf")


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'glyphlm' has no attribute {name!r}")
    return getattr(importlib.import_module(f"glyphlm.{_HOMES[name]}"), name)
