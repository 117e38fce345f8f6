# SPDX-License-Identifier: Apache-2.0
"""`python -m scripts COMMAND`, or `python FOLDER_OF_THE_BUNDLE/scripts COMMAND` from any folder."""

import sys
from pathlib import Path

if not __package__:  # run as a folder: Python then searches for modules inside `scripts`
    sys.path[:1] = ["", str(Path(__file__).resolve().parents[1])]

from scripts.cli.commands import main

if __name__ == "__main__":
    sys.exit(main())
