"""The exact protocol of the published benchmark lines, to reproduce them. Not recommended for conclusions.

Each prompt is continued n times by sampled tokens. MMLU: 1 token, ARC and CommonsenseQA: 2; correct if the first letter,
upper-cased, is the key. SQuAD: 256 answerable questions whose first reference has at most 8 characters, as many tokens as
it has characters; correct if it is contained. BLEU: 128 pairs per direction, min(characters of the reference, 100) tokens,
the mean of upper-cased sentence BLEU. The result is the mean of n runs, ± 1.96 σ/√n.

Its known defects:
- The ± is the decoding noise of one model on the same questions, not the variation over questions or training runs.
- A model that puts little probability on option letters scores below chance whatever it knows: see the letter mass.
- The length of the reference leaks into the output; any substring counts (the answer "no" in "cannot").
- BLEU of single sentences, upper-cased, with Chinese split at spaces, is not comparable with corpus BLEU.

Not published, and therefore chosen here: temperature 0.8, top_k 50, top_p 0.95 (of the model cards); which questions a
subset has (drawn by the seed); case-sensitive matching in SQuAD; BoolQ in the format of ARC. An answer is decoded from its
own tokens; the published code removed as many characters as the prompt has from the decoded whole.
"""

import random
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from glyphlm.corpus.tasks import Item
from glyphlm.evaluation.answers import first_letter, sentence_bleu
from glyphlm.evaluation.decoding import READ_TOKENS, WRITE_TOKENS, batches, continue_prompts, uniforms
from glyphlm.evaluation.model import EvalModel
from glyphlm.runs.sampling import Sampling

SQUAD_ITEMS, SQUAD_CHARS = 256, 8
PAIRS, PAIR_TOKENS = 128, 100


def subsample(items: Sequence[Item], count: int | None, seed: int) -> list[Item]:
    """`count` items drawn by the seed, in their order; all items if there are fewer or `count` is None."""
    if count is None or len(items) <= count:
        return list(items)
    return [items[number] for number in sorted(random.Random(seed).sample(range(len(items)), count))]


def protocol_items(items: Sequence[Item], seed: int) -> list[Item]:
    """The items of one task that the protocol uses."""
    if items[0].labels:
        return list(items)
    if "-" in items[0].task:
        return subsample(items, PAIRS, seed)
    return subsample([item for item in items if item.answers and len(item.answers[0]) <= SQUAD_CHARS], SQUAD_ITEMS, seed)


def answer_tokens(item: Item) -> int:
    """Number of new tokens of each answer."""
    if item.labels:
        return 1 if item.task == "mmlu" else 2
    return min(len(item.answers[0]), PAIR_TOKENS)


def score_answer(item: Item, output: str) -> float:
    """1 or 0; for a translation its sentence BLEU, 0 to 100."""
    if item.labels:
        return float(first_letter(output) == first_letter(item.answers[0]))
    return sentence_bleu(output, item.answers[0]) if "-" in item.task else float(item.answers[0] in output)


def sample_answers(
    model: EvalModel,
    items: Sequence[Item],
    sampling: Sampling,
    runs: int,
    seed: int,
    advance: Callable[[int], None],
) -> list[dict[str, Any]]:
    """Log entries: n answers and their scores; with options also the letter mass."""
    prompts = [model.prompt(item.prompt, model.block_size + 1 - answer_tokens(item)) for item in items]
    entries: list[dict[str, Any]] = [{} for _ in items]
    sizes = [len(ids) * runs for ids, _ in prompts]
    budget = READ_TOKENS if items[0].labels else WRITE_TOKENS  # 1 or 2 new tokens: reading dominates
    for group in batches(sizes, budget.get(model.device.type, 0)):
        steps = [answer_tokens(items[number]) for number in group]
        drawn = [uniforms(seed, items[number].task, number, runs, max(steps)) for number in group]
        given = ([prompts[number][0] for number in group], steps, {model.tokenizer.end_id}, sampling)
        found, first = continue_prompts(model, *given, np.stack(drawn))
        for row, (number, copies) in enumerate(zip(group, found)):
            item, outputs = items[number], [model.tokenizer.decode(ids) for ids in copies]
            key = {"labels": item.labels, "correct": item.correct} if item.labels else {"answers": item.answers}
            mass = {"letter_mass": first.mass(row, model.begin_with(item.labels))} if item.labels else {}
            scores = [score_answer(item, output) for output in outputs]
            entries[number] = {**key, "outputs": outputs, "scores": scores, **mass, "cut": prompts[number][1]}
        advance(len(group))
    return entries
