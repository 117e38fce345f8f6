# SPDX-License-Identifier: Apache-2.0
"""Errors that a user can fix, and functions that describe any error in one sentence."""

from __future__ import annotations

import os
import re
import sys
import traceback
from collections.abc import Iterator

WORKER_ERROR = re.compile(r"^scripts\.errors\.UserError: (.*)$", re.MULTILINE)
EXCHANGE_ERROR = re.compile(r"\b(gloo|NCCL)\b")
"""Pattern in messages of failed operations between processes; errors of gloo are plain `RuntimeError`s."""


class UserError(ValueError):
    """An error the user can fix: bad data, configuration or arguments. One sentence says what is wrong and what to do.

    The command line prints the sentence without a traceback (`scripts.cli.start`). For code that imports the bundle it
    is an ordinary exception.
    """


def first_line(error: BaseException) -> str:
    """Return the first line of an exception's message (second line for torch's state dict errors), or its type."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if len(lines) > 1 and lines[0].startswith("Error(s) in loading state_dict"):
        return lines[1].rstrip(".")
    return lines[0].rstrip(".") if lines else type(error).__name__


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether an exception or one of its causes means that the CPU or a GPU is out of memory."""
    return any(
        # torch raises a RuntimeError if the CPU is out of memory.
        isinstance(each, MemoryError) or re.search(r"out of memory|can't allocate memory", str(each), re.I)
        for each in _with_causes(error)
    )


def _with_causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an exception and all exceptions that led to it, including those hidden by `from None`, each once."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        yield error
        seen.add(id(error))
        error = error.__cause__ or error.__context__


def root_user_error(error: BaseException | None) -> UserError | None:
    """Find the `UserError` among an exception and its causes.

    Errors in a worker process of the loader arrive as text and are converted back to a `UserError`. A failed operation
    between processes is also converted, because torch's message does not say what to do.

    Returns:
        The error; `None` if there is none.
    """
    from torch.distributed import DistError  # imported here, because the command line starts without torch

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
PLACE = re.compile(r"Failed to instantiate component '([\w.]+)'|applying transform <(?:\w+\.)*(\w+) object")
EXPRESSION = re.compile(r"Failed to evaluate ConfigExpression: \s*['\"](.*)['\"]", re.DOTALL)
MONAI_REFERENCE = re.compile(r"__local_refs\['(.+?)'\]")
"""What MONAI makes of `@key` in an expression."""
MAX_LENGTH = 400


def print_error(error: BaseException, debug: bool = False) -> None:
    """Print an exception as `Error: ...` on stderr, and its traceback before that if `debug` is set."""
    if debug:
        traceback.print_exception(error)
    print(f"\nError: {describe(error)}", file=sys.stderr)  # the empty line ends an unfinished progress bar


def describe(error: BaseException) -> str:
    """Describe an exception in one sentence: the sentence of its `UserError`, or the message of its first cause."""
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
    place = _failed_expression(chain) or _last_place(chain)
    return f"{f'{place} failed: ' if place else ''}{words}. {HINT}"


def chain_of(error: BaseException) -> list[BaseException]:
    """Return an exception, its cause, and so on up to the first cause."""
    chain: list[BaseException] = []
    following: BaseException | None = error
    while following is not None and following not in chain:
        chain.append(following)
        following = following.__cause__ or (None if following.__suppress_context__ else following.__context__)
    return chain


def _last_place(chain: list[BaseException]) -> str | None:
    """Return the innermost component or transform that failed."""
    found = [match[1] or match[2] for match in map(PLACE.search, map(str, chain)) if match]
    return found[-1] if found else None


def _failed_expression(chain: list[BaseException]) -> str | None:
    """Return the `$` expression that failed; `None` if the error comes from code that an expression calls."""
    cause = chain[-1]
    if isinstance(cause, SyntaxError) and cause.filename == "<unknown>":
        return f"The expression {(cause.text or '').strip()}"
    frames = traceback.extract_tb(cause.__traceback__)
    if not frames or frames[-1].filename != "<string>":
        return None
    found = [match[1] for match in map(EXPRESSION.search, map(str, chain)) if match]
    return "The expression " + MONAI_REFERENCE.sub(r"@\1", found[-1]) if found else None


def _words_of(error: BaseException) -> str:
    """Return the first line of the message with the type, because the message of a `KeyError` is only a name."""
    if "weights_only" in str(error):  # torch's message recommends to disable this protection
        return "The file holds more than weights, so it is not loaded"
    text = first_line(error).rstrip(".:")[:MAX_LENGTH] if str(error).strip() else ""
    return f"{text} ({type(error).__name__})" if text else type(error).__name__
