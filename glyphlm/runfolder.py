"""A run folder IS a Hugging Face folder: weights, config, tokenizer and the two files of code that read them.

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

from glyphlm.errors import InputError
from glyphlm.hf import GlyphLMConfig, GlyphLMForCausalLM
from glyphlm.model import GPT
from glyphlm.outputs import to_json, write_atomic
from glyphlm.tensors import TENSOR_ERRORS, as_os_errors, share
from glyphlm.tokenizer import Tokenizer

SUMMARY = "summary.json"
# As on the published model cards.
SAMPLING = {"max_new_tokens": 100, "temperature": 0.8, "top_k": 50, "top_p": 0.95, "do_sample": True}


def export_model(model: GPT, tokenizer: Tokenizer, out: Path) -> None:
    """Write everything that loads the model into the run folder `out`; each file appears whole.

    Files are made in a folder beside and moved, so that a reader never meets a half-written one.
    """
    partial = out / ".export.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    wrapped = GlyphLMForCausalLM(hf_config(model, tokenizer))
    wrapped.gpt.load_state_dict(model.state_dict())
    wrapped.generation_config = GenerationConfig(**SAMPLING, **special_ids(tokenizer))
    GlyphLMConfig.register_for_auto_class()
    GlyphLMForCausalLM.register_for_auto_class("AutoModelForCausalLM")
    with _quiet(), as_os_errors(out):
        wrapped.save_pretrained(partial)
    tokenizer.save(partial)
    for file in partial.iterdir():
        share(file)
        os.replace(file, out / file.name)
    partial.rmdir()


def hf_config(model: GPT, tokenizer: Tokenizer) -> GlyphLMConfig:
    """config.json of a model; the tokenizer's fingerprint stands in it."""
    return GlyphLMConfig(
        model=asdict(model.config),
        substrate=asdict(model.substrate.config),
        tokenizer_fingerprint=tokenizer.fingerprint,
        tie_word_embeddings=False,
        **special_ids(tokenizer),
    )


def special_ids(tokenizer: Tokenizer) -> dict[str, int]:
    """Ids of the special tokens under transformers' names."""
    return {"bos_token_id": tokenizer.start_id, "eos_token_id": tokenizer.end_id, "pad_token_id": tokenizer.pad_id}


def load_run(run: str | Path) -> tuple[GlyphLMForCausalLM, Tokenizer]:
    """Model (in eval mode, float32, CPU) and tokenizer of a run folder; no code of the folder is executed.

    Raises:
        InputError: it is no finished run, a file is damaged, or the tokenizer is not the one trained with.
    """
    run = Path(run)
    if not (run / "config.json").is_file():
        raise InputError(f"{run} is no finished run (no config.json); train it to the end with glyphlm train")
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


def write_card(out: Path, summary: dict[str, Any]) -> None:
    """README.md of the run folder: what it is, how good, how to load it."""
    write_atomic(out / "README.md", card_text(out.name, summary))


def card_text(name: str, summary: dict[str, Any]) -> str:
    """The model card, with the front matter that the Hub reads."""
    bits, parameters, substrate = summary["bits_per_byte"], summary["parameters"], summary["substrate"]
    held_out = "not measured" if bits["validation"] is None else f"{bits['validation']:.4f}"
    sampling = ", ".join(f"{name}={value}" for name, value in SAMPLING.items())
    freezing = "trainable" if substrate["trainable"] else "frozen"
    return f"""---
library_name: transformers
pipeline_tag: text-generation
tags: [glyphlm, {substrate["kind"]}, {freezing}]
---
# {name}

A decoder-only language model over a {freezing} `{substrate["kind"]}` substrate (width {substrate["n_embed"]}), made by
GlyphLM: {parameters["trained"]:,} trained and {parameters["frozen"]:,} frozen values, {summary["tokens"]:,} tokens.
Held-out bits per byte: {held_out}.

```python
from transformers import AutoModelForCausalLM, AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained("{name}")
model = AutoModelForCausalLM.from_pretrained("{name}", trust_remote_code=True)
ids = tokenizer("Hello", return_tensors="pt").input_ids
print(tokenizer.decode(model.generate(ids, {sampling})[0]))
```

Made with: `{summary["command"]}` (settings.yaml holds every setting).
"""


def read_summary(run: Path) -> dict[str, Any] | None:
    """summary.json of a finished run, or None."""
    path = run / SUMMARY
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def write_summary(run: Path, summary: dict[str, Any]) -> None:
    """Written last: its presence says that the run is finished."""
    write_atomic(run / SUMMARY, to_json(summary))
