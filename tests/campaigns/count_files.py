# SPDX-License-Identifier: Apache-2.0
"""Count the Python files of `scripts/` whose functions run during a command.

    cd CHECKOUT; python PATH/TO/count_files.py run training --config_file configs/train.yaml --max_steps 2 ...

The words are those behind `python -m monai.bundle`. Functions that run while modules are imported do not count.
"""

from __future__ import annotations

import os
import runpy
import sys
import threading
from pathlib import Path
from types import FrameType
from typing import Any


def main() -> None:
    """Run the command of the command line, then print the files and their number."""
    root, files = Path("scripts").resolve(), set()

    def note(frame: FrameType, event: str, _arg: Any) -> None:
        name = frame.f_code.co_filename
        if event == "call" and name.startswith(f"{root}{os.sep}") and frame.f_code.co_name != "<module>":
            files.add(os.path.relpath(name, root))

    sys.path.insert(0, os.getcwd())
    sys.argv = ["monai.bundle", *sys.argv[1:]]
    threading.setprofile(note)
    sys.setprofile(note)
    try:
        runpy.run_module("monai.bundle", run_name="__main__", alter_sys=True)
    finally:
        sys.setprofile(None)
        print("\n".join([*sorted(files), f"{len(files)} files"]))


if __name__ == "__main__":
    main()
