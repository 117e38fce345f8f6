# SPDX-License-Identifier: Apache-2.0
"""What a kind of bad input is: how it comes about, which commands meet it, and what is right then."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from scripts.benchmarks.bad_inputs.ground import Ground

TRAIN, EVALUATE, INFER, CHECK, NEW, EXPORT = (
    "training",
    "evaluating",
    "inference",
    "check_data",
    "new_dataset",
    "export",
)
COMMANDS = (TRAIN, EVALUATE, INFER, CHECK, NEW, EXPORT)

Spoil = Callable[[Ground], str]
"""Spoils a sound folder, configuration or command line, and returns the file or key that a refusal must name."""


@dataclass(frozen=True)
class Kind:
    """One kind of bad input.

    Attributes:
        name: in words, for the table.
        spoil: makes it.
        refused: for each command that must refuse it, a regular expression that its sentence must hold.
        right: commands that must give the right result in spite of it.
        monai: commands whose error MONAI prints itself, before anything of the bundle runs: a traceback whose last line
            must name the file or key.
        inputs: how many different ones `spoil` can make, if more than the campaign's number of seeds.
        unprivileged: whether file permissions must hold, as they do not for root.
        disk: bytes that a file may have, to act a full disk; 0 for any number.
    """

    name: str
    spoil: Spoil
    refused: dict[str, str] = field(default_factory=dict)
    right: tuple[str, ...] = ()
    monai: dict[str, str] = field(default_factory=dict)
    inputs: int = 0
    unprivileged: bool = False
    disk: int = 0

    @property
    def commands(self) -> tuple[str, ...]:
        """Commands that meet it; a seed takes the next of them."""
        return tuple(c for c in COMMANDS if c in self.refused or c in self.right or c in self.monai)


def every(words: str, *commands: str) -> dict[str, str]:
    """The same words of refusal for several commands."""
    return dict.fromkeys(commands, words)
