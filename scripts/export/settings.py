# SPDX-License-Identifier: Apache-2.0
"""The configuration of an export: config files, overrides, and the network with its trained weights."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser
from torch import nn

from scripts.data.weights import network_config, network_record
from scripts.errors import UserError
from scripts.inference.models import load_weights

ROOT = Path(__file__).resolve().parents[2]


class ExportSettings:
    """The configuration of inference, with overrides applied.

    Args:
        config_files: `configs/inference.yaml`, followed by the config file of the dataset that the network was trained
            on; by default `inference.yaml` alone.
        overrides: values by key, as on the command line of `monai.bundle run` (`{"base_filters": 16}`).
        ckpt_file: file of the weights; by default the configured `checkpoint` in the configured `ckpt_dir`.
        meta_file: metadata of the bundle.
    """

    def __init__(
        self,
        config_files: Sequence[str | Path] = (),
        overrides: Mapping[str, Any] | None = None,
        ckpt_file: str | Path | None = None,
        meta_file: str | Path | None = None,
    ) -> None:
        self.config_files = [str(file) for file in config_files] or [str(ROOT / "configs/inference.yaml")]
        self.overrides = dict(overrides or {})
        self.parser = ConfigParser()
        self.parser.read_config(self.config_files)
        for key, value in {"bundle_root": str(ROOT), **self.overrides}.items():
            self.parser[key] = value
        self.ckpt_file = Path(ckpt_file or Path(self.value("ckpt_dir"), self.value("checkpoint")))
        self.meta_file = Path(meta_file or ROOT / "configs/metadata.json")

    def value(self, key: str) -> Any:
        """Return the value of a key, with references resolved and components built."""
        return self.parser.get_parsed_content(key)

    def plain(self, key: str) -> Any:
        """Return the value of a key as numbers, strings, lists and dicts; components stay dicts that describe them.

        Raises:
            UserError: if the value of an expression cannot be written as JSON.
        """
        raw = self.parser[key]
        if isinstance(raw, Mapping):
            return {name: self.plain(f"{key}::{name}") for name in raw}
        if isinstance(raw, list):
            return [self.plain(f"{key}::{index}") for index in range(len(raw))]
        if not isinstance(raw, str) or raw[:1] not in ("@", "$"):
            return raw
        if raw.startswith("@"):
            return self.plain(raw[1:].replace("#", "::"))
        value = self.value(key)
        try:
            return json.loads(json.dumps(value))
        except TypeError as error:
            raise UserError(
                f"The value of {key} is a {type(value).__name__}, which cannot be written to a config file: give a "
                "number, a string, a list or a dict with _target_."
            ) from error

    def network(self) -> nn.Module:
        """Return the network with the trained weights, on the CPU, in evaluation mode.

        If the weights file records a different network, `network_def` is replaced by it.

        Raises:
            UserError: if the weights file is missing, damaged, belongs to another network, or was trained with another
                preprocessing.
        """
        hint = "train first, or give the weights with --ckpt_file"
        configured = self.value("network_def").cpu()
        network = load_weights(self.ckpt_file, configured, self.value("dataset_spec"), hint, strict=True)
        record = network_record(network)
        if record is not None and record != network_record(configured):
            self.parser["network_def"] = network_config(record)
        return network
