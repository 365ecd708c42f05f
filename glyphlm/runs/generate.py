"""Text from a trained run: prompts in, continuations out, token by token."""

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from glyphlm.base.errors import InputError
from glyphlm.modeling.attention import KVCache
from glyphlm.modeling.heads import CodeHead
from glyphlm.runs.opening import Opened, open_model
from glyphlm.runs.sampling import Sampling
from glyphlm.tokenizer.spelling import BYTE
from glyphlm.tokenizer.tokenizer import Tokenizer

PARTIAL = "\ufffd"  # what a character decodes to while its last bytes are missing


def generate(run: str | Path, prompts: Sequence[str], sampling: Sampling | None = None, device: str = "cpu") -> list[str]:
    """The prompts with their continuations; each prompt is drawn from the same seed.

    Args:
        run: A run folder, hf:NAME[@REVISION], or a folder that transformers read without remote code.

    Raises:
        InputError: the run cannot be loaded, or gives NaN.
    """
    opened = open_model(run, device)
    return [prompt_and_text(opened, prompt, sampling or Sampling()) for prompt in prompts]


def prompt_and_text(opened: Opened, prompt: str, sampling: Sampling) -> str:
    """`prompt` and its continuation, up to the end of the document.

    Raises:
        InputError: the model gives NaN.
    """
    ids = opened.prompt_ids(prompt)
    return opened.tokenizer.decode(ids + continue_ids(opened.model, ids, sampling, end_id=opened.tokenizer.end_id))


def continue_text(model: Any, tokenizer: Tokenizer, prompt: str, sampling: Sampling) -> str:
    """As `prompt_and_text`, of a model and its tokenizer without a folder."""
    return prompt_and_text(Opened("", Path(), model, tokenizer, 0), prompt, sampling)


def continue_ids(
    model: Any,
    ids: list[int],
    sampling: Sampling,
    stop: Callable[[list[int]], bool] | None = None,
    end_id: int | None = None,
) -> list[int]:
    """The new ids after `ids`, with the one that ends the document if it came.

    Args:
        model: GPT, Fusion, ByteFusion, or a model of transformers.
        stop: Called after each new id with all new ids; True ends the continuation.
        end_id: The id that ends a document; by default that of the model's generation_config.

    Raises:
        InputError: the model gives NaN.
    """
    end_id = model.generation_config.eos_token_id if end_id is None else end_id
    new: list[int] = []
    for chosen in new_ids(model, ids, sampling, end_id):
        new.append(chosen)
        if stop is not None and stop(new):
            break
    return new


@torch.no_grad()
def new_ids(model: Any, ids: list[int], sampling: Sampling, end_id: int | None) -> Iterator[int]:
    """The ids after `ids`, one by one, up to `end_id`; the numbers are those of transformers' generate()."""
    logits_after = reader(model, len(ids) + sampling.max_new_tokens, sampling.top_k if sampling.temperature else 1)
    drawn = torch.Generator(model.device).manual_seed(sampling.seed)
    read_BT = torch.tensor([ids], device=model.device)
    for number in range(sampling.max_new_tokens):
        scores_BV = _check_numbers(logits_after(read_BT).float(), len(ids) + number + 1)
        scores_BV[:, getattr(model, "no_text", None) or []] = -math.inf
        if sampling.temperature > 0:
            read_BT = torch.multinomial(_narrowed(scores_BV, sampling).softmax(-1), 1, generator=drawn)
        else:
            read_BT = scores_BV.argmax(-1, keepdim=True)
        chosen = int(read_BT)
        yield chosen
        if chosen == end_id:
            return


def reader(model: Any, length: int, likeliest: int = 0) -> Callable[[Tensor], Tensor]:
    """A function that reads more ids [1, T] of one text of at most `length` ids, and gives logits [1, V] of the next one.

    Only those of the `likeliest` ids are needed, or all (0); a head of kind code finds them without computing the others.
    """
    inner: Any = model if hasattr(model, "hidden") else getattr(model, "gpt", None)
    if inner is None or model.device.type != "cpu":
        from glyphlm.runs.foreign import cached_reader  # loads transformers

        return cached_reader(model, length)
    cache, head = KVCache(), getattr(inner, "head", None)
    logits_of = partial(head.best, count=likeliest) if isinstance(head, CodeHead) and likeliest else inner.logits
    return lambda ids_BT: logits_of(inner.hidden(ids_BT, cache=cache)[:, -1])


def _narrowed(scores_BV: Tensor, sampling: Sampling) -> Tensor:
    """The scores at this temperature, minus infinity outside top_k and top_p."""
    scores_BV = scores_BV / sampling.temperature
    if sampling.top_k:
        least_B1 = scores_BV.topk(min(sampling.top_k, scores_BV.shape[-1])).values[..., -1:]
        scores_BV = scores_BV.masked_fill(scores_BV < least_B1, -math.inf)
    if sampling.top_p < 1:
        rising_BV, order_BV = scores_BV.sort(descending=False)
        outside_BV = rising_BV.softmax(-1).cumsum(-1) <= 1 - sampling.top_p
        outside_BV[..., -1] = False
        scores_BV = scores_BV.masked_fill(outside_BV.scatter(1, order_BV, outside_BV), -math.inf)
    return scores_BV


def _check_numbers(scores_BV: Tensor, place: int) -> Tensor:
    """The scores as they are.

    Raises:
        InputError: one is NaN, or all are infinite, as when activations overflow.
    """
    if not bool(scores_BV.logsumexp(-1).isfinite().all()):
        raise InputError(f"the model gives no probabilities (NaN or infinite logits) for token {place} of the text; its "
                         "training has diverged or a weight is damaged: give another checkpoint")
    return scores_BV


class TextStream:
    """The text of a continuation while it is written, in pieces that no later id can change.

    Args:
        ids: What was read before it.
        stops: Texts that end the continuation, which then ends before them.
    """

    def __init__(self, tokenizer: Tokenizer, ids: list[int], stops: Sequence[str] = ()):
        self._tokenizer, self._ids, self._stops, self.sent = tokenizer, ids, stops, 0
        self._before = len(tokenizer.decode(ids))  # decoded with the prompt: foreign decoders trim the first space
        self._held = max(map(len, stops), default=1) - 1  # characters that may be the beginning of a stop text

    def text(self, new: list[int]) -> tuple[str, bool]:
        """The text of the new ids, and whether a stop text ended it."""
        text = self._tokenizer.decode(self._ids + new)[self._before :]
        ends = [at for stop in self._stops if (at := text.find(stop)) >= 0]
        return (text[: min(ends)], True) if ends else (text, False)

    def next_piece(self, new: list[int]) -> tuple[str, bool]:
        """What can be shown after these new ids besides what was shown before, and whether a stop text ended it."""
        text, stopped = self.text(new)
        certain = text if stopped else self._certain(new)
        piece = certain[self.sent :]
        self.sent = max(self.sent, len(certain))
        return piece, stopped

    def rest(self, new: list[int]) -> str:
        """What was not shown when the continuation has ended."""
        return self.text(new)[0][self.sent :]

    def _certain(self, new: list[int]) -> str:
        """The text that no later id can change: bytes in a row are decoded together, so that a later one can."""
        settled = len(new)
        while settled and BYTE.fullmatch(self._tokenizer.tokens[new[settled - 1]]):
            settled -= 1
        text, _ = self.text(new[:settled])
        return text[: len(text) - self._held].rstrip(PARTIAL)


def stream(opened: Opened, ids: list[int], sampling: Sampling, stops: Sequence[str] = ()) -> Iterator[str]:
    """Pieces of the text after `ids`, as they are written; a text of `stops` ends it.

    Raises:
        InputError: the model gives NaN.
    """
    shown, new = TextStream(opened.tokenizer, ids, stops), []
    for chosen in new_ids(opened.model, ids, sampling, opened.tokenizer.end_id):
        new.append(chosen)
        piece, stopped = shown.next_piece(new)
        if piece:
            yield piece
        if stopped:
            return
    if piece := shown.rest(new):
        yield piece
