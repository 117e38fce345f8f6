# SPDX-License-Identifier: Apache-2.0
"""A command with everything that it needs, to be spoilt in one way, and the judge of how it meets the fault."""

from __future__ import annotations

import ctypes
import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch
import yaml

from scripts.networks.residual_unet import ResidualUNet
from tests import forked_command
from tests.check_folder import NAMES, CheckFolder
from tests.conftest import ROOT

TRAIN, EVALUATE, INFER, CHECK, NEW, EXPORT = "training", "evaluating", "inference", "check_data", "new", "export"
CONFIGS = {
    TRAIN: ("train.yaml",), EVALUATE: ("train.yaml", "evaluate.yaml"), CHECK: ("train.yaml",),
    INFER: ("inference.yaml",), EXPORT: ("inference.yaml",),
}  # fmt: skip
RESULTS = {
    TRAIN: ("models/model.pt", "models/model_best.pt"),
    EVALUATE: ("out/*metrics.csv", "out/*summary.json"),
    INFER: ("out/*_seg.nii.gz",),
    CHECK: (),
    NEW: ("out/*dataset.json", "out/*mine.yaml"),
    EXPORT: ("out/model.ts",),
}
"""Files that each command leaves when it succeeds."""

SETTINGS = {
    "dataset_name": "mine", "datalist": "dataset.json", "labelled_cases": 4, "label_names": NAMES,
    "spacing": [1.5, 2.0, 2.5], "roi_size": [32, 16, 16], "batch_labelled": 1, "batch_unlabelled": 1,
    "widths": [4, 4, 4, 4], "norm": "instance",
    "max_steps": 1, "unlabelled_start": 0.0, "precision": "fp32", "device": "cpu",
}  # fmt: skip


@dataclass
class Case:
    """A command with its dataset in `data/`, configuration `mine.yaml`, model in `models/` and results in `out/`."""

    root: Path
    command: str
    data: CheckFolder
    settings: dict[str, Any]
    options: list[str] = field(default_factory=list)
    run_id: str | None = None
    prepare: Callable[[], None] = lambda: None

    @property
    def victim(self) -> str:
        """Name of a case whose image and label the command reads."""
        return "t0" if self.command == EVALUATE else "l1"

    @property
    def image(self) -> Path:
        return self.data.image(self.victim)

    @property
    def label(self) -> Path:
        return self.data.label(self.victim)

    @property
    def model(self) -> Path:
        return self.root / "models/model.pt"

    @property
    def out(self) -> Path:
        return self.root / "out"

    def write(self) -> None:
        """Write configuration and datalist, unless the fault lies in them."""
        if not (self.root / "mine.yaml").exists():
            (self.root / "mine.yaml").write_text(yaml.safe_dump(self.settings), encoding="utf-8")
        datalist = self.data.root / "dataset.json"
        if self.data.root.exists() and not datalist.exists():
            datalist.write_text(json.dumps(self.data.lists), encoding="utf-8")

    def words(self) -> list[str]:
        """Words after `python -m`."""
        if self.command == NEW:
            outputs = ("--output", str(self.out), "--config", str(self.out / "mine.yaml"))
            return ["scripts", "new-dataset", str(self.data.root), "--name", "mine", *outputs, *self.options]
        files = [*(str(ROOT / "configs" / name) for name in CONFIGS[self.command]), str(self.root / "mine.yaml")]
        common = ["--config_file", str(files), "--bundle_root", str(ROOT)]
        if self.command == EXPORT:
            paths = ("--ckpt_file", str(self.model), "--filepath", str(self.out / "model.ts"))
            return ["scripts", "export", "ts", *common, *paths, *self.options]
        run_id = self.run_id or ("run" if self.command == INFER else self.command)
        common += ["--output_dir", str(self.out), "--ckpt_dir", str(self.model.parent)]
        if self.command == INFER:
            common += ["--dataset_dir", str(self.data.root / "images")]
        return ["monai.bundle", "run", run_id, *common, *self.options]


def weights(out_channels: int = 3) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return ResidualUNet(1, out_channels, widths=(4, 4, 4, 4), stem_stride=1, norm="instance").state_dict()


def obey_file_permissions() -> None:
    """Drop the capabilities by which root passes over the permissions of files (capabilities(7))."""
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # _LINUX_CAPABILITY_VERSION_3, this process
    data = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable, and the same for higher numbers
    if libc.capget(header, data) != 0:
        raise OSError(ctypes.get_errno(), "capget")
    for place in (0, 1):
        data[place] &= ~(1 << 1 | 1 << 2)  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
    if libc.capset(header, data) != 0:
        raise OSError(ctypes.get_errno(), "capset")


def listing(folder: Path) -> dict[str, tuple[int, int]]:
    """Size and time of change of every file below a folder; links are not followed."""
    found = {}
    for home, _, names in os.walk(folder):
        for name in names:
            state = os.lstat(Path(home) / name)
            found[(Path(home) / name).relative_to(folder).as_posix()] = (state.st_size, state.st_mtime_ns)
    return found


def run(case: Case) -> tuple[forked_command.Finished, list[str]]:
    """Run the command; returns how it ended and the results it wrote. It may write nothing outside its folders."""
    case.write()
    before = listing(case.root)
    done = forked_command.run(case.words(), case.root, 120, case.prepare)
    for closed in (case.image, case.out):
        if closed.exists() and not closed.is_symlink():
            closed.chmod(0o755)
    after = listing(case.root)
    changed = {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}
    own = ("out/", "models/", "stdout.txt", "stderr.txt")
    assert not [name for name in changed if not name.startswith(own)]
    return done, sorted(
        n for n in changed & after.keys() if any(fnmatch(n, pattern) for pattern in RESULTS[case.command])
    )


def assert_refused(case: Case, named: str, done: forked_command.Finished, results: list[str]) -> None:
    """One line that names the fault, and no result; where several cases can fail, a table may name it instead."""
    assert done.code not in (0, None), done.output
    assert "Traceback" not in done.errors
    lines = [line for line in done.errors.splitlines() if line.startswith("Error: ") or ": error: " in line]
    assert len(lines) == 1 and done.errors.rstrip().endswith(lines[0]), done.errors
    table = {INFER: "failed.csv", CHECK: "check_data.csv"}.get(case.command, "")
    if table and table in lines[0] and (case.out / table).is_file():
        lines = [line for line in (case.out / table).read_text(encoding="utf-8").splitlines() if named in line]
        assert lines, f"{table} does not name {named}"
        results = [name for name in results if case.command == INFER and name == f"out/{case.victim}_seg.nii.gz"]
    assert named in lines[0]
    assert not results
