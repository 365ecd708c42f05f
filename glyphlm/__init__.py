"""GlyphLM: language models over frozen, deterministic codes of Unicode text, next to their trainable twins.

    import glyphlm

    run = glyphlm.train_recipe("recipe.yaml", out="runs/mine")    # or a finished one: glyphlm.load_run("runs/mine")
    print(run.generate("Hello, ", max_new_tokens=50))
    print(run.evaluate(["bpb=held_out.txt"]).rows)
    run.push("me/mine")                                           # elsewhere: glyphlm.load_run("hf:me/mine")

Out of objects: build_tokenizer, build_substrate, prepare, Batches, GPT, train. Out of runs: fuse, evaluate, probe,
write_report, export_gpt_neox, export_gguf. dir(glyphlm) lists all names; help(glyphlm.NAME) explains one.

`import glyphlm` lets AutoModelForCausalLM.from_pretrained(run) open run folders without remote code.
"""

# Names are imported when first used, so that `glyphlm --help` does not wait for torch.

import importlib
from typing import TYPE_CHECKING, Any

import wrapt

if TYPE_CHECKING:  # for editors and type checkers, which cannot follow __getattr__
    from glyphlm.analysis.probes import probe as probe
    from glyphlm.analysis.settings import ProbeSettings as ProbeSettings
    from glyphlm.base.errors import InputError as InputError
    from glyphlm.base.hub import push as push
    from glyphlm.composition.fuse import fuse as fuse
    from glyphlm.composition.settings import FusionSettings as FusionSettings
    from glyphlm.data.batches import Batches as Batches
    from glyphlm.data.batches import TokenText as TokenText
    from glyphlm.data.shards import prepare as prepare
    from glyphlm.evaluation.evaluate import evaluate as evaluate
    from glyphlm.evaluation.item_log import compare_items as compare_items
    from glyphlm.evaluation.settings import EvalSettings as EvalSettings
    from glyphlm.evaluation.text import read_published as read_published
    from glyphlm.experiments.grow_recipe import run_growth as run_growth
    from glyphlm.experiments.recipe import GrowthRecipe as GrowthRecipe
    from glyphlm.experiments.recipe import Recipe as Recipe
    from glyphlm.experiments.recipe import load_recipe as load_recipe
    from glyphlm.experiments.train_recipe import run_recipe as run_recipe
    from glyphlm.interop.export_neox import export_gpt_neox as export_gpt_neox
    from glyphlm.interop.gguf import export_gguf as export_gguf
    from glyphlm.interop.import_model import import_checkpoint as import_checkpoint
    from glyphlm.interop.run import Run as Run
    from glyphlm.interop.run import load_run as load_run
    from glyphlm.interop.run import train as train
    from glyphlm.interop.run import train_recipe as train_recipe
    from glyphlm.interop.serve import serve as serve
    from glyphlm.interop.settings import ImportSettings as ImportSettings
    from glyphlm.interop.settings import ServeSettings as ServeSettings
    from glyphlm.modeling.config import FusionConfig as FusionConfig
    from glyphlm.modeling.config import ModelConfig as ModelConfig
    from glyphlm.modeling.config import SubstrateConfig as SubstrateConfig
    from glyphlm.modeling.fusion import Fusion as Fusion
    from glyphlm.modeling.model import GPT as GPT
    from glyphlm.modeling.substrate import Substrate as Substrate
    from glyphlm.pages.report import write_report as write_report
    from glyphlm.planning.plan import make_plan as make_plan
    from glyphlm.planning.settings import PlanSettings as PlanSettings
    from glyphlm.runs.card import CardSettings as CardSettings
    from glyphlm.runs.card import write_card as write_card
    from glyphlm.runs.generate import generate as generate
    from glyphlm.runs.sampling import Sampling as Sampling
    from glyphlm.studies.settings import Claim as Claim
    from glyphlm.studies.settings import Study as Study
    from glyphlm.studies.study import study as study
    from glyphlm.substrate.build import build_substrate as build_substrate
    from glyphlm.substrate.build import load_substrate as load_substrate
    from glyphlm.substrate.settings import SubstrateSettings as SubstrateSettings
    from glyphlm.tokenizer.build import build_tokenizer as build_tokenizer
    from glyphlm.tokenizer.settings import TokenizerSettings as TokenizerSettings
    from glyphlm.tokenizer.tokenizer import Tokenizer as Tokenizer
    from glyphlm.training.settings import TrainSettings as TrainSettings

_HOMES = {
    "InputError": "base.errors",
    "Tokenizer": "tokenizer.tokenizer",
    "TokenizerSettings": "tokenizer.settings",
    "build_tokenizer": "tokenizer.build",
    "SubstrateSettings": "substrate.settings",
    "build_substrate": "substrate.build",
    "load_substrate": "substrate.build",
    "prepare": "data.shards",
    "Batches": "data.batches",
    "TokenText": "data.batches",
    "GPT": "modeling.model",
    "ModelConfig": "modeling.config",
    "Substrate": "modeling.substrate",
    "SubstrateConfig": "modeling.config",
    "TrainSettings": "training.settings",
    "train": "interop.run",
    "Recipe": "experiments.recipe",
    "load_recipe": "experiments.recipe",
    "run_recipe": "experiments.train_recipe",
    "train_recipe": "interop.run",
    "Run": "interop.run",
    "PlanSettings": "planning.settings",
    "make_plan": "planning.plan",
    "Sampling": "runs.sampling",
    "generate": "runs.generate",
    "load_run": "interop.run",
    "evaluate": "evaluation.evaluate",
    "EvalSettings": "evaluation.settings",
    "compare_items": "evaluation.item_log",
    "read_published": "evaluation.text",
    "probe": "analysis.probes",
    "ProbeSettings": "analysis.settings",
    "fuse": "composition.fuse",
    "FusionSettings": "composition.settings",
    "Fusion": "modeling.fusion",
    "FusionConfig": "modeling.config",
    "ImportSettings": "interop.settings",
    "import_checkpoint": "interop.import_model",
    "export_gpt_neox": "interop.export_neox",
    "export_gguf": "interop.gguf",
    "push": "base.hub",
    "ServeSettings": "interop.settings",
    "serve": "interop.serve",
    "CardSettings": "runs.card",
    "write_card": "runs.card",
    "study": "studies.study",
    "Study": "studies.settings",
    "Claim": "studies.settings",
    "run_growth": "experiments.grow_recipe",
    "GrowthRecipe": "experiments.recipe",
    "write_report": "pages.report",
}
__all__ = sorted(_HOMES)


@wrapt.when_imported("transformers")
def _register(_: Any) -> None:
    """Make transformers' Auto classes know our model; importing transformers here would cost every start 3 seconds."""
    importlib.import_module("glyphlm.modeling.hf")


@wrapt.when_imported("glyphlm.modeling.hf")
def _register_bytefusion(_: Any) -> None:
    """The same for fusions over bytes, once hf.py, which may itself have imported transformers, is there to import from."""
    importlib.import_module("glyphlm.modeling.bytefusion")


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return importlib.import_module("importlib.metadata").version("glyphlm")
    if name not in _HOMES:
        raise AttributeError(f"module 'glyphlm' has no attribute {name!r}")
    return getattr(importlib.import_module(f"glyphlm.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return [*__all__, "__doc__", "__file__", "__name__", "__path__", "__version__"]
