"""Progress: bars on a terminal, plain lines elsewhere, and nothing for work that is done at once."""

import threading
import time
from contextlib import suppress

import pytest

from glyphlm.base import progress
from glyphlm.base.errors import InputError
from glyphlm.base.progress import meter, working


@pytest.fixture
def soon(monkeypatch):
    monkeypatch.setattr(progress, "DELAY", 0.01)
    monkeypatch.setattr(progress, "PLAIN_SECONDS", 0.0)


@pytest.fixture
def called(soon):
    """A function that notes what it is called with, and an event that is set then."""
    values, event = [], threading.Event()

    def note(value):
        values.append(value)
        event.set()

    return note, values, event


def test_work_of_unknown_length_is_one_plain_line_without_a_terminal(called, monkeypatch):
    note, lines, event = called
    monkeypatch.setattr(progress, "say", note)
    with working("opening a"):
        assert event.wait(30)
    assert lines == ["opening a .."]


def test_on_a_terminal_a_moving_bar_has_the_title(called, capsys, monkeypatch):
    note, bars, event = called
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    monkeypatch.setattr(progress.Progress, "start", note)
    with working("opening a"):
        assert event.wait(30)
    assert [task.description for task in bars[0].tasks] == ["opening a"] and capsys.readouterr().err == ""


@pytest.mark.parametrize("error", [None, InputError("no")])
def test_work_that_ends_before_the_delay_prints_nothing(capsys, monkeypatch, error):
    monkeypatch.setattr(progress, "PLAIN_SECONDS", 0.3)
    with suppress(InputError), working("opening a"):
        if error:
            raise error
    time.sleep(0.4)
    assert capsys.readouterr() == ("", "")


def test_a_meter_reports_share_time_and_note(soon, capsys):
    with meter("reading", 10, done=4) as bar:
        bar.advance(1, "line 5")
    line = capsys.readouterr().err
    assert line.startswith("reading: 50%") and line.endswith("line 5\n")


def test_a_meter_without_a_title_prints_nothing(soon, capsys):
    with meter(None, 10) as bar:
        bar.advance(5)
    assert capsys.readouterr().err == ""
