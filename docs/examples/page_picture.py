# SPDX-License-Identifier: Apache-2.0
"""Take a picture of a page, or of a part of it, in a Chromium that is on the PATH.

    python docs/examples/page_picture.py picture.png outputs/report/index.html --part "#training"
    python docs/examples/page_picture.py picture.png "http://localhost:6006/#scalars" --size 1500 1100

Needs playwright (requirements-browser.txt).
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from playwright.sync_api import sync_playwright

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("picture", help="PNG file to write")
    parser.add_argument("page", help="HTML file or address")
    parser.add_argument("--part", help="CSS selector of an element; its whole height is drawn (default: the window)")
    parser.add_argument("--size", type=int, nargs=2, default=(1200, 2560), help="width and height of the window")
    options = parser.parse_args()

    address = options.page if "://" in options.page else Path(options.page).resolve().as_uri()
    with sync_playwright() as play:
        browser = play.chromium.launch(
            executable_path=shutil.which("chromium") or shutil.which("google-chrome"), args=["--no-sandbox"]
        )
        page = browser.new_page(viewport=dict(zip(("width", "height"), options.size, strict=True)))
        page.goto(address, wait_until="networkidle")
        page.wait_for_timeout(10_000)  # TensorBoard draws its curves long after the page has arrived
        (page.locator(options.part) if options.part else page).screenshot(path=options.picture)
        browser.close()
