"""A run folder IS a Hugging Face folder: weights, config, tokenizer and the files of code that read them.

It loads with AutoModelForCausalLM.from_pretrained(run, trust_remote_code=True) where glyphlm is not installed, and
without remote code after `import glyphlm`.
"""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import GenerationConfig

from glyphlm.base.errors import InputError
from glyphlm.base.outputs import sha256_file, write_atomic
from glyphlm.base.records import to_json
from glyphlm.base.tensors import TENSOR_ERRORS, WEIGHTS, as_os_errors, share
from glyphlm.modeling.fusion import Fusion
from glyphlm.modeling.hf import GlyphLMConfig, GlyphLMForCausalLM
from glyphlm.modeling.model import GPT, count_parameters
from glyphlm.runs.adapters import ADAPTER, attach_adapters, merge_adapters
from glyphlm.tokenizer.tokenizer import Tokenizer

SUMMARY = "summary.json"
# As on the published model cards.
SAMPLING = {"max_new_tokens": 100, "temperature": 0.8, "top_k": 50, "top_p": 0.95, "do_sample": True}


def export_model(model: GPT | Fusion, tokenizer: Tokenizer, out: Path) -> None:
    """Write everything that loads the model into the run folder `out`; each file appears whole.

    Files are made in a folder beside and moved, so that a reader never meets a half-written one.
    """
    partial = out / ".export.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    with torch.device("meta"):
        wrapped = GlyphLMForCausalLM(hf_config(model, tokenizer))
    wrapped.gpt.load_state_dict(model.state_dict(), assign=True)
    wrapped.generation_config = GenerationConfig(**SAMPLING, **special_ids(tokenizer))
    with _quiet(), as_os_errors(out):
        wrapped.save_pretrained(partial)
    tokenizer.save(partial)
    for file in partial.iterdir():
        share(file)
        os.replace(file, out / file.name)
    partial.rmdir()


def hf_config(model: GPT | Fusion, tokenizer: Tokenizer) -> GlyphLMConfig:
    """config.json of a model; the tokenizer's fingerprint stands in it."""
    return GlyphLMConfig(
        **config_fields(model),
        tokenizer_fingerprint=tokenizer.fingerprint,
        tie_word_embeddings=False,
        **special_ids(tokenizer),
    )


def config_fields(model: GPT | Fusion) -> dict[str, Any]:
    """What config.json tells of the model itself."""
    if isinstance(model, GPT):
        return {"model": asdict(model.config), "substrate": asdict(model.substrate.config)}
    first = [model.reads.index(number) for number in model.reads]  # the first expert that reads the same substrate
    experts = [
        {"model": asdict(expert.config),
         "substrate": asdict(model.substrates[read].config) if first[number] == number else first[number]}
        for number, (expert, read) in enumerate(zip(model.experts, model.reads))
    ]
    return {"experts": experts, "fusion": asdict(model.fusion)}


def special_ids(tokenizer: Tokenizer) -> dict[str, int]:
    """Ids of the special tokens under transformers' names."""
    return {"bos_token_id": tokenizer.start_id, "eos_token_id": tokenizer.end_id, "pad_token_id": tokenizer.pad_id}


def run_config(run: str | Path) -> GlyphLMConfig:
    """config.json of a run folder; weights are not read.

    Raises:
        InputError: it is no finished run, or the file is damaged.
    """
    _check_finished(Path(run))
    try:
        return GlyphLMConfig.from_pretrained(run)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise InputError(f"{run} cannot be loaded ({str(error).splitlines()[0]})") from None


def _check_finished(run: Path) -> None:
    if not (run / "config.json").is_file():
        raise InputError(f"{run} is no finished run (no config.json); train it to the end with glyphlm train")


def load_run(run: str | Path) -> tuple[GlyphLMForCausalLM, Tokenizer]:
    """Model (in eval mode, float32, CPU) and tokenizer of a run folder; no code of the folder is executed.

    Adapters that were kept apart are merged into the weights.

    Raises:
        InputError: it is no finished run, a file is damaged, or the tokenizer is not the one trained with.
    """
    run = Path(run)
    _check_finished(run)
    try:
        with _quiet():
            model, report = GlyphLMForCausalLM.from_pretrained(run, output_loading_info=True, dtype=torch.float32)
    except (*TENSOR_ERRORS, ValueError, TypeError, KeyError, RuntimeError) as error:
        raise InputError(f"{run} cannot be loaded ({str(error).splitlines()[0]})") from None
    wrong = {name: keys for name in ("missing_keys", "unexpected_keys", "mismatched_keys") if (keys := report.get(name))}
    if wrong:
        raise InputError(f"{run}/model.safetensors does not fit config.json: {wrong}")
    tokenizer = Tokenizer.load(run)
    if model.config.tokenizer_fingerprint != tokenizer.fingerprint:
        raise InputError(f"{run}: the model was trained with tokenizer {model.config.tokenizer_fingerprint[:12]}, but "
                         f"tokenizer.json is {tokenizer.fingerprint[:12]}; put the right one back")
    if (run / ADAPTER).is_dir():
        attach_adapters(model, run / ADAPTER)
        merge_adapters(model)
    return model.eval(), tokenizer


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the library's own bars and warnings: what is wrong with a folder is checked and said here."""
    verbosity = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers.logging.set_verbosity(verbosity)
        transformers.logging.enable_progress_bar()


def describe_model(model: GPT | Fusion, tokenizer: Tokenizer) -> dict[str, Any]:
    """What every summary tells of its model: codes, sizes, number of values, vocabulary."""
    return {
        "substrate": asdict(model.substrate.config),
        "model": {"vocab_size": model.vocab_size, **asdict(model.config)},
        "parameters": count_parameters(model),
        "tokenizer": {"vocab_size": tokenizer.vocab_size, "fingerprint": tokenizer.fingerprint},
    }


def weights_sha256(run: str | Path) -> str:
    """What tells the weights of a run, or of an export of one.

    Raises:
        InputError: it has none.
    """
    path = Path(run) / WEIGHTS
    if not path.is_file():
        raise InputError(f"{run} is no finished run: it holds no {WEIGHTS}; give a folder that glyphlm train has filled")
    return sha256_file(path)


def read_summary(run: Path) -> dict[str, Any] | None:
    """summary.json of a finished run, or None."""
    path = run / SUMMARY
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def write_summary(run: Path, summary: dict[str, Any]) -> None:
    """Written last: its presence says that the run is finished."""
    write_atomic(run / SUMMARY, to_json(summary))
