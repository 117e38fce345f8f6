# SPDX-License-Identifier: Apache-2.0
"""The error that a user can fix."""

from __future__ import annotations

import re

WORKER_MISTAKE = re.compile(r"^scripts\.errors\.UserError: (.*)$", re.MULTILINE)
EXCHANGE = re.compile(r"\b(gloo|NCCL)\b")
"""In the text of errors of exchanges between processes; gloo's are plain `RuntimeError`s."""

ADVICE = (
    "This process stops too. What the other one printed says why; when that is mended, start again with --resume true, "
    "with as many processes as you like."
)


class UserError(ValueError):
    """A mistake in data, configuration or command line, told in one sentence that says what to do.

    The command line prints the sentence alone (`scripts.cli.start`); code that imports the bundle gets an
    ordinary exception with a traceback.
    """


def first_line(error: Exception) -> str:
    """What an exception says, in one line; torch names what does not fit in the second one of several."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if len(lines) > 1 and lines[0].startswith("Error(s) in loading state_dict"):
        return lines[1].rstrip(".")
    return lines[0].rstrip(".") if lines else type(error).__name__


def root_user_error(error: BaseException | None) -> UserError | None:
    """The `UserError` among an exception and its causes; of a loader's worker process only the text comes over.

    An exchange between processes that failed becomes one that says so, as torch names neither the rank nor a way out.
    """
    from torch.distributed import DistError  # not before an error is there: this module starts without torch

    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        from_worker = WORKER_MISTAKE.findall(str(error)) if " in DataLoader worker process " in str(error) else []
        if from_worker:
            return UserError(from_worker[-1])
        if isinstance(error, UserError):
            return error
        if isinstance(error, DistError) or (isinstance(error, RuntimeError) and EXCHANGE.search(str(error))):
            return UserError(f"Another process of this run has ended or cannot be reached. {ADVICE}")
        seen.add(id(error))
        error = error.__cause__ or error.__context__
    return None
