# SPDX-License-Identifier: Apache-2.0
"""Write the trained network in other forms, check them, and pack the bundle.

    python -m scripts.cli.export ts    # models/model.ts, TorchScript, with what is needed to run it inside
    python -m scripts.cli.export onnx    # models/model.onnx
    python -m scripts.cli.export pt2    # models/model.pt2, torch.export
    python -m scripts.cli.export parity    # those of the three that are there against PyTorch
    python -m scripts.cli.export json    # configs/*.json, JSON copies of the YAML files
    python -m scripts.cli.export zip --filepath B.zip

For a model of another dataset give the config files of its inference, and what else was overridden in training:

    python -m scripts.cli.export ts --config_file "['configs/inference.yaml','configs/datasets/mine.yaml']"
"""

from __future__ import annotations

import ast
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from scripts.errors import UserError

OWN = ("config_file", "ckpt_file", "meta_file", "filepath", "debug")
"""Options of this command; any other is an override of the configuration."""

SHIPPED_DATASET = "datasets/hippocampus.yaml"
"""Below `configs/`: what `models/model.pt` and `configs/inference.yaml` are of."""


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; see the module.

    Returns:
        The exit code: 1 if an exported file differs from PyTorch or anything failed that nobody foresaw, 2 for a
            mistake in files or options.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help") or words[0] not in ACTIONS:
        print(__doc__ if words[:1] and words[0] in ("-h", "--help") else f"Error: name one of {', '.join(ACTIONS)}.")
        return 0 if words[:1] and words[0] in ("-h", "--help") else 2
    from scripts.cli.errors import describe_error
    from scripts.cli.overrides import parse_words

    options, alone = parse_words(words[1:])
    try:
        if alone:
            raise UserError(f"'{alone[0]}' stands alone on the command line: write --NAME VALUE.")
        return ACTIONS[words[0]](words[0], options)
    except (Exception, KeyboardInterrupt) as error:
        if "debug" in options:
            raise
        mistake = isinstance(error, UserError)
        print(f"\nError: {error if mistake else describe_error(error, options)}", file=sys.stderr)
        return 2 if mistake else 128 + signal.SIGINT if isinstance(error, KeyboardInterrupt) else 1


def _settings(options: dict[str, str]) -> Any:
    from scripts.cli.overrides import check_overrides, require_mapping
    from scripts.export.settings import ROOT, ExportSettings

    files = _literal(options.get("config_file", str(ROOT / "configs/inference.yaml")))
    files = files if isinstance(files, list) else [files]
    for file in files:
        require_mapping(str(file))
    overrides = {key: value for key, value in options.items() if key not in OWN}
    check_overrides(["", "run", "--config_file", str(files), *(f"--{key}={value}" for key, value in overrides.items())])
    return ExportSettings(
        files,
        {key: _literal(value) for key, value in overrides.items()},
        options.get("ckpt_file"),
        options.get("meta_file"),
    )


def _literal(text: str) -> Any:
    """A value as Python Fire reads it for MONAI: a number, list, ..., else the text itself."""
    if text in ("true", "false"):
        return text == "true"
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _export(kind: str, options: dict[str, str]) -> int:
    from scripts.export.formats import EXPORTERS

    settings = _settings(options)
    path = Path(options.get("filepath") or settings.ckpt_file.with_suffix(f".{kind}"))
    EXPORTERS[kind](settings, path)
    print(f"Wrote {path}")
    return 0


def _parity(kind: str, options: dict[str, str]) -> int:
    from scripts.export.parity import compare, table

    settings = _settings(options)
    beside = [settings.ckpt_file.with_suffix(f".{ending}") for ending in ("ts", "onnx", "pt2")]
    named = _literal(options["filepath"]) if "filepath" in options else [path for path in beside if path.is_file()]
    files = [Path(path) for path in (named if isinstance(named, list) else [named])]
    if not files:
        raise UserError(
            f"Nothing exported lies beside {settings.ckpt_file}: run `python -m scripts.cli.export ts` first."
        )
    rows = compare(settings, files)
    print(table(rows))
    return 0 if all(row.passes for row in rows) else 1


def _json(kind: str, options: dict[str, str]) -> int:
    from scripts.export.package import write_json_configs
    from scripts.export.settings import ROOT

    for path in write_json_configs(ROOT / "configs"):
        print(f"Wrote {path}")
    return 0


def _zip(kind: str, options: dict[str, str]) -> int:
    from scripts.export.package import json_configs_of_dataset, zip_bundle
    from scripts.export.settings import ROOT

    if "filepath" not in options:
        raise UserError("Name the zip file by --filepath, e.g. semi_supervised_segmentation.zip.")
    path = Path(options["filepath"])
    models = Path(options["ckpt_file"]).parent if "ckpt_file" in options else ROOT / "models"
    files = str([str(ROOT / "configs" / name) for name in ("inference.yaml", SHIPPED_DATASET)])
    settings = _settings({"config_file": files, **options, "ckpt_file": str(models / "model.pt")})
    settings.network()  # weights of another dataset would make a bundle that no reader can load
    twins = {f"configs/{name}": text for name, text in json_configs_of_dataset(settings).items()}
    names = zip_bundle(ROOT, path, models, twins)
    print(f"Wrote {path}, {len(names)} files, {path.stat().st_size / 2**20:.1f} MiB")
    return 0


ACTIONS: dict[str, Callable[[str, dict[str, str]], int]] = {
    "ts": _export,
    "onnx": _export,
    "pt2": _export,
    "parity": _parity,
    "json": _json,
    "zip": _zip,
}

if __name__ == "__main__":
    sys.exit(main())
