"""GlyphLM: language models over frozen, deterministic codes of Unicode text, next to their trainable twins.

Names are imported when first used, so that `glyphlm --help` does not wait for torch. `import glyphlm` also lets
AutoModelForCausalLM.from_pretrained(run) open run folders without remote code.
"""

import importlib
from typing import Any

import wrapt

_HOMES = {
    "InputError": "base.errors",
    "Tokenizer": "tokenizer.tokenizer",
    "TokenizerSettings": "tokenizer.build",
    "build_tokenizer": "tokenizer.build",
    "SubstrateSettings": "substrate.build",
    "build_substrate": "substrate.build",
    "load_substrate": "substrate.build",
    "prepare": "data.shards",
    "Batches": "data.batches",
    "TokenText": "data.batches",
    "GPT": "modeling.model",
    "ModelConfig": "modeling.model",
    "Substrate": "modeling.model",
    "SubstrateConfig": "modeling.model",
    "TrainSettings": "training.settings",
    "train": "training.loop",
    "Recipe": "experiments.recipe",
    "run_recipe": "experiments.train_recipe",
    "PlanSettings": "planning.plan",
    "make_plan": "planning.plan",
    "Sampling": "runs.generate",
    "generate": "runs.generate",
    "evaluate": "evaluation.evaluate",
    "EvalSettings": "evaluation.examination",
    "compare_items": "evaluation.item_log",
    "read_published": "evaluation.published",
    "probe": "analysis.probes",
    "ProbeSettings": "analysis.probe_texts",
    "fuse": "composition.fuse",
    "FusionSettings": "composition.fusionsettings",
    "Fusion": "modeling.fusion",
    "FusionConfig": "modeling.fusion",
    "ImportSettings": "interop.import_model",
    "import_checkpoint": "interop.import_model",
    "export_gpt_neox": "interop.export_neox",
    "export_gguf": "interop.gguf",
    "push": "base.hub",
    "ServeSettings": "interop.serve",
    "serve": "interop.serve",
    "CardSettings": "runs.card",
    "write_card": "runs.card",
    "study": "studies.study",
    "Study": "studies.commands",
    "Claim": "studies.claims",
    "run_growth": "experiments.grow_recipe",
    "GrowthRecipe": "experiments.recipe",
    "write_report": "analysis.report",
}
__all__ = sorted(_HOMES)


@wrapt.when_imported("transformers")
def _register(_: Any) -> None:
    """Make transformers' Auto classes know our model; importing transformers here would cost every start 3 seconds."""
    importlib.import_module("glyphlm.modeling.hf")


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'glyphlm' has no attribute {name!r}")
    return getattr(importlib.import_module(f"glyphlm.{_HOMES[name]}"), name)
