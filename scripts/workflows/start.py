# SPDX-License-Identifier: Apache-2.0
"""What happens before a workflow does anything: overrides are checked and errors made readable."""

from __future__ import annotations

import ast
import difflib
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from monai.bundle import ConfigParser
from monai.utils import set_determinism

from scripts.errors import BundleError

RUN_ARGUMENTS = {
    "run_id", "init_id", "final_id", "meta_file", "config_file", "logging_file", "tracking", "args_file",
    "workflow_name", "workflow_type", "properties_path",
}  # fmt: skip
"""Options of `python -m monai.bundle run` itself."""


def begin(seed: int | None = None, argv: Sequence[str] | None = None) -> None:
    """First entry of every config's `initialize` list.

    Args:
        seed: seeds all generators before anything is built, so that a network starts with the same weights.
        argv: command line, by default this process's.

    Raises:
        BundleError: for an override that no config file knows.
    """
    argv = list(sys.argv if argv is None else argv)
    if is_command_line(argv):
        install_error_report("--debug" in argv)
        check_overrides(argv)
    if seed is not None:
        if not isinstance(seed, int) or seed < 0:
            raise BundleError(f"seed must be a whole number of at least 0, got {seed!r}.")
        set_determinism(seed=seed)


def is_command_line(argv: Sequence[str]) -> bool:
    """Whether this process is `python -m monai.bundle run ...`."""
    return len(argv) > 1 and Path(argv[0]).parts[-3:] == ("monai", "bundle", "__main__.py") and argv[1] == "run"


def check_overrides(argv: Sequence[str]) -> None:
    """Refuse `--key` for a key that no config file has: MONAI would accept and ignore it.

    Args:
        argv: the whole command line.

    Raises:
        BundleError: naming the option and the nearest known one.
    """
    options = _options(argv)
    known = RUN_ARGUMENTS | {"debug"}
    text = ""
    for file in _config_files(options.get("config_file", "")):
        known |= {key.lstrip("+").replace("#", "::").split("::")[0] for key in ConfigParser.load_config_file(file)}
        text += Path(file).read_text(encoding="utf-8")
    known |= set(re.findall(r"@([A-Za-z_]\w*)", text))
    stray = [a for a in argv[3:] if not a.startswith("-") and a in known and argv[argv.index(a) - 1][:2] != "--"]
    if stray:
        raise BundleError(f"'{stray[0]}' stands alone on the command line: write --{stray[0]} VALUE.")
    for option in options:
        if option.replace("#", "::").split("::")[0] not in known:
            near = difflib.get_close_matches(option, sorted(known), n=1)
            hint = f" Did you mean --{near[0]}?" if near else " The keys are at the top of configs/train.yaml."
            raise BundleError(
                f"Nothing in the config files is called '{option}', so --{option} would do nothing.{hint}"
            )


def _options(argv: Sequence[str]) -> dict[str, str]:
    """`--key value` and `--key=value` pairs."""
    found: dict[str, str] = {}
    for i, word in enumerate(argv):
        if re.match(r"--[A-Za-z_]", word):
            key, equals, value = word[2:].partition("=")
            found[key] = value if equals else (argv[i + 1] if i + 1 < len(argv) else "")
    return found


def _config_files(value: str) -> list[str]:
    """One path, or a list of them as text, as on MONAI's command line."""
    try:
        parsed = ast.literal_eval(value)
    except (ValueError, SyntaxError):
        parsed = value
    return [str(f) for f in parsed] if isinstance(parsed, list | tuple) else [str(parsed)]


def install_error_report(debug: bool) -> None:
    """Print a `BundleError`, however deeply MONAI has wrapped it, as one sentence; `debug` keeps the traceback too."""

    def report(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        mistake = find_mistake(error)
        if mistake is None or debug:
            sys.__excepthook__(kind, error, trace)
        if mistake is not None:
            print(f"\nError: {mistake}", file=sys.stderr)

    sys.excepthook = report


def find_mistake(error: BaseException | None) -> BundleError | None:
    """The `BundleError` among an exception and its causes."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        if isinstance(error, BundleError):
            return error
        seen.add(id(error))
        error = error.__cause__ or error.__context__
    return None


def require_file(path: str | Path, hint: str) -> None:
    """Stop before any work if `path` is not there.

    Raises:
        BundleError: naming the file and the way out, `hint`.
    """
    if not Path(path).is_file():
        raise BundleError(f"{path} does not exist: {hint}.")


def require_images(files: Sequence[str], folder: str | Path) -> None:
    """Stop if there is nothing to run on.

    Raises:
        BundleError: for an empty list.
    """
    if not files:
        raise BundleError(
            f"No NIfTI file lies in {folder}: give a folder of images or one image file by --dataset_dir."
        )
