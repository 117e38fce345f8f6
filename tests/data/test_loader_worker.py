# SPDX-License-Identifier: Apache-2.0
"""A loader's worker lives through a SIGTERM to the whole group, but not through its own loader's."""

from __future__ import annotations

import os
import signal
import time

import pytest

from scripts.data.streams import heed_loader_alone


@pytest.mark.parametrize(("sender", "status"), [("loader", 0), ("another", 7)])
def test_only_the_loaders_sigterm_ends_a_worker(sender, status) -> None:
    ready, says_ready = os.pipe()
    worker = os.fork()
    if worker == 0:
        signal.signal(signal.SIGTERM, lambda *_: os._exit(1))  # what it had before
        heed_loader_alone()
        if sender == "another":
            os.kill(os.getpid(), signal.SIGTERM)
        os.write(says_ready, b".")
        time.sleep(0.3 if sender == "another" else 10)
        os._exit(7)
    os.read(ready, 1)
    if sender == "loader":
        os.kill(worker, signal.SIGTERM)
    assert os.waitstatus_to_exitcode(os.waitpid(worker, 0)[1]) == status
