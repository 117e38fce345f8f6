# SPDX-License-Identifier: Apache-2.0
"""Save a training run at intervals and before a signal ends it, and resume it from the newest readable checkpoint."""

from __future__ import annotations

import json
import logging
import os
import signal
import threading
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from ignite.engine import Engine, Events

from scripts.distributed.collectives import all_reduce_sum, broadcast_from_rank0, is_rank0, num_ranks
from scripts.errors import UserError, first_line
from scripts.files import save_atomically
from scripts.training.step_handlers import last_step

logger = logging.getLogger("TrainingCheckpoint")

PATTERN = "checkpoint_" + "[0-9]" * 8 + ".pt"


def newest_checkpoint(folder: str | Path) -> tuple[dict[str, Any] | None, Path | None]:
    """Load the newest readable checkpoint of a folder.

    Truncated files, damaged files and files of other programs are skipped with a warning.

    Args:
        folder: folder of the files `checkpoint_<step>.pt`; it may be empty or missing.

    Returns:
        Content and path of the checkpoint; `(None, None)` if no file can be read.
    """
    for path in checkpoint_paths(folder):
        try:
            return _load(path), path
        except Exception as error:  # a damaged file can raise anything
            logger.warning(f"{path} cannot be used ({first_line(error)}); trying the previous checkpoint.")
    return None, None


def checkpoint_paths(folder: str | Path) -> list[Path]:
    """The checkpoints of a folder, newest first, readable or not."""
    return sorted(Path(folder).glob(PATTERN), reverse=True)


def _load(path: Path) -> dict[str, Any]:
    with zipfile.ZipFile(path) as archive:  # torch writes a CRC-32 of each tensor, but does not compare it on loading
        damaged = archive.testzip()
    if damaged is not None:
        raise ValueError(f"the checksum of {damaged} is wrong")
    content = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(content, dict) or "run" not in content:
        raise ValueError("it is not a checkpoint of a training run")
    return content


class TrainingCheckpoint:
    """Save and restore a whole run in one file: the state of every object and the number of completed steps.

    The file holds no state of random generators, because all random numbers are a function of the seed and the step
    (`scripts.seeding`). A run that was killed and resumed therefore gives the same numbers as an uninterrupted run.

    Files are written atomically. If a process is killed while it writes, the previous checkpoints stay intact.

    The order of handlers matters. Attach this one to the trainer

    - after everything else that changes the objects at the end of an iteration (teacher, learning-rate schedule), so
      that a checkpoint holds the complete state of its step;
    - before `Validation`, which may fail;
    - before `StopAtStep`, which reads the restored step.

    All ranks hold the same state. The first rank reads and writes the files, and sends what it read to the others. A
    run can be resumed with a different number of ranks.

    Args:
        objects: maps a name to an object with `state_dict` and `load_state_dict`, such as network, loss, teacher or
            optimiser. Entries that are `None` are left out.
        ckpt_dir: folder of the files `checkpoint_<step>.pt`.
        interval: steps between two checkpoints, at least 1; the last step is always saved.
        max_steps: length of the run.
        resume: `True` to continue from the newest readable checkpoint. If there is none, the run starts from the
            beginning.
        keep: number of checkpoints to keep, at least 1.
        outdated: files that a new run would not overwrite at once, such as the best model. When a new run starts in the
            folder of a finished one, it removes these files, so that they are not mistaken for its own.
        settings: settings that must not change during a run, as name to value (JSON types). Resuming with a different
            value is an error.
        rank_dependent: names in `settings` that may change together with the number of ranks; a change is logged.

    Raises:
        UserError: at the start of a new run if `ckpt_dir` holds an unfinished run; on resuming if no checkpoint is
            readable, or if the newest one does not fit the objects or the settings.
    """

    def __init__(
        self,
        objects: Mapping[str, Any],
        ckpt_dir: str | Path,
        interval: int,
        max_steps: int,
        resume: bool | str = False,
        keep: int = 2,
        outdated: Sequence[str | Path] = (),
        settings: Mapping[str, Any] | None = None,
        rank_dependent: Sequence[str] = (),
    ) -> None:
        if interval < 1 or keep < 1:
            raise UserError(f"save_interval and keep_states must be at least 1, got {interval} and {keep}.")
        self.objects = {name: item for name, item in objects.items() if item is not None}
        self.ckpt_dir, self.keep = Path(ckpt_dir), keep
        self.outdated = [Path(path) for path in outdated]
        # MONAI's command line passes `--resume false` as a string.
        self.interval, self.max_steps, self.resume = interval, max_steps, str(resume).lower() == "true"
        # A round trip through JSON turns tuples into lists, so that they equal the lists read from a checkpoint.
        self.settings = json.loads(json.dumps(settings or {}, default=str))
        self._over_finished_run = False
        self.rank_dependent = tuple(rank_dependent)

    def attach(self, engine: Engine) -> None:
        """Restore or clear at the start of the run; save every `interval` steps and at the last step."""
        engine.add_event_handler(Events.STARTED, self.begin)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.save_if_due)

    def begin(self, engine: Engine) -> None:
        """Restore the newest checkpoint, or clear the folder of a finished run after the first step."""
        if self.resume:
            self._restore(engine)
        else:
            broadcast_from_rank0(self._refuse_unfinished_run)
            self._over_finished_run = True
        if is_rank0():
            for leftover in self.ckpt_dir.glob(".*.pt.*.tmp"):  # left by a process that was killed while writing
                leftover.unlink(missing_ok=True)

    def save_if_due(self, engine: Engine) -> None:
        """Save if this step is a multiple of `interval` or the last; before, clear the folder of a finished run."""
        if self._over_finished_run:  # not at the start, because a run that fails at its first step leaves it as it was
            self._over_finished_run = False
            self._clear()
        if engine.state.iteration % self.interval == 0 or engine.state.iteration >= last_step(engine, self.max_steps):
            self.save(engine)

    def save(self, engine: Engine) -> Path:
        """Save the engine's current step, remove the oldest checkpoints, and return the file's path."""
        step = engine.state.iteration
        path = self.ckpt_dir / f"checkpoint_{step:08d}.pt"
        if not is_rank0():
            return path
        content = {name: item.state_dict() for name, item in self.objects.items()}
        content["run"] = {
            "step": step,
            "finished": step >= last_step(engine, self.max_steps),
            "settings": self.settings,
            "ranks": num_ranks(),
        }
        save_atomically(content, path)
        # This run resumed from the newest readable checkpoint, so a checkpoint of a later step must be damaged. It
        # does not count towards `keep`.
        for old in [other for other in checkpoint_paths(self.ckpt_dir) if other.name <= path.name][self.keep :]:
            old.unlink(missing_ok=True)
        return path

    def _restore(self, engine: Engine) -> None:
        content, path = broadcast_from_rank0(self._read)
        if content is None or path is None:
            logger.info(f"No checkpoint in {self.ckpt_dir}: starting from the beginning.")
            return
        self._check_settings(content["run"], path)
        for name, item in self.objects.items():
            try:
                item.load_state_dict(content[name])
            except (KeyError, RuntimeError, ValueError, AttributeError, TypeError) as error:
                raise UserError(
                    f"{path} does not fit this configuration ({name}: {first_line(error)}). Resume with the "
                    "configuration of that run, or choose another --ckpt_dir."
                ) from error
        step = content["run"]["step"]
        engine.state.iteration = step
        # The number of completed epochs is not stored, because another max_steps can change their length.
        engine.state.epoch = step // engine.state.epoch_length
        logger.info(f"Resumed at step {step} from {path}.")
        if step >= self.max_steps:
            logger.info(f"That run is finished: set --max_steps above {step} to train further.")

    def _read(self) -> tuple[dict[str, Any] | None, Path | None]:
        content, path = newest_checkpoint(self.ckpt_dir)
        if content is None and checkpoint_paths(self.ckpt_dir):
            raise UserError(
                f"No checkpoint in {self.ckpt_dir} can be read, so the run cannot be resumed: restore a good copy, or "
                "delete its checkpoint_*.pt and start without --resume."
            )
        return content, path

    def _check_settings(self, run: Mapping[str, Any], path: Path) -> None:
        saved = run["settings"]
        changed = {
            name: f"{name} {saved[name]!r} (now {value!r})"
            for name, value in self.settings.items()
            if name in saved and saved[name] != value
        }
        if run["ranks"] != num_ranks():
            allowed = [changed.pop(name) for name in self.rank_dependent if name in changed]
            if allowed:
                logger.warning(
                    f"{path} was written by {run['ranks']} process(es), with {', '.join(allowed)}; now there are "
                    f"{num_ranks()}. The learning rate stays the same, but the number of cases per step changes."
                )
        if changed:
            raise UserError(
                f"{path} belongs to a run with {', '.join(changed.values())}: resume with its settings, or choose "
                "another --ckpt_dir for a new run."
            )

    def _refuse_unfinished_run(self) -> None:
        content, _ = newest_checkpoint(self.ckpt_dir)
        if content is not None and not content["run"]["finished"]:
            raise UserError(
                f"{self.ckpt_dir} holds a run that stopped at step {content['run']['step']}. Add --resume true to "
                "continue it, choose another --ckpt_dir, or delete its checkpoint_*.pt."
            )

    def _clear(self) -> None:
        if not is_rank0():
            return
        for old in [*checkpoint_paths(self.ckpt_dir), *(path for path in self.outdated if path.exists())]:
            logger.info(f"{old} belongs to the finished run in {self.ckpt_dir} and is removed.")
            old.unlink()


SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopOnSignal:
    """Save a checkpoint and end the process when it receives SIGINT or SIGTERM; a later Ctrl-C ends it at once.

    A second SIGTERM has no effect, because one stop often sends two: a scheduler signals the whole process group, and
    `torchrun` then signals its own processes again. SIGKILL ends a process that takes too long.

    The current step, and the validation that may follow it, is completed first, so that the checkpoint equals that of
    an uninterrupted run. The exit code is 128 + signal, as shells and schedulers expect. All ranks stop after the same
    step, even if only one of them received the signal.

    Attach it after `TrainingCheckpoint`, before any other handler of exceptions, and before `StopAtStep`. Outside the
    main thread it does nothing, because Python handles signals in the main thread only.

    Args:
        checkpoint: saves the run.
    """

    logger = logging.getLogger("Interruption")

    def __init__(self, checkpoint: TrainingCheckpoint) -> None:
        self.checkpoint = checkpoint
        self.received = 0
        self._process = 0
        self._previous: dict[int, Any] = {}

    def attach(self, engine: Engine) -> None:
        """Install signal handlers while `engine` runs, and check for a signal after each iteration."""
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
        # All ranks wait until the first has written the file, because `torchrun` kills the other ranks as soon as one
        # ends.
        path = broadcast_from_rank0(lambda: self.checkpoint.save(engine))
        self.logger.warning(
            f"Stopped by {number.name} after step {step}, saved in {path}. Run the same command with --resume true to "
            "continue."
        )
        self._restore(engine)
        engine.logger.addFilter(lambda record: "due to exception" not in record.getMessage())  # not an error
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
        raise error  # ignite does not raise an exception that has a handler

    def _note(self, number: int, frame: FrameType | None) -> None:
        # Worker processes of the data loader inherit this handler and also receive Ctrl-C, but they must live until the
        # step is complete. For SIGTERM, torch installs its own handler in them.
        if self.received or os.getpid() != self._process:
            return
        self.received = number
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        again = " once more" if number == signal.SIGINT else ""
        self.logger.warning(
            f"{signal.Signals(number).name}: completing and saving the current step; Ctrl-C{again} ends it at once."
        )
