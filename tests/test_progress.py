"""Long work prints a bar if stderr is a terminal, else lines."""

import sys

import pytest

from slms import progress as module
from slms.progress import Pace, Progress, progress


@pytest.fixture
def clock(monkeypatch):
    """Seconds that pass only when told."""
    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return lambda seconds: now.__setitem__(0, now[0] + seconds)


def test_short_work_is_silent_and_long_work_says_a_line_now_and_then(clock, capsys):
    for _ in progress(range(100), "reading"):
        clock(0.1)
    assert capsys.readouterr().err == ""
    for _ in progress(range(100), "reading"):
        clock(10)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "reading 2/100 (16.3 min left)"
    assert 15 < len(lines) < 40, "lines become rarer as time goes by"


def test_the_first_of_many_steps_is_no_measure(clock, capsys):
    with Progress("cutting", 30) as steps:
        for seconds in (100, 20, 20):
            clock(seconds)
            steps.update()
    assert capsys.readouterr().err.splitlines() == [
        "cutting 1/30",
        "cutting 2/30 (9.3 min left)",
        "cutting 3/30 (9.0 min left)",
    ]


def test_work_inside_work_is_said_on_one_line(clock, capsys):
    with Progress("models", 2) as outer:
        for _ in progress(["a", "b"], "scoring"):
            clock(20)
        outer.update()
    assert capsys.readouterr().err.splitlines() == ["models 0/2, scoring 1/2 (20 s left)", "models 0/2, scoring 2/2"]


def test_what_raises_leaves_nothing_open(clock, capsys):
    with pytest.raises(ZeroDivisionError), Progress("failing", 3):
        raise ZeroDivisionError
    with Progress("next", 3, unit="token") as steps:
        clock(20)
        steps.update(2, "further")
    assert capsys.readouterr().err == "further 2/3 (10 s left)\n"


def test_a_terminal_gets_a_bar(monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with Progress("measuring", 10) as steps:
        steps._bar.delay = 0
        steps._bar.mininterval = 0
        steps.update(5)
    assert "measuring" in capsys.readouterr().err


def test_only_the_first_process_speaks(clock, capsys, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "1")
    for _ in progress(range(3), "reading"):
        clock(60)
    assert capsys.readouterr().err == ""


def test_a_pace_starts_with_silence(clock):
    pace = Pace()
    assert not pace.due()
    clock(16)
    assert pace.due() and not pace.due()
