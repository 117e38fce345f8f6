# SPDX-License-Identifier: Apache-2.0
"""Errors that a user can fix, and how other errors are put into one sentence."""

from __future__ import annotations

import re
from collections.abc import Iterator

WORKER_ERROR = re.compile(r"^scripts\.errors\.UserError: (.*)$", re.MULTILINE)
EXCHANGE_ERROR = re.compile(r"\b(gloo|NCCL)\b")
"""Occurs in the message of a failed exchange between processes; those of gloo are plain `RuntimeError`s."""


class UserError(ValueError):
    """An error the user can fix: bad data, configuration or arguments. One sentence says what is wrong and what to do.

    The command line prints the sentence without a traceback (`scripts.cli.start`); code that imports the bundle gets an
    ordinary exception.
    """


def first_line(error: BaseException) -> str:
    """The first line of an exception's message, or its type's name; of torch's errors about a state dict the second."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if len(lines) > 1 and lines[0].startswith("Error(s) in loading state_dict"):
        return lines[1].rstrip(".")
    return lines[0].rstrip(".") if lines else type(error).__name__


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether an exception or one of its causes says that memory, of the CPU or a GPU, is used up."""
    return any(
        # torch raises a RuntimeError where the CPU's memory is used up.
        isinstance(each, MemoryError) or re.search(r"out of memory|can't allocate memory", str(each), re.I)
        for each in _with_causes(error)
    )


def _with_causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an exception and all that led to it, also those that `from None` hides; each once."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        yield error
        seen.add(id(error))
        error = error.__cause__ or error.__context__


def root_user_error(error: BaseException | None) -> UserError | None:
    """Find the `UserError` among an exception and its causes.

    Errors of a loader's worker process arrive as text and are turned back into a `UserError`. A failed exchange between
    processes becomes one too, as torch's message does not say what to do.

    Returns:
        The error; `None` if there is none.
    """
    from torch.distributed import DistError  # here, because the command line starts without torch

    for each in _with_causes(error):
        from_worker = WORKER_ERROR.findall(str(each)) if " in DataLoader worker process " in str(each) else []
        if from_worker:
            return UserError(from_worker[-1])
        if isinstance(each, UserError):
            return each
        if "DataLoader timed out" in str(each):
            return UserError(
                f"{first_line(each)}: the loader processes are stuck. Start again with --resume true --num_workers "
                "0, which needs none."
            )
        if isinstance(each, DistError) or (isinstance(each, RuntimeError) and EXCHANGE_ERROR.search(str(each))):
            return UserError(
                "Another process of this run has ended or cannot be reached, so this one stops too. Fix what the other "
                "one reported and start again with --resume true; the number of processes may change."
            )
    return None
