# SPDX-License-Identifier: Apache-2.0
"""Run a command in a terminal of its own and draw what it leaves on the screen.

    pip install pyte
    python docs/examples/terminal_picture.py picture.png python -m scripts train demo --max_steps 40

Needs matplotlib too, for its font (requirements-dev.txt).
"""

from __future__ import annotations

import argparse
import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios

import pyte
from matplotlib.font_manager import findfont
from PIL import Image, ImageDraw, ImageFont

COLUMNS, ROWS, SIZE = 120, 60, 15


def screen(command: list[str]) -> list[str]:
    """The lines that a command leaves in a terminal, to which it believes to write."""
    terminal = pyte.Screen(COLUMNS, ROWS)
    stream = pyte.ByteStream(terminal)
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
    with subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs) as process:
        os.close(theirs)
        while True:
            try:
                stream.feed(os.read(ours, 65536))
            except OSError:  # Linux reports the end of the command in this way
                break
    os.close(ours)
    if process.returncode:
        sys.exit(process.returncode)
    return "\n".join(line.rstrip() for line in terminal.display).rstrip().split("\n")


def draw(lines: list[str], file: str) -> None:
    """Draw lines of text, light on dark."""
    font = ImageFont.truetype(findfont("DejaVu Sans Mono"), SIZE)
    height, width = round(1.35 * SIZE), font.getlength("x")
    size = (round(width * max(map(len, lines))) + 2 * SIZE, height * len(lines) + 2 * SIZE)
    picture = Image.new("RGB", size, "#16181d")
    for number, line in enumerate(lines):
        ImageDraw.Draw(picture).text((SIZE, SIZE + number * height), line, fill="#e6e6e6", font=font)
    picture.quantize(16).save(file, optimize=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("picture", help="PNG file to write")
    parser.add_argument("command", nargs=argparse.REMAINDER, help="what to run")
    options = parser.parse_args()
    draw(["$ " + " ".join(options.command), *screen(options.command)], options.picture)
