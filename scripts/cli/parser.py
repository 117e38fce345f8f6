# SPDX-License-Identifier: Apache-2.0
"""What the commands of `python -m scripts` share: their parser, and the options that they pass on."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Sequence
from functools import partial
from itertools import zip_longest
from typing import NoReturn

from scripts.errors import UserError

PROGRAM = "python -m scripts"
OPTION = re.compile(r"--?[A-Za-z_]")
MODEL_HELP = """\
dataset that the model was trained on; the model is then outputs/models/model.pt, otherwise the one that comes with the
bundle"""


class Parser(argparse.ArgumentParser):
    """A parser that raises `UserError`, refuses abbreviations and knows `--debug`."""

    def __init__(self, command: Callable[[list[str]], int], name: str, text: str = "") -> None:
        super().__init__(
            prog=f"{PROGRAM} {name}",
            description="\n\n".join(filter(None, [(command.__doc__ or "").splitlines()[0], text])),
            formatter_class=partial(argparse.RawDescriptionHelpFormatter, width=110, max_help_position=26),
            allow_abbrev=False,
        )
        self.add_argument("--debug", nargs="?", const="true", default="false", choices=["true", "false"],
                          help="show the traceback of an error")  # fmt: skip

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}. See `{self.prog} --help`.")


def split_words(words: Sequence[str], own: Sequence[str]) -> tuple[list[str], list[str]]:
    """Divide a command line into words for our own parser and words that are passed on.

    Args:
        words: options, each followed by its values. Leading words without dashes are our own.
        own: names of our own options.
    """
    ours: list[str] = []
    passed: list[str] = []
    target = ours
    for word in words:
        if OPTION.match(word):
            target = ours if word.partition("=")[0] in (*own, "--debug", "-h", "--help") else passed
        target.append(word)
    return ours, passed


def option_value(words: Sequence[str], option: str) -> str | None:
    """The value of an option given as `--option VALUE` or `--option=VALUE`; `None` if it is not given."""
    for word, following in zip_longest(words, words[1:], fillvalue=""):
        name, equals, value = word.partition("=")
        if name == option:
            return value if equals else following
    return None
