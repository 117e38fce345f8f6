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

from scripts.errors import ADVICE

logger = logging.getLogger("RankWatch")

GOODBYE = b"left"
STORE = "store"
STOPPED = 143
"""Exit status of a process that SIGTERM ended."""


class RankWatch:
    """Give signs of life of this rank and look for those of the others, in threads beside the run.

    A timeout of the exchanges cannot do it: a rank may rightly wait minutes for one that validates a large case, but a
    dead one is to be noticed within a minute. So every rank counts up in the common store, and one whose count stands
    still for `patience` seconds is lost. The process then ends at once, as its main thread may hang in an exchange that
    nothing interrupts; saved states are whole at any moment.

    Args:
        store: reached by all ranks; of this watch alone, as a store serves one caller at a time.
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
        self.store = distributed.PrefixStore("signs_of_life", store)
        self.own, self.others = str(rank), [str(r) for r in range(num_ranks) if r != rank]
        self.patience, self.interval = patience, interval
        self.on_loss = on_loss or _end
        self._leaving = threading.Event()
        self._last = dict.fromkeys((*self.others, STORE), time.monotonic())
        # Two threads, as a store on a frozen node answers the first one never.
        self._threads = [threading.Thread(target=work, daemon=True) for work in (self._sign, self._look)]

    def start(self) -> None:
        """Begin; a rank that never signs is missed after `patience` too."""
        self._last = dict.fromkeys(self._last, time.monotonic())
        for thread in self._threads:
            thread.start()

    def _sign(self) -> None:
        count = 0
        seen = dict.fromkeys(self.others, b"")
        while not self._leaving.wait(self.interval):
            count += 1
            try:
                self.store.set(self.own, str(count))
                found = {other: self.store.get(other) for other in self.others if self.store.check([other])}
            except RuntimeError:  # the node that keeps the store does not answer
                continue
            self._last[STORE] = time.monotonic()
            for other, sign in found.items():
                if sign != seen[other] or sign == GOODBYE:
                    seen[other], self._last[other] = sign, time.monotonic()

    def _look(self) -> None:
        while not self._leaving.wait(self.interval):
            limit = time.monotonic() - self.patience
            lost = next((who for who in (STORE, *self.others) if self._last[who] < limit), None)
            if lost is not None:
                who = "The node of the first process" if lost == STORE else f"Process {lost} of this run"
                self.on_loss(f"{who} has given no sign of life for {self.patience:.0f} s. {ADVICE}")
                return

    def leave(self) -> None:
        """Tell the others that this rank is done, and end the threads."""
        self._leaving.set()
        for thread in self._threads:
            thread.join(self.patience)
        try:
            self.store.set(self.own, GOODBYE.decode())
        except RuntimeError:
            logger.debug("The store is gone before this rank left it.")  # the first rank was done earlier


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
