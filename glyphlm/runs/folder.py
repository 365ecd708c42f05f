"""A run folder IS a Hugging Face folder: weights, config, tokenizer and the files of code that read them.

It loads with AutoModelForCausalLM.from_pretrained(run, trust_remote_code=True) where glyphlm is not installed, and
without remote code after `import glyphlm`.
"""

import os
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import torch
from transformers import GenerationConfig

from glyphlm.base.errors import InputError
from glyphlm.base.names import CONFIG, SUMMARY, WEIGHTS
from glyphlm.base.outputs import lacks, one_writer, sha256_file, write_atomic
from glyphlm.base.records import read_json, to_json
from glyphlm.base.tensors import TENSOR_ERRORS, as_os_errors, share, tensor_types
from glyphlm.modeling.bytefusion import ByteFusionConfig, ByteFusionForCausalLM
from glyphlm.modeling.config import model_fields
from glyphlm.modeling.fusion import Fusion
from glyphlm.modeling.hf import GlyphLMConfig, GlyphLMForCausalLM
from glyphlm.modeling.model import GPT, count_parameters
from glyphlm.runs.adapters import ADAPTER, ADAPTER_CONFIG, attach_adapters, merge_adapters
from glyphlm.runs.foreign import quiet
from glyphlm.runs.sampling import SAMPLING
from glyphlm.runs.where import folder_of
from glyphlm.tokenizer.tokenizer import Tokenizer

SUMMARY_PARTS = {"name": str, "substrate": dict, "parameters": dict, "bits_per_byte": dict}  # which every summary has
KINDS: dict[str, tuple[type[GlyphLMConfig], Any]] = {
    GlyphLMConfig.model_type: (GlyphLMConfig, GlyphLMForCausalLM),
    ByteFusionConfig.model_type: (ByteFusionConfig, ByteFusionForCausalLM),
}


def export_model(model: GPT | Fusion, tokenizer: Tokenizer, out: Path) -> None:
    """Write everything that is needed to load the model into the run folder `out`; each file appears whole.

    Files are made in a folder beside and moved, so that a reader never meets a half-written one.

    Raises:
        InputError: another process writes `out`.
    """
    tokenizer = tokenizer.as_trained()
    with one_writer(out):
        out.mkdir(parents=True, exist_ok=True)
        partial = out / f".export.{os.getpid()}.partial"
        partial.mkdir(exist_ok=True)
        with torch.device("meta"):
            wrapped = GlyphLMForCausalLM(hf_config(model, tokenizer))
        wrapped.gpt.load_state_dict(model.state_dict(), assign=True)
        wrapped.generation_config = GenerationConfig(**SAMPLING, **special_ids(tokenizer))
        with quiet(), as_os_errors(out):
            wrapped.save_pretrained(partial)
        tokenizer.save(partial)
        for file in partial.iterdir():
            share(file)
            os.replace(file, out / file.name)
        partial.rmdir()


def hf_config(model: GPT | Fusion, tokenizer: Tokenizer) -> GlyphLMConfig:
    """config.json of a model, with the fingerprint of its tokenizer."""
    others: dict[str, Any] = {"tokenizer_fingerprint": tokenizer.fingerprint, "tie_word_embeddings": False}
    return GlyphLMConfig(**config_fields(model), **others, **special_ids(tokenizer))


def config_fields(model: GPT | Fusion) -> dict[str, Any]:
    """The fields of config.json that describe the model."""
    if isinstance(model, GPT):
        return {"model": model_fields(model.config), "substrate": asdict(model.substrate.config)}
    first = [model.reads.index(number) for number in model.reads]  # the first expert that reads the same substrate
    experts = [
        {"model": model_fields(expert.config),
         "substrate": asdict(model.substrates[read].config) if first[number] == number else first[number]}
        for number, (expert, read) in enumerate(zip(model.experts, model.reads))
    ]
    return {"experts": experts, "fusion": asdict(model.fusion)}


def special_ids(tokenizer: Tokenizer) -> dict[str, Any]:
    """Ids of the special tokens under transformers' names; as in training, a text begins after an end-of-text token."""
    return {"bos_token_id": tokenizer.end_id, "eos_token_id": tokenizer.end_id, "pad_token_id": tokenizer.pad_id}


def unfinished(folder: Path, name: str) -> InputError:
    """The error for a folder without the file `name` of a finished run."""
    cure = "give a folder that glyphlm train has filled"
    return InputError(f"{folder} is not a finished run: it {lacks(folder, name)}; {cure}")


def run_config(run: str | Path) -> GlyphLMConfig:
    """config.json of a run folder; weights are not read.

    Raises:
        InputError: it is not a finished run, the file is damaged, or a value in it is not allowed.
    """
    path = folder_of(run) / CONFIG
    if not path.is_file():
        raise unfinished(path.parent, CONFIG)
    found = read_json(path)
    kind, _ = KINDS.get(str(found.get("model_type")), (None, None))
    if kind is None:
        raise InputError(f"{path} is of model_type {found.get('model_type')!r}, not {GlyphLMConfig.model_type}: this is "
                         "not a run folder")
    try:
        return cast(GlyphLMConfig, kind.from_dict(found))
    except (ValueError, TypeError, AttributeError) as error:
        raise InputError(f"{run} cannot be loaded: {_first_line(error)}") from None


def load_run(run: str | Path) -> tuple[GlyphLMForCausalLM, Tokenizer]:
    """Model (in eval mode, float32, CPU) and tokenizer of a run folder; no code of the folder is executed.

    Adapters that were kept apart are merged into the weights. generation_config.json is not used.

    Raises:
        InputError: it is not a finished run, a file is damaged or does not fit the others, a tensor holds NaN, or the
            tokenizer is not the one trained with.
    """
    run = folder_of(run)
    config = run_config(run)
    _check_files(run)
    try:
        with quiet():
            model = KINDS[config.model_type][1].from_pretrained(run, config=config, dtype=torch.float32)
    except (*TENSOR_ERRORS, ValueError, TypeError, KeyError, RuntimeError, ImportError) as error:
        raise InputError(f"{run} cannot be loaded: {_first_line(error)}") from None
    _check_kinds(run, model)
    tokenizer = Tokenizer.load(run)
    if not tokenizer.is_known_as(model.config.tokenizer_fingerprint):
        raise InputError(f"{run}: the model was trained with tokenizer {str(model.config.tokenizer_fingerprint)[:12]}, but "
                         f"tokenizer.json is {tokenizer.fingerprint[:12]}; put the right one back")
    if tokenizer.vocab_size > model.config.vocab_size:
        raise InputError(f"{run}: the model has {model.config.vocab_size:,} ids, the tokenizer {tokenizer.vocab_size:,}; "
                         "put the right one back")
    tokenizer = tokenizer.as_trained()
    model.generation_config = GenerationConfig(**SAMPLING, **special_ids(tokenizer), suppress_tokens=model.no_text)
    if (run / ADAPTER).is_dir():
        attach_adapters(model, run / ADAPTER)
        merge_adapters(model)
    return model.eval(), tokenizer


def _check_files(run: Path) -> None:
    """Refuse folders of which transformers would load something else.

    Raises:
        InputError: the weights are missing, not safetensors or outside the folder, or adapters are where transformers
            apply them.
    """
    weights = [run / WEIGHTS, run / f"{WEIGHTS}.index.json"]
    if not any(path.is_file() for path in weights):
        raise InputError(f"{run} holds no {WEIGHTS}; copy it from where the run was trained (other formats are not read)")
    named = read_json(weights[1]).get("weight_map") if weights[1].is_file() else {}
    outside = [name for name in named.values() if Path(str(name)).name != name] if isinstance(named, dict) else [named]
    if outside:
        raise InputError(f"{weights[1]} names {outside[0]!r:.60}, which is not a file of {run}; put the right file back")
    if (run / ADAPTER_CONFIG).exists():
        raise InputError(f"{run} holds {ADAPTER_CONFIG}, which names another model to load; adapters of a run belong in its "
                         f"folder {ADAPTER}")


def _check_kinds(run: Path, model: torch.nn.Module) -> None:
    """Refuse integers in place of weights: they would be converted, and rounded weights are another model.

    Raises:
        InputError: with the tensor and its type.
    """
    expected = model.state_dict()
    for file in run.glob("*.safetensors"):
        for name, kind in tensor_types(file).items():
            if name in expected and expected[name].is_floating_point() != kind.startswith(("F", "BF")):
                raise InputError(f"{file}: tensor {name} has the type {kind}, not that of a run; put the right file back")


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def describe_model(model: GPT | Fusion, tokenizer: Tokenizer) -> dict[str, Any]:
    """Summary fields of every model: codes, sizes, number of values, vocabulary."""
    return {
        "substrate": asdict(model.substrate.config),
        "model": {"vocab_size": model.vocab_size, **model_fields(model.config)},
        "parameters": count_parameters(model),
        "tokenizer": {"vocab_size": tokenizer.vocab_size, "fingerprint": tokenizer.fingerprint},
    }


def weights_sha256(run: str | Path) -> str:
    """Digest that identifies the weights of a run, or of an export of one.

    Raises:
        InputError: it has none.
    """
    path = folder_of(run) / WEIGHTS
    if not path.is_file():
        raise unfinished(path.parent, WEIGHTS)
    return sha256_file(path)


def read_summary(run: Path) -> dict[str, Any] | None:
    """summary.json of a finished run, or None; `name` is that of the folder, which may have been renamed or copied.

    Raises:
        InputError: it is damaged, or lacks what every summary has.
    """
    path = run / SUMMARY
    if not path.exists():
        return None
    summary = read_json(path)
    for key, kind in SUMMARY_PARTS.items():
        if not isinstance(summary.get(key), kind):
            raise InputError(f"{path} is not the summary of a run (no valid {key!r}); train it again, or restore the file")
    place = run.resolve()
    is_named = not place.name.startswith(".") and place.parent.name != "snapshots"  # not half-written, nor the Hub's cache
    return summary | {"name": place.name} if is_named else summary


def write_summary(run: Path, summary: dict[str, Any]) -> None:
    """Written last: its presence marks the run as finished."""
    write_atomic(run / SUMMARY, to_json(summary))
