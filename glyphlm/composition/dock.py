"""Fusion by bytes: runs and models of other libraries, of any vocabularies -> one model of the next byte, and its folder."""

import hashlib
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import GenerationConfig

from glyphlm.base.errors import InputError
from glyphlm.base.names import CONFIG, TOKENIZER, TOKENIZER_CONFIG
from glyphlm.base.records import read_json
from glyphlm.composition.settings import FusionSettings
from glyphlm.modeling.bytecover import expert_sha256
from glyphlm.modeling.bytefusion import ByteFusion, ByteFusionConfig, ByteFusionForCausalLM
from glyphlm.modeling.model import count_parameters
from glyphlm.runs.adapters import ADAPTER
from glyphlm.runs.folder import export_model, load_run, special_ids, unfinished
from glyphlm.runs.foreign import context_of, load_foreign, quiet
from glyphlm.runs.opening import OURS
from glyphlm.runs.sampling import SAMPLING
from glyphlm.runs.where import folder_of
from glyphlm.tokenizer.tokenizer import Tokenizer, byte_tokenizer

EXPERTS = "experts"  # folder of the experts inside a fused run
PROBE = "a"  # encoded to find what a tokenizer puts before every text
COPIED = (CONFIG, TOKENIZER, TOKENIZER_CONFIG, "generation_config.json")


def sources(runs: Sequence[str]) -> list[str]:
    """The folders of all experts; a fused run of this kind counts as its experts."""
    found: list[str] = []
    for run in runs:
        inside = folder_of(run) / EXPERTS
        number = len(list(inside.iterdir())) if inside.is_dir() else 0
        found += [str(inside / str(one)) for one in range(1, number + 1)] or [run]
    return found


@quiet()
def dock(settings: FusionSettings, out: Path) -> tuple[ByteFusionForCausalLM, Tokenizer]:
    """Write the fused model and unchanged copies of its experts, each a complete folder, into `out`; model and tokenizer.

    Raises:
        InputError: an expert cannot be loaded, or its tokenizer loses text.
    """
    runs = sources(settings.experts)
    runs = [runs[number] for number in settings.kept(len(runs))]
    docked = [_place(run, out / EXPERTS / str(number)) for number, run in enumerate(runs, 1)]
    config = ByteFusionConfig([described for described, *_ in docked], asdict(settings.config(settings.weights)))
    tokenizer = byte_tokenizer()
    for key, value in (special_ids(tokenizer) | {"tokenizer_fingerprint": tokenizer.fingerprint}).items():
        setattr(config, key, value)
    model = ByteFusionForCausalLM(config)
    for expert, (_, bytes_X, lengths_V, digest) in zip(model.gpt.experts, docked):
        expert.bytes_X, expert.lengths_V, expert.sha256 = bytes_X, lengths_V, digest
    model.generation_config = GenerationConfig(**SAMPLING, **special_ids(tokenizer), suppress_tokens=model.no_text)
    model.save_pretrained(out)
    tokenizer.save(out)
    for number, expert in enumerate(model.gpt.experts, 1):
        expert.open(out / EXPERTS / str(number))
    return model.eval(), tokenizer


def _place(run: str, folder: Path) -> tuple[dict[str, Any], torch.Tensor, torch.Tensor, torch.Tensor]:
    """Copy the expert into `folder`; its arguments and buffers of ByteExpert."""
    found = folder_of(run)
    ours = not (found / CONFIG).is_file() or str(read_json(found / CONFIG).get("model_type")).startswith(OURS)
    start: int | None
    if ours:
        model, tokenizer = load_run(found)  # also reports what a folder lacks
        start = tokenizer.end_id
    else:
        model, tokenizer, _ = load_foreign(str(found))
        start = tokenizer.end_id if tokenizer.start_id is None else tokenizer.start_id
    folder.mkdir(parents=True)
    if not ours:
        model.save_pretrained(folder)
        tokenizer.save(folder)
    elif (found / ADAPTER).is_dir():
        export_model(model.gpt, tokenizer, folder)
    else:
        for path in found.iterdir():
            if path.name in COPIED or path.suffix == ".safetensors" or path.name.endswith(".index.json"):
                shutil.copyfile(path, folder / path.name)
    spelled = [tokenizer.text_bytes(number) for number in range(tokenizer.vocab_size)]
    lead = b"".join(spelled[number] for number in tokenizer.encode(PROBE)).removesuffix(PROBE.encode()).decode()
    _check_lossless(run, tokenizer, lead)
    described = {"bytes": sum(map(len, spelled)), "ids": len(spelled), "start": start, "end": tokenizer.end_id, "lead": lead,
                 "block_size": context_of(model.config)}
    raw = torch.from_numpy(np.frombuffer(b"".join(spelled), np.uint8).copy())
    return (described, raw, torch.tensor([*map(len, spelled)], dtype=torch.int32),
            torch.tensor([*expert_sha256(folder)], dtype=torch.uint8))


def _check_lossless(run: str, tokenizer: Tokenizer, lead: str) -> None:
    """Refuse a tokenizer that changes text, because an expert must score the text as it is written."""
    for text in ("A b  C\n\tdé", "Ёж и 中文。", "1,234 don't"):
        found = b"".join(tokenizer.text_bytes(number) for number in tokenizer.encode(text)).decode(errors="replace")
        if found != lead + text and tokenizer.unknown_id not in tokenizer.encode(text):
            raise InputError(f"the tokenizer of {run} makes {found!r} of {text!r}; fuse models whose tokenizers keep text")


def describe_docked(model: ByteFusionForCausalLM, tokenizer: Tokenizer, settings: FusionSettings) -> dict[str, Any]:
    """Summary fields of the fused model."""
    fusion: ByteFusion = model.gpt
    counts = [count_parameters(expert.model) for expert in fusion.experts]
    total = sum(count["total"] for count in counts)
    digest = hashlib.sha256(b"".join(bytes(expert.sha256.tolist()) for expert in fusion.experts)).hexdigest()
    return {
        "fusion": {"method": settings.method, "experts": list(settings.experts), "weights": fusion.weights,
                   "parameters": [count["total"] for count in counts], "settings": asdict(fusion.fusion)},
        "substrate": {"kind": "bytes", "n_embed": None, "trainable": False, "fingerprint": digest},
        "model": {"vocab_size": fusion.vocab_size, **asdict(fusion.config)},
        "parameters": {"trained": 0, "frozen": total, "total": total},
        "tokenizer": {"vocab_size": tokenizer.vocab_size, "fingerprint": tokenizer.fingerprint},
    }


def expert_digest(run: str) -> str:
    """The digest of the files of an expert, or of the experts of a fused run.

    Raises:
        InputError: it is not the folder of a model.
    """
    folders = [folder_of(source) for source in sources([run])]
    missing = next((folder for folder in folders if not (folder / CONFIG).is_file()), None)
    if missing is not None:
        raise unfinished(missing, CONFIG)
    return hashlib.sha256(b"".join(map(expert_sha256, folders))).hexdigest()
