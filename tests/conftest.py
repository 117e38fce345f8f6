# SPDX-License-Identifier: Apache-2.0
"""Tiny runs of the real configurations, in this process.

The libraries are imported where they are used: with `-n`, a process that runs no test itself starts the others, which
would wait for its imports.
"""

from __future__ import annotations

import gc
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    import torch
    from monai.bundle import ConfigWorkflow

ROOT = Path(__file__).resolve().parents[1]

TINY = {
    "bundle_root": str(ROOT),
    "roi_size": [32, 32, 16],
    "batch_labelled": 1,
    "batch_unlabelled": 1,
    "widths": [4, 4, 4, 4],
    "norm": "instance",
    "spacing": [3.0, 3.0, 4.0],
    "precision": "fp32",
    "device": "cpu",
    "max_steps": 3,
    "num_workers": 0,
    "unlabelled_start": 0.0,  # a run this short has no time to wait for its unlabelled cases
    "train::handlers::0::pictures": 0,  # no pictures: drawing takes longer than such a validation
}
"""Overrides that make a configuration of the demo run in seconds."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--golden-differences", metavar="FILE", help="write the largest differences from recorded numbers")


def pytest_sessionfinish(session: pytest.Session) -> None:
    path = session.config.getoption("--golden-differences")
    if path:
        from tests.golden.golden_files import largest_differences

        Path(path).write_text(largest_differences())


def pytest_collection_finish() -> None:
    gc.freeze()  # modules and tests stay: Python need not search a million objects for garbage again and again


@pytest.fixture(scope="session", autouse=True)
def quick_libraries() -> None:
    """One thread, and config files that are parsed once."""
    import torch

    from tests import parsed_once

    # Two threads that share a busy machine's cores wait for each other; one is as fast on volumes this small.
    torch.set_num_threads(1)
    parsed_once.install()


@pytest.fixture(scope="session", autouse=True)
def own_memory_of_datasets(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Names that tests give to datasets do not replace those of the user."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BUNDLE_DATASETS", str(tmp_path_factory.getbasetemp() / "datasets.json"))
        yield


@pytest.fixture(scope="session")
def tiny_demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Demo volumes at half resolution: 6 training, 1 validation, 2 test cases. Read only."""
    from scripts.data.demo import ensure_demo_dataset

    return ensure_demo_dataset(
        tmp_path_factory.mktemp("data") / "demo", num_training=6, num_validation=1, num_test=2, shape=(32, 28, 20)
    )


@pytest.fixture(scope="session")
def shipped_weights() -> Path:
    """models/model.pt, which comes with the bundle. Read only."""
    return ROOT / "models/model.pt"


def tiny_workflow(
    demo: Path, folder: Path, *files: str, workflow_type: str = "train", run_id: str = "run", **overrides: Any
) -> ConfigWorkflow:
    """An initialised workflow of configs/*.yaml on the tiny demo, with overrides; `...` leaves a key as in the files.

    Evaluations draw no report, because that takes longer than they do.
    """
    from monai.bundle import ConfigWorkflow

    values = {"output_dir": str(folder / "out"), "ckpt_dir": str(folder / "models"), **overrides}
    if workflow_type == "train":
        report = {"report": False} if "evaluate.yaml" in files else {}
        values = {**TINY, "dataset_dir": str(demo), **report, **values}
    else:
        values = {"bundle_root": str(ROOT), "device": "cpu", "precision": "fp32", **values}
    workflow = ConfigWorkflow(
        config_file=[str(ROOT / "configs" / file) for file in files],
        workflow_type=workflow_type,
        run_id=run_id,
        **{key: value for key, value in values.items() if value is not ...},
    )
    workflow.initialize()
    return workflow


@pytest.fixture
def make_workflow(tiny_demo: Path, tmp_path: Path) -> Callable[..., ConfigWorkflow]:
    """`tiny_workflow` with outputs in the test's folder."""
    return partial(tiny_workflow, tiny_demo, tmp_path)


@pytest.fixture(scope="session")
def tiny_run(tiny_demo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with `out` and `models` of a training of two steps, each followed by a validation. Read only."""
    folder = tmp_path_factory.mktemp("tiny_run")
    tiny_workflow(tiny_demo, folder, "train.yaml", max_steps=2, val_interval=1).run()
    return folder


@pytest.fixture
def trained(tiny_run: Path, tmp_path: Path) -> Path:
    """`models/model.pt` of the test's folder, with all else that `tiny_run` left in `models`."""
    return Path(shutil.copytree(tiny_run / "models", tmp_path / "models")) / "model.pt"


@pytest.fixture
def train(make_workflow: Callable[..., ConfigWorkflow], tmp_path: Path) -> Callable[..., dict[str, torch.Tensor]]:
    """Train with `configs/train.yaml` and further files; returns the final model's state dict."""
    import torch

    def run(*files: str, name: str = "models", **overrides: Any) -> dict[str, torch.Tensor]:
        ckpt_dir = tmp_path / name
        make_workflow("train.yaml", *files, ckpt_dir=str(ckpt_dir), **overrides).run()
        return torch.load(ckpt_dir / "model.pt", weights_only=True)

    return run


@pytest.fixture
def assert_same() -> Callable[[dict[str, torch.Tensor], dict[str, torch.Tensor]], None]:
    """Two state dicts are equal to the bit."""
    import torch

    def check(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
        assert first.keys() == second.keys()
        different = [key for key in first if not torch.equal(first[key], second[key])]
        assert not different, f"{len(different)} of {len(first)} entries differ, e.g. {different[0]}"

    return check
