# SPDX-License-Identifier: Apache-2.0
"""A progress bar over cases, as long loops here take one."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from tqdm import tqdm

Progress = Callable[[Iterable, str], Iterable]
"""Wraps what is looped over in a progress bar with a title."""


def progress_bar(items: Iterable, title: str) -> Iterable:
    """A progress bar on stderr."""
    return tqdm(items, desc=title, unit="case", leave=False)
