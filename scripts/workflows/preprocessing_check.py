# SPDX-License-Identifier: Apache-2.0
"""Weights used behind another preprocessing than that of their training give wrong labels in silence: say so."""

from __future__ import annotations

import logging
from pathlib import Path

import torch
from monai.transforms import Transform

from scripts.data.preprocessing_record import describe_preprocessing, differences
from scripts.engine.weights_file import preprocessing_of

logger = logging.getLogger("preprocessing")


def warn_of_other_preprocessing(weights: str | Path, preprocessing: Transform) -> list[str]:
    """Compare the record in a weights file with the transforms that are about to be used, and warn of what differs.

    Args:
        weights: `model.pt` or `model_best.pt` of a training; a file without a record, or of another kind (`.ts`,
            `.onnx`), cannot be compared and passes.
        preprocessing: transforms of the key `image`.

    Returns:
        What differs, a text each.
    """
    if Path(weights).suffix != ".pt":
        return []
    trained = preprocessing_of(torch.load(weights, map_location="cpu", weights_only=True))
    found = [] if trained is None else differences(trained, describe_preprocessing(preprocessing))
    if found:
        logger.warning(
            f"{weights} was trained with another preprocessing than this configuration has ({'; '.join(found)}): put "
            "the dataset's file of its training behind the others in --config_file, or its labels will be wrong."
        )
    return found
