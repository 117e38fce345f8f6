# SPDX-License-Identifier: Apache-2.0
"""Ctrl-C and a scheduler's SIGTERM end a run after the step at hand, with its state saved."""

from __future__ import annotations

import logging
import os
import signal
import threading
from types import FrameType

import torch
from ignite.engine import Engine, Events

from scripts.distributed.collectives import all_reduce_sum, broadcast_from_rank0
from scripts.training.checkpoint import TrainingCheckpoint
from scripts.training.handlers import last_step

logger = logging.getLogger("Interruption")

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopOnSignal:
    """Save and stop when the process is asked to end; Ctrl-C after that ends it at once.

    A further SIGTERM changes nothing: a scheduler sends it to the whole group of processes, and `torchrun` passes the
    one that it got on. Who loses patience has SIGKILL.

    The step at hand, with a validation that follows it, is finished first: only then is the state that of a run which
    was never stopped. The process ends with the exit code 128 + signal, as shells and schedulers expect. Several
    processes stop after the same step, whichever of them was asked.

    Attach it after `TrainingCheckpoint`, before anything else that listens for errors, and before `StopAtStep`. In a
    thread other than the main one, where Python handles no signals, it does nothing.

    Args:
        checkpoint: what saves.
    """

    def __init__(self, checkpoint: TrainingCheckpoint) -> None:
        self.checkpoint = checkpoint
        self.received = 0
        self._process = 0
        self._before: dict[int, object] = {}

    def attach(self, engine: Engine) -> None:
        """Listen while `engine` runs, look after each iteration."""
        engine.add_event_handler(Events.STARTED, self._listen)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)
        engine.add_event_handler(Events.COMPLETED, self._restore)
        engine.add_event_handler(Events.EXCEPTION_RAISED, self._fail)

    def __call__(self, engine: Engine) -> None:
        """Save and end the process if it was asked to end.

        Raises:
            SystemExit: then.
        """
        votes = torch.tensor([float(self.received == number) for number in SIGNALS])
        all_reduce_sum([votes])
        if not bool(votes.any()):
            return
        received = SIGNALS[int(votes.argmax())]
        step = engine.state.iteration
        if step >= last_step(engine, self.checkpoint.max_steps):
            return  # nothing is left to do: the run ends by itself
        # All wait for the first rank's file: `torchrun` kills those that are left as soon as one has ended.
        path = broadcast_from_rank0(lambda: self.checkpoint.save(engine))
        logger.warning(
            f"Stopped by {received.name} after step {step}, saved in {path}. The same command with "
            "--resume true goes on from there."
        )
        self._restore(engine)
        engine.logger.addFilter(lambda record: "due to exception" not in record.getMessage())  # it is no error
        raise SystemExit(128 + received)

    def _listen(self, engine: Engine) -> None:
        if threading.current_thread() is not threading.main_thread():
            return
        self.received, self._process = 0, os.getpid()
        self._before = {number: signal.signal(number, self._note) for number in SIGNALS}

    def _restore(self, engine: Engine) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def _fail(self, engine: Engine, error: BaseException) -> None:
        # ignite calls the first listener alone, and leaves it to that one to let the error go on.
        self._restore(engine)
        raise error

    def _note(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:
            # A loader's worker has inherited this. Ctrl-C reaches it too, and it must live for the step at hand.
            if number == signal.SIGTERM:
                signal.signal(number, signal.SIG_DFL)
                os.kill(os.getpid(), number)
            return
        if self.received:
            if number == signal.SIGINT:
                signal.signal(number, signal.SIG_DFL)
                os.kill(os.getpid(), number)
            return
        self.received = number
        logger.warning(
            f"{signal.Signals(number).name}: the step at hand is finished and saved first; Ctrl-C"
            f"{' once more' if number == signal.SIGINT else ''} ends it at once."
        )
