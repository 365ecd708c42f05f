"""Benchmarks and supervised examples -> Items: a prompt and its correct answers.

The prompts are exactly those of the published benchmark code (github AVBochkov/PGT, _models_benchmarking.py): no
space after the last colon, the labels of the file (some of ARC are 1-4), texts as the file has them. What it does not
have (T:/Q:/A: blocks, instructions, open questions) follows its form, in any language with the same English words.
"""

import hashlib
import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from glyphlm.base.errors import InputError
from glyphlm.base.names import HUB
from glyphlm.base.outputs import sha256_file
from glyphlm.corpus.reading import hub_rows
from glyphlm.corpus.task_files import Row, aligned_rows, block_rows, csv_rows, json_file, json_lines, tsv_rows

LANGUAGES = {"en": "English", "ru": "Russian", "zh": "Chinese"}
LETTERS = ("A", "B", "C", "D")
TRUTH = ("False", "True")
# There is nothing between "Answer:" and the answer. The published protocol draws one token there (MMLU), and no token of the
# published vocabularies holds a space: after training with a space that one token would be it.
BETWEEN = ""
MMLU_FILE = re.compile(r"(.*?)(_(dev|val|test))?\.csv(\.(gz|bz2|xz|zst))?", re.IGNORECASE)
UNKNOWN = "<unk>"  # TriviaQA on the Hub has this in place of the undisclosed answers of the test split


@dataclass(frozen=True)
class Item:
    """One question.

    `answers` are all correct ones, the first is used for training; empty where the passage has no answer (SQuAD v2).
    `labels` are the labels of the options of a multiple-choice question, `choices` their texts.
    """

    task: str
    prompt: str
    answers: tuple[str, ...]
    labels: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()
    subject: str = ""  # of MMLU

    @property
    def correct(self) -> int | None:
        """Index of the correct label; None where there are no options."""
        return self.labels.index(self.answers[0]) if self.labels else None


def question_prompt(question: str) -> str:
    """The prompt of a question alone."""
    return f"Question: {question}\nAnswer:"


def reading_prompt(context: str, question: str, ask: str = "Answer:") -> str:
    """The prompt of a question about a text."""
    return f"Context: {context}\nQuestion: {question}\n{ask}"


class Task(NamedTuple):
    """The expected path of a task, the parsers of its files and of a row of them or of the Hub, and its data set there."""

    path: str
    rows: Callable[[str, Sequence[Path]], Iterable[Row]]
    item: Callable[[str, Row], Item]
    hub: str = ""


def read_task(name: str, path: str | Path) -> Iterator[Item]:
    """The items of a task, in the order of its files.

    `hf:` takes the set that TASKS names (that of the published protocol, or the most similar one that needs no code), and
    hf:NAME[:CONFIG][:SPLIT] another of the same layout.

    Raises:
        InputError: as `task_files`, or, while reading, a record is damaged (file and line are named) or none is found.
    """
    task, source = _known(name), str(path)
    if not source.startswith(HUB):
        rows = task.rows(name, task_files(name, path))
    elif not task.hub:
        raise InputError(f"{name}={path} cannot be read: there is no such set on the Hub; {name} needs {task.path}")
    else:
        source = task.hub if source == HUB else source
        rows = (Row(*row) for row in hub_rows(source, "validation"))
    return _not_empty(f"{name}={source}", (task.item(name, row) for row in rows))


def describe_task(name: str, path: str | Path) -> dict[str, str]:
    """Identity of the input: name -> sha256 of its file (of several: of their digests); a Hub data set by its name."""
    if str(path).startswith(HUB):
        return {f"{name}={path}": "hub"}
    found = [sha256_file(file) for file in task_files(name, path)]
    return {f"{name}={path}": found[0] if len(found) == 1 else hashlib.sha256("".join(found).encode()).hexdigest()}


def _known(name: str) -> Task:
    if name not in TASKS:
        raise InputError(f"{name!r} is not a task; known are {', '.join(TASKS)}")
    return TASKS[name]


def task_files(name: str, path: str | Path) -> list[Path]:
    """The files that `read_task` reads, in its order; `path` is described by TASKS[name].path.

    Raises:
        InputError: the name is unknown, or there is no such file.
    """
    needed = _known(name).path
    if str(path).startswith(HUB):
        raise InputError(f"{name}={path} is not a file; {name} needs {needed}")
    parts = str(path).split(",") if "-" in name else [path]
    files = [Path(part) for part in parts]
    if name == "mmlu" and Path(path).is_dir():
        files = sorted(file for file in Path(path).iterdir() if MMLU_FILE.fullmatch(file.name))
    missing = next((file for file in files or [path] if not Path(file).is_file()), None)
    if missing is not None:
        raise InputError(f"{missing} does not exist or is not a file; {name} needs {needed}")
    return files


def _not_empty(source: str, items: Iterator[Item]) -> Iterator[Item]:
    first = next(items, None)
    if first is None:
        raise InputError(f"{source} holds no question; remove it or give another file")
    yield first
    yield from items


def _choice(row: Row, task: str, prompt: str, labels: Sequence[str], choices: Sequence[str], key: str) -> Item:
    if len(set(labels)) < max(len(labels), 2):
        raise row.fault(f"labels {', '.join(labels) or 'of no option'}, which are not two or more different ones")
    if key not in labels:
        raise row.fault(f"the key {key!r} is not one of the labels {', '.join(labels)}")
    return Item(task, prompt, (key,), tuple(labels), tuple(choices))


def _options(labels: Sequence[str], choices: Sequence[str]) -> list[str]:
    return [f"{label}) {choice}" for label, choice in zip(labels, choices)]


def _lines(task: str, files: Sequence[Path]) -> Iterable[Row]:
    return json_lines(files[0])


def _entries(task: str, files: Sequence[Path]) -> Iterable[Row]:
    return json_file(files[0]).rows()


def _mmlu_rows(task: str, files: Sequence[Path]) -> Iterable[Row]:
    for file in files:
        subject = MMLU_FILE.sub(r"\1", file.name)
        for row in csv_rows(file, ("question", *LETTERS, "key")):
            yield Row(row.where, row.value | {"subject": subject})


def _mmlu(task: str, row: Row) -> Item:
    """A row of the CSV files, or of the Hub: {question, choices, answer, subject}."""
    if "choices" in row.get(dict):
        choices, answer = [choice.get(str) for choice in row.rows("choices")], row.get(int, "answer")
        if len(choices) != len(LETTERS) or not 0 <= answer < len(LETTERS):
            raise row.fault(f"{len(choices)} choices and the answer {answer}, not {len(LETTERS)} and one of 0 to 3")
        key = LETTERS[answer]
    else:
        choices, key = [row.text(letter) for letter in LETTERS], row.text("key")
    prompt = f"Question: {row.text('question')}\nOptions: {' '.join(_options(LETTERS, choices))}\nAnswer:"
    return replace(_choice(row, task, prompt, LETTERS, choices, key), subject=row.get(str, "subject"))


def _science(task: str, row: Row) -> Item:
    """ARC and CommonsenseQA, in the layout of their makers or that of the Hub."""
    question, options = _hub_layout(row) if isinstance(row.get(dict).get("question"), str) else _makers_layout(row)
    labels, choices = [option.text("label") for option in options], [option.text("text") for option in options]
    if task == "commonsense_qa" and len(labels) != 5:
        raise row.fault(f"{len(labels)} options, not 5")
    prompt = "\n".join([f"Question: {question}", "Options:", *_options(labels, choices), "Answer:"])
    return _choice(row, task, prompt, labels, choices, row.text("answerKey"))


def _makers_layout(row: Row) -> tuple[str, list[Row]]:
    return row.text("question", "stem"), row.rows("question", "choices")


def _hub_layout(row: Row) -> tuple[str, list[Row]]:
    texts, labels = row.get(list, "choices", "text"), row.get(list, "choices", "label")
    if len(texts) != len(labels):
        raise row.fault(f"{len(texts)} choices with {len(labels)} labels")
    return row.text("question"), [Row(row.where, {"text": text, "label": label}) for text, label in zip(texts, labels)]


def _squad_rows(task: str, files: Sequence[Path]) -> Iterable[Row]:
    """The questions of the nested file, each with its context, as rows of the Hub."""
    for article in json_file(files[0]).rows("data"):
        for paragraph in article.rows("paragraphs"):
            context = paragraph.text("context")
            for row in paragraph.rows("qas"):
                yield Row(row.where, row.get(dict) | {"context": context})


def _squad(task: str, row: Row) -> Item:
    if isinstance(row.get(dict).get("answers"), dict):  # of the Hub
        found = [answer.text() for answer in row.rows("answers", "text")]
    else:
        found = [answer.text("text") for answer in row.rows("answers")]
        if row.get(bool, "is_impossible") == bool(found):
            raise row.fault(f"is_impossible is {row.value['is_impossible']} with {len(found)} answers")
    return Item(task, reading_prompt(row.text("context"), row.text("question")), tuple(dict.fromkeys(found)))


def _boolq(task: str, row: Row) -> Item:
    context, question, truth = _stored_boolq(row) if "target_new" in row.get(dict) else _plain_boolq(row)
    prompt = reading_prompt(context, question, "Answer (True/False):")
    return _choice(row, task, prompt, TRUTH, TRUTH, truth)


def _plain_boolq(row: Row) -> tuple[str, str, str]:
    """The layout of the makers and the Hub (answer), or that of SuperGLUE (label)."""
    truth = row.get(bool, "label" if "label" in row.value else "answer")
    return row.text("passage"), row.text("question"), str(truth)


def _stored_boolq(row: Row) -> tuple[str, str, str]:
    """The layout of model-editing sets: the passage in a prompt into which the question is put."""
    prompt = re.fullmatch(r"passage: (.*\S.*)\nquestion: \{\}", row.text("prompt"), re.DOTALL)
    if prompt is None:
        raise row.fault("a prompt that is not 'passage: ..', a new line and 'question: {}'")
    return prompt[1], row.text("subject"), row.text("target_new", "str")


def _block(task: str, row: Row) -> Item:
    return Item(task, reading_prompt(row.text("T"), row.text("Q")), (row.text("A"),))


def _instruction(task: str, row: Row) -> Item:
    """A conversation is one prompt: earlier questions with their answers, then the last question."""
    question = row.text("instruction") + (f"\n{row.text('input')}" if row.get(str, "input") else "")
    turns = [_turn(turn) for turn in row.rows("history")]
    before = "".join(f"{question_prompt(earlier)}{BETWEEN}{answer}\n" for earlier, answer in turns)
    return Item(task, before + question_prompt(question), (row.text("output"),))


def _turn(row: Row) -> tuple[str, str]:
    if len(row.get(list)) != 2:
        raise row.fault(f"{len(row.value)} texts, not a question and its answer")
    pair = Row(row.where, dict(zip(("question", "answer"), row.value)))
    return pair.text("question"), pair.text("answer")


def _pairs(task: str, files: Sequence[Path]) -> Iterable[Row]:
    source, target = task.split("-")
    if len(files) == 2:
        return aligned_rows(files, (source, target))
    if len(files) == 1 and "en" in (source, target):
        other = target if source == "en" else source
        return tsv_rows(files[0], ("en", other, "attribution"))  # English comes first, whatever the direction
    raise InputError(f"{','.join(map(str, files))} cannot be read as {source}-{target}: give two files SOURCE,TARGET, or, "
                     "with English on one side, one TSV")


def _pair(task: str, row: Row) -> Item:
    """Two texts by their languages; on the Hub below `translation`."""
    source, target = task.split("-")
    pair = Row(row.where, row.get(dict).get("translation", row.value))
    prompt = f"Translate from {LANGUAGES[source]} to {LANGUAGES[target]}:\n{pair.text(source)}\nAnswer:"
    return Item(task, prompt, (pair.text(target),))


# Open questions. The layouts of the Hub are those of the cards of the data sets, not tried on the Hub itself.


def _trivia(task: str, row: Row) -> Item:
    """{Question, Answer: {Value, Aliases}} of its makers, of any of their sets; on the Hub the same in small letters.

    The retrieved documents of a question are left out; aliases of its answer are also correct.
    """
    spell = str.capitalize if {"Question", "Answer"} & row.get(dict).keys() else str.lower
    question, answer, value, aliases = map(spell, ("question", "answer", "value", "aliases"))
    found = row.text(answer, value)
    names = [alias.get(str) for alias in row.rows(answer, aliases)]
    if found == UNKNOWN:
        raise row.fault(f"the undisclosed answer {UNKNOWN}")
    answers = dict.fromkeys([found, *(name for name in names if name.strip())])
    return Item(task, question_prompt(row.text(question)), tuple(answers))


def _nq_open(task: str, row: Row) -> Item:
    """A row, on the Hub as in the file: {question, answer: [..]}."""
    answers = dict.fromkeys(answer.text() for answer in row.rows("answer"))
    if not answers:
        raise row.fault("no answer")
    return Item(task, question_prompt(row.text("question")), tuple(answers))


def _hotpotqa(task: str, row: Row) -> Item:
    """A row, of the Hub or of the file: {question, answer, context}. All its paragraphs are shown, a line each."""
    context = "\n".join(f"{page.text('title')}: {_paragraph(page)}" for page in _pages(row))
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


def _paragraph(page: Row) -> str:
    """Sentences already contain the spaces between them."""
    return "".join(sentence.get(str) for sentence in page.rows("sentences")).strip()


SCIENCE = "a .jsonl file in the layout of its makers or of the Hub"
MAKERS = "a .json file in the layout of its makers"
PAIRS = "two files SOURCE,TARGET with a sentence a line, or, with English, one of English TAB other TAB attribution"
ARC = "hf:allenai/ai2_arc:{}:validation"
OPUS, OPUS_CONFIGS = "hf:Helsinki-NLP/opus-100:{}:validation", ("en-ru", "en-zh")
TASKS = {
    "mmlu": Task("a .csv file, or a folder of them, one a subject, without a header: question, A, B, C, D, key",
                 _mmlu_rows, _mmlu, "hf:cais/mmlu:all:test"),
    "arc_easy": Task(SCIENCE, _lines, _science, ARC.format("ARC-Easy")),
    "arc_challenge": Task(SCIENCE, _lines, _science, ARC.format("ARC-Challenge")),
    "commonsense_qa": Task(SCIENCE, _lines, _science, "hf:tau/commonsense_qa::validation"),
    "squad": Task("a .json file in the layout of SQuAD v2", _squad_rows, _squad, "hf:rajpurkar/squad_v2::validation"),
    "boolq": Task("a .jsonl file in the layout of its makers, of SuperGLUE or of model-editing sets",
                  _lines, _boolq, "hf:google/boolq::validation"),
    "triviaqa": Task(MAKERS, lambda task, files: json_file(files[0]).rows("Data"), _trivia,
                     "hf:mandarjoshi/trivia_qa:rc.nocontext:validation"),
    "hotpotqa": Task(MAKERS, _entries, _hotpotqa, "hf:hotpotqa/hotpot_qa:distractor:validation"),
    "nq_open": Task("a .jsonl file of {question, answer}, answer a list",
                    _lines, _nq_open, "hf:google-research-datasets/nq_open::validation"),
    "qa": Task("a .txt file of blocks of lines T: premise, Q: question, A: answer",
               lambda task, files: block_rows(files[0], ("T", "Q", "A")), _block),
    "instructions": Task("a .json file, a list of {instruction, input, output, history}", _entries, _instruction),
    **{f"{source}-{target}": Task(PAIRS, _pairs, _pair, OPUS.format(config) if config in OPUS_CONFIGS else "")
       for config in ("ru-zh", *OPUS_CONFIGS) for source, target in itertools.permutations(config.split("-"))},
}
