# SPDX-License-Identifier: Apache-2.0
"""What happens before a workflow does anything: overrides are checked, seeds set, errors made readable."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from types import TracebackType

from monai.utils import set_determinism

from scripts.cli.errors import describe_error
from scripts.cli.overrides import check_overrides, is_command_line, parse_words
from scripts.cli.rules import check_settings
from scripts.errors import UserError, root_user_error
from scripts.files import require_folders


def begin(seed: int | None = None, argv: Sequence[str] | None = None) -> None:
    """First entry of every config's `initialize` list.

    Args:
        seed: seeds all generators before anything is built, so that a network starts with the same weights.
        argv: command line, by default this process's.

    Raises:
        UserError: for an override or a key of a file that nothing knows, or a value that no run can work with.
    """
    check_command_line(tuple(sys.argv if argv is None else argv))
    if seed is not None:
        if not isinstance(seed, int) or seed < 0:
            raise UserError(f"seed must be a whole number of at least 0, got {seed!r}.")
        set_determinism(seed=seed)


def ready(folders: Sequence[str | Path], argv: Sequence[str] | None = None) -> None:
    """First entry of every list that is run: whether it may begin.

    The command line is checked here too: MONAI takes a word alone (`run training seed 3`) for what to run instead of
    `initialize`, and `begin` then does not run.

    Args:
        folders: that will be written to.
        argv: command line, by default this process's.

    Raises:
        UserError: as `begin` and `require_folders`.
    """
    check_command_line(tuple(sys.argv if argv is None else argv))
    require_folders(folders)


@lru_cache
def check_command_line(argv: tuple[str, ...]) -> None:
    """Make errors readable and refuse mistakes, if this process is MONAI's `run`; once a process.

    Raises:
        UserError: as `check_overrides` and `check_settings`.
    """
    if is_command_line(argv):
        install_error_report(wants_traceback(argv))
        check_settings(check_overrides(argv))


def wants_traceback(argv: Sequence[str]) -> bool:
    """Whether the command line holds `--debug`, in any of the forms that it may have."""
    return parse_words(argv[2:])[0].get("debug", "false").lower() != "false"


def install_error_report(debug: bool) -> None:
    """Print an error that ends the process as one sentence; `debug` keeps the traceback too, in front of it.

    The sentence is that of a `UserError`, however deeply MONAI has wrapped it, else `error_sentence.describe_error`.
    """

    def report(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if debug:
            sys.__excepthook__(kind, error, trace)
        print(
            f"\nError: {root_user_error(error) or describe_error(error, parse_words(sys.argv[2:])[0])}", file=sys.stderr
        )

    sys.excepthook = report
