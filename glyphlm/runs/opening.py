"""Open a model to generate from: a run folder, hf:NAME[@REVISION], or what other programs wrote for transformers.

A run on a CPU is opened without transformers, which take 4 seconds to import.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from glyphlm.base.names import CONFIG, WEIGHTS
from glyphlm.base.progress import working
from glyphlm.base.records import read_json
from glyphlm.base.tensors import load_tensors
from glyphlm.modeling.assembly import count_blocks, make_model, shapes_of
from glyphlm.modeling.fusion import Fusion
from glyphlm.modeling.heads import damaged_order
from glyphlm.modeling.model import GPT
from glyphlm.runs.adapters import ADAPTER, ADAPTER_CONFIG
from glyphlm.runs.where import folder_of, name_of
from glyphlm.tokenizer.tokenizer import Tokenizer

OURS = "glyphlm"  # model_type of config.json
# The keys that we write; a config.json with others is read by transformers.
WRITTEN = set("""architectures auto_map bos_token_id dtype eos_token_id experts fusion model model_type pad_token_id
substrate tie_word_embeddings tokenizer_fingerprint transformers_version""".split())


@dataclass(frozen=True, eq=False)
class Opened:
    """A model with its tokenizer.

    Args:
        name: Of its folder, or of its repository on the Hub.
        folder: Where its files are.
        model: GPT or Fusion, or a model of transformers (on a GPU, and of another architecture).
        tokenizer: Its tokenizer, in which the names of special tokens are text.
        block_size: Longest context in tokens.
        start: Ids that its tokenizer puts before every text; none in ours.
    """

    name: str
    folder: Path
    model: Any
    tokenizer: Tokenizer
    block_size: int
    start: tuple[int, ...] = ()

    @cached_property
    def control(self) -> Tokenizer:
        """The tokenizer in which names of special tokens are those tokens, with the chat template, if there is one."""
        return Tokenizer.load(self.folder, specials_in_text="control")

    def prompt_ids(self, text: str) -> list[int]:
        """What the model reads before it continues `text`; documents begin after an end-of-text token."""
        return [*self.start, *self.tokenizer.encode(text)] or [self.tokenizer.end_id]


def open_model(run: str | Path, device: str = "cpu") -> Opened:
    """Open a run, or another folder that transformers read without remote code, in float32.

    Raises:
        InputError: it is not a finished run, a file is damaged or does not fit the others, or it needs code of its own.
    """
    folder = folder_of(run)
    with working(f"opening {run}"):
        return _opened(folder, name_of(run), device)


def _opened(folder: Path, name: str, device: str) -> Opened:
    if (folder / CONFIG).is_file() and not str(read_json(folder / CONFIG).get("model_type")).startswith(OURS):
        from glyphlm.runs.foreign import context_of, load_foreign  # loads transformers

        model, tokenizer, start = load_foreign(str(folder))
        return Opened(name, folder, model.to(device).eval(), tokenizer, context_of(model.config), start)
    if device == "cpu" and (read := _read_plainly(folder)):
        model, tokenizer = read
        return Opened(name, folder, model, tokenizer, model.config.block_size)
    from glyphlm.runs.folder import load_run  # loads transformers

    wrapped: Any
    wrapped, tokenizer = load_run(folder)
    model = wrapped.gpt if device == "cpu" else wrapped.to(device)
    return Opened(name, folder, model, tokenizer, wrapped.config.max_position_embeddings)


def _read_plainly(folder: Path) -> tuple[GPT | Fusion, Tokenizer] | None:
    """Model (in eval mode, float32) and tokenizer of a run as we write it; None for any other, which `load_run` checks."""
    if not all((folder / name).is_file() for name in (CONFIG, WEIGHTS)) or any(
        (folder / name).exists() for name in (ADAPTER, ADAPTER_CONFIG)
    ):
        return None
    config = read_json(folder / CONFIG)
    pairs = config.get("experts") or [{key: config.get(key) for key in ("model", "substrate")}]
    try:
        tokenizer, tensors = Tokenizer.load(folder).as_trained(), load_tensors(folder / WEIGHTS)
        depth = sum(shape.n_layer for shape, *_ in shapes_of(pairs, config.get("fusion")))
        if not config.keys() <= WRITTEN or depth != count_blocks(tensors):
            return None
        with torch.device("meta"):
            model = make_model(pairs, config.get("fusion"))
    except ValueError:
        return None
    values = {name.removeprefix("gpt."): tensor.float() if tensor.is_floating_point() else tensor
              for name, tensor in tensors.items()}
    if not _fits(model, values) or tokenizer.fingerprint != config.get("tokenizer_fingerprint"):
        return None
    model.load_state_dict(values, assign=True)
    if damaged_order(model):
        return None
    return model.requires_grad_(False).eval(), tokenizer


def _fits(model: GPT | Fusion, values: dict[str, torch.Tensor]) -> bool:
    """Whether these are the tensors of the model, and finite."""
    expected, found = ({name: (tensor.shape, tensor.is_floating_point()) for name, tensor in one.items()}
                       for one in (model.state_dict(), values))
    return expected == found and all(bool(tensor.isfinite().all()) for tensor in values.values())
