# SPDX-License-Identifier: Apache-2.0
"""A bar in a log file is a few plain lines."""

from __future__ import annotations

import io
import logging
import sys
from contextlib import ExitStack

import pytest
from ignite.engine import Engine

from scripts import progress
from scripts.errors import UserError
from scripts.progress import CaseProgress, PlainLines, open_bar


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_log_file_gets_whole_lines_and_the_last_state(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", log := io.StringIO())
    assert list(open_bar(range(5), desc="cases", unit="case")) == [0, 1, 2, 3, 4]
    assert [line.split(" [")[0] for line in log.getvalue().splitlines()] == ["cases: 5/5"]
    assert log.getvalue().endswith("\n") and "\r" not in log.getvalue()


def test_lines_come_at_the_given_pace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", log := io.StringIO())
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.0)
    list(open_bar(range(3), desc="cases"))
    assert [line.split(" [")[0] for line in log.getvalue().splitlines()][-1] == "cases: 3/3"
    assert len(log.getvalue().splitlines()) > 1


def test_a_bar_that_leaves_nothing_writes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", log := io.StringIO())
    list(open_bar(range(3), desc="sizes", leave=False))
    assert log.getvalue() == ""


def test_a_terminal_gets_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    list(open_bar(range(2), desc="cases"))
    assert "\r" in terminal.getvalue() and "cases: 100%" in terminal.getvalue()


def test_messages_do_not_continue_the_line_of_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setattr(progress, "_redirected", ExitStack())
    logger = logging.Logger("of a test")
    logger.addHandler(logging.StreamHandler(terminal))
    monkeypatch.setitem(logging.root.manager.loggerDict, logger.name, logger)
    with progress._redirected:
        progress.log_above_bars()
        with open_bar(range(2), desc="cases"):
            logger.info("hello")
    # The bar is wiped before the message, which has a line of its own, and drawn again after it.
    shown = terminal.getvalue().split("hello\n")
    assert len(shown) == 2 and shown[0].endswith("\r") and "cases:   0%" in shown[1]


def test_an_evaluator_has_the_same_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", log := io.StringIO())
    engine = Engine(lambda engine, batch: None)
    CaseProgress("evaluating").attach(engine)
    engine.run([0] * 3)
    assert [line.split(" [")[0] for line in log.getvalue().splitlines()] == ["evaluating: 3/3"]


def test_a_line_is_finished_before_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail_at_2(engine: Engine, batch: int) -> None:
        if engine.state.iteration == 2:
            raise UserError("look at this case.")

    monkeypatch.setattr(sys, "stderr", log := io.StringIO())
    engine, bar = Engine(fail_at_2), CaseProgress("evaluating")
    engine.logger.disabled = True
    bar.attach(engine)
    with pytest.raises(UserError):
        engine.run([0] * 3)
    assert bar.bar is None and log.getvalue().startswith("evaluating: 1/3")


def test_cursor_movements_are_left_out() -> None:
    lines = PlainLines(text := io.StringIO())
    for part in ("\rone  ", "\n", "\x1b[A", "\n\x1b[Atwo", ""):
        lines.write(part)
    assert text.getvalue() == "one\ntwo\n"
