"""glyphlm chat: lines in, answers of one or several runs out; commands begin with a stroke."""

import io
import json

import pytest

from glyphlm.cli.main import main
from glyphlm.runs.chat import TEMPLATE
from glyphlm.runs.folder import export_model
from glyphlm.tokenizer.tokenizer import Tokenizer


@pytest.fixture
def said(trained, tokenizer, tmp_path, monkeypatch, capsys):
    """A function: lines typed to `runs` runs -> what is printed on both streams."""

    def talk(lines: list[str], *options: str, runs: int = 1, template: str | None = None):
        folders = [tmp_path / f"run-{number}" for number in range(runs)]
        for model, folder in zip(trained, folders):
            if not folder.exists():
                export_model(model, tokenizer, folder)
        for folder in folders if template else ():
            Tokenizer(tokenizer._backend, tokenizer.config | {"chat_template": template}).save(folder)
        monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(lines) + "\n"))
        greedy = ["--device", "cpu", "--max-new-tokens", "5", "--temperature", "0"]
        assert main(["chat", *map(str, folders), *greedy, *options]) == 0
        return capsys.readouterr()

    return talk


def test_runs_answer_the_same_line_side_by_side(said):
    found = said(["Hello"], runs=2)
    first, second = found.out.splitlines()[0], [line for line in found.out.splitlines() if line.startswith("run-1: ")]
    assert first.startswith("run-0: ") and second
    assert "has no chat template: it continues your text" in found.err


def test_answers_are_objects_with_json(said):
    rows = [json.loads(line) for line in said(["Hello", "/reset"], "--json", runs=2).out.splitlines()]
    assert [(row["run"], row["prompt"]) for row in rows] == [("run-0", "Hello"), ("run-1", "Hello")]
    assert said(["Hello"]).out.strip() == rows[0]["text"].strip()


def test_a_conversation_continues_until_it_is_reset(said, tokenizer):
    line = tokenizer.decode(tokenizer.encode("word " * 80)[:24])  # the context of 64 tokens holds it once
    full = "begin a new one"
    assert full in said([line, line], template=TEMPLATE).err
    once, again = said([line], template=TEMPLATE), said([line, "/reset", line], template=TEMPLATE)
    assert again.out == 2 * once.out and full not in again.err


def test_settings_are_shown_changed_and_checked(said):
    found = said(["/settings temperature 0.5", "/settings top_q 1", "/settings temperature -1", "/what", "/quit", "Hello"])
    assert "temperature 0.5" in found.err and "NAME VALUE" in found.err and "temperature -1" in found.err
    assert "/what is not a command" in found.err and found.out == ""


def test_a_chat_template_is_used_and_a_full_context_is_reported(said):
    found = said(["Who?", "word " * 80, "/reset", "Who?"], template=TEMPLATE)
    assert "answers by its chat template" in found.err and "begin a new one" in found.err
    first, second = found.out.splitlines()[0], found.out.splitlines()[-1]
    assert first and second
