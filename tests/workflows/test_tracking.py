# SPDX-License-Identifier: Apache-2.0
"""Experiment tracking by MONAI's own settings, `--tracking mlflow`."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
from monai.bundle.utils import DEFAULT_MLFLOW_SETTINGS
from monai.handlers import from_engine

NEEDS_MLFLOW = pytest.mark.skipif(
    importlib.util.find_spec("mlflow") is None, reason="requirements-tracking.txt is not installed"
)


def test_monais_way_to_the_loss_gives_the_number_of_the_step(make_workflow) -> None:
    """What its tracking settings and other bundles' handlers do with the trainer's output."""
    assert DEFAULT_MLFLOW_SETTINGS["configs"]["trainer"]["output_transform"].endswith(
        "from_engine(['loss'], first=True)"
    )
    workflow = make_workflow("train.yaml", max_steps=2)
    workflow.run()
    loss = from_engine(["loss"], first=True)(workflow.trainer.state.output)
    assert isinstance(loss, torch.Tensor) and loss.ndim == 0
    values = workflow.parser.get_parsed_content("loss").scalars(loss)
    assert values["Loss/total"] == pytest.approx(loss.item()) != 0


@NEEDS_MLFLOW
def test_a_run_lies_in_the_local_store_with_its_loss_its_metric_and_its_configuration(make_workflow, tmp_path) -> None:
    import mlflow

    # an expression: behind a plain path MONAI 1.6.1 looks for the configuration under a wrong name (docs/readers.md)
    output_dir = f"$'{tmp_path / 'out'}'"
    make_workflow(
        "train.yaml", max_steps=3, val_interval=3, tracking="mlflow", experiment_name="ours", output_dir=output_dir
    ).run()
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path / 'out/mlruns.db'}")
    (run,) = client.search_runs(client.get_experiment_by_name("ours").experiment_id)
    assert run.info.status == "FINISHED"
    assert [point.step for point in client.get_metric_history(run.info.run_id, "train_loss")] == [1, 2, 3]
    assert {"train_loss", "lr_group_0", "val_mean_dice"} <= set(run.data.metrics)
    (artifact,) = client.list_artifacts(run.info.run_id)
    assert Path(artifact.path).suffix == ".json"
