"""What is shown of work that takes long."""

from __future__ import annotations

import io
import logging
import sys

import pytest

from storage.progress import Work, WorkProgress


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_elsewhere_than_in_a_terminal_each_tenth_is_a_line(caplog, monkeypatch) -> None:
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    caplog.set_level(logging.INFO, "storage.progress")
    now = 0.0
    with WorkProgress(Work("encoding", 1_000, "pictures"), clock=lambda: now) as progress:
        for _ in range(1_000):
            progress.update("encoding")
            now += 0.1
    first, second, *_, last = lines = caplog.messages
    # The first five seconds are silent.
    assert first == "encoding: 100 of 1,000 pictures, 10 a second, about 89 s left"
    assert second.startswith("encoding: 200 of 1,000 pictures, 10 a second")
    assert last == "encoding: 1,000 of 1,000 pictures, 10 a second"
    assert len(lines) == 10


def test_what_is_short_empty_or_unknown_is_not_shown(caplog, monkeypatch) -> None:
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    caplog.set_level(logging.INFO, "storage.progress")
    now = 0.0
    works = (Work("scoring", 100, "losses"), Work("drawing", 0, "pictures"))
    with WorkProgress(*works, clock=lambda: now) as progress:
        for _ in range(100):
            now += 0.04
            progress.update("scoring")
        progress.update("drawing", 7)
        progress.update("another")
    assert not caplog.messages


@pytest.mark.parametrize(("seconds", "shown"), [(0.01, False), (1.0, True)])
def test_in_a_terminal_it_is_a_bar_with_count_speed_and_time_left(
    seconds: float, shown: bool, caplog, monkeypatch
) -> None:
    terminal = _Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    now = 0.0
    with WorkProgress(Work("drawing", 50, "pictures"), clock=lambda: now) as progress:
        for _ in range(20):
            now += seconds
            progress.update("drawing")
    text = terminal.getvalue()
    assert ("drawing" in text) is shown
    assert ("20/50" in text) is shown
    assert not caplog.messages
