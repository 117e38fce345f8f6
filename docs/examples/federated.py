# SPDX-License-Identifier: Apache-2.0
"""Federated averaging with MONAI's `MonaiAlgo`: sites train on their own cases and exchange only weights.

    python -m docs.examples.federated --dataset_dir data/demo --rounds 3 --steps 40

Each site runs this bundle's `configs/train.yaml` as a federated client, and a loop takes the server's part. Sites
exchange the state dict of `network_def`; prototype memories, heads and teachers stay at their site.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from monai.fl.client import MonaiAlgo
from monai.fl.utils.constants import ExtraItems
from monai.fl.utils.exchange_object import ExchangeObject

from scripts.data.datalist import load_cases
from scripts.data.demo import ensure_demo_dataset
from scripts.data.spec import DatasetSpec

ROOT = Path(__file__).resolve().parents[2]


def site_datalists(dataset_dir: Path, folder: Path, sites: int) -> list[Path]:
    """Write one datalist per site: training cases dealt out in turn, the same validation cases; paths are absolute."""
    cases = load_cases(DatasetSpec(dataset_dir.resolve(), "dataset.json"))
    paths = []
    for site in range(sites):
        content = {"training": cases.labelled[site::sites], "validation": cases.validation, "test": []}
        paths.append(folder / f"site_{site}.json")
        paths[-1].write_text(json.dumps(content), encoding="utf-8")
    return paths


def make_site(number: int, datalist: Path, folder: Path, settings: Mapping[str, Any]) -> MonaiAlgo:
    """A client whose local round is one epoch of the trainer."""
    home = folder / f"site_{number}"
    options = {
        "bundle_root": str(ROOT),
        "dataset_name": datalist.stem,  # under its default name, the demo would be generated in dataset_dir
        "dataset_dir": str(datalist.parent),
        "datalist": str(datalist),
        "output_dir": str(home / "out"),
        "ckpt_dir": str(home / "models"),
        **settings,
    }
    algo = MonaiAlgo(
        bundle_root=str(ROOT),
        local_epochs=1,
        send_weight_diff=False,
        config_train_filename=["configs/train.yaml"],
        config_evaluate_filename=["configs/train.yaml"],
        train_kwargs=dict(options),
        eval_kwargs=dict(options),
    )
    algo.initialize(extra={ExtraItems.CLIENT_NAME: f"site-{number}"})
    return algo


def average(states: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
    """Mean of each entry over the sites; integer entries (the counters of batch norm) stay integers."""
    mean = {}
    for key in states[0]:
        stacked = torch.stack([torch.as_tensor(state[key]) for state in states])
        mean[key] = stacked.double().mean(0).to(stacked.dtype)
    return mean


def run(sites: Sequence[MonaiAlgo], rounds: int) -> list[float]:
    """Train, average and validate in each round.

    Returns:
        Mean Dice of the averaged weights on the validation cases, before the first round and after each round.
    """
    shared = {key: value.cpu() for key, value in sites[0].trainer.network.state_dict().items()}
    dice = [validate(sites[0], shared)]
    for _ in range(rounds):
        states = []
        for site in sites:
            site.train(ExchangeObject(weights=shared), extra={})
            states.append(site.get_weights(extra={}).weights)
        shared = average(states)
        dice.append(validate(sites[0], shared))
    return dice


def validate(site: MonaiAlgo, weights: Mapping[str, torch.Tensor]) -> float:
    """Mean Dice of weights on the site's validation cases."""
    return float(site.evaluate(ExchangeObject(weights=weights), extra={}).metrics["val_mean_dice"])


def demo_settings(rounds: int, steps: int) -> dict[str, Any]:
    """Overrides of `configs/train.yaml` for sites that train `steps` steps in each of `rounds` rounds."""
    return {"max_steps": rounds * steps, "train::epoch_length": steps, "save_interval": steps, "device": "cpu"}


def parse_options(description: str | None, argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the options of a federation on the demo."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset_dir", type=Path, default=ROOT / "data/demo")
    parser.add_argument("--sites", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=40, help="steps of each site in each round")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Command line; see the module."""
    options = parse_options(__doc__, argv)
    ensure_demo_dataset(options.dataset_dir)
    settings = demo_settings(options.rounds, options.steps)
    with tempfile.TemporaryDirectory() as folder:
        lists = site_datalists(options.dataset_dir, Path(folder), options.sites)
        sites = [make_site(number, path, Path(folder), settings) for number, path in enumerate(lists)]
        for number, dice in enumerate(run(sites, options.rounds)):
            print(f"after round {number}: mean validation Dice of the averaged weights {dice:.4f}")


if __name__ == "__main__":
    main()
