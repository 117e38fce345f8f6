# SPDX-License-Identifier: Apache-2.0
"""First entries of `initialize` and of each list to run: check the command line and seed the random generators."""

from __future__ import annotations

import gc
import logging
import os
import subprocess
import sys
import warnings
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from monai.utils import set_determinism

from scripts.cli.overrides import check_overrides, is_command_line
from scripts.cli.rules import check_settings
from scripts.cli.runs import shell_line
from scripts.cli.words import parse_words, words_that_monai_keeps
from scripts.distributed.threads import limit_threads
from scripts.errors import UserError, print_error
from scripts.files import require_folders
from scripts.progress import log_above_bars


def begin(seed: int | None = None, argv: Sequence[str] | None = None) -> None:
    """First entry of the `initialize` list of every config.

    Args:
        seed: seed of all random generators, set before anything is built so that initial weights are reproducible.
        argv: the command line; `None` takes that of this process.

    Raises:
        UserError: for an unknown option, an unknown key in a config file, or a value out of range.
    """
    check_command_line(tuple(sys.argv if argv is None else argv))
    if seed is not None:
        if not isinstance(seed, int) or seed < 0:
            raise UserError(f"seed must be a whole number of at least 0, got {seed!r}.")
        set_determinism(seed=seed)


def ready(folders: Sequence[str | Path], argv: Sequence[str] | None = None) -> None:
    """First entry of every list that is run.

    It checks the command line too: in `run training seed 3`, MONAI takes `seed` for the name of the list to initialise
    with, so that `begin` does not run.

    Args:
        folders: folders that will be written to.
        argv: the command line; `None` takes that of this process.

    Raises:
        UserError: in the same cases as `begin`, and for a folder that is not writable.
    """
    check_command_line(tuple(sys.argv if argv is None else argv))
    log_above_bars()  # here, because MONAI has read `logging.conf` by now
    require_folders(folders)


@lru_cache
def check_command_line(argv: tuple[str, ...]) -> None:
    """Check the options and config files of `python -m monai.bundle run`, once per process; ignore other commands.

    If MONAI drops or changes a value, the process is replaced by one with words that it keeps.

    After this call, an exception that ends the process is printed as a one-line message, and Python and torch are set
    up for a run.

    Raises:
        UserError: for an unknown option or key, or a value out of range.
    """
    if not is_command_line(argv):
        return
    words = words_that_monai_keeps(argv[2:])
    if words != list(argv[2:]):
        again = ["-m", "monai.bundle", "run", *words]
        print(f"MONAI drops None and changes #, so this starts again: {shell_line(['python', *again])}", flush=True)
        if sys.platform == "win32":  # a replaced process would end for the shell that waits for it
            raise SystemExit(subprocess.call([sys.executable, *again]))
        os.execv(sys.executable, [sys.executable, *again])
    options = parse_words(argv[2:])[0]
    debug = options.get("debug", "false").lower() != "false"
    sys.excepthook = lambda _type, error, _traceback: print_error(error, debug)
    check_settings(check_overrides(argv))
    # Where pydicom is installed, MONAI's `LoadImage` warns twice that one of its readers, which is not used here, lacks
    # a decoder.
    warnings.filterwarnings("ignore", message="NvImgCodecPydicomReader")
    # A filter, because MONAI's reading of `logging.conf` resets the levels of its loggers.
    logging.getLogger("monai.data.nvimgcodec_pydicom_plugin").addFilter(lambda record: record.levelno >= logging.ERROR)
    gc.freeze()  # the half million objects of imported modules stay: Python need not search them for garbage again
    limit_threads()
