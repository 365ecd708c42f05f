"""The loop of `glyphlm chat`: lines in, answers of one or several runs out."""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from glyphlm.base.errors import InputError
from glyphlm.base.records import parse_yaml, to_lines
from glyphlm.runs.chat import chat_ids
from glyphlm.runs.generate import stream
from glyphlm.runs.opening import Opened
from glyphlm.runs.sampling import Sampling

HELP = "/reset starts over, /settings [NAME VALUE] shows or changes settings, /quit ends"


class Speaker:
    """One run in a conversation, with the messages so far."""

    def __init__(self, opened: Opened):
        self._opened, self.name, self.has_template = opened, opened.name, "chat_template" in opened.control.config
        self.reset()

    def reset(self) -> None:
        """Forget the conversation."""
        self._messages: list[dict[str, str]] = []
        self._text = ""

    def answer(self, line: str, sampling: Sampling) -> Iterator[str]:
        """Pieces of the answer; without a chat template the text so far is continued.

        Raises:
            InputError: the conversation fills the context, or the model gives NaN.
        """
        self._messages.append({"role": "user", "content": line})
        self._text += line
        try:
            ids = chat_ids(self._opened, self._messages) if self.has_template else self._text_ids()
        except InputError:
            self._messages.pop()
            raise
        room = replace(sampling, max_new_tokens=min(sampling.max_new_tokens, self._opened.block_size - len(ids)))
        answer = ""
        for piece in stream(self._opened, ids, room):
            answer += piece
            yield piece
        self._messages.append({"role": "assistant", "content": answer})
        self._text += answer + "\n"

    def _text_ids(self) -> list[int]:
        """The end of the text, at most half of the context, so that the answer has room."""
        return self._opened.prompt_ids(self._text)[-max(1, self._opened.block_size // 2) :]


def converse(runs: Sequence[Opened], sampling: Sampling, as_json: bool = False) -> None:
    """Answer each line of standard input until it ends, with `as_json` as an object a line."""
    speakers = [Speaker(run) for run in runs]
    for speaker in speakers:
        kind = "answers by its chat template" if speaker.has_template else "has no chat template: it continues your text"
        print(f"{speaker.name} {kind}", file=sys.stderr)
    print(HELP, file=sys.stderr)
    for line in _lines():
        command, *words = line.split()
        try:
            if command in ("/quit", "/exit"):
                return
            if command == "/reset":
                for speaker in speakers:
                    speaker.reset()
            elif command == "/settings":
                sampling = _changed(sampling, words)
                print(sampling.describe() + f", at most {sampling.max_new_tokens} tokens", file=sys.stderr)
            elif command.startswith("/"):
                print(f"{command} is not a command; {HELP}", file=sys.stderr)
            else:
                (_print_json if as_json else _show)(speakers, line, sampling)
        except InputError as error:
            print(error, file=sys.stderr)


def _lines() -> Iterator[str]:
    """Lines that are not empty, with a prompt on a terminal."""
    while True:
        try:
            line = input("> " if sys.stdin.isatty() else "")
        except EOFError:
            return
        if line.strip():
            yield line


def _print_json(speakers: Sequence[Speaker], line: str, sampling: Sampling) -> None:
    for speaker in speakers:
        text = "".join(speaker.answer(line, sampling))
        row = {"run": speaker.name, "prompt": line, "text": text, "settings": sampling.describe()}
        print(to_lines([row]), end="", flush=True)


def _show(speakers: Sequence[Speaker], line: str, sampling: Sampling) -> None:
    """The answers as they are written: one after another, or on a terminal several side by side."""
    if len(speakers) > 1 and sys.stdout.isatty():
        _show_side_by_side(speakers, line, sampling)
        return
    for speaker in speakers:
        print(f"{speaker.name}: " if len(speakers) > 1 else "", end="", flush=True)
        for piece in speaker.answer(line, sampling):
            print(piece, end="", flush=True)
        print()


def _show_side_by_side(speakers: Sequence[Speaker], line: str, sampling: Sampling) -> None:
    texts = [Text() for _ in speakers]
    table = Table(*(speaker.name for speaker in speakers), expand=True, box=None, padding=(0, 2, 0, 0))
    table.add_row(*texts)
    with Live(table, console=Console(), auto_refresh=False, vertical_overflow="visible") as live:
        for speaker, text in zip(speakers, texts):
            for piece in speaker.answer(line, sampling):
                text.append(piece)
                live.update(table, refresh=True)


def _changed(sampling: Sampling, words: Sequence[str]) -> Sampling:
    """The settings with NAME VALUE.

    Raises:
        InputError: there is no such setting, or the value is out of range.
    """
    if not words:
        return sampling
    if len(words) != 2:
        raise InputError(f"/settings {' '.join(words)} is not NAME VALUE; give, for example, /settings temperature 0.5")
    name = words[0].replace("-", "_")
    return sampling.changed(**{name: parse_yaml(words[1], name, object, "give a number")})
