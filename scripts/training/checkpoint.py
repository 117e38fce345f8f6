# SPDX-License-Identifier: Apache-2.0
"""Save everything that a run is, and go on from it."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ignite.engine import Engine, Events

from scripts.distributed.collectives import broadcast_from_rank0, is_rank0, num_ranks
from scripts.errors import UserError, first_line
from scripts.files import leftovers
from scripts.training.handlers import last_step
from scripts.training.state_files import CheckpointFiles

logger = logging.getLogger("TrainingCheckpoint")


class TrainingCheckpoint:
    """One file that holds a whole run: every object's state and the number of steps done.

    Nothing random is in it; that is a function of seed and step (`scripts.seeding`). A run that was killed
    and resumed ends with the same numbers as one that was not.

    Attach it to the trainer after everything else that acts at the end of an iteration (validation, the learning rate's
    schedule), so that a saved state knows all of its own step, and before `StopAtStep`, which reads the position.

    Of several ranks, which all hold the same, the first reads and writes the files and hands the others what it read. A
    run can be resumed with another number of ranks.

    Args:
        objects: name to object with `state_dict` and `load_state_dict`: network, loss, teacher, optimiser, ...; `None`
            stands for what a method does not have.
        ckpt_dir: folder of the state files, `checkpoint_<step>.pt`, each with its digest `checkpoint_<step>.pt.sha256`.
        interval: steps between saves, at least 1; the last step is always saved.
        max_steps: length of the run.
        resume: whether to go on from the newest readable state; without one the run starts from the beginning.
        keep: so many state files stay.
        outdated: files that a run of its own would not overwrite at once, such as the best model: a fresh run over a
            finished one removes them, so that they are not taken for its own.
        settings: name to value (numbers, texts, lists of them) of what a run cannot change on the way: a resume with
            another value is refused.
        per_rank: those of the settings that every rank has for itself (batch sizes). With another number of ranks they
            may be others.
        kept: those of the settings that may follow from the number of ranks, but that a resumed run takes from the
            state (the learning rate, with its schedule): with another number of ranks a difference is told.

    Raises:
        UserError: at the start of a run that is not resumed, if `ckpt_dir` holds an unfinished run; or if a state
            does not fit the objects or the settings.
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
        settings: Mapping[str, Any] | None = None,
        per_rank: Sequence[str] = (),
        kept: Sequence[str] = (),
    ) -> None:
        if interval < 1 or keep < 1:
            raise UserError(f"save_interval and keep must be at least 1, got {interval} and {keep}.")
        self.objects = {name: item for name, item in objects.items() if item is not None}
        self.files = CheckpointFiles(ckpt_dir, keep)
        self.outdated = [Path(path) for path in outdated]
        # MONAI's command line gives `--resume false` as a text.
        self.interval, self.max_steps, self.resume = interval, max_steps, str(resume).lower() == "true"
        self.settings = {name: _plain(value) for name, value in (settings or {}).items()}
        self.per_rank, self.kept = tuple(per_rank), tuple(kept)

    def attach(self, engine: Engine) -> None:
        """Restore or clear at the start, save every `interval` steps and at the last."""
        engine.add_event_handler(Events.STARTED, self.begin)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.save_if_due)

    def begin(self, engine: Engine) -> None:
        """Restore the newest state, or make sure that none is lost."""
        if self.resume:
            self._restore(engine)
        else:
            broadcast_from_rank0(self._make_room)
        if not is_rank0():
            return
        self.files.sweep()
        for path in self.outdated:
            for left in leftovers(path):
                left.unlink(missing_ok=True)

    def save_if_due(self, engine: Engine) -> None:
        """Save if this step is a multiple of `interval` or the last."""
        if engine.state.iteration % self.interval == 0 or engine.state.iteration >= last_step(engine, self.max_steps):
            self.save(engine)

    def save(self, engine: Engine) -> Path:
        """Save now, after the engine's present iteration."""
        step = engine.state.iteration
        if not is_rank0():
            return self.files.path(step)
        content = {name: item.state_dict() for name, item in self.objects.items()}
        content["run"] = {
            "step": step,
            "finished": step >= last_step(engine, self.max_steps),
            "settings": self.settings,
            "ranks": num_ranks(),
        }
        return self.files.save(content, step)

    def _restore(self, engine: Engine) -> None:
        content, path = broadcast_from_rank0(self._state_to_resume)
        if content is None:
            logger.info(f"Nothing to resume in {self.files.folder}: starting from the beginning.")
            return
        self._check_settings(content["run"].get("settings", {}), content["run"].get("ranks", 1), path)
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
        # Epochs may be cut differently when max_steps has changed; only the step is a fact.
        engine.state.epoch = step // engine.state.epoch_length
        logger.info(f"Resumed at step {step} from {path}.")
        if step >= self.max_steps:
            logger.info(f"That run is finished: raise --max_steps above {step} to go on.")

    def _state_to_resume(self) -> tuple[dict[str, Any] | None, Path | None]:
        content, path = self.files.newest()
        if content is None and self.files.paths():
            raise UserError(
                f"No state in {self.files.folder} can be read, so there is nothing to resume: put back a good copy, or "
                "delete its state files and start without --resume."
            )
        return content, path

    def _check_settings(self, then: Mapping[str, Any], ranks_then: int, path: Path) -> None:
        own, kept = (self.per_rank, self.kept) if ranks_then != num_ranks() else ((), ())
        changed = [
            f"{name} {then[name]!r} (now {self.settings[name]!r})"
            for name in self.settings
            if name in then and then[name] != self.settings[name] and name not in (*own, *kept)
        ]
        for name in kept:
            if name in then and then[name] != self.settings[name]:
                logger.warning(
                    f"{name} stays {then[name]!r}, as in {path}; in a new run it would be {self.settings[name]!r}."
                )
        for name in own:
            if name in then and ranks_then * then[name] != num_ranks() * self.settings[name]:
                logger.warning(
                    f"{ranks_then} process(es) with {name} {then[name]} trained so far, {num_ranks()} with "
                    f"{self.settings[name]} from here: steps have another number of cases."
                )
        if changed:
            raise UserError(
                f"{path} is of a run with {', '.join(changed)}: resume with its settings, or choose another --ckpt_dir "
                "for a new run."
            )

    def _make_room(self) -> None:
        content, _ = self.files.newest()
        if content is not None and not content["run"]["finished"]:
            raise UserError(
                f"{self.files.folder} holds a run that stopped at step {content['run']['step']}. Add --resume true to "
                "go on with it, name another --ckpt_dir, or delete its state files."
            )
        for old in [*self.files.paths(), *(path for path in self.outdated if path.exists())]:
            logger.info(f"{old} belongs to the finished run in {self.files.folder} and is removed.")
            old.unlink()


def _plain(value: Any) -> Any:
    """Lists for tuples and other sequences, so that a value equals what a file gives back."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(item) for item in value]
    return value if isinstance(value, bool | int | float | str | None) else str(value)
