# SPDX-License-Identifier: Apache-2.0
"""What a command prints when it ends with an exception."""

from __future__ import annotations

import os
import re
import sys
import traceback

from scripts.errors import UserError, first_line, is_out_of_memory, root_user_error

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
