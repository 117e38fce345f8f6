# SPDX-License-Identifier: Apache-2.0
"""A handler for MONAI's evaluator that keeps the label volumes of an evaluation, from which the report is made."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ignite.engine import Engine, Events
from monai.utils.enums import CommonKeys

from scripts.distributed.collectives import all_gather_items, is_rank0, num_ranks, rank
from scripts.evaluation.report import case_file, case_names
from scripts.files import write_text
from scripts.images.monai import label_dtype
from scripts.images.write import write_volume

MANIFEST = "cases.json"
KINDS = {"prediction": "", "reference": "_reference"}
"""Volumes that are kept of each case, and what follows its name in their files' names."""


class KeptVolumes:
    """Handler that writes prediction and reference of each case as class indices, on the grid of the label file.

    After each iteration it reads `engine.state.batch` and `engine.state.output` as `SegmentationReport` does, and names
    the cases alike. The files are `NAME.nii.gz` (prediction) and `NAME_reference.nii.gz`; `cases.json` lists them with
    the file of the image. In distributed evaluation each process writes its own cases, and the first one the list.

    Args:
        output_dir: folder for the files, created if needed; `None`: nothing is kept.
        label_names: name of each class, background first.
    """

    def __init__(self, output_dir: str | Path | None, label_names: Sequence[str]) -> None:
        self.output_dir, self.label_names = None if output_dir is None else Path(output_dir), list(label_names)
        self._cases: list[dict[str, Any]] = []

    def attach(self, engine: Engine) -> None:
        """Register the handler with an evaluator that decollates its batches."""
        if self.output_dir is not None:
            engine.add_event_handler(Events.STARTED, self._reset)
            engine.add_event_handler(Events.ITERATION_COMPLETED, self._keep)
            engine.add_event_handler(Events.COMPLETED, self._finish)

    def _reset(self, engine: Engine) -> None:
        self._cases = []

    def _keep(self, engine: Engine) -> None:
        assert self.output_dir is not None
        dtype = label_dtype(range(len(self.label_names)))
        for batch, output in zip(engine.state.batch, engine.state.output, strict=True):
            label, number = output[CommonKeys.LABEL], len(self._cases) + 1
            case: dict[str, Any] = {"path": case_file(batch, label, number)}
            case["image"] = getattr(batch.get(CommonKeys.IMAGE), "meta", {}).get("filename_or_obj")
            for kind in KINDS:
                # Short names are known only when all cases are, because files in two folders may have the same one.
                case[kind] = f"case_{number}_of_process_{rank()}_{kind}.nii.gz"
                volume = output[CommonKeys.PRED] if kind == "prediction" else label
                classes = volume[0].cpu().numpy().astype(dtype)
                write_volume(self.output_dir / case[kind], classes, label.affine.cpu().numpy())
            self._cases.append(case)

    def _finish(self, engine: Engine) -> None:
        assert self.output_dir is not None
        cases = all_gather_items(self._cases)
        if not is_rank0():
            return
        if num_ranks() > 1:  # as in `SegmentationReport`, a case that several processes evaluated counts once
            cases = list({case["path"]: case for case in cases}.values())
        listed = []
        for name, case in zip(case_names([case["path"] for case in cases]), cases, strict=True):
            # Names come from the datalist: a slash in one must not lead out of the folder.
            files = {kind: re.sub(r"[/\\]", "_", name) + f"{ending}.nii.gz" for kind, ending in KINDS.items()}
            for kind, file in files.items():
                (self.output_dir / case[kind]).replace(self.output_dir / file)
            listed.append({"case": name, "image": case["image"], **files})
        for left in self.output_dir.glob("case_*_of_process_*.nii.gz"):
            left.unlink()
        content = {"label_names": self.label_names, "cases": listed}
        write_text(self.output_dir / MANIFEST, json.dumps(content, ensure_ascii=False, indent=1) + "\n")
