# SPDX-License-Identifier: Apache-2.0
"""End a run after the current step, with a checkpoint, on Ctrl-C or a scheduler's SIGTERM."""

from __future__ import annotations

import logging
import os
import signal
import threading
from types import FrameType
from typing import Any

import torch
from ignite.engine import Engine, Events

from scripts.distributed.collectives import all_reduce_sum, broadcast_from_rank0
from scripts.training.checkpoint import TrainingCheckpoint
from scripts.training.step_handlers import last_step

logger = logging.getLogger("Interruption")

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopOnSignal:
    """Save a checkpoint and end the process when it receives SIGINT or SIGTERM; a Ctrl-C after that ends it at once.

    A second SIGTERM changes nothing: a scheduler sends it to the whole group of processes, and `torchrun` sends its own
    processes another one. SIGKILL ends a process that takes too long.

    The current step, with a validation that follows it, is completed first, so that the checkpoint equals that of a run
    which was never stopped. The exit code is 128 + signal, as shells and schedulers expect. All ranks stop after the
    same step, whichever of them received the signal.

    Attach it after `TrainingCheckpoint`, before anything else that listens for errors, and before `StopAtStep`. Outside
    the main thread, where Python handles no signals, it does nothing.

    Args:
        checkpoint: saves the run.
    """

    def __init__(self, checkpoint: TrainingCheckpoint) -> None:
        self.checkpoint = checkpoint
        self.received = 0
        self._process = 0
        self._previous: dict[int, Any] = {}

    def attach(self, engine: Engine) -> None:
        """Listen while `engine` runs, and look after each iteration whether a signal came."""
        engine.add_event_handler(Events.STARTED, self._listen)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)
        engine.add_event_handler(Events.COMPLETED, self._restore)
        engine.add_event_handler(Events.EXCEPTION_RAISED, self._fail)

    def __call__(self, engine: Engine) -> None:
        """Save and end the process if any rank received a signal.

        Raises:
            SystemExit: with 128 + signal.
        """
        received = torch.tensor([float(self.received == number) for number in SIGNALS])
        all_reduce_sum([received])
        if not bool(received.any()):
            return
        number = SIGNALS[int(received.argmax())]
        step = engine.state.iteration
        if step >= last_step(engine, self.checkpoint.max_steps):
            return  # the run is complete and ends by itself
        # Every rank waits for the first one's file: `torchrun` kills the rest as soon as one of them has ended.
        path = broadcast_from_rank0(lambda: self.checkpoint.save(engine))
        logger.warning(
            f"Stopped by {number.name} after step {step}, saved in {path}. Run the same command with --resume true to "
            "continue."
        )
        self._restore(engine)
        engine.logger.addFilter(lambda record: "due to exception" not in record.getMessage())  # it is no error
        raise SystemExit(128 + number)

    def _listen(self, engine: Engine) -> None:
        if threading.current_thread() is not threading.main_thread():
            return
        self.received, self._process = 0, os.getpid()
        self._previous = {number: signal.signal(number, self._note) for number in SIGNALS}

    def _restore(self, engine: Engine) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}

    def _fail(self, engine: Engine, error: BaseException) -> None:
        self._restore(engine)
        raise error  # where anything listens for errors, ignite does not raise them itself

    def _note(self, number: int, frame: FrameType | None) -> None:
        # A loader's workers inherit this handler and receive Ctrl-C too, but must live until the step is complete. For
        # SIGTERM torch gives them a handler of its own.
        if self.received or os.getpid() != self._process:
            return
        self.received = number
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        again = " once more" if number == signal.SIGINT else ""
        logger.warning(
            f"{signal.Signals(number).name}: completing and saving the current step; Ctrl-C{again} ends it at once."
        )
