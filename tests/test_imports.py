# SPDX-License-Identifier: Apache-2.0
"""Training and inference import what they need, and nothing that takes seconds besides."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.volume_files import dicom_slices, write_dicom

ROOT = Path(__file__).resolve().parents[1]

OPTIONAL = {
    "matplotlib",
    "pandas",
    "sklearn",
    "skimage",
    "h5py",
    "mlflow",
    "onnx",
    "onnxruntime",
    "pydicom",
    "highdicom",
}
"""Packages that a training or an inference must not need. MONAI imports matplotlib if there is one."""

HEAVY = ("torch._dynamo", "torch._inductor", "torch.onnx", "itk.")
"""Beginnings of the names of modules that MONAI does not import either; `itk.` is a format or filter of ITK."""

PROBE = """
import importlib, json, sys
sys.path.insert(0, sys.argv[1])
for name in json.loads(sys.argv[2]):
    sys.modules[name] = None  # to import it fails
import monai.bundle
loaded = [set(sys.modules)]
for name in json.loads(sys.argv[3]):
    importlib.import_module(name)
loaded.append(set(sys.modules) - loaded[0])
from scripts.images.read import read_volume
read_volume(sys.argv[4])
loaded.append(set(sys.modules) - loaded[0] - loaded[1])
print(json.dumps([sorted(names) for names in loaded]))
"""


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> list[set[str]]:
    """Modules that a process holds after importing MONAI, then our modules, then reading a DICOM series."""
    series = write_dicom(tmp_path_factory.mktemp("dicom"), dicom_slices(np.zeros((4, 5, 3), np.int16), np.eye(4)))
    configs = [(ROOT / "configs" / f"{name}.yaml").read_text() for name in ("train", "evaluate", "inference")]
    modules = sorted(set(re.findall(r"_target_: (scripts(?:\.[a-z_]+)+)\.\w+", "".join(configs))))
    assert len(modules) > 20
    words = [str(ROOT), json.dumps(sorted(OPTIONAL)), json.dumps(modules), str(series)]
    done = subprocess.run([sys.executable, "-c", PROBE, *words], capture_output=True, text=True, check=True)
    return [set(names) for names in json.loads(done.stdout.splitlines()[-1])]


def test_our_modules_import_no_heavy_ones(loaded) -> None:
    assert not [name for name in loaded[1] if name.startswith(HEAVY)]


def test_a_dicom_series_loads_its_own_part_of_itk_only(loaded) -> None:
    """`itk.GDCMImageIO` would load all parts, and those of every other format."""
    parts = {name for name in loaded[2] if name.startswith("itk._ITK")}
    assert "itk._ITKIOGDCMPython" in parts
    assert not {"itk._ITKIOJPEGPython", "itk._ITKIOMetaPython", "itk._ITKTransformPython"} & parts
