# SPDX-License-Identifier: Apache-2.0
"""One sentence for an error that nobody foresaw: where in the config files it came up, and what the library says."""

from __future__ import annotations

import os
import re
import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path

from scripts.errors import first_line

HINT = "add --debug true to the command for the traceback"
RESOLVER = ("monai", "bundle", "reference_resolver.py")
NO_SUCH_KEY = "is not defined in the config content"
TRANSFORM = re.compile(r"applying transform <(?:\w+\.)*(\w+) object")
LONGEST = 400


def describe_error(error: BaseException, options: Mapping[str, str] | None = None) -> str:
    """What a person reads first about an exception that is no `UserError`.

    It names the entry of the config files that was being built or run, or the checkpoint that the command was given,
    and gives the first line of the innermost exception, as the ones around it are MONAI's "Failed to ...".

    Args:
        error: that ends the process.
        options: of the command line.
    """
    chain = list(causes_of(error))
    if isinstance(error, KeyboardInterrupt):
        return "Interrupted."
    inner = _most_telling(chain)
    if isinstance(inner, MemoryError) or "out of memory" in str(inner).lower():
        return f"Memory is exhausted ({_words_of(inner)}): lower roi_size, the batch sizes or cache_rate; {HINT}."
    if isinstance(inner, OSError) and inner.strerror:
        name = os.fsdecode(inner.filename) if isinstance(inner.filename, str | bytes) else "A file"
        return f"{name} cannot be read or written ({inner.strerror}): mend path, permissions or disk; {HINT}."
    entry = entry_of(chain)
    transform = next((found[1] for found in map(TRANSFORM.search, map(str, reversed(chain))) if found), None)
    checkpoint = (options or {}).get("ckpt_file")
    where = f"`{entry}` in the config files" if entry else f"The command on {checkpoint}" if checkpoint else "This"
    place = f" in the transform {transform}" if transform else ""
    return f"{where} failed{place}: {_words_of(inner)}. Correct what it names, or {HINT}."


def causes_of(error: BaseException | None) -> Iterator[BaseException]:
    """An exception, then what caused it, and so on inwards."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        yield error
        seen.add(id(error))
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def entry_of(chain: list[BaseException]) -> str | None:
    """The innermost entry that MONAI was resolving, e.g. `optimizer` or `train::loss`; `None` outside of a config.

    MONAI's exceptions do not name it, but its resolver has the name in a local variable of every level.
    """
    entry = None
    for error in chain:
        for frame, _ in traceback.walk_tb(error.__traceback__):
            if Path(frame.f_code.co_filename).parts[-3:] == RESOLVER and frame.f_code.co_name == "_resolve_one_item":
                entry = frame.f_locals.get("id", entry)
    return entry


def _most_telling(chain: list[BaseException]) -> BaseException:
    for error in chain:
        if NO_SUCH_KEY in str(error):
            return error
    return chain[-1]


def _words_of(error: BaseException) -> str:
    """The message's first line with the kind of error, as a bare `KeyError` says no more than a name."""
    if "weights_only" in str(error):  # torch goes on to advise the one thing not to do
        return "it holds more than weights, or none, and is not loaded"
    text = first_line(error).rstrip(".:")[:LONGEST] if str(error).strip() else ""
    return f"{text} ({type(error).__name__})" if text else type(error).__name__
