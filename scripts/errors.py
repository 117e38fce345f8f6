# SPDX-License-Identifier: Apache-2.0
"""The one exception that means "the person who started this can mend it"."""

from __future__ import annotations


class BundleError(ValueError):
    """A mistake in data, configuration or command line, told in one sentence that says what to do.

    The command line prints the sentence alone (`scripts.workflows.start`); code that imports the bundle gets an
    ordinary exception with a traceback.
    """
