# SPDX-License-Identifier: Apache-2.0
"""Train nnU-Net on the labelled cases of a dataset for some minutes, and evaluate it like the runs of `accuracy`.

    pip install nnunetv2
    python -m scripts.experiments.nnunet --dataset demo --labelled 4 --minutes 12 --results accuracy.csv

nnU-Net (Isensee et al., Nature Methods 2021) plans, preprocesses, trains and predicts by itself: configuration
`3d_fullres`, `fold all`, its own augmentation, mirrored passes. Two things differ from its default. An epoch has 10
iterations instead of 250, so that the learning rate falls in many small steps also in a short run; and the number of
epochs is what fits into `--minutes`, by the time of 2 iterations of a run that is thrown away. The test cases are
evaluated once, by our own metrics.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser

from scripts.cli.runs import run_process
from scripts.data.spec import CaseLists, DatasetSpec
from scripts.errors import UserError
from scripts.experiments.accuracy import COLUMNS, ROOT, Run, append_row, config_files, evaluation_results
from scripts.labelling.nnunet import write_nnunet_dataset

NUMBER, CONFIGURATION = 1, "3d_fullres"
ITERATIONS = 10
"""Iterations of an epoch."""


def prepare(files: Sequence[str], words: dict[str, Any], folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Write the dataset in nnU-Net's form, let nnU-Net plan and preprocess it, and return its plans and dataset.json.

    Args:
        files: config files, relative to the bundle's root.
        words: options that replace keys of the configuration.
        folder: gets nnU-Net's three folders, `raw`, `preprocessed` and `results`.
    """
    for kind in ("raw", "preprocessed", "results"):
        os.environ[f"nnUNet_{kind}"] = str(folder / kind)
    os.environ |= {"nnUNet_n_proc_DA": "1", "nnUNet_compile": "false"}
    parser = ConfigParser()
    parser.read_config([str(ROOT / file) for file in files])
    parser.update({"bundle_root": str(ROOT), **words})
    dataset: DatasetSpec = parser.get_parsed_content("dataset_spec")
    cases: CaseLists = parser.get_parsed_content("cases")
    name = f"Dataset{NUMBER:03d}_cases"
    write_nnunet_dataset(replace(cases, unlabelled=[], validation=[]), dataset, folder / "raw" / name)

    try:  # after its folders are known
        from nnunetv2.experiment_planning import plan_and_preprocess_api as planning
    except ImportError as error:
        raise UserError("nnU-Net is not installed: pip install nnunetv2.") from error
    planning.extract_fingerprints([NUMBER], num_processes=1)
    plans = planning.plan_experiments([NUMBER]) or "nnUNetPlans"
    planning.preprocess([NUMBER], plans, (CONFIGURATION,), (1,))
    preprocessed = folder / "preprocessed" / name
    first, second = (json.loads((preprocessed / file).read_text()) for file in (f"{plans}.json", "dataset.json"))
    return first, second


def train(
    plans: dict[str, Any], content: dict[str, Any], epochs: int, iterations: int, device: torch.device
) -> tuple[Any, float]:
    """Train nnU-Net for some epochs of some iterations; return its trainer and the seconds of the last iterations."""
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    trainer = nnUNetTrainer(plans | {"continue_training": False}, CONFIGURATION, "all", content, device=device)
    trainer.num_epochs, trainer.num_iterations_per_epoch, trainer.num_val_iterations_per_epoch = epochs, iterations, 1
    trainer.disable_checkpointing = True
    begin, end = trainer.on_train_epoch_start, trainer.on_train_epoch_end
    started, seconds = 0.0, 0.0

    def on_train_epoch_start() -> None:
        nonlocal started
        begin()
        started = time.monotonic()

    def on_train_epoch_end(outputs: list[dict[str, Any]]) -> None:
        nonlocal seconds
        seconds = time.monotonic() - started
        end(outputs)

    trainer.on_train_epoch_start, trainer.on_train_epoch_end = on_train_epoch_start, on_train_epoch_end
    trainer.run_training()
    return trainer, seconds


def predict(trainer: Any, images: Path, output: Path, device: torch.device) -> None:
    """Segment the images of a folder with a trained network."""
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    trainer.set_deep_supervision_enabled(False)
    predictor = nnUNetPredictor(perform_everything_on_device=False, device=device, allow_tqdm=False)
    predictor.manual_initialization(
        trainer.network, trainer.plans_manager, trainer.configuration_manager, [trainer.network.state_dict()],
        trainer.dataset_json, type(trainer).__name__, trainer.inference_allowed_mirroring_axes,
    )  # fmt: skip
    predictor.predict_from_files(
        str(images), str(output), num_processes_preprocessing=1, num_processes_segmentation_export=1
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line described at the top of this module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default="demo", help="file in configs/datasets, without .yaml")
    parser.add_argument("--dataset_dir", type=Path, help="folder of the dataset (default: as its file says)")
    parser.add_argument("--labelled", type=int, required=True, help="number of labelled cases")
    parser.add_argument("--minutes", type=float, required=True, help="time for training")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--results", type=Path, required=True, help="CSV file to which a row is appended")
    options = parser.parse_args(argv)

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    files = config_files(options.dataset, "supervised")
    words = {"labelled_cases": options.labelled}
    if options.dataset_dir is not None:
        words["dataset_dir"] = str(options.dataset_dir.resolve())
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        plans, content = prepare(files, words, folder)
        torch.manual_seed(options.seed)
        _, seconds = train(plans, content, 2, 2, device)
        epochs = max(1, round(60 * options.minutes / (seconds / 2 * ITERATIONS)))
        start = time.monotonic()
        trainer, _ = train(plans, content, epochs, ITERATIONS, device)
        seconds = time.monotonic() - start
        planned = plans["configurations"][CONFIGURATION]
        sizes = f"{planned['batch_size']} patches of {planned['patch_size']} voxels each"
        print(f"{ITERATIONS * epochs} iterations in {seconds:.0f} s, of {sizes}")
        predict(trainer, folder / "raw" / f"Dataset{NUMBER:03d}_cases" / "imagesTs", folder / "predictions", device)
        command = [sys.executable, "-m", "monai.bundle", "run", "evaluating", "--config_file"]
        command += [str([*files, "configs/predictions.yaml"]), "--predictions", str(folder / "predictions")]
        command += [word for name, value in words.items() for word in (f"--{name}", str(value))]
        run_process([*command, "--output_dir", str(folder / "out")], cwd=ROOT).check_returncode()
        run = Run(
            options.dataset, "", f"nnU-Net, {ITERATIONS * epochs} iterations", str(options.labelled), "0",
            str(options.seed), "",
        )  # fmt: skip
        row = {**asdict(run), "train_s": round(seconds), "threads": os.environ.get("OMP_NUM_THREADS", "")}
        append_row(options.results, COLUMNS, row | evaluation_results(folder / "out"))


if __name__ == "__main__":
    main()
