# SPDX-License-Identifier: Apache-2.0
"""Pack the bundle as one zip file, with metadata and JSON configs for the dataset of its model.

For a model zoo or a model hub, a description of the model and the licence of its weights are added.
"""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from monai.bundle import ConfigParser

from scripts.data.weights import RUN, read_weights, record_of
from scripts.errors import UserError
from scripts.export.settings import ROOT, ExportSettings
from scripts.files import atomic_write, file_digest, read_text


def bundle_metadata(settings: ExportSettings) -> dict[str, Any]:
    """Return the bundle's metadata, adapted to the channels, classes and window of a configuration.

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
    """Make the JSON configs of a zip file: `train`, `evaluate`, `inference` and `metadata`, by file name.

    Programs that read bundles take one file of each kind, and some read only JSON. Each file therefore includes the
    values of the dataset, whose config file follows `inference.yaml` in the settings. Such programs supply the images,
    so:

    - `train.json` treats a missing datalist as a list without cases, and saves models to `models/`, where these
      programs look for them;
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
        texts: additional files, as a mapping from name in the bundle to content; they replace files of the same name.
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


# ------------------------------------------------------------------ what a model zoo and a model hub want in addition

PLACES = ("zoo", "hub")
SHIPPED_LICENCE = "CC-BY-SA-4.0"
"""Licence of the weights that come with the bundle (docs/data_license.txt); the code has a different licence."""

LARGEST_FILE = 25_000_000
"""Maximum bytes of a file in the MONAI model zoo; for larger weights, large_files.yml gives the address."""

MODEL = "models/model.pt"
USAGE = """\
$ python -m monai.bundle run --config_file configs/inference.json --dataset_dir FOLDER --output_dir OUT
$ python -m monai.bundle run training --config_file configs/train.json --dataset_dir FOLDER
$ python -m monai.bundle run evaluating --dataset_dir FOLDER \\
    --config_file "['configs/train.json','configs/evaluate.json']"
"""


def licence_text(metadata: Mapping[str, Any], weights_license: str | None) -> dict[str, str]:
    """Make `docs/data_license.txt` for weights that do not come with the bundle.

    Args:
        metadata: metadata of the zip file, from `bundle_metadata`.
        weights_license: SPDX identifier of the weights' licence; `None`: not stated.
    """
    if "eval_metrics" in metadata:  # present only for the weights of the bundle
        return {}
    licence = weights_license or "not stated; it follows from that of the data"
    text = f"""\
models/model.pt was trained on: {metadata["data_source"]}.

Licence of the weights: {licence}.
The data is not part of this bundle.
"""
    return {"docs/data_license.txt": text}


def texts_for(
    place: str, settings: ExportSettings, weights_license: str | None, weights_url: str | None
) -> tuple[dict[str, str], list[str]]:
    """Make the additional files that a model zoo or hub needs in the zip, and list the files to leave out.

    - `zoo`: `docs/README.md` describes the model under the headings of the MONAI model zoo's template, followed by the
      index of pages. If the weights are too large, they are left out and `large_files.yml` gives their address.
    - `hub`: `README.md` begins with the front matter that the Hugging Face Hub reads, including the licence of the
      weights, followed by the description of the model.

    Args:
        place: one of `PLACES`.
        settings: configuration and weights.
        weights_license: SPDX identifier of the weights' licence; needed for weights that do not come with the bundle.
        weights_url: address of the weights; needed if they are too large for the zoo.

    Returns:
        A mapping from name in the bundle to content, and the names of files to leave out.

    Raises:
        UserError: if the licence or the address is needed and missing.
    """
    metadata = bundle_metadata(settings)
    texts = licence_text(metadata, weights_license)
    licence = weights_license or (None if texts else SHIPPED_LICENCE)
    if licence is None:
        raise UserError(
            f"{settings.ckpt_file} is not the model that comes with the bundle: give the licence of its weights, which "
            "follows from that of the data, with --license (such as CC-BY-4.0)."
        )
    card = model_card(metadata, licence, run_of(settings.ckpt_file))
    if place == "hub":
        return texts | {"README.md": front_matter(metadata, licence) + card + "\n" + read_text(ROOT / "README.md")}, []
    pages = re.sub(r"^# .*$", "## Pages", read_text(ROOT / "docs/README.md"), count=1, flags=re.MULTILINE)
    texts["docs/README.md"] = card + "\n" + pages.replace("\n## ", "\n### ").replace("### Pages", "## Pages", 1)
    sizes = {f"models/{file.name}": file.stat().st_size for file in settings.ckpt_file.parent.iterdir()}
    large = [name for name, size in sizes.items() if size > LARGEST_FILE]
    if MODEL not in large:
        return texts, large
    if not weights_url:
        raise UserError(
            f"{settings.ckpt_file} has {sizes[MODEL] / 1e6:.0f} MB, and the model zoo takes files of up to 25 MB: put "
            "it where everyone can download it, and give its address with --weights_url."
        )
    digest = file_digest(settings.ckpt_file)
    entry = {"path": MODEL, "url": weights_url, "hash_val": digest, "hash_type": "sha256"}
    return texts | {"large_files.yml": yaml.safe_dump({"large_files": [entry]}, sort_keys=False)}, large


def front_matter(metadata: Mapping[str, Any], licence: str) -> str:
    """Make the front matter of a model card for the Hugging Face Hub, which is YAML between lines of dashes."""
    image = metadata["network_data_format"]["inputs"]["image"]
    modality = [image["modality"].lower()] if "modality" in image else []
    block = {
        "license": licence.lower(),
        "library_name": "monai",
        "pipeline_tag": "image-segmentation",
        "tags": ["monai", "medical", "semi-supervised-learning", *modality],
        "metrics": ["dice"],
    }
    return f"---\n{yaml.safe_dump(block, sort_keys=False)}---\n\n"


def run_of(ckpt_file: Path) -> dict[str, Any] | None:
    """Return the record of the training in a weights file; `None` for older files."""
    return record_of(read_weights(ckpt_file, "train first, or give the weights with --ckpt_file"), RUN)


def model_card(metadata: Mapping[str, Any], licence: str, run: Mapping[str, Any] | None) -> str:
    """Describe the model in Markdown, under the headings of the model zoo's template, based on the metadata.

    Args:
        metadata: the result of `bundle_metadata`.
        licence: licence of the weights.
        run: record of the training, or `None`.
    """
    image = metadata["network_data_format"]["inputs"]["image"]
    sides = " x ".join(map(str, image["spatial_shape"]))
    sections = {
        f"# {metadata['name']}": "",
        "### **Authors**": metadata["authors"],
        "### **Tags**": f"Segmentation, Semi-Supervised, {image.get('modality', '3D')}",
        "## **Model Description**": metadata["description"],
        "## **Data**": f"{metadata['data_source']}\n\n"
        f"Images: {metadata['image_classes']}.\nLabels: {metadata['label_classes']}.",
        "#### **Preprocessing**": f"The network sees windows of {sides} voxels, {image['num_channels']} channel(s). "
        "Spacing and normalisation are in `configs/inference.json`, and recorded in the weights.",
        "## **Performance**": _performance(metadata.get("eval_metrics")),
        "## **Additional Usage Steps**": f"Segment a folder of images, train, and evaluate:\n\n```\n{USAGE}```",
        "## **System Configuration**": _system(run),
        "## **Limitations**": f"{metadata['intended_use']} The model has seen only the data named above. On other "
        "scanners, sequences or populations it may fail without a sign.",
        "## **License**": f"Code: Apache-2.0 (`LICENSE`). Weights: {licence} (`docs/data_license.txt`).",
        "## **References**": "\n".join(f"[{n}] {text}\n" for n, text in enumerate(metadata["references"], start=1)),
    }
    return "\n".join(f"{heading}\n\n{text}\n" if text else f"{heading}\n" for heading, text in sections.items())


def _performance(measured: Mapping[str, Any] | None) -> str:
    if measured is None:
        return "These weights were not measured for this page: evaluate them on test cases of your own, as below."
    table = ["| structure | Dice | 95HD, mm | ASD, mm |", "|---|---|---|---|"]
    for name, values in (measured["per_class"] | {"mean": measured}).items():
        dice, hd95, asd = (values[f"mean_{metric}"] for metric in ("dice", "hd95_mm", "asd_mm"))
        table.append(f"| {name} | {dice:.4f} | {hd95:.2f} | {asd:.2f} |")
    cases = f"On {measured['test_cases']} test cases of {measured['dataset']}, which were not used to choose anything"
    trained = f"trained with {measured['labelled_cases']} labelled and {measured['unlabelled_cases']} unlabelled cases"
    return f"{cases}; {trained}. Structures that were missed: {measured['missed']}.\n\n" + "\n".join(table)


def _system(run: Mapping[str, Any] | None) -> str:
    needs = "Inference and training run on a CPU with two cores, or on a GPU."
    if run is None:
        return needs
    device = f"{run['device']['type']} ({run['device']['name']}), {run['device']['processes']} process(es)"
    times = f"from {run['started']} to {run['ended']}"
    return f"{needs} These weights were trained for {run['steps']} steps on {device}, {times}."
