# SPDX-License-Identifier: Apache-2.0
"""Run `python -m ...` in a process forked from this one, which has imported the libraries already.

A start takes a fraction of a second instead of several. The process has its own command line, streams and exit code,
and can be killed like any other; its arithmetic uses one thread, because threads do not survive a fork.
"""

from __future__ import annotations

import faulthandler
import gc
import importlib
import logging
import os
import runpy
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import ignite.engine  # noqa: F401 - imported once here for all children
import itk
import monai.bundle.__main__ as monai_command
import monai.engines
import monai.handlers
import monai.transforms
import torch
import torch._dynamo
import torch.utils.tensorboard
from monai.bundle import ConfigParser

from scripts.cli.start import check_command_line
from tests.parsed_once import CONFIGS


def load_libraries() -> None:
    """Load the parts that the libraries import lazily, so that each child need not do it again."""
    torch.set_num_threads(1)
    for name in ("Image", "VectorImage", "ImageFileReader", "GDCMImageIO", "NrrdImageIO", "MetaImageIO"):
        getattr(itk, name)  # each loads a part of ITK; the whole of it takes ten seconds
    dir(monai.engines), dir(monai.handlers), dir(monai.transforms)
    for name in ("train", "evaluate", "inference"):
        ConfigParser.load_config_file(CONFIGS / f"{name}.yaml")  # remembered, see tests/parsed_once.py


def leave_bundle() -> None:
    """To be given as `prepare`: nothing of this project can be imported unless the command adds its folder."""
    os.environ.pop("PYTHONPATH", None)
    for name in [name for name in sys.modules if name.split(".")[0] == "scripts"]:
        del sys.modules[name]
    sys.path[:] = [place for place in sys.path if place and Path(place).resolve() != CONFIGS.parent]


def forget_filters() -> None:
    """To be given as `prepare`: all warnings are shown, although pytest collects them, and loggers have no filters."""
    importlib.reload(warnings).resetwarnings()
    for logger in list(logging.getLogger().manager.loggerDict.values()):
        getattr(logger, "filters", []).clear()


@dataclass
class Finished:
    """How a command ended: its exit code (negative: the signal; `None`: it took too long) and what it printed."""

    code: int | None
    output: str
    errors: str


def start(words: Sequence[str], folder: Path, prepare: Callable[[], None] = lambda: None) -> int:
    """Start `python -m WORDS`; returns the process id.

    Args:
        words: after `python -m`.
        folder: working directory, made if absent; `stdout.txt` and `stderr.txt` in it take the streams.
        prepare: called in the new process just before the command.
    """
    folder.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        _run_in_child(words, folder, prepare)
    return child


def _run_in_child(words: Sequence[str], folder: Path, prepare: Callable[[], None]) -> None:
    code = 1
    gc.freeze()  # garbage of the parent may own threads that were not forked, and must not be collected here
    try:
        os.setsid()
        for name, stream in (("stdout.txt", 1), ("stderr.txt", 2)):
            os.dup2(os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        sys.stdout, sys.stderr = (open(n, "w", buffering=1, encoding="utf-8", closefd=False) for n in (1, 2))  # noqa: SIM115
        sys.excepthook = sys.__excepthook__
        faulthandler.disable()
        _redirect_logging()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.chdir(folder)
        sys.argv = [str(monai_command.__file__) if words[0] == "monai.bundle" else words[0], *words[1:]]
        check_command_line.cache_clear()
        prepare()
        runpy.run_module(words[0], run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as stop:
        if stop.code is None or isinstance(stop.code, int):
            code = stop.code or 0
        else:
            print(stop.code, file=sys.stderr)
    except BaseException:
        try:
            sys.excepthook(*sys.exc_info())
        except Exception:
            traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _redirect_logging() -> None:
    """Point handlers that write to a stream to this process's stdout: MONAI's still hold the parent's stream."""
    loggers = (logging.getLogger(), *logging.getLogger().manager.loggerDict.values())
    for handler in [handler for logger in loggers for handler in getattr(logger, "handlers", ())]:
        if type(handler) is logging.StreamHandler:
            handler.stream = sys.stdout  # `setStream` would flush the other stream, which may be closed


def wait(process: int, timeout: float) -> int | None:
    """Exit code of a started process, or `None` if it was killed here after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        done, status = os.waitpid(process, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    os.killpg(process, signal.SIGKILL)
    os.waitpid(process, 0)
    return None


def run(
    words: Sequence[str], folder: Path, timeout: float = 300.0, prepare: Callable[[], None] = lambda: None
) -> Finished:
    """Run `python -m WORDS` to its end; see `start`."""
    code = wait(start(words, folder, prepare), timeout)
    texts = ((folder / name).read_text(encoding="utf-8", errors="replace") for name in ("stdout.txt", "stderr.txt"))
    return Finished(code, *texts)
