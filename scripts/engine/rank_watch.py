# SPDX-License-Identifier: Apache-2.0
"""Notice that another process of the run has died or hangs, and stop with a sentence that says so."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType

from torch import distributed

logger = logging.getLogger("RankWatch")

GOODBYE = b"left"
STOPPED = 143
"""Exit status of a process that SIGTERM ended."""


class RankWatch(threading.Thread):
    """A thread that gives a sign of life of its own rank and looks for those of the others.

    A timeout of the exchanges cannot do it: a rank may rightly wait minutes for one that validates a large case, but a
    dead one is to be noticed within a minute. So every rank counts up in the common store, and one whose count stands
    still for `patience` seconds is lost. The process then ends at once, as its main thread may hang in an exchange that
    nothing interrupts; saved states are whole at any moment.

    Args:
        store: reached by all ranks; of this thread alone, as a store serves one caller at a time.
        rank: this process.
        num_ranks: number of processes.
        patience: seconds without a sign of life.
        interval: seconds between two looks.
        on_loss: called with a sentence when a rank is lost; by default it is printed and the process ends.
    """

    def __init__(
        self,
        store: distributed.Store,
        rank: int,
        num_ranks: int,
        patience: float = 30.0,
        interval: float = 1.0,
        on_loss: Callable[[str], None] | None = None,
    ) -> None:
        super().__init__(name="RankWatch", daemon=True)
        self.store = distributed.PrefixStore("signs_of_life", store)
        self.own, self.others = str(rank), [str(r) for r in range(num_ranks) if r != rank]
        self.patience, self.interval = patience, interval
        self.on_loss = on_loss or _end
        self._leaving = threading.Event()

    def run(self) -> None:
        """Sign and look until this rank leaves."""
        count = 0
        seen = dict.fromkeys(self.others, b"")
        last = dict.fromkeys((*self.others, "store"), time.monotonic())
        while not self._leaving.wait(self.interval):
            count += 1
            try:
                self.store.set(self.own, str(count))
                found = {other: self.store.get(other) for other in self.others if self.store.check([other])}
                last["store"] = time.monotonic()
            except RuntimeError:  # the node that keeps the store does not answer
                found = {}
            for other, sign in found.items():
                if sign != seen[other] or sign == GOODBYE:
                    seen[other], last[other] = sign, time.monotonic()
            if self._leaving.is_set():
                return
            if (lost := self._lost(last)) is not None:
                self.on_loss(lost)
                return

    def _lost(self, last: dict[str, float]) -> str | None:
        now = time.monotonic()
        if now - last["store"] > self.patience:
            return f"The node of the first process has not answered for {self.patience:.0f} s. {ADVICE}"
        for other in self.others:
            if now - last[other] > self.patience and now - last["store"] < self.interval * 2:
                return f"Process {other} of this run has given no sign of life for {self.patience:.0f} s. {ADVICE}"
        return None

    def leave(self) -> None:
        """Tell the others that this rank is done, and end the thread."""
        self._leaving.set()
        self.join()
        try:
            self.store.set(self.own, GOODBYE.decode())
        except RuntimeError:
            logger.debug("The store is gone before this rank left it.")  # the first rank was done earlier


ADVICE = (
    "This process stops too. What the other one printed says why; when that is mended, start again with --resume true, "
    "with as many processes as you like."
)


def watch_termination() -> None:
    """Say a sentence when `torchrun` or a scheduler ends this process by SIGTERM, as it does when another one died."""
    owner = os.getpid()

    def say(_number: int, _frame: FrameType | None) -> None:
        if os.getpid() == owner:  # loader workers inherit the handler
            _print(f"Process {os.environ.get('RANK', 0)} was told to stop: another one ended, or the job was. {ADVICE}")
        os._exit(STOPPED)

    signal.signal(signal.SIGTERM, say)


def _print(sentence: str) -> None:
    print(f"\nError: {sentence}", file=sys.stderr, flush=True)


def _end(sentence: str) -> None:
    _print(sentence)
    os._exit(1)
