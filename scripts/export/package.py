# SPDX-License-Identifier: Apache-2.0
"""Pack the bundle as one zip file, with metadata and JSON configs for the dataset of its model."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser

from scripts.errors import UserError
from scripts.export.settings import ROOT, ExportSettings
from scripts.files import atomic_write
from scripts.training.run_record import file_digest


def bundle_metadata(settings: ExportSettings) -> dict[str, Any]:
    """The bundle's metadata, adapted to the channels, classes and window of a configuration.

    `eval_metrics` is kept only for the weights whose SHA-256 digest it names. For another dataset, the sentences that
    describe the data are replaced.

    Args:
        settings: configuration and weights; `ckpt_file` must exist.
    """
    content = json.loads(settings.meta_file.read_text(encoding="utf-8"))
    measured = content.get("eval_metrics", {})
    if measured.get("weights_sha256") != file_digest(settings.ckpt_file):
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
        "name": f"Semi-supervised segmentation: {dataset}",
        "description": f"{method}. These weights were trained on the dataset {dataset}.",
        "data_source": dataset,
        "image_classes": f"{settings.value('in_channels')} channel(s)",
        "label_classes": ", ".join(["single channel data", *(f"{value} {name}" for value, name in values)]),
        "pred_classes": ", ".join(
            [f"{len(names)} channels of logits", *(f"{channel} {name}" for channel, name in enumerate(names))]
        ),
    }


def json_configs(settings: ExportSettings) -> dict[str, str]:
    """The configs of a zip file in JSON: `train`, `evaluate`, `inference` and `metadata`, by file name.

    Programs that read bundles take one file of each kind, and some read only JSON. Each file therefore includes the
    values of the dataset, whose config file follows `inference.yaml` in the settings. Such programs supply the images:

    - `train.json` treats a missing datalist as one without cases, and saves models to `models/`, where these programs
      look for them;
    - `inference.json` keeps the image folder of `inference.yaml` and not that of the dataset, which holds training
      images.

    Args:
        settings: configuration and weights.
    """
    train = _merged(["train.yaml", *settings.config_files[1:]], settings.overrides)
    train["cases"] = {**train["cases"], "_target_": "scripts.data.datalist.load_cases_if_listed"}
    inference = _merged(["inference.yaml", *settings.config_files[1:]], settings.overrides)
    inference["network_def"] = settings.parser["network_def"]
    original = ConfigParser.load_config_file(str(ROOT / "configs/inference.yaml"))
    inference["dataset_dir"], train["ckpt_dir"] = original["dataset_dir"], original["ckpt_dir"]
    contents = {
        "train": train,
        "evaluate": ConfigParser.load_config_file(str(ROOT / "configs/evaluate.yaml")),
        "inference": inference,
        "metadata": bundle_metadata(settings),
    }
    return {f"{name}.json": json.dumps(it, ensure_ascii=False, indent=4) + "\n" for name, it in contents.items()}


def _merged(files: Sequence[str], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Merge config files, relative to `configs/`, and apply the overrides whose keys these files have."""
    parser = ConfigParser(ConfigParser.load_config_files([str(ROOT / "configs" / file) for file in files]))
    for key, value in overrides.items():
        if key.replace("#", "::").split("::")[0] in parser.get():
            parser[key] = value
    return {key: value for key, value in parser.get().items() if key != parser.meta_key}


FOLDERS = ("configs", "scripts", "docs", "models")
FILES = (
    "LICENSE",
    "README.md",
    "pyproject.toml",
    "requirements.txt",
    "requirements-dicom.txt",
    "requirements-export.txt",
    "requirements-tracking.txt",
)
MODEL_NAMES = {"model.pt", "model_best.pt", "model.ts", "model.onnx", "model.pt2", "README.md"}
"""Files of `models/` that are packed; the checkpoints of training runs are not."""

LEFT_OUT = ("scripts/experiments", "docs/examples")
"""Folders for developers; the bundle runs without them."""

REQUIRED = ("configs/metadata.json", "configs/inference.yaml", "configs/train.yaml", "LICENSE", "models/model.pt")


def zip_bundle(
    root: Path,
    path: Path,
    models: Path | None = None,
    texts: Mapping[str, str] | None = None,
    without: Sequence[str] = (),
) -> list[str]:
    """Write the bundle to a zip file, inside one folder named after the file.

    Args:
        root: the bundle's folder.
        path: the zip file.
        models: folder of the weights, by default `root/models`.
        texts: further files, as a mapping from name in the bundle to content; they replace files of the same name.
        without: names of files in the bundle that are not packed.

    Returns:
        The names of the packed files, relative to the bundle.

    Raises:
        UserError: if one of the files `REQUIRED` is missing.
    """
    models, texts = models or root / "models", texts or {}
    content = {name: root / name for name in FILES if (root / name).is_file()}
    for folder in FOLDERS:
        home = models if folder == "models" else root / folder
        for file in sorted(home.rglob("*")):
            inside = file.relative_to(home)
            if file.is_file() and _belongs(folder, inside):
                content[f"{folder}/{inside.as_posix()}"] = file
    missing = [name for name in REQUIRED if name not in content]
    if missing:
        hint = "train first, or give the weights with --ckpt_file" if missing == ["models/model.pt"] else "restore it"
        raise UserError(f"The bundle in {root} has no {missing[0]}: {hint}.")
    content = {name: file for name, file in content.items() if name not in without}
    with atomic_write(path) as beside, zipfile.ZipFile(beside, "w", zipfile.ZIP_DEFLATED) as archive:
        names = sorted({*content, *texts})
        for name in names:
            if name in texts:
                archive.writestr(f"{path.stem}/{name}", texts[name])
            else:
                archive.write(content[name], f"{path.stem}/{name}")
    return names


def _belongs(folder: str, inside: Path) -> bool:
    if any(part.startswith(".") or part == "__pycache__" for part in inside.parts) or inside.suffix == ".pyc":
        return False
    if f"{folder}/{inside.parts[0]}" in LEFT_OUT:
        return False
    return folder != "models" or str(inside) in MODEL_NAMES
