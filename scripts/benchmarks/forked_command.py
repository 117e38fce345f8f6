# SPDX-License-Identifier: Apache-2.0
"""Commands in processes that are forked from this one, which has the libraries loaded: hundreds of starts in minutes.

Such a process runs what `python -m ...` runs, with its own command line, streams and exit code, and can be killed like
any other. It differs from a fresh one in that imports are done, and that arithmetic uses one thread.
"""

from __future__ import annotations

import faulthandler
import gc
import logging
import os
import runpy
import signal
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import ignite.engine  # noqa: F401 - loaded once here for all children
import itk
import monai.bundle.__main__ as monai_command
import monai.engines
import monai.handlers
import monai.transforms
import torch
import torch._dynamo
import torch.utils.tensorboard

MODULES = {"monai.bundle": str(monai_command.__file__)}


def load_libraries() -> None:
    """Load what the libraries load late, and keep arithmetic to one thread, as threads do not live through a fork."""
    torch.set_num_threads(1)
    for name in ("Image", "VectorImage", "ImageFileReader", "GDCMImageIO", "NrrdImageIO", "MetaImageIO"):
        getattr(itk, name)  # each loads a part of ITK; the whole of it takes ten seconds
    dir(monai.engines), dir(monai.handlers), dir(monai.transforms)


@dataclass
class Finished:
    """How a command ended: exit code (negative: ended by that signal; `None`: it took too long) and what it printed."""

    code: int | None
    output: str
    errors: str


def start(
    words: Sequence[str],
    folder: Path,
    environment: Mapping[str, str] | None = None,
    prepare: Callable[[], None] | None = None,
) -> int:
    """Start `python -m WORDS` in `folder`, where `stdout.txt` and `stderr.txt` take its streams; returns its id.

    Args:
        words: behind `python -m`.
        folder: working directory, made where it does not exist.
        environment: further variables.
        prepare: called in the new process just before the command.
    """
    folder.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        _become(words, folder, environment or {}, prepare or (lambda: None))
    return child


def _become(words: Sequence[str], folder: Path, environment: Mapping[str, str], prepare: Callable[[], None]) -> None:
    code = 1
    gc.freeze()  # what the parent has left to collect may hold threads that did not fork: not to be destroyed here
    try:
        os.setsid()
        for name, stream in (("stdout.txt", 1), ("stderr.txt", 2)):
            os.dup2(os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        sys.stdout, sys.stderr = (open(n, "w", buffering=1, encoding="utf-8", closefd=False) for n in (1, 2))  # noqa: SIM115
        sys.excepthook = sys.__excepthook__
        faulthandler.disable()
        _log_to(sys.stdout)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
        os.environ.update(environment)
        os.chdir(folder)
        sys.argv = [MODULES.get(words[0], words[0]), *words[1:]]
        # What the bundle does when it is loaded (`scripts/__init__.py`), it must do in this process too.
        for name in [name for name in sys.modules if name.split(".")[0] == "scripts"]:
            del sys.modules[name]
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


def _log_to(stream: TextIO) -> None:
    """Point all loggers that write to a stream to this one: MONAI's hold the stream of the process that loaded it."""
    loggers = (logging.getLogger(), *logging.getLogger().manager.loggerDict.values())
    for handler in [handler for logger in loggers for handler in getattr(logger, "handlers", ())]:
        if type(handler) is logging.StreamHandler:
            handler.stream = stream  # `setStream` would flush the other, which may be closed


def wait(process: int, timeout: float) -> int | None:
    """Exit code of a started process, or `None` when it was killed here after `timeout` seconds."""
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
    words: Sequence[str], folder: Path, timeout: float = 300.0, prepare: Callable[[], None] | None = None
) -> Finished:
    """Run `python -m WORDS` to its end, with its working directory and streams in `folder`; see `start`."""
    code = wait(start(words, folder, prepare=prepare), timeout)
    texts = ((folder / name).read_text(encoding="utf-8", errors="replace") for name in ("stdout.txt", "stderr.txt"))
    return Finished(code, *texts)
