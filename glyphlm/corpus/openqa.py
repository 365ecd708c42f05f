"""TriviaQA, HotpotQA and NQ-Open -> Items, from the files of their makers or rows of the Hub.

The layouts of the Hub are those of the cards of the data sets; they were tried with rows made after these, not on the Hub.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

from glyphlm.corpus.items import Item, question_prompt, reading_prompt
from glyphlm.corpus.task_files import Row, json_file, json_lines

UNKNOWN = "<unk>"  # what the Hub's TriviaQA has for the answers of the test split, which its makers keep to themselves


def triviaqa(task: str, files: Sequence[Path]) -> Iterator[Item]:
    """A file of its makers, of any of their sets: {Data: [{Question, Answer: {Value, Aliases}}]}."""
    for row in json_file(files[0]).rows("Data"):
        yield _trivia(task, row, "Question", "Answer", "Value", "Aliases")


def triviaqa_row(task: str, row: Row) -> Item:
    """A row of the Hub: {question, answer: {value, aliases}}."""
    return _trivia(task, row, "question", "answer", "value", "aliases")


def _trivia(task: str, row: Row, question: str, answer: str, value: str, aliases: str) -> Item:
    """The documents that were found for a question are left out; the other names of its answer are right, too."""
    found = row.text(answer, value)
    names = [alias.get(str) for alias in row.rows(answer, aliases)]
    if found == UNKNOWN:
        raise row.fault(f"the answer {UNKNOWN}, which stands for none")
    answers = dict.fromkeys([found, *(name for name in names if name.strip())])
    return Item(task, question_prompt(row.text(question)), tuple(answers))


def nq_open(task: str, files: Sequence[Path]) -> Iterator[Item]:
    """A file of its makers, a row a line."""
    return (nq_open_row(task, row) for row in json_lines(files[0]))


def nq_open_row(task: str, row: Row) -> Item:
    """A row, on the Hub as in the file: {question, answer: [..]}."""
    answers = dict.fromkeys(answer.text() for answer in row.rows("answer"))
    if not answers:
        raise row.fault("no answer")
    return Item(task, question_prompt(row.text("question")), tuple(answers))


def hotpotqa(task: str, files: Sequence[Path]) -> Iterator[Item]:
    """A file of its makers, a list of rows."""
    return (hotpotqa_row(task, row) for row in json_file(files[0]).rows())


def hotpotqa_row(task: str, row: Row) -> Item:
    """A row, of the Hub or of the file: {question, answer, context}. All its paragraphs are shown, a line each."""
    context = "\n".join(f"{page.text('title')}: {_text(page)}" for page in _pages(row))
    question = row.text("question")
    return Item(task, reading_prompt(context, question) if context else question_prompt(question), (row.text("answer"),))


def _pages(row: Row) -> list[Row]:
    """A row of title and sentences for each paragraph: the makers have pairs, the Hub a list of either."""
    if isinstance(row.get(dict).get("context"), dict):
        titles, texts = row.get(list, "context", "title"), row.get(list, "context", "sentences")
        if len(titles) != len(texts):
            raise row.fault(f"{len(titles)} titles with {len(texts)} paragraphs")
        return [Row(row.where, {"title": title, "sentences": text}) for title, text in zip(titles, texts)]
    return [_page(pair) for pair in row.rows("context")]


def _page(pair: Row) -> Row:
    if len(pair.get(list)) != 2:
        raise pair.fault(f"{len(pair.value)} entries, not a title and its sentences")
    return Row(pair.where, dict(zip(("title", "sentences"), pair.value)))


def _text(page: Row) -> str:
    """Sentences bring the spaces between them."""
    return "".join(sentence.get(str) for sentence in page.rows("sentences")).strip()
