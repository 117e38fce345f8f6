# SPDX-License-Identifier: Apache-2.0
"""Build the `python -m monai.bundle run` command from the names of a dataset and a method, and run commands."""

from __future__ import annotations

import difflib
import gc
import json
import logging
import os
import re
import runpy
import shlex
import signal
import subprocess
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from scripts.cli.words import words_that_monai_keeps
from scripts.errors import UserError
from scripts.files import write_text

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / "configs"
DATA = ROOT / "data"
TRAINED = ROOT / "outputs/models"
"""Where training writes its models by default."""

YAML_ENDINGS = (".yaml", ".yml", ".json")


def find_dataset(name: str) -> Path:
    """Find the config file of a dataset.

    Args:
        name: path of the file, path of the folder that contains it, or a name. A name is searched in the current
            folder, `configs/datasets`, `data` and its subfolders, and among the datasets that `new-dataset` wrote.

    Raises:
        UserError: if there is no such file; the message suggests the most similar name.
    """
    path = Path(name)
    if path.is_file():
        return path
    if path.is_dir():
        found = sorted(path.glob("*.yaml"))
        if len(found) != 1:
            raise UserError(f"{path} holds {len(found)} YAML files: give the path of the dataset's YAML file.")
        return found[0]
    if path.suffix in YAML_ENDINGS or len(path.parts) > 1:
        raise UserError(f"The dataset file {path} does not exist: correct the path.")
    known = dict(reversed(list(_dataset_files())))  # the first of several files with the same name wins
    return _named(name, known, "dataset", "run `python -m scripts new-dataset FOLDER --name NAME` first")


def find_part(kind: str, name: str) -> Path:
    """Find the config file of a network or a method by path, or by name in `configs/networks` or `configs/methods`.

    Args:
        kind: `network` or `method`.
        name: path of the file, or its name without ending.

    Raises:
        UserError: if there is no such file; the message suggests the most similar name.
    """
    if Path(name).is_file():
        return Path(name)
    known = {file.stem: file for file in sorted((CONFIGS / f"{kind}s").glob("*.yaml"))}
    return _named(name, known, kind, f"choose one of {', '.join(known)}")


def _named(name: str, known: dict[str, Path], kind: str, otherwise: str) -> Path:
    if name in known:
        return known[name]
    near = difflib.get_close_matches(name, known, n=1)
    raise UserError(f"There is no {kind} called '{name}': {f'did you mean {near[0]}?' if near else f'{otherwise}.'}")


def _dataset_files() -> Iterator[tuple[str, Path]]:
    for folder in (Path(), CONFIGS / "datasets", DATA, *sorted(path for path in DATA.glob("*") if path.is_dir())):
        yield from ((file.stem, file) for file in sorted(folder.glob("*.yaml")))
    yield from ((name, Path(file)) for name, file in remembered().items() if Path(file).is_file())


def _memory() -> Path:
    """Return the JSON file that maps dataset names to YAML files; tests replace it with the environment variable."""
    return Path(os.environ.get("BUNDLE_DATASETS") or DATA / "datasets.json")


def remembered() -> dict[str, str]:
    """Return the datasets that `new-dataset` wrote, as a map from name to YAML file."""
    try:
        content = json.loads(_memory().read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return {str(name): str(file) for name, file in content.items()} if isinstance(content, dict) else {}


def remember(name: str, file: Path) -> None:
    """Remember the YAML file of a dataset; does nothing if the bundle is read-only (users must then give the path)."""
    try:
        write_text(_memory(), json.dumps({**remembered(), name: str(file.absolute())}, indent=1) + "\n")
    except UserError:
        return


def run_words(run_id: str | None, files: Sequence[Path], options: Sequence[str] = ()) -> list[str]:
    """Return the arguments of `python -m monai.bundle` that run config files from the current folder.

    If the current folder is the bundle's folder, the paths of its files are relative. Otherwise they are absolute, and
    `--bundle_root` is added.

    Args:
        run_id: name of the list in the config files to run; `None` for `run`.
        files: config files; later ones replace keys of earlier ones.
        options: further arguments.
    """
    if Path.cwd() != ROOT and not any(word.partition("=")[0] == "--bundle_root" for word in options):
        options = ["--bundle_root", str(ROOT), *options]
    shown = [shown_path(file) for file in files]
    listed = shown[0] if len(shown) == 1 else f"[{','.join(map(repr, shown))}]"
    return ["run", *([run_id] if run_id else []), "--config_file", listed, *options]


def shown_path(path: Path) -> str:
    """Return a relative path if the current folder is the bundle's folder and contains it; else an absolute path."""
    path = path.absolute()
    return str(path.relative_to(ROOT) if Path.cwd() == ROOT and path.is_relative_to(ROOT) else path)


def shell_line(words: Sequence[str]) -> str:
    """Join the arguments to a line for a POSIX shell, with double quotes around lists of files."""
    return " ".join(
        f'"{word}"' if "'" in word and not re.search(r'["$`\\!]', word) else shlex.quote(word) for word in words
    )


def run_in_monai(words: Sequence[str]) -> None:
    """Print `python -m monai.bundle WORDS`, and run this command in the current process.

    Raises:
        UserError: for a mistake in options or config files, before anything is run.
        Exception: any error of the run.
    """
    words = [words[0], *words_that_monai_keeps(words[1:])]
    print(shell_line(["python", "-m", "monai.bundle", *words]), flush=True)
    gc.disable()  # garbage collection would slow down the import of MONAI
    import monai.bundle

    gc.enable()

    from scripts.cli.start import check_command_line

    # Hide MONAI's warnings about untrusted config files (docs/SECURITY.md repeats them) and about several folders.
    warnings.filterwarnings("ignore", message="parsing config_file")
    logging.getLogger("monai.bundle.workflows").addFilter(lambda record: "Not all config files" not in record.msg)

    program = str(Path(monai.bundle.__file__).with_name("__main__.py"))
    before = sys.argv
    sys.argv = [program, *words]
    try:
        check_command_line(tuple(sys.argv))
        runpy.run_module("monai.bundle", run_name="__main__", alter_sys=True)
    finally:
        sys.argv = before


def run_process(command: Sequence[str], timeout: float | None = None, **options: Any) -> subprocess.CompletedProcess:
    """Run a command like `subprocess.run`, but terminate it gracefully on a timeout or signal instead of killing it.

    After `timeout` seconds, or when this process receives SIGINT or SIGTERM, the command gets SIGTERM. A training run
    then completes its step and saves it, and this process waits until it ends. Call this in the main thread.

    Args:
        command: the program and its arguments.
        timeout: time limit in seconds; `None` for no limit.
        options: options of `subprocess.Popen`.

    Raises:
        subprocess.TimeoutExpired: after `timeout`.
        SystemExit: after a signal, with 128 + its number.
    """
    received: list[int] = []

    def pass_on(number: int, _: object) -> None:
        received.append(number)
        process.terminate()

    process = subprocess.Popen(command, **options)
    previous = {number: signal.signal(number, pass_on) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        process.wait(timeout)
    except subprocess.TimeoutExpired:
        process.terminate()
        process.wait()
        raise
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    if received:
        raise SystemExit(128 + received[0])
    return subprocess.CompletedProcess(command, process.returncode)
