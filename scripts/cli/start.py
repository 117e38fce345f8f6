# SPDX-License-Identifier: Apache-2.0
"""First entries of `initialize` and of each list to run. They check the command line and seed random generators."""

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
    """Check the command line and seed random generators; the first entry of `initialize` in every config file.

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
    """Check the command line and the output folders; the first entry of every list that is run.

    The command line is checked again, because `begin` may not have run: in `run training seed 3`, MONAI takes `seed` as
    the name of the list for initialisation.

    Args:
        folders: folders that the run writes to.
        argv: the command line; `None` takes that of this process.

    Raises:
        UserError: in the same cases as `begin`, and for a folder that is not writable.
    """
    check_command_line(tuple(sys.argv if argv is None else argv))
    log_above_bars()  # MONAI has read `logging.conf` before this point
    require_folders(folders)


@lru_cache
def check_command_line(argv: tuple[str, ...]) -> None:
    """Check the options and config files of `python -m monai.bundle run`, once per process; ignore other commands.

    If MONAI would drop or change a value, the process is replaced by one whose arguments MONAI passes on unchanged.

    After this call, an exception that ends the process is printed as a one-line message, and Python and torch are
    configured for a run.

    Raises:
        UserError: for an unknown option or key, or a value out of range.
    """
    if not is_command_line(argv):
        return
    words = words_that_monai_keeps(argv[2:])
    if words != list(argv[2:]):
        again = ["-m", "monai.bundle", "run", *words]
        print(f"MONAI drops None and changes #, so this starts again: {shell_line(['python', *again])}", flush=True)
        if sys.platform == "win32":  # on Windows the waiting shell would see the process end
            raise SystemExit(subprocess.call([sys.executable, *again]))
        os.execv(sys.executable, [sys.executable, *again])
    options = parse_words(argv[2:])[0]
    debug = options.get("debug", "false").lower() != "false"
    sys.excepthook = lambda _type, error, _traceback: print_error(error, debug)
    check_settings(check_overrides(argv))
    # If pydicom is installed, MONAI's `LoadImage` warns twice that one of its readers lacks a decoder. That reader is
    # not used here.
    warnings.filterwarnings("ignore", message="NvImgCodecPydicomReader")
    # A filter and not a level, because MONAI resets the levels of its loggers when it reads `logging.conf`.
    logging.getLogger("monai.data.nvimgcodec_pydicom_plugin").addFilter(lambda record: record.levelno >= logging.ERROR)
    for engine in ("SupervisedEvaluator", "TwoStreamTrainer"):  # the error itself is printed at the end
        logging.getLogger(f"ignite.engine.engine.{engine}").addFilter(
            lambda record: "terminating due to exception" not in record.msg
        )
    gc.freeze()  # exclude the half million objects of imported modules from garbage collection
    limit_threads()
