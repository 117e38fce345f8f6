# SPDX-License-Identifier: Apache-2.0
"""Settings are measured in turn, each in a run of its own, and shown relative to the first; no time is asserted."""

from __future__ import annotations

import pytest

from scripts.experiments import step_cost


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch):
    """New processes would spend seconds on imports."""
    monkeypatch.setattr(step_cost, "in_process", lambda function, *args: function(*args))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", {}),
        ("a=1", {"a": 1}),
        ("roi_size=[48,48,32],train::inferer::x=true", {"roi_size": [48, 48, 32], "train::inferer::x": True}),
    ],
)
def test_settings_are_read_as_yaml(text, expected) -> None:
    assert step_cost.parse_settings(text) == expected


def test_runs_take_turns_and_the_table_is_relative_to_the_first(monkeypatch, capsys) -> None:
    seen = []

    def run(_options, overrides, _folder):
        seen.append(overrides)
        return {"seconds": 2.0 * overrides["b"], "mebibytes": 8.0 / overrides.get("a", 1)}

    monkeypatch.setattr(step_cost, "_measured_run", run)
    monkeypatch.setattr(step_cost, "ensure_demo_dataset", lambda folder: folder)
    step_cost.main(["settings", "a=2", "b=3", "--base", "b=2", "--repeats", "2"])
    assert seen == [{"b": 2}, {"b": 2, "a": 2}, {"b": 3}] * 2
    assert capsys.readouterr().out.splitlines()[2:] == [
        "| b=2 | 4.0 | 1.0 | 8 | 1.0 |",
        "| a=2 | 4.0 | 1.0 | 4 | 0.5 |",
        "| b=3 | 6.0 | 1.5 | 8 | 1.0 |",
    ]


def test_growth_has_a_row_for_each_value(monkeypatch, capsys) -> None:
    def run(_options, overrides, _folder):
        assert overrides["b"] == 2
        return {"seconds": float(sum(overrides["roi_size"])), "mebibytes": 8.0}

    monkeypatch.setattr(step_cost, "_measured_run", run)
    monkeypatch.setattr(step_cost, "ensure_demo_dataset", lambda folder: folder)
    step_cost.main(["growth", "roi_size", "[2,3,4]", "[4,5,6]", "--base", "b=2", "--repeats", "1"])
    assert capsys.readouterr().out.splitlines() == [
        "| roi_size | step s | memory MiB |",
        "| --- | --- | --- |",
        "| 24 | 9.0 | 8 |",
        "| 120 | 15.0 | 8 |",
    ]


def test_a_step_of_the_real_configuration_is_measured(tiny_demo, monkeypatch, capsys) -> None:
    monkeypatch.setattr(step_cost, "ensure_demo_dataset", lambda folder: folder.symlink_to(tiny_demo))
    tiny = "roi_size=[32,32,16],widths=[2,2,2,2],batch_labelled=1,batch_unlabelled=1,spacing=[3.0,3.0,4.0]"
    step_cost.main(["settings", "--base", tiny, "--steps", "1", "--repeats", "1"])
    cells = capsys.readouterr().out.splitlines()[-1].split("|")
    assert float(cells[2]) > 0 and float(cells[4]) >= 0


AUTHORS = """
import argparse, os
import h5py, torch
from medpy import metric
from skimage.measure import label
from tensorboardX import SummaryWriter
from torch.utils.data import DataLoader
from torchvision import transforms

parser = argparse.ArgumentParser()
parser.add_argument("--root_path")
parser.add_argument("--max_iteration", type=int)
args = parser.parse_args()
assert os.path.isfile("code/train_ss_3d.py") and len(open(args.root_path + "/train.list").readlines()) == 80
if __name__ == "__main__":
    layer = torch.nn.Conv3d(1, 2, 1).cuda()
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    file = h5py.File("volume.h5", "r")
    crop = transforms.Compose([lambda volume: torch.as_tensor(volume[:32, :32, :32])])
    volumes = [(crop(file["image"][:])[None], crop(file["label"][:]).long())] * args.max_iteration
    for image, label in DataLoader(volumes, batch_size=1, num_workers=4):
        loss = torch.nn.functional.cross_entropy(layer(image.cuda()), label.cuda())
        metric.binary.dc(1, 1), SummaryWriter("log").add_scalar("loss", loss, 1)
        torch.ones(64, 2**20)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
"""


def test_a_step_is_compared_with_that_of_the_authors_script(tiny_demo, monkeypatch, tmp_path, capsys) -> None:
    (tmp_path / "code").mkdir()
    (tmp_path / "code/train_ss_3d.py").write_text(AUTHORS)
    monkeypatch.setattr(step_cost, "ensure_demo_dataset", lambda folder: folder.symlink_to(tiny_demo))
    small = {"roi_size": [16, 16, 16], "base_filters": 2, "spacing": [3.0, 3.0, 4.0]}
    monkeypatch.setattr(step_cost, "SSNET", step_cost.SSNET | small)
    monkeypatch.setattr(step_cost, "autocast_dtype", lambda *_: None)  # a CPU without bf16
    step_cost.main(["authors", "--reference", str(tmp_path), "--steps", "1", "--repeats", "1"])
    rows = [line.split("|") for line in capsys.readouterr().out.splitlines() if line.startswith("|")][2:]
    assert [row[1].strip() for row in rows] == ["authors", "ours, all voxels, fp32", "ours, fp32"]
    assert float(rows[0][3]) == 1 and all(float(row[3]) >= 0 for row in rows)


def test_the_compiled_network_is_compared_with_the_plain_one(monkeypatch, capsys) -> None:
    monkeypatch.setattr("torch.nn.Module.compile", lambda network: None)  # compilation would take minutes
    step_cost.main(["compile", "--patch", "32", "16", "16", "--repeats", "1"])
    assert capsys.readouterr().out.splitlines()[2].endswith("| 1 |")
