# SPDX-License-Identifier: Apache-2.0
"""`python -m scripts export`: the trained network in other formats, their comparison, and the bundle as a zip file."""

from __future__ import annotations

import argparse
import ast
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scripts.cli.runs import CONFIGS, ROOT, TRAINED, find_dataset
from scripts.cli.words import MODEL_HELP, PROGRAM, Parser, split_words
from scripts.errors import UserError

if TYPE_CHECKING:
    from scripts.export.settings import ExportSettings

FORMS = ("ts", "onnx", "pt2", "parity", "zip")


def export(words: list[str]) -> int:
    """Write a trained network as TorchScript, ONNX or torch.export, or pack the bundle."""
    text = """\
ts      model.ts, TorchScript with all that is needed to run it
onnx    model.onnx
pt2     model.pt2, torch.export
parity  compare those of the three that exist with PyTorch; exit code 1 if one differs
zip     the bundle as one file, --filepath B.zip; --for zoo or hub adds what the MONAI model zoo or the Hugging Face
        Hub wants: a description of the model, and the licence of the weights

Every other option replaces a key of the config files, as it did in training (--widths "[32,64,128,256]").
Without --dataset the model is models/model.pt, which comes with the bundle."""
    parser = Parser(export, "export", text)
    parser.usage = f"{parser.prog} {{{','.join(FORMS)}}} [options] [--KEY VALUE ...]"
    parser.add_argument("form", choices=FORMS, metavar="FORM", help="what to write, see above")
    parser.add_argument("--dataset", metavar="NAME", help=MODEL_HELP)
    parser.add_argument("--config_file", metavar="FILES", help="config files of inference, instead of --dataset")
    parser.add_argument("--ckpt_file", metavar="FILE", type=Path, help="the weights")
    parser.add_argument("--meta_file", metavar="FILE", help="metadata instead of configs/metadata.json")
    parser.add_argument("--filepath", metavar="FILE", help="what to write, or for parity what to compare")
    places = parser.add_argument_group("zip").add_argument
    places("--for", dest="place", choices=("zoo", "hub"), help="where the zip file goes")
    places("--license", metavar="NAME", help="licence of the weights, such as CC-BY-4.0; known for the included model")
    places("--weights_url", metavar="URL", help="zoo: address of weights of more than 25 MB, which are not packed")
    names = [name for action in parser._actions for name in action.option_strings]
    own, passed = split_words(words, names)
    options = parser.parse_args(own)
    from scripts.cli.words import parse_words

    overrides, alone = parse_words(passed)
    if alone:
        raise UserError(f"'{alone[0]}' belongs to no option: write --NAME VALUE.")
    files = [str(file) for file in _as_list(options.config_file)] if options.config_file else []
    if options.dataset:
        files = [str(CONFIGS / "inference.yaml"), str(find_dataset(options.dataset))]
        options.ckpt_file = options.ckpt_file or TRAINED / "model.pt"
    return {"parity": _parity, "zip": _zip}.get(options.form, _export)(options, files, overrides)


def _settings(options: argparse.Namespace, files: list[str], overrides: dict[str, str]) -> ExportSettings:
    from scripts.cli.overrides import check_overrides
    from scripts.export.settings import ExportSettings

    files = files or [str(CONFIGS / "inference.yaml")]
    check_overrides(["", "run", "--config_file", str(files), *(f"--{key}={value}" for key, value in overrides.items())])
    values = {key: _literal(value) for key, value in overrides.items()}
    return ExportSettings(files, values, options.ckpt_file, options.meta_file)


def _export(options: argparse.Namespace, files: list[str], overrides: dict[str, str]) -> int:
    from scripts.export.formats import EXPORTERS

    settings = _settings(options, files, overrides)
    path = Path(options.filepath or settings.ckpt_file.with_suffix(f".{options.form}"))
    EXPORTERS[options.form](settings, path)
    print(f"Wrote {path}")
    return 0


def _parity(options: argparse.Namespace, files: list[str], overrides: dict[str, str]) -> int:
    from scripts.export.formats import compare, table

    settings = _settings(options, files, overrides)
    if options.filepath:
        exported = [Path(path) for path in _as_list(options.filepath)]
    else:
        exported = [path for e in ("ts", "onnx", "pt2") if (path := settings.ckpt_file.with_suffix(f".{e}")).is_file()]
    if not exported:
        raise UserError(f"There is no exported file beside {settings.ckpt_file}: run `{PROGRAM} export ts` first.")
    rows = compare(settings, exported)
    print(table(rows))
    return 0 if all(row.passes for row in rows) else 1


def _zip(options: argparse.Namespace, files: list[str], overrides: dict[str, str]) -> int:
    from scripts.export.package import bundle_metadata, json_configs, licence_text, texts_for, zip_bundle

    if not options.filepath:
        raise UserError("Give the name of the zip file with --filepath, e.g. semi_supervised_segmentation.zip.")
    path = Path(options.filepath)
    models = options.ckpt_file.parent if options.ckpt_file else ROOT / "models"
    options.ckpt_file = models / "model.pt"
    # The dataset of the weights in models/. inference.yaml has its settings but does not refer to its file.
    files = files or [str(CONFIGS / "inference.yaml"), str(CONFIGS / "datasets/hippocampus.yaml")]
    settings = _settings(options, files, overrides)
    settings.network()  # raises an error if the weights do not fit the configuration
    copies = {f"configs/{name}": text for name, text in json_configs(settings).items()}
    if options.place:
        texts, without = texts_for(options.place, settings, options.license, options.weights_url)
    else:
        texts, without = licence_text(bundle_metadata(settings), options.license), []
    copies |= texts
    names = zip_bundle(ROOT, path, models, copies, without)
    print(f"Wrote {path}, {len(names)} files, {path.stat().st_size / 2**20:.1f} MiB")
    return 0


def _as_list(text: str) -> list[str]:
    value = _literal(text)
    return value if isinstance(value, list) else [text]


def _literal(text: str) -> Any:
    """Parse a value as MONAI's command line does: as a number, list and so on, or else as a string."""
    if text in ("true", "false"):
        return text == "true"
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
