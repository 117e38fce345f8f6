# SPDX-License-Identifier: Apache-2.0
"""The error that a user can fix."""

from __future__ import annotations


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
