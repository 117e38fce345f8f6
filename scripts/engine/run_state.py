# SPDX-License-Identifier: Apache-2.0
"""Save everything that a run is, and go on from it."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events

from scripts.errors import BundleError
from scripts.functional.ranks import from_first_rank, is_first_rank, num_ranks

logger = logging.getLogger("RunState")

PATTERN = "state_" + "[0-9]" * 8 + ".pt"


def save_atomically(content: Any, path: Path) -> None:
    """`torch.save` beside the target and rename, so that a file under its own name is always whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        torch.save(content, temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


class RunState:
    """One file that holds a whole run: every object's state and the number of steps done.

    Nothing random is in it; that is a function of seed and step (`scripts.functional.seeding`). A run that was killed
    and resumed ends with the same numbers as one that was not.

    Attach it to the trainer after everything else that acts at the end of an iteration (validation, the learning rate's
    schedule), so that a saved state knows all of its own step, and before `StopAtStep`, which reads the position.

    Of several ranks, which all hold the same, the first reads and writes the files and hands the others what it read. A
    run can be resumed with another number of ranks.

    Args:
        objects: name to object with `state_dict` and `load_state_dict`: network, loss, teacher, optimiser, ...; `None`
            stands for what a method does not have.
        ckpt_dir: folder of the state files, `state_<step>.pt`.
        interval: steps between saves, at least 1; the last step is always saved.
        max_steps: length of the run.
        resume: whether to go on from the newest readable state; without one the run starts from the beginning.
        keep: so many state files stay.
        outdated: files that a run of its own would not overwrite at once, such as the best model: a fresh run over a
            finished one removes them, so that they are not taken for its own.

    Raises:
        BundleError: at the start of a run that is not resumed, if `ckpt_dir` holds an unfinished run; or if a state
            does not fit the objects.
    """

    def __init__(
        self,
        objects: Mapping[str, Any],
        ckpt_dir: str | Path,
        interval: int,
        max_steps: int,
        resume: bool = False,
        keep: int = 2,
        outdated: Sequence[str | Path] = (),
    ) -> None:
        if interval < 1 or keep < 1:
            raise BundleError(f"save_interval and keep must be at least 1, got {interval} and {keep}.")
        self.objects = {name: item for name, item in objects.items() if item is not None}
        self.ckpt_dir = Path(ckpt_dir)
        self.outdated = [Path(path) for path in outdated]
        self.interval, self.max_steps, self.resume, self.keep = interval, max_steps, resume, keep

    def attach(self, engine: Engine) -> None:
        """Restore or clear at the start, save every `interval` steps and at the last."""
        engine.add_event_handler(Events.STARTED, self.begin)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.save_if_due)

    def states(self) -> list[Path]:
        """State files, newest first."""
        return sorted(self.ckpt_dir.glob(PATTERN), reverse=True)

    def begin(self, engine: Engine) -> None:
        """Restore the newest state, or make sure that none is lost."""
        if self.resume:
            self._restore(engine)
        else:
            from_first_rank(self._make_room)

    def save_if_due(self, engine: Engine) -> None:
        """Save if this step is a multiple of `interval` or the last."""
        step = engine.state.iteration
        if is_first_rank() and (step % self.interval == 0 or step >= self.max_steps):
            content = {name: item.state_dict() for name, item in self.objects.items()}
            content["run"] = {"step": step, "finished": step >= self.max_steps, "ranks": num_ranks()}
            newest = self.ckpt_dir / f"state_{step:08d}.pt"
            save_atomically(content, newest)
            # A state of a later step is damaged, as this run went on from one before it: it takes nobody's place.
            for old in [path for path in self.states() if path.name <= newest.name][self.keep :]:
                old.unlink()

    def _restore(self, engine: Engine) -> None:
        content, path = from_first_rank(self._state_to_resume)
        if content is None:
            logger.info(f"Nothing to resume in {self.ckpt_dir}: starting from the beginning.")
            return
        for name, item in self.objects.items():
            try:
                item.load_state_dict(content[name])
            except (KeyError, RuntimeError, ValueError, AttributeError, TypeError) as error:
                raise BundleError(
                    f"{path} does not fit this configuration ({name}: {_first_line(error)}). Resume with the "
                    "configuration of that run, or choose another --ckpt_dir."
                ) from error
        step = content["run"]["step"]
        engine.state.iteration = step
        # Epochs may be cut differently when max_steps has changed; only the step is a fact.
        engine.state.epoch = step // engine.state.epoch_length
        logger.info(f"Resumed at step {step} from {path}.")
        if step >= self.max_steps:
            logger.info(f"That run is finished: raise --max_steps above {step} to go on.")
        before, now = content["run"].get("ranks", 1), num_ranks()
        if before != now:
            logger.warning(
                f"{before} process(es) trained so far, {now} from here: a step keeps its number of cases if "
                f"--batch_labelled and --batch_unlabelled are {before}/{now} of what they were."
            )

    def _state_to_resume(self) -> tuple[dict[str, Any] | None, Path | None]:
        content, path = self._newest_readable()
        if content is None and self.states():
            raise BundleError(
                f"No state in {self.ckpt_dir} can be read, so there is nothing to resume: put back a good copy, or "
                "delete its state files and start without --resume."
            )
        return content, path

    def _newest_readable(self) -> tuple[dict[str, Any] | None, Path | None]:
        for path in self.states():
            try:
                content = torch.load(path, map_location="cpu", weights_only=True)
                if isinstance(content, dict) and "run" in content:
                    return content, path
                reason = "it is no state of a run"
            except Exception as error:  # a damaged file can fail in any way; the one before it is tried instead
                reason = _first_line(error)
            logger.warning(f"{path} cannot be used ({reason}); trying the one before it.")
        return None, None

    def _make_room(self) -> None:
        content, _ = self._newest_readable()
        if content is not None and not content["run"]["finished"]:
            raise BundleError(
                f"{self.ckpt_dir} holds a run that stopped at step {content['run']['step']}. Add --resume true to go "
                "on with it, name another --ckpt_dir, or delete its state files."
            )
        for old in [*self.states(), *(path for path in self.outdated if path.exists())]:
            logger.info(f"{old} belongs to the finished run in {self.ckpt_dir} and is removed.")
            old.unlink()
