# SPDX-License-Identifier: Apache-2.0
"""Network, heads and memory of a finished or stopped run, put back without its data."""

from __future__ import annotations

import logging
from pathlib import Path

from torch import nn

from scripts.engine.state_files import StateFiles, first_line
from scripts.errors import BundleError
from scripts.prototypes.memory import PrototypeMemory

logger = logging.getLogger("prototypes")


def load_prototypes(ckpt_dir: str | Path, network: nn.Module, loss: nn.Module, memory: PrototypeMemory) -> None:
    """Fill network and loss, and with the loss its memory and heads, from the newest state in a folder.

    The memory holds projections of the network that was trained, so its weights are taken and not the averaged ones.

    Args:
        ckpt_dir: folder of `state_*.pt`.
        network: of the configuration.
        loss: its terms, of which one holds `memory`.
        memory: to see whether anything is in it.

    Raises:
        BundleError: if there is no state, it is of another configuration, or holds no prototype.
    """
    content, path = StateFiles(ckpt_dir, keep=1).newest()
    if content is None:
        raise BundleError(f"{ckpt_dir} holds no state_*.pt of a run: train first, or name its folder by --ckpt_dir.")
    for name, module in (("network", network), ("loss", loss)):
        try:
            module.load_state_dict(content[name])
        except (KeyError, RuntimeError, TypeError, AttributeError) as error:
            raise BundleError(
                f"{path} does not fit this configuration ({name}: {first_line(error)}): give the dataset's and the "
                "method's file of that run."
            ) from error
    if int(memory.counts.sum()) == 0:
        raise BundleError(
            f"{path} holds no prototypes to measure distances to: train with a method that has them (the default, "
            "prototype, ssnet, ...) until its contrast has begun."
        )
    logger.info(f"Prototypes of step {content['run']['step']} from {path}: {memory.summary()}.")
