# SPDX-License-Identifier: Apache-2.0
"""Parse the arguments of `python -m scripts COMMAND` and of `python -m monai.bundle run`."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Sequence
from functools import partial
from itertools import zip_longest
from typing import NoReturn

from fire.parser import DefaultParseValue

from scripts.errors import UserError

PROGRAM = "python -m scripts"
MODEL_HELP = """\
dataset that the model was trained on; the model is then outputs/models/model.pt, otherwise the one that comes with the
bundle"""

RUN_ARGUMENTS = {
    "run_id", "init_id", "final_id", "meta_file", "config_file", "logging_file", "tracking", "args_file",
    "workflow_name", "workflow_type", "properties_path", "debug",
}  # fmt: skip
"""Options of `run` itself, and `--debug` of this bundle."""

OPTION = re.compile(r"--?([A-Za-z_][^=]*)(=.*)?", re.DOTALL)


def parse_words(words: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Parse arguments as Python Fire does for MONAI; return options with their values, and arguments without an option.

    Accepts `--key value`, `--key=value`, both also with one dash, and `--key` alone. Dashes inside a key count as
    underscores.
    """
    options: dict[str, str] = {}
    alone: list[str] = []
    rest = list(words)
    while rest:
        word = rest.pop(0)
        match = OPTION.fullmatch(word)
        if match is None:
            alone.append(word)
            continue
        value = match[2][1:] if match[2] else (rest.pop(0) if rest and not OPTION.fullmatch(rest[0]) else "")
        options[match[1].replace("-", "_")] = value
    return options, alone


def words_that_monai_keeps(words: Sequence[str]) -> list[str]:
    r"""Replace values that MONAI would drop or change by expressions that give the same value.

    MONAI ignores an option whose value is None, and changes every # in a value to ::. An expression avoids both:
    `--labelled_cases None` (or null) becomes `--labelled_cases $None`, and `ha#sh` becomes `$'ha\x23sh'`.

    Args:
        words: the arguments after `run`.
    """
    kept: list[str] = []
    key = None
    for word in words:
        match = OPTION.fullmatch(word)
        if match is not None:
            key = match[1].replace("-", "_")
            value = None if match[2] is None else match[2][1:]
            start = word[: match.start(2)] + "=" if match[2] else word
            kept.append(word if value is None else start + kept_value(key, value))
        else:
            kept.append(word if key is None else kept_value(key, word))
            key = None
    return kept


def kept_value(key: str, value: str) -> str:
    """Return the value of an option, or an equivalent expression if MONAI would drop or change the value.

    Args:
        key: name of the option.
        value: value on the command line.
    """
    if key in RUN_ARGUMENTS or value.startswith(("$", "@", "%")):
        return value
    if value in ("None", "null"):
        return "$None"
    if "#" not in value:
        return value
    parsed = DefaultParseValue(value)
    # Fire treats the text after a # outside of quotes as a comment.
    meant = parsed if isinstance(parsed, list | tuple | dict) or value[0] in "\"'" else value
    text = repr(meant)
    if isinstance(meant, list | tuple | dict) and re.search(r"['\"][$@%]", text):  # contains expressions
        return value
    return "$" + text.replace("#", r"\x23").replace("@", r"\x40")


class Parser(argparse.ArgumentParser):
    """A parser that raises `UserError`, does not accept abbreviations, and has the option `--debug`."""

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
    """Split a command line into arguments for our own parser and arguments that are passed on to MONAI.

    Args:
        words: options, each followed by its values. Leading arguments without dashes are for our own parser.
        own: names of the options of our own parser.
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
    """Return the value of an option given as `--option VALUE` or `--option=VALUE`; `None` if it is missing."""
    for word, following in zip_longest(words, words[1:], fillvalue=""):
        name, equals, value = word.partition("=")
        if name == option:
            return value if equals else following
    return None
