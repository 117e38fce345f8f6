# SPDX-License-Identifier: Apache-2.0
"""The course of a training is read from its files, and its record is told."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from torch.utils.tensorboard import SummaryWriter

from scripts.report import training
from scripts.report.page import write_report
from scripts.report.training import POINTS, course_of, memory_of, read_curves, thinned, training_facts
from tests.report.output_folder import write_evaluation


def write_events(folder: Path, first: int, last: int, offset: float = 0.0) -> None:
    with SummaryWriter(str(folder)) as writer:
        for step in range(first, last + 1):
            writer.add_scalar("Loss/total", step + offset, step)
            writer.add_scalar("Memory/1", 4, step)
        writer.add_scalar("val_mean_dice", 0.5, last)


def test_a_resumed_run_counts_its_later_values(tmp_path: Path) -> None:
    write_events(tmp_path, 1, 6)
    write_events(tmp_path, 5, 8, offset=100)
    first, second = sorted(tmp_path.iterdir(), key=lambda file: file.stat().st_mtime_ns)
    # Two files of the same second are read in the order of the counter at the end of their names, where 10 precedes 9.
    first.rename(tmp_path / "events.out.tfevents.1700000000.host.1.9")
    second.rename(tmp_path / "events.out.tfevents.1700000000.host.1.10")
    steps, values = read_curves(tmp_path)["Loss/total"]
    assert steps.tolist() == list(range(1, 9))
    assert values.tolist() == [1, 2, 3, 4, 105, 106, 107, 108]
    assert read_curves(tmp_path / "nothing") == {}


def test_a_run_that_starts_again_in_the_same_folder_hides_the_longer_one_before(tmp_path: Path, monkeypatch) -> None:
    write_events(tmp_path, 1, 6)
    write_events(tmp_path, 1, 3, offset=100)
    curves = read_curves(tmp_path)
    assert curves["Loss/total"][0].tolist() == [1, 2, 3] and curves["Loss/total"][1].tolist() == [101, 102, 103]
    assert curves["val_mean_dice"][0].tolist() == [3]
    drawn = {}
    monkeypatch.setattr(training, "embeddings_plot", lambda groups, names: drawn.update(groups))
    for seconds, step, kind in ((1, "00006", "prototype"), (2, "00003", "labelled voxel")):
        (tmp_path / step / "memory").mkdir(parents=True)
        tensors = tmp_path / step / "memory/tensors.tsv"
        tensors.write_text("1.0\t0.0\n0.0\t1.0\n")
        tensors.with_name("metadata.tsv").write_text(f"kind\tclass\n{kind}\t1\n{kind}\t1\n")
        os.utime(tensors, (seconds, seconds))
    memory_of([tmp_path], ["background", "a"])
    assert list(drawn) == [("labelled voxel", 1)]


def test_neighbouring_points_are_averaged() -> None:
    steps = np.arange(1, 2 * POINTS + 2)
    few, means = thinned(steps, steps**2)
    assert len(few) <= POINTS and few[0] == 2 and means[0] == pytest.approx((1 + 4 + 9) / 3)
    assert few[-1] == steps[few.size * 3 - 3 :].mean()
    assert thinned(steps[:3], steps[:3])[1].tolist() == [1, 2, 3]


def test_the_plot_names_every_curve_and_is_empty_without_files(tmp_path: Path) -> None:
    write_events(tmp_path / "run", 1, 4)
    plot = course_of([tmp_path / "none", tmp_path / "run"], ["background", "liver"])
    for text in ("Loss terms", "Prototypes in the memory", "Validation"):
        assert text in plot
    assert course_of([tmp_path]) == ""


def test_the_memory_is_drawn_by_class_and_kind(train, tmp_path: Path) -> None:
    """The files are those of a training, and lie where TensorBoard's projector reads them."""
    train(max_steps=1)
    (file,) = tmp_path.rglob("memory/tensors.tsv")
    rows = file.with_name("metadata.tsv").read_text().splitlines()
    assert rows[0] == "kind\tclass" and len(rows) == 1 + len(file.read_text().splitlines())
    assert {row.split("\t")[0] for row in rows[1:]} >= {"labelled voxel"}
    folder = file.parents[2]
    assert "memory/tensors.tsv" in (folder / "projector_config.pbtxt").read_text()
    plot = memory_of([tmp_path / "none", folder], ["background", "liver"])
    assert "liver" in plot and "prototype" in plot
    assert memory_of([tmp_path / "none"], ["background"]) == ""


def test_the_plane_of_the_memory_is_that_of_the_largest_variance(tmp_path: Path, monkeypatch) -> None:
    """Four directions in a plane of four dimensions: their distances are kept."""
    drawn = {}
    monkeypatch.setattr(training, "embeddings_plot", lambda groups, names: drawn.update(groups))
    (tmp_path / "00009/memory").mkdir(parents=True)
    directions = np.array([[0, 3.0, 0, 0], [0, 0, 0, 5.0], [0, -1.0, 0, 0], [0, 0, 0, -2.0]])
    np.savetxt(tmp_path / "00009/memory/tensors.tsv", directions, delimiter="\t")
    kinds = ["kind\tclass", *["prototype\t1"] * 2, *["labelled voxel\t2"] * 2]
    (tmp_path / "00009/memory/metadata.tsv").write_text("\n".join(kinds))
    memory_of([tmp_path], ["background", "a", "b"])
    points = np.concatenate([drawn["prototype", 1], drawn["labelled voxel", 2]])
    distances = np.linalg.norm(points[:, None] - points[None], axis=2)
    side, diagonal = 2**0.5, 2.0
    assert distances == pytest.approx(np.array([
        [0, side, diagonal, side], [side, 0, side, diagonal], [diagonal, side, 0, side], [side, diagonal, side, 0],
    ]))  # fmt: skip


@pytest.mark.parametrize("embeddings", ["1.0", "1.0\t2.0\t3.0"])
def test_a_single_embedding_is_drawn_too(embeddings, tmp_path: Path) -> None:
    (tmp_path / "00001/memory").mkdir(parents=True)
    (tmp_path / "00001/memory/tensors.tsv").write_text(embeddings + "\n")
    (tmp_path / "00001/memory/metadata.tsv").write_text("kind\tclass\nprototype\t1\n")
    assert "liver" in memory_of([tmp_path], ["background", "liver"])


def test_the_record_of_a_training_is_told(tmp_path: Path) -> None:
    run = {
        "started": "2026-01-01T10:00:00+00:00", "ended": "2026-01-01T11:30:20+00:00", "steps": 900, "seed": 7,
        "config_files": ["configs/train.yaml", "configs/methods/ssnet.yaml"],
        "settings": {
            "network_def": {"_target_": "scripts.networks.vnet.VNet"},
            "terms": {"supervised": {}, "x": {}}, "network_terms": {"deep": {}},
        },
        "command": "python -m monai.bundle run training <x>",
    }  # fmt: skip
    facts = dict(training_facts(run))
    assert facts["Method"] == "configs/methods/ssnet.yaml" and facts["Network"] == "VNet"
    assert (facts["Training time"], facts["Training steps"], facts["Seed"]) == ("1 h 30 min", "900", "7")
    assert facts["Loss terms"] == "supervised, x, deep"
    assert training_facts({"ended": None}) == []
    folder = write_evaluation(tmp_path, ["a"])
    write_events(folder, 1, 3)
    (tmp_path / "run.json").write_text(json.dumps(run))
    page = write_report(folder, {"dataset": "scans"}, training_record=tmp_path / "run.json", argv=["pytest"])
    text = page.read_text(encoding="utf-8")
    assert "run training &lt;x&gt;" in text and "1 h 30 min" in text and 'id="training"' in text
    (tmp_path / "run.json").unlink()
    assert "1 h 30 min" in write_report(folder).read_text(encoding="utf-8")  # kept


def test_a_training_alone_has_a_page(train, tmp_path: Path) -> None:
    train(max_steps=2)
    text = write_report(tmp_path / "out").read_text(encoding="utf-8")
    assert 'id="training"' in text and 'id="cases"' not in text
    assert "<dt>Training steps</dt><dd>2</dd>" in text
