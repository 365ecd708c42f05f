"""A question as models are asked it, and the forms of prompts that several tasks share."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Item:
    """One question.

    `answers` are all right ones, the first is the one to train on; none where the passage does not tell (SQuAD v2).
    `labels` are what can follow the prompt where there are options, `choices` the texts that they stand for.
    """

    task: str
    prompt: str
    answers: tuple[str, ...]
    labels: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()
    subject: str = ""  # of MMLU

    @property
    def correct(self) -> int | None:
        """Index of the right one of `labels`; None where there are no options."""
        return self.labels.index(self.answers[0]) if self.labels else None


def question_prompt(question: str) -> str:
    """The prompt of a question alone."""
    return f"Question: {question}\nAnswer:"


def reading_prompt(context: str, question: str, ask: str = "Answer:") -> str:
    """The prompt of a question about a text."""
    return f"Context: {context}\nQuestion: {question}\n{ask}"
