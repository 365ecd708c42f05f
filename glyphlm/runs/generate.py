"""Text from a trained run: prompts in, continuations out, by transformers' generate()."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from glyphlm.base.errors import InputError
from glyphlm.modeling.hf import GlyphLMForCausalLM
from glyphlm.runs.folder import load_run
from glyphlm.runs.sampling import Sampling
from glyphlm.tokenizer.tokenizer import Tokenizer


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
