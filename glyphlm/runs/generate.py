"""Text from a trained run: prompts in, continuations out, by transformers' generate()."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from glyphlm.base.errors import InputError
from glyphlm.base.ranges import Range, check_values
from glyphlm.modeling.hf import GlyphLMForCausalLM
from glyphlm.runs.folder import SAMPLING, load_run
from glyphlm.tokenizer.tokenizer import Tokenizer

RANGES = {
    "max_new_tokens": Range(1, 10**7, whole=True),
    "temperature": Range(0, 1000),
    "top_k": Range(0, 10**7, whole=True),
    "top_p": Range(0, 1, above=True),
    "seed": Range(0, 2**63 - 1, whole=True),
}


@dataclass
class Sampling:
    """How the next token is chosen; the defaults are those of the published model cards.

    Args:
        max_new_tokens: Length of the continuation; a document that ends sooner stops there.
        temperature: 0 takes the likeliest token always; below 1 sharpens the distribution, above 1 flattens it.
        top_k: Choose among the k likeliest tokens; 0 for all.
        top_p: Choose among the likeliest tokens that together have this probability.
        seed: Same seed, same text.
    """

    max_new_tokens: int = SAMPLING["max_new_tokens"]
    temperature: float = SAMPLING["temperature"]
    top_k: int = SAMPLING["top_k"]
    top_p: float = SAMPLING["top_p"]
    seed: int = 1

    def __post_init__(self) -> None:
        check_values(self, "", RANGES)

    def describe(self) -> str:
        """The settings on one line."""
        if self.temperature == 0:
            return "greedy"
        return f"temperature {self.temperature:g}, top_k {self.top_k}, top_p {self.top_p:g}, seed {self.seed}"


def generate(run: str | Path, prompts: Sequence[str], sampling: Sampling) -> list[str]:
    """The prompts with their continuations; each prompt is drawn from the same seed.

    Raises:
        InputError: the run cannot be loaded, or gives NaN.
    """
    model, tokenizer = load_run(run)
    return [continue_text(model, tokenizer, prompt, sampling) for prompt in prompts]


def continue_text(model: GlyphLMForCausalLM, tokenizer: Tokenizer, prompt: str, sampling: Sampling) -> str:
    """`prompt` and its continuation, up to the end of the document.

    Raises:
        InputError: the model gives NaN.
    """
    ids = prompt_ids(tokenizer, prompt)
    return tokenizer.decode(ids + continue_ids(model, ids, sampling))


def prompt_ids(tokenizer: Tokenizer, prompt: str) -> list[int]:
    """What the model reads before it continues `prompt`."""
    return tokenizer.encode(prompt) or [tokenizer.end_id]  # after which documents begin in training


def continue_ids(
    model: GlyphLMForCausalLM, ids: list[int], sampling: Sampling, stop: Callable[[list[int]], bool] | None = None
) -> list[int]:
    """The new ids after `ids`, with the one that ends the document if it came.

    Args:
        stop: Called after each new id with all new ids; True ends the continuation.

    Raises:
        InputError: the model gives NaN.
    """
    ids_BT = torch.tensor([ids], device=model.device)
    chosen: dict[str, Any] = {"do_sample": False, "temperature": None, "top_k": None, "top_p": None}
    if sampling.temperature > 0:
        chosen = {"do_sample": True, "temperature": sampling.temperature, "top_k": sampling.top_k, "top_p": sampling.top_p}
    if stop is not None:
        chosen["stopping_criteria"] = [lambda seen_BS, _: torch.tensor([stop(seen_BS[0, len(ids):].tolist())],
                                                                       device=model.device)]
    torch.manual_seed(sampling.seed)
    with torch.no_grad():
        out_BT = cast(Any, model).generate(
            ids_BT, attention_mask=torch.ones_like(ids_BT), max_new_tokens=sampling.max_new_tokens,
            cache_implementation="static" if model.device.type == "cuda" else None,
            logits_processor=[_check_numbers], **chosen
        )
    return out_BT[0, len(ids):].tolist()


def _check_numbers(ids_BT: Tensor, scores_BV: Tensor) -> Tensor:
    """A step of generate(): the scores as they are.

    Raises:
        InputError: one is NaN, or all are infinite, as when activations overflow.
    """
    if not bool(scores_BV.logsumexp(-1).isfinite().all()):
        raise InputError(f"the model gives no probabilities (NaN or infinite logits) for token {ids_BT.shape[1] + 1} of the "
                         "text; its training has diverged or a weight is damaged: give another checkpoint")
    return scores_BV
