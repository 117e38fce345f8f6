# SPDX-License-Identifier: Apache-2.0
"""What a loader's worker process does about signals."""

from __future__ import annotations

import os
import signal
import threading


def heed_loader_alone(worker: int = 0) -> None:
    """Let SIGTERM end this worker only if its own loader sends it; a `worker_init_fn` of PyTorch's `DataLoader`.

    Schedulers and `torchrun` tell every process of a group to end. A worker that obeyed would fail the step that the
    main process is finishing before it saves. When the main process is gone, PyTorch's workers end by themselves.

    Where a signal's sender cannot be told (macOS, Windows) workers stay as PyTorch has them.

    Args:
        worker: its number, not used.
    """
    if not hasattr(signal, "sigwaitinfo"):
        return
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # threads to come inherit it
    threading.Thread(target=_end_when_told_by_parent, daemon=True).start()


def _end_when_told_by_parent() -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)
