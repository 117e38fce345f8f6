# SPDX-License-Identifier: Apache-2.0
"""The script of an NVFlare site: MONAI's `MonaiAlgo` on this bundle, between `receive` and `send` of the Client API.

`docs.examples.federated_nvflare` passes it to the simulator; it does not run on its own.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import torch
from monai.fl.utils.exchange_object import ExchangeObject

from docs.examples.federated import make_site, validate


def digest_of(tensors: Mapping[str, torch.Tensor]) -> str:
    """The first 8 hex digits of the SHA-256 of all values."""
    content = b"".join(tensors[key].detach().cpu().numpy().tobytes() for key in sorted(tensors))
    return hashlib.sha256(content).hexdigest()[:8]


def main() -> None:
    """In each round: receive averaged weights, validate them, train on the site's own cases, send the new weights."""
    import nvflare.client as flare
    from nvflare.app_common.abstract.fl_model import FLModel

    parser = argparse.ArgumentParser()
    parser.add_argument(
        "--folder", type=Path, required=True, help="with site_N.json and settings.json; takes the reports"
    )
    folder = parser.parse_args().folder
    flare.init()
    number = int(flare.get_site_name().split("-")[-1]) - 1
    settings = json.loads((folder / "settings.json").read_text(encoding="utf-8"))
    site = make_site(number, folder / f"site_{number}.json", folder, settings)
    memory = site.train_workflow.parser.get_parsed_content("memory")
    report = folder / f"report_{number}.jsonl"
    while flare.is_running():
        received = flare.receive()
        weights = {key: torch.as_tensor(value) for key, value in received.params.items()}
        dice = validate(site, weights)
        site.train(ExchangeObject(weights=weights), extra={})
        sent = {key: torch.as_tensor(value) for key, value in site.get_weights(extra={}).weights.items()}
        row = {
            "round": received.current_round,
            "dice": dice,
            "sent": sorted(sent),
            "memory": digest_of(memory.state_dict()),
        }
        with report.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        flare.send(FLModel(params=sent, metrics={"val_mean_dice": dice}))


if __name__ == "__main__":
    main()
