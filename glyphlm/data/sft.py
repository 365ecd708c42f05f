"""Supervised examples for the training text: the items of NAME=PATH specs as (prompt, answer)."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from glyphlm.base.errors import InputError
from glyphlm.base.progress import meter
from glyphlm.corpus.tasks import BETWEEN, HUB, TASKS, describe_task, read_task, task_files


class Example(NamedTuple):
    """A document of its own is `prompt + answer`."""

    prompt: str
    answer: str


def examples(specs: Sequence[str], title: str = "reading examples") -> Iterator[Example]:
    """One example of each item that has an answer, with a progress bar: specs as given, items as in their files.

    Questions that their passage does not answer (SQuAD v2) are left out: no prompt tells that "unanswerable" is an
    answer, and the published benchmark leaves them out as well.

    Raises:
        InputError: as `split_specs` and `tasks.read_task`, or no item of a spec has an answer.
    """
    pairs, count = split_specs(specs), 0
    sizes = [sum(file.stat().st_size for file in _files(*pair)) for pair in pairs]
    with meter(title, sum(sizes) or None) as bar:
        for pair, size in zip(pairs, sizes):
            before = count
            for item in read_task(*pair):
                if item.answers:
                    count += 1
                    yield Example(item.prompt, BETWEEN + item.answers[0])
                    bar.advance(0, f"{count:,} examples")
            if count == before:
                raise InputError(f"{'='.join(pair)} holds no question with an answer; remove it or give another file")
            bar.advance(size, f"{count:,} examples")


def _files(name: str, path: str) -> list[Path]:
    return [] if path.startswith(HUB) else task_files(name, path)


def describe_examples(specs: Sequence[str]) -> dict[str, str]:
    """What identifies the input, as `tasks.describe_task` of each spec.

    Raises:
        InputError: as `split_specs` and `tasks.task_files`.
    """
    return {key: value for pair in split_specs(specs) for key, value in describe_task(*pair).items()}


def split_specs(specs: Sequence[str]) -> list[tuple[str, str]]:
    """(NAME, PATH) of each NAME=PATH.

    Raises:
        InputError: there is none, one is no NAME=PATH, or one is given twice.
    """
    if not specs:
        raise InputError("no examples were given: name them as NAME=PATH, such as arc_easy=ARC-Easy-Train.jsonl")
    for spec in specs:
        if not all(spec.partition("=")):
            raise InputError(f"{spec!r} is no NAME=PATH, such as arc_easy=ARC-Easy-Train.jsonl; names: {', '.join(TASKS)}")
        if specs.count(spec) > 1:
            raise InputError(f"{spec} is given twice; name it once, and give its source more weight in the recipe")
    return [(name, path) for name, _, path in (spec.partition("=") for spec in specs)]
