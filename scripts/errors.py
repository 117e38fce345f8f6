# SPDX-License-Identifier: Apache-2.0
"""Errors that a user can fix, and how any error is told in one sentence."""

from __future__ import annotations

import os
import re
import sys
import traceback
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


HINT = "Add --debug true to the command to see the traceback."
UNDEFINED_REFERENCE = "is not defined in the config content"
COMPONENT = re.compile(r"Failed to instantiate component '([\w.]+)'")
TRANSFORM = re.compile(r"applying transform <(?:\w+\.)*(\w+) object")
MAX_LENGTH = 400


def print_error(error: BaseException, debug: bool = False) -> None:
    """Print an exception as `Error: ...` on stderr, and its traceback before that if `debug` is set."""
    if debug:
        traceback.print_exception(error)
    print(f"\nError: {describe(error)}", file=sys.stderr)  # the empty line ends an unfinished progress bar


def describe(error: BaseException) -> str:
    """One sentence about an exception: that of the `UserError` behind it, otherwise the words of its first cause."""
    mistake = error if isinstance(error, UserError) else root_user_error(error)
    if mistake is not None:
        return str(mistake)
    if isinstance(error, KeyboardInterrupt):
        return "Interrupted."
    chain = chain_of(error)
    cause = next((e for e in chain if UNDEFINED_REFERENCE in str(e)), chain[-1])
    words = _words_of(cause)
    if is_out_of_memory(error):
        return f"Out of memory ({words}). Lower roi_size or the batch sizes, or give --cache disk. {HINT}"
    if isinstance(cause, OSError) and cause.strerror:
        name = os.fsdecode(cause.filename) if isinstance(cause.filename, str | bytes) else "a file"
        return f"Cannot read or write {name}: {cause.strerror}. {HINT}"
    place = _last_match(COMPONENT, chain) or _last_match(TRANSFORM, chain)
    return f"{f'{place} failed: ' if place else ''}{words}. {HINT}"


def chain_of(error: BaseException) -> list[BaseException]:
    """An exception, then what caused it, and so on to the first cause."""
    chain: list[BaseException] = []
    following: BaseException | None = error
    while following is not None and following not in chain:
        chain.append(following)
        following = following.__cause__ or (None if following.__suppress_context__ else following.__context__)
    return chain


def _last_match(pattern: re.Pattern[str], chain: list[BaseException]) -> str | None:
    found = [match[1] for match in map(pattern.search, map(str, chain)) if match]
    return found[-1] if found else None


def _words_of(error: BaseException) -> str:
    """The first line of the message, and the type, because the message of a `KeyError` is only a name."""
    if "weights_only" in str(error):  # torch's message advises to switch this protection off
        return "The file does not hold weights alone, so it is not loaded"
    text = first_line(error).rstrip(".:")[:MAX_LENGTH] if str(error).strip() else ""
    return f"{text} ({type(error).__name__})" if text else type(error).__name__
