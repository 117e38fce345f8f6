# SPDX-License-Identifier: Apache-2.0
"""The bundle as one zip file, with its metadata and JSON configs."""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser

from scripts.errors import UserError
from scripts.export.settings import ROOT, ExportSettings
from scripts.files import atomic_write, write_text


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


TWINS = ("train", "evaluate", "inference")


def json_text(yaml_file: Path) -> str:
    """The content of a YAML configuration as JSON text; comments stay behind."""
    return _text(ConfigParser.load_config_file(str(yaml_file)))


def write_json_configs(configs: Path) -> list[Path]:
    """Write `train.json`, `evaluate.json` and `inference.json` beside their YAML files.

    Args:
        configs: the folder.

    Returns:
        The files written.
    """
    written = []
    for name in TWINS:
        write_text(configs / f"{name}.json", json_text(configs / f"{name}.yaml"))
        written.append(configs / f"{name}.json")
    return written


def json_configs_of_dataset(settings: ExportSettings) -> dict[str, str]:
    """`train.json`, `inference.json` and `metadata.json` of the dataset whose file stands behind `inference.yaml`.

    Readers of bundles take one file of each kind, so the dataset's values must be in it. `train.json` is for readers
    that bring their cases: where the dataset's own datalist is not there, it has no cases of its own. `inference.json`
    keeps the folder of images of `inference.yaml`, as the dataset's is that of the training.

    Args:
        settings: configuration and weights.

    Returns:
        Name to content.
    """
    train = _merged(["train.yaml", *settings.config_files[1:]], settings.overrides)
    train["cases"] = {**train["cases"], "_target_": "scripts.data.datalist.load_cases_if_listed"}
    inference = _merged(["inference.yaml", *settings.config_files[1:]], settings.overrides)
    inference["dataset_dir"] = ConfigParser.load_config_file(str(ROOT / "configs/inference.yaml"))["dataset_dir"]
    contents = {"train": train, "inference": inference, "metadata": bundle_metadata(settings)}
    return {f"{name}.json": _text(content) for name, content in contents.items()}


def _merged(files: Sequence[str], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Config files (a name alone is one of the bundle's) and the overrides of keys that are among theirs."""
    parser = ConfigParser(ConfigParser.load_config_files([str(ROOT / "configs" / file) for file in files]))
    for key, value in overrides.items():
        if key.replace("#", "::").split("::")[0] in parser.get():
            parser[key] = value
    return {key: value for key, value in parser.get().items() if key != parser.meta_key}


def _text(content: Mapping[str, Any]) -> str:
    return json.dumps(content, ensure_ascii=False, indent=4) + "\n"


FOLDERS = ("configs", "scripts", "docs", "models")
FILES = (
    "LICENSE",
    "README.md",
    "pyproject.toml",
    "requirements.txt",
    "requirements-export.txt",
    "requirements-tracking.txt",
)
MODEL_NAMES = {"model.pt", "model_best.pt", "model.ts", "model.onnx", "model.pt2", "README.md"}
"""Of `models/`; the states of runs stay where they are."""

LEFT_OUT = ("scripts/experiments", "docs/examples")
"""Folders for people who work on the bundle; nobody needs them to run it."""

REQUIRED = ("configs/metadata.json", "configs/inference.yaml", "configs/train.yaml", "LICENSE", "models/model.pt")


def zip_bundle(
    root: Path, path: Path, models: Path | None = None, instead: Mapping[str, str] | None = None
) -> list[str]:
    """Write `path` with one folder in it, called as the file is, that holds the bundle.

    Args:
        root: the bundle's folder.
        path: the zip file.
        models: folder of the weights, by default `root/models`.
        instead: name in the bundle to the text that stands there instead of the file's.

    Returns:
        The names in it, relative to the bundle.

    Raises:
        UserError: if a part of every bundle is not there.
    """
    models, instead = models or root / "models", instead or {}
    content = {name: root / name for name in FILES if (root / name).is_file()}
    for folder in FOLDERS:
        home = models if folder == "models" else root / folder
        for file in sorted(home.rglob("*")):
            inside = file.relative_to(home)
            if file.is_file() and _belongs(folder, inside):
                content[f"{folder}/{inside.as_posix()}"] = file
    missing = [name for name in REQUIRED if name not in content]
    if missing:
        hint = "train first, or name the weights by --ckpt_file" if missing == ["models/model.pt"] else "restore it"
        raise UserError(f"The bundle in {root} has no {missing[0]}: {hint}.")
    with atomic_write(path) as beside, zipfile.ZipFile(beside, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, file in sorted(content.items()):
            if name in instead:
                archive.writestr(f"{path.stem}/{name}", instead[name])
            else:
                archive.write(file, f"{path.stem}/{name}")
    return sorted(content)


def _belongs(folder: str, inside: Path) -> bool:
    if any(part.startswith(".") or part == "__pycache__" for part in inside.parts) or inside.suffix == ".pyc":
        return False
    if f"{folder}/{inside.parts[0]}" in LEFT_OUT:
        return False
    return folder != "models" or str(inside) in MODEL_NAMES
