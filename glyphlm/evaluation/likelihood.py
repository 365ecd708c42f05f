"""The likelihood protocol: options are scored by log-probability, free answers are decoded greedily up to the line end.

Shapes: B items, R options of all items, T positions, V vocabulary.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

from glyphlm.base.errors import InputError
from glyphlm.corpus.tasks import Item
from glyphlm.evaluation.decoding import READ_TOKENS, WRITE_TOKENS, batches, continue_prompts
from glyphlm.evaluation.model import EvalModel


class OptionTokens(NamedTuple):
    """Ids of a prompt and of its options, and whether any were truncated to fit the context of the model."""

    context: list[int]
    rests: list[list[int]]
    was_cut: bool


def score_options(
    model: EvalModel, items: Sequence[Item], between: str, advance: Callable[[int], None]
) -> list[dict[str, Any]]:
    """Log entries: log-probabilities (nats) of the options as letters and, if they differ, as texts; and the letter mass.

    The letter mass is the probability that the next token begins with the letter of an option.
    """
    options = [[between + text for text in (*item.labels, *_texts(item))] for item in items]
    splits = [split_options(model, item.prompt, found) for item, found in zip(items, options)]
    entries: list[dict[str, Any]] = [{} for _ in items]
    sizes = [len(parts.context) * (1 + len(parts.rests)) for parts in splits]
    for group in batches(sizes, READ_TOKENS.get(model.device.type, 0)):
        scores = _log_probabilities(model, [splits[number] for number in group], [items[n].labels for n in group])
        for number, (found, mass) in zip(group, scores):
            item, letters = items[number], len(items[number].labels)
            entries[number] = {
                "labels": item.labels,
                "correct": item.correct,
                "letters": found[:letters],
                **({"choices": item.choices, "texts": found[letters:]} if _texts(item) else {}),
                "letter_mass": mass,
                "cut": splits[number].was_cut,
            }
        advance(len(group))
    return entries


def _texts(item: Item) -> tuple[str, ...]:
    return item.choices if item.choices != item.labels else ()


def split_options(model: EvalModel, prompt: str, options: Sequence[str]) -> OptionTokens:
    """Tokenize a prompt and its options, split as in training and generation (`Tokenizer.encode_pair`).

    A prompt that does not fit the context is truncated on the left, an option longer than the context on the right.

    Raises:
        InputError: an option has no token.
    """
    block, pairs = model.block_size, [model.tokenizer.encode_pair(prompt, option) for option in options]
    empty = [option for option, (_, rest) in zip(options, pairs) if not rest]
    if empty:
        raise InputError(f"{model.name}: its tokenizer has no token for the option {empty[0]!r}; remove that item")
    rests = [rest[:block] for _, rest in pairs]
    context, was_cut = model.last_ids(pairs[0][0], block + 1 - max(map(len, rests)))
    return OptionTokens(context, rests, was_cut or any(len(rest) > block for _, rest in pairs))


def _log_probabilities(
    model: EvalModel, splits: Sequence[OptionTokens], labels: Sequence[Sequence[str]]
) -> list[tuple[list[float], float]]:
    """The log-probability of each option of each item, and the letter mass. Each prompt is read once."""
    logits_BV, prefix = model.read_prompts([parts.context for parts in splits])
    logp_BV = logits_BV.log_softmax(-1)
    found = [logp_BV[b, [rest[0] for rest in parts.rests]].tolist() for b, parts in enumerate(splits)]
    longer = [(b, o) for b, parts in enumerate(splits) for o, rest in enumerate(parts.rests) if len(rest) > 1]
    if longer:
        rests = [splits[b].rests[o] for b, o in longer]
        pads = [max(map(len, rests)) - len(rest) for rest in rests]
        ids_RT = torch.tensor([rest[:-1] + [0] * pad for rest, pad in zip(rests, pads)], device=model.device)
        text_RT = torch.tensor([[1] * (len(rest) - 1) + [0] * pad for rest, pad in zip(rests, pads)], device=model.device)
        y_RT = torch.tensor([rest[1:] + [0] * pad for rest, pad in zip(rests, pads)], device=model.device)
        nats_RT = model.score(prefix.select([b for b, _ in longer]), ids_RT, text_RT, y_RT)
        for (b, o), rest, nats_T in zip(longer, rests, nats_RT):
            found[b][o] -= float(nats_T[: len(rest) - 1].sum())
    for parts, scores in zip(splits, found):
        model.check_numbers(torch.tensor(scores), [parts.context + rest for rest in parts.rests])
    return [(found[b], model.letter_mass(logp_BV[b].exp(), labels[b])) for b in range(len(splits))]


def generate_answers(
    model: EvalModel, items: Sequence[Item], new_tokens: int, advance: Callable[[int], None]
) -> list[dict[str, Any]]:
    """Log entries: the greedy answer up to the end of its line or document."""
    stops = {model.tokenizer.end_id, *model.line_ends}
    steps = min(new_tokens, max(1, model.block_size // 2))  # at least half of the context is left to the prompt
    prompts = [model.prompt(item.prompt, model.block_size + 1 - steps) for item in items]
    entries: list[dict[str, Any]] = [{} for _ in items]
    for group in batches([len(ids) for ids, _ in prompts], WRITE_TOKENS.get(model.device.type, 0)):
        found, _ = continue_prompts(model, [prompts[n][0] for n in group], [steps] * len(group), stops)
        for number, ((ids,), item) in zip(group, zip(found, [items[n] for n in group])):
            output = model.tokenizer.decode(ids).strip()
            entries[number] = {"answers": item.answers, "output": output, "cut": prompts[number][1]}
        advance(len(group))
    return entries
