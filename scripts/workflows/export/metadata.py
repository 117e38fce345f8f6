# SPDX-License-Identifier: Apache-2.0
"""`metadata.json` of an exported model: that of the bundle, with what belongs to other weights replaced."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from scripts.workflows.export.settings import ExportSettings


def bundle_metadata(settings: ExportSettings) -> dict[str, Any]:
    """The bundle's metadata with channels, classes and window of a configuration.

    `eval_metrics` names the digest of the weights that they were measured with, and stays with those alone. What is
    said in words about the data stays with their dataset.

    Args:
        settings: whose `ckpt_file` is there.
    """
    content = json.loads(settings.meta_file.read_text(encoding="utf-8"))
    measured = content.get("eval_metrics", {})
    if measured.get("weights_sha256") != hashlib.sha256(settings.ckpt_file.read_bytes()).hexdigest():
        content.pop("eval_metrics", None)
    channels, names = settings.value("in_channels"), settings.value("label_names")
    data_format = content["network_data_format"]
    image, pred = data_format["inputs"]["image"], data_format["outputs"]["pred"]
    dataset = settings.parser.get("dataset_name", measured.get("dataset"))
    if dataset != measured.get("dataset"):
        content |= _words_of(settings, content["description"])
        image.pop("modality", None)
    if image["num_channels"] != channels:
        image["num_channels"] = channels
        image["channel_def"] = {str(c): f"image {c}" for c in range(channels)}
    pred["num_channels"] = len(names)
    pred["channel_def"] = {str(c): name for c, name in enumerate(names)}
    for tensor in (image, pred):
        tensor["spatial_shape"] = list(settings.value("window_size"))
    return content


def _words_of(settings: ExportSettings, description: str) -> dict[str, str]:
    dataset, names = settings.value("dataset_name"), settings.value("label_names")
    method = description.split(". ")[0]
    values = zip(settings.value("written_values"), names, strict=True)
    return {
        "description": f"{method}. The weights here are of the dataset {dataset}.",
        "data_source": dataset,
        "image_classes": f"{settings.value('in_channels')} channel(s)",
        "label_classes": ", ".join(["single channel data", *(f"{value} {name}" for value, name in values)]),
        "pred_classes": ", ".join(
            [f"{len(names)} channels of logits", *(f"{channel} {name}" for channel, name in enumerate(names))]
        ),
    }
