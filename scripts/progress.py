# SPDX-License-Identifier: Apache-2.0
"""Progress bars that become plain lines in a log file."""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, TextIO

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

if TYPE_CHECKING:
    from ignite.engine import Engine

LINE_SECONDS = 30.0
"""Least time between two lines of a bar where the output is no terminal."""

PLAIN = "{desc}: {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_fmt}{postfix}]"
BAR = "{desc}: {percentage:3.0f}% |{bar:12}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_fmt}{postfix}]"
CONTROL = re.compile(r"[\r\n]|\x1b\[[0-9;]*[A-Za-z]")


class PlainLines:
    """A text file that gets each state of a bar as a line, without carriage returns and cursor movements.

    Args:
        file: where the lines go.
    """

    def __init__(self, file: TextIO) -> None:
        self.file = file

    def write(self, text: str) -> None:
        """Write the text as a line, if anything is left of it."""
        line = CONTROL.sub("", text).rstrip()
        if line:
            self.file.write(f"{line}\n")

    def flush(self) -> None:
        """Flush the file."""
        self.file.flush()


def open_bar(iterable: Iterable[Any] | None = None, **options: Any) -> tqdm:
    """A bar of tqdm on stderr; where that is no terminal, at most a line every `LINE_SECONDS`, and one at the end.

    Args:
        iterable: what is passed on, item by item, if anything.
        options: arguments of tqdm; those about the look and the pace hold for a terminal only.
    """
    if not sys.stderr.isatty():
        # With a delay, tqdm shows nothing before the first step.
        options |= {"file": PlainLines(sys.stderr), "mininterval": LINE_SECONDS, "delay": 1e-9, "bar_format": PLAIN}
    return tqdm(iterable, **{"bar_format": BAR, "dynamic_ncols": True, **options})


_redirected = ExitStack()


def log_above_bars() -> None:
    """On a terminal, write log messages above open bars from now on, where they would continue the line of a bar."""
    if sys.stderr.isatty():
        loggers = [logger for logger in (logging.root, *_named_loggers()) if logger.handlers]
        _redirected.enter_context(logging_redirect_tqdm(loggers))


def _named_loggers() -> list[logging.Logger]:
    return [logger for logger in logging.root.manager.loggerDict.values() if isinstance(logger, logging.Logger)]


Progress = Callable[[Iterable, str], Iterable]
"""Wraps an iterable in a progress bar with a title."""


def progress_bar(items: Iterable, title: str) -> Iterable:
    """Show a progress bar on stderr."""
    return open_bar(items, desc=title, unit="case", leave=False)


class EngineProgress:
    """A bar that moves after each iteration of an engine, and is closed at its end or at an error.

    Subclasses open `bar` and implement `move`.
    """

    bar: tqdm | None = None

    def attach(self, engine: Engine) -> None:
        """Follow an engine."""
        from ignite.engine import Events  # here, because most users of this module need no engine

        engine.add_event_handler(Events.ITERATION_COMPLETED, self.move)
        engine.add_event_handler(Events.COMPLETED, self.close)
        engine.add_event_handler(Events.EXCEPTION_RAISED, self.fail)

    def move(self, engine: Engine) -> None:
        """Show the iteration that was just done."""
        raise NotImplementedError

    def close(self, engine: Engine) -> None:
        """Finish the line."""
        if self.bar is not None:
            self.bar.close()
            self.bar = None

    def fail(self, engine: Engine, error: BaseException) -> None:
        """Finish the line and let the error go on."""
        self.close(engine)
        raise error


class CaseProgress(EngineProgress):
    """Show how many cases an evaluator has done. ignite's `ProgressBar` would write a line for each in a log file.

    Args:
        desc: what is done.
    """

    def __init__(self, desc: str) -> None:
        self.desc = desc

    def attach(self, engine: Engine) -> None:
        """Open when `engine` starts, move after each iteration, close at the end or at an error."""
        from ignite.engine import Events

        engine.add_event_handler(Events.STARTED, self.open)
        super().attach(engine)

    def open(self, engine: Engine) -> None:
        """Begin the line."""
        self.bar = open_bar(total=engine.state.epoch_length, desc=self.desc, unit="case")

    def move(self, engine: Engine) -> None:
        """Count a case."""
        if self.bar is not None:
            self.bar.update()
