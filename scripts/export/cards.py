# SPDX-License-Identifier: Apache-2.0
"""What a model zoo and a model hub want in addition to the bundle: a description of the model, and its licence."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from scripts.data.weights import RUN, read_weights, record_of
from scripts.errors import UserError
from scripts.export.package import bundle_metadata
from scripts.export.settings import ROOT, ExportSettings
from scripts.files import read_text
from scripts.training.run_record import file_digest

PLACES = ("zoo", "hub")
SHIPPED_LICENCE = "CC-BY-SA-4.0"
"""Of the weights that come with the bundle (docs/data_license.txt); the code is under another one."""

LARGEST_FILE = 25_000_000
"""Bytes of a file in the MONAI model zoo; larger weights are named with their address in large_files.yml."""

MODEL = "models/model.pt"
USAGE = """\
$ python -m monai.bundle run --config_file configs/inference.json --dataset_dir FOLDER --output_dir OUT
$ python -m monai.bundle run training --config_file configs/train.json --dataset_dir FOLDER
$ python -m monai.bundle run evaluating --dataset_dir FOLDER \\
    --config_file "['configs/train.json','configs/evaluate.json']"
"""


def licence_text(metadata: Mapping[str, Any], weights_license: str | None) -> dict[str, str]:
    """`docs/data_license.txt` for other weights than those of the bundle, which has one for its own.

    Args:
        metadata: of the zip, `bundle_metadata`.
        weights_license: SPDX identifier of the weights' licence; `None`: not stated.
    """
    if "eval_metrics" in metadata:  # kept for the weights that it names by their digest
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
    """Files that a place wants in the zip, and those that it does not take.

    - `zoo`: `docs/README.md` describes the model by the headings of the MONAI model zoo's template, with the index of
      pages below; `large_files.yml` names weights that are too large, which are then left out.
    - `hub`: `README.md` begins with the block that the Hugging Face Hub reads, with the licence of the weights, and the
      description of the model.

    Args:
        place: one of `PLACES`.
        settings: configuration and weights.
        weights_license: SPDX identifier of the weights' licence; needed for other weights than those of the bundle.
        weights_url: address of the weights, for those that are too large.

    Returns:
        Name in the bundle to content; and names of files to leave out.

    Raises:
        UserError: if the licence or the address is needed and missing.
    """
    metadata = bundle_metadata(settings)
    texts = licence_text(metadata, weights_license)
    licence = weights_license or (None if texts else SHIPPED_LICENCE)
    if licence is None:
        raise UserError(
            f"{settings.ckpt_file} is not the model that comes with the bundle: give the licence of its weights, which "
            "follows from that of the data, by --license (such as CC-BY-4.0)."
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
            "it where everyone can load it, and give its address by --weights_url."
        )
    digest = file_digest(settings.ckpt_file)
    entry = {"path": MODEL, "url": weights_url, "hash_val": digest, "hash_type": "sha256"}
    return texts | {"large_files.yml": yaml.safe_dump({"large_files": [entry]}, sort_keys=False)}, large


def front_matter(metadata: Mapping[str, Any], licence: str) -> str:
    """The block at the top of a model card that the Hugging Face Hub reads, as YAML between dashes."""
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
    """The record of the training in a weights file; `None` in older files."""
    return record_of(read_weights(ckpt_file, "train first, or give the weights with --ckpt_file"), RUN)


def model_card(metadata: Mapping[str, Any], licence: str, run: Mapping[str, Any] | None) -> str:
    """A description of the model in Markdown, by the headings of the model zoo's template, made from the metadata.

    Args:
        metadata: of `bundle_metadata`.
        licence: of the weights.
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
