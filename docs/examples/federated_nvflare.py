# SPDX-License-Identifier: Apache-2.0
"""Federated averaging in NVFlare's simulator (`FedAvgRecipe`): each site runs this bundle as a `MonaiAlgo`.

    python -m docs.examples.federated_nvflare --dataset_dir data/demo --rounds 3 --steps 40

It needs an environment with nvflare and the packages of requirements.txt. Sites and settings are those of
`docs.examples.federated`, where a loop averages the weights instead of NVFlare.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from monai.bundle import ConfigParser

from docs.examples.federated import ROOT, demo_settings, make_site, parse_options, site_datalists, validate
from scripts.data.demo import ensure_demo_dataset

CLIENT = Path(__file__).with_name("federated_client.py")


def simulate(folder: Path, sites: int, rounds: int) -> Path:
    """Run the recipe; the clients find `site_N.json` and `settings.json` in `folder`.

    Returns:
        The file with the weights of the last round.
    """
    from nvflare.app_opt.pt.recipes.fedavg import FedAvgRecipe
    from nvflare.recipe.sim_env import SimEnv

    parser = ConfigParser()
    parser.read_config(str(ROOT / "configs/train.yaml"))
    network = parser.get_parsed_content("network_def", instantiate=False)
    recipe = FedAvgRecipe(
        name="demo",
        model={"class_path": network.resolve_module_name(), "args": network.resolve_args()},
        min_clients=sites,
        num_rounds=rounds,
        train_script=str(CLIENT),
        train_args=f"--folder {folder}",
        key_metric="val_mean_dice",
    )
    recipe.execute(SimEnv(num_clients=sites, num_threads=sites, workspace_root=str(folder / "workspace")))
    return next((folder / "workspace").rglob("FL_global_model.pt"))


def main(argv: Sequence[str] | None = None) -> None:
    """Command line; see the module."""
    options = parse_options(__doc__, argv)
    ensure_demo_dataset(options.dataset_dir)
    settings = demo_settings(options.rounds, options.steps)
    os.environ["PYTHONPATH"] = str(ROOT)  # inherited by the clients' processes
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        lists = site_datalists(options.dataset_dir, folder, options.sites)
        (folder / "settings.json").write_text(json.dumps(settings), encoding="utf-8")
        final = simulate(folder, options.sites, options.rounds)
        reports = [
            [json.loads(line) for line in (folder / f"report_{site}.jsonl").read_text(encoding="utf-8").splitlines()]
            for site in range(options.sites)
        ]
        for row in reports[0]:
            print(f"before round {row['round'] + 1}: mean validation Dice of the averaged weights {row['dice']:.4f}")
        judge = make_site(options.sites, lists[0], folder, settings)
        weights = torch.load(final, weights_only=True)["model"]
        print(f"at the end: mean validation Dice of the averaged weights {validate(judge, weights):.4f}")
        keys = {key for report in reports for row in report for key in row["sent"]}
        same = keys == set(judge.trainer.network.state_dict())
        print(f"{len(keys)} tensors were sent, exactly those of network_def: {same}")
        print(f"digest of each site's memory at the end: {', '.join(report[-1]['memory'] for report in reports)}")


if __name__ == "__main__":
    main()
