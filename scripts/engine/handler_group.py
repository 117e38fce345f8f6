# SPDX-License-Identifier: Apache-2.0
"""Several handlers under one entry of a handler list."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ignite.engine import Engine


class HandlerGroup:
    """Attach other handlers in their order, or none of them.

    MONAI's property check wants `train::handlers` to be a literal list of components, so what a method adds to it, or
    what depends on the data, stands behind one entry.

    Args:
        handlers: objects with `attach(engine)`.
        enabled: `False` attaches nothing.
    """

    def __init__(self, handlers: Sequence[Any], enabled: bool = True) -> None:
        self.handlers = list(handlers) if enabled else []

    def attach(self, engine: Engine) -> None:
        """Attach each handler."""
        for handler in self.handlers:
            handler.attach(engine)
