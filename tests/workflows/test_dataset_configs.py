# SPDX-License-Identifier: Apache-2.0
"""Every dataset's YAML, with volumes in the form of its download and the command that it names, trains every method."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import torch
from monai.bundle import ConfigParser

from scripts.cli.commands import main
from tests.stand_ins import LAYOUTS, listed

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
METHODS = sorted(path.stem for path in (CONFIGS / "methods").glob("*.yaml"))
DATASETS = sorted(path.stem for path in (CONFIGS / "datasets").glob("*.yaml"))

QUICK = {
    (DATASETS[place % len(DATASETS)], METHODS[place % len(METHODS)])
    for place in range(max(len(DATASETS), len(METHODS)))
}
"""Pairs that every test run trains: each dataset and each method at least once."""

PAIRS = [
    pytest.param(dataset, method, marks=[] if (dataset, method) in QUICK else pytest.mark.slow)
    for dataset in DATASETS
    for method in METHODS
]


def load(dataset: str) -> dict:
    return ConfigParser.load_config_file(str(CONFIGS / f"datasets/{dataset}.yaml"))


@pytest.fixture(scope="session")
def download(tmp_path_factory):
    """The folder of a dataset's stand-in, made as its YAML says; each is made once."""
    made: dict[str, Path] = {}

    def get(dataset: str) -> Path:
        if dataset not in made:
            made[dataset] = tmp_path_factory.mktemp(dataset)
            prepare(dataset, made[dataset])
        return made[dataset]

    return get


def prepare(dataset: str, folder: Path) -> None:
    config = load(dataset)
    if dataset not in LAYOUTS:
        listed(folder, config)
        return
    text = (CONFIGS / f"datasets/{dataset}.yaml").read_text()
    command = re.search(r"^#   python -m scripts (.+)$", text, re.MULTILINE)[1]
    home = re.search(r"'/(data/\w+)'", config["dataset_dir"])[1]
    words = [word.replace(home, str(folder)) for word in shlex.split(command)]
    assert str(folder) in words, "the command makes another folder than dataset_dir"
    raw = folder
    if "FOLDER" in words:
        raw = folder / "raw"
        words[words.index("FOLDER")] = str(raw)
    LAYOUTS[dataset](raw, config)
    assert main(words) == 0


def overrides(dataset: str, folder: Path) -> dict:
    """Smaller and fewer, but the dataset's own channels, classes, values, spacing and intensities."""
    return {
        "dataset_dir": str(folder),
        "spacing": load(dataset)["spacing"],
        "roi_size": [32, 16, 16],
        "labelled_cases": 2,
        "validation_cases": 0,
        "max_steps": 2,
    }


@pytest.mark.parametrize(("dataset", "method"), PAIRS)
def test_a_dataset_trains(dataset, method, download, make_workflow, tmp_path) -> None:
    make_workflow(
        "train.yaml", f"datasets/{dataset}.yaml", f"methods/{method}.yaml", **overrides(dataset, download(dataset))
    ).run()
    model = torch.load(tmp_path / "models/model.pt", weights_only=True)
    classes = len(load(dataset)["label_names"])
    assert next(reversed(model.values())).shape[0] == classes
    assert all(tensor.isfinite().all() for tensor in model.values())


def test_every_dataset_and_every_method_is_among_those_that_train() -> None:
    assert {dataset for dataset, _ in QUICK} == set(DATASETS)
    assert {method for _, method in QUICK} == set(METHODS)


@pytest.mark.parametrize("dataset", DATASETS)
def test_every_method_composes_with_a_dataset(dataset, download, make_workflow) -> None:
    """A step on random tensors of the dataset's channels and classes; all pairs are cheap enough for that."""
    config, folder = load(dataset), download(dataset)
    for method in METHODS:
        workflow = make_workflow(
            "train.yaml", f"datasets/{dataset}.yaml", f"methods/{method}.yaml", **overrides(dataset, folder)
        )
        get = workflow.parser.get_parsed_content
        images = torch.randn(2, config["in_channels"], 32, 16, 16)
        label = torch.randint(len(config["label_names"]), (1, 1, 32, 16, 16))
        batch = get("train::inferer")(images, get("network"), label, weak=images[1:])
        assert batch.logits.shape[1] == len(config["label_names"])
        assert get("loss")(batch, label).isfinite(), method
        assert get("optimizer").param_groups, method


@pytest.mark.parametrize("dataset", [name for name in DATASETS if name not in ("template", "demo")])
def test_a_dataset_says_where_it_comes_from(dataset) -> None:
    head = (CONFIGS / f"datasets/{dataset}.yaml").read_text().split("\n\n")[0]
    assert all(line.startswith("#") for line in head.splitlines())
    for word in ("Licence: ", "Split: ", "To get it: "):
        assert f"# {word}" in head, word


@pytest.mark.parametrize("dataset", DATASETS)
def test_label_values_fit_the_names(dataset) -> None:
    config = load(dataset)
    values = config.get("label_values")
    assert values is None or (len(values) == len(config["label_names"]) and values[0] == 0)
