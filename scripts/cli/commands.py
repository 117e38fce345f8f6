# SPDX-License-Identifier: Apache-2.0
"""The commands of `python -m scripts`, each with its options.

Slow libraries are imported only by the commands that need them, so that `--help` is fast.
"""

from __future__ import annotations

import difflib
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from scripts.cli.export import export
from scripts.cli.runs import (
    CONFIGS,
    ROOT,
    TRAINED,
    find_dataset,
    find_part,
    remember,
    run_in_monai,
    run_words,
    shell_line,
    shown_path,
)
from scripts.cli.words import MODEL_HELP, PROGRAM, Parser, option_value, split_words
from scripts.errors import UserError, print_error

DATASET_HELP = "dataset: name given to new-dataset, name of a file in configs/datasets, or path (default: the demo)"
METHOD_HELP = "name of a file in configs/methods, or a path; auto: what `crossval` has chosen"
PASSED_ON = """\
Every other option replaces a key of the config files (--max_steps 500, --train::trainer::amp true) and is passed on to
`python -m monai.bundle run`. The keys are explained at the top of {file}."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        argv: the arguments after `python -m scripts`; `None` takes those of this process.

    Returns:
        The exit code: 0 on success, 2 for a mistake in arguments, config files or the given data, 1 for any other
        error, and 130 after Ctrl-C.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        if not words or words[0] in ("-h", "--help"):
            print(overview())
            return 0
        command = COMMANDS.get(words[0])
        if command is None:
            near = difflib.get_close_matches(words[0], COMMANDS, n=1)
            hint = f"did you mean {near[0]}?" if near else f"the commands are {', '.join(COMMANDS)}."
            raise UserError(f"There is no command '{words[0]}': {hint}")
        return command(words[1:])
    except (Exception, KeyboardInterrupt) as error:
        print_error(error, _wants_traceback(words))
        return 128 + signal.SIGINT if isinstance(error, KeyboardInterrupt) else 2 if isinstance(error, UserError) else 1


def overview() -> str:
    """Return the text of `python -m scripts --help`."""
    lines = [f"  {name:21}{(command.__doc__ or '').splitlines()[0]}" for name, command in COMMANDS.items()]
    return f"""\
usage: {PROGRAM} COMMAND ...

Semi-supervised 3D segmentation. The commands, in the order of use:

{chr(10).join(lines)}

`{PROGRAM} COMMAND --help` explains a command. With --debug an error shows its traceback."""


def _wants_traceback(words: Sequence[str]) -> bool:
    return option_value(words, "--debug") not in (None, "false")


# ------------------------------------------------------------------ from a folder to a dataset


def new_dataset(words: list[str]) -> int:
    """Prepare a folder of images and labels for training."""
    text = """\
Pairs images and labels, measures them, chooses settings, and writes FOLDER/dataset.json and FOLDER/NAME.yaml.

FOLDER may hold images and labels side by side (a.nii.gz, a_seg.nii.gz), in subfolders (images, labels), in one folder
per case (a/imaging.nii.gz, a/segmentation.nii.gz), in the layout of the Decathlon (imagesTr, labelsTr, imagesTs) or of
nnU-Net (imagesTr/a_0000.nii.gz), or be listed in a dataset.json. Images are .nii, .nii.gz, .img, .mgz, .mgh, .nrrd,
.nhdr, .mha and .mhd files and folders of DICOM files. Cases without a label are used as unlabelled images.

The labelled cases in imagesTs or test are the test cases. If there are none, a fifth of the labelled cases is chosen by
hashing their names (SHA-256). docs/data.md explains how the settings are chosen."""
    parser = Parser(new_dataset, "new-dataset", text)
    add = parser.add_argument
    add("folder", type=Path, metavar="FOLDER")
    add("--name", required=True, help="name of the dataset and of its YAML file")
    files = parser.add_argument_group("files").add_argument
    files("--labels", type=Path, metavar="FOLDER", help="folder of the labels, if it cannot be recognised by its name")
    files("--unlabelled", type=Path, metavar="FOLDER", help="another folder with images without labels")
    files("--channels", nargs="+", metavar="ENDING",
          help="endings of file names, one per channel of an image: t1 for a_t1.nii.gz")  # fmt: skip
    files("--exclude", nargs="+", default=[], metavar="PATTERN",
          help="leave out files and folders with such names or relative paths: '*_pred*' old_results")  # fmt: skip
    files("--keep_lookalikes", action="store_true",
          help="also take as images what holds only a few whole numbers or shares its name with a case")  # fmt: skip
    files("--label_names", nargs="+", metavar="NAME",
          help="names of the classes in the order of their label values, background first")  # fmt: skip
    files("--ignore_value", type=int, metavar="VALUE", help="label value of voxels to ignore")
    group = parser.add_argument_group("test cases")
    number, split = group.add_mutually_exclusive_group().add_argument, group.add_argument
    number(
        "--test_fraction", type=float, metavar="F", help="fraction of the labelled cases, rounded down (default 0.2)"
    )
    number("--test_cases", type=int, metavar="N", help="number of labelled cases")
    split("--patient_pattern", metavar="REGEX",
          help="finds the patient in the name of a case; all cases of a patient stay together")  # fmt: skip
    split("--use_test_images", action="store_true", help="use images of imagesTs without label as unlabelled cases")
    output = parser.add_argument_group("output").add_argument
    output("--output", type=Path, metavar="FOLDER",
           help="write dataset.json and NAME.yaml to this folder instead, with absolute paths")  # fmt: skip
    output("--config", type=Path, metavar="FILE", help="path of the YAML file to write")
    output("--copy_to", type=Path, metavar="FOLDER", help="copy images and labels there, and write dataset.json there")
    output("--preset", choices=["cpu", "gpu8", "gpu24"],
           help="machine to choose network, patch, batch and steps for, if not this one")  # fmt: skip
    output("--force", action="store_true", help="overwrite existing files")
    output("--dry_run", action="store_true", help="show the summary and the YAML, but write nothing")
    options = vars(parser.parse_args(words))
    del options["debug"]
    for key in ("channels", "label_names"):
        options[key] = tuple(options[key]) if options[key] else None
    options["exclude"] = tuple(options["exclude"])
    from scripts.dataset_setup.new_dataset import new_dataset as create
    from scripts.dataset_setup.roles import Request

    written = create(Request(**options))
    if not options["dry_run"]:
        remember(options["name"], written)
    return 0


def convert_left_atrium(words: list[str]) -> int:
    """Convert the public left atrium volumes, for configs/datasets/left_atrium_full.yaml."""
    text = """\
FOLDER holds a folder for each case, with lgemri.nrrd and laendo.nrrd (2018 Atrial Segmentation Challenge, labels 0 and
255) or with an .h5 file that holds `image` and `label` (mri_norm2.h5 of UA-MT; needs h5py). Writes OUTPUT/images and
OUTPUT/labels, a .nii.gz file per case, labels 0 and 1, and OUTPUT/dataset.json.

If FOLDER or its parent holds train.list and test.list (the 80 and 20 cases of UA-MT), these define the split
and the order. Otherwise a fifth of the cases, chosen by hashing their names, are test cases."""
    parser = Parser(convert_left_atrium, "convert-left-atrium", text)
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    parser.add_argument("output", type=Path, metavar="OUTPUT")
    crop = """\
crop volumes around the label, as in published work (.h5 files are cropped already). This uses the labels of test cases,
which new scans do not have, so use it only to compare with published numbers"""
    parser.add_argument("--crop", action="store_true", help=crop)
    options = parser.parse_args(words)
    from scripts.dataset_setup.left_atrium import convert

    convert(options.folder, options.output, options.crop)
    return 0


# ------------------------------------------------------------------ runs of a training configuration


def check(words: list[str]) -> int:
    """Check every file of a dataset and report problems that would harm training."""
    return _run_on_dataset(check, "check", "check_data", [], words)


def train(words: list[str]) -> int:
    """Train a network."""
    code = _run_on_dataset(train, "train", "training", [], words)
    if code == 0:
        print(f"Evaluate: {shell_line(['python', '-m', 'scripts', 'evaluate', *words])}")
        print(f"Curves:   tensorboard --logdir {shell_line([option_value(words, '--output_dir') or 'outputs'])}")
    return code


def evaluate(words: list[str]) -> int:
    """Evaluate a trained network, or --predictions of any program, on the test cases."""
    given = option_value(words, "--predictions") is not None
    file = CONFIGS / ("predictions.yaml" if given else "evaluate.yaml")
    code = _run_on_dataset(evaluate, "evaluate", "evaluating", [file], words)
    if code == 0 and not given:
        dataset = ["--dataset", words[0]] if words and not words[0].startswith("-") else []
        print(f"Predict: {shell_line(['python', '-m', 'scripts', 'predict', 'IMAGES', *dataset, *_of_predict(words)])}")
    return code


def _of_predict(words: Sequence[str]) -> list[str]:
    """Return the options of an evaluation that an inference with the same model needs too."""
    from scripts.cli.overrides import read_mapping

    keys = set(read_mapping(CONFIGS / "inference.yaml")) - {"bundle_root", "dataset_dir", "output_dir"} | {"network"}
    return [word for key in sorted(keys) if (v := option_value(words, f"--{key}")) for word in (f"--{key}", v)]


def compare(words: list[str]) -> int:
    """Compare the Dice of two evaluations of the same cases."""
    text = """\
RUN_A and RUN_B are folders with the metrics.csv of `evaluate`, or such files. Cases are matched by name. Prints the
mean difference B - A with its 95 % bootstrap interval, the number of better and worse cases, and a Wilcoxon signed-rank
test, over all classes and for each class. docs/metrics.md explains what it can show with few cases."""
    parser = Parser(compare, "compare", text)
    parser.add_argument("run_a", metavar="RUN_A", help="the evaluation to compare with")
    parser.add_argument("run_b", metavar="RUN_B", help="the evaluation that may be better or worse")
    parser.add_argument(
        "--output_dir", metavar="FOLDER", help="folder for compare.json; without it, no file is written"
    )
    options = parser.parse_args(words)
    given = ["--runs", f"[{options.run_a!r},{options.run_b!r}]"]
    given += ["--comparison_dir", options.output_dir] if options.output_dir else []
    return _run("compare", [CONFIGS / "evaluate.yaml"], options.debug, given)


def report(words: list[str]) -> int:
    """Make a page that shows the results of a training, an evaluation or an inference."""
    text = """\
OUTPUT_DIR is the output folder of `train`, of `evaluate`, which makes the page itself, or of `predict`. Writes
OUTPUT_DIR/report/index.html, one file that opens in any browser without a network. docs/report.md explains it."""
    parser = Parser(report, "report", text)
    parser.add_argument("output_dir", metavar="OUTPUT_DIR", nargs="?", help="the folder (default: outputs)")
    parser.add_argument(
        "--compare", metavar="OTHER", nargs="+", help="output folders of other evaluations of the same cases"
    )
    options = parser.parse_args(words)
    given = ["--output_dir", options.output_dir] if options.output_dir else []
    given += ["--compare", str(options.compare)] if options.compare else []
    return _run("report", [CONFIGS / "report.yaml"], options.debug, given)


def crossval(words: list[str]) -> int:
    """Cross-validate on the labelled cases: what to expect, and whether unlabelled cases help."""
    return _run_on_dataset(crossval, "crossval", "crossval", [CONFIGS / "crossval.yaml"], words)


def pseudo_label(words: list[str]) -> int:
    """Label the unlabelled cases with a trained network, to be corrected by an expert."""
    return _run_on_dataset(pseudo_label, "pseudo-label", "pseudo_label", [CONFIGS / "labelling.yaml"], words)


def prioritise(words: list[str]) -> int:
    """Rank the unlabelled cases by how useful their labels would be."""
    return _run_on_dataset(prioritise, "prioritise", "prioritise_unlabelled", [CONFIGS / "labelling.yaml"], words)


def _run_on_dataset(
    command: Callable[[list[str]], int], name: str, run_id: str, more: Sequence[Path], words: Sequence[str]
) -> int:
    parser = Parser(command, name, PASSED_ON.format(file=f"configs/{more[0].name if more else 'train.yaml'}"))
    parser.usage = f"{parser.prog} [NAME] [--network NETWORK] [--method METHOD] [--KEY VALUE ...]"
    parser.add_argument("dataset", nargs="?", metavar="NAME", help=DATASET_HELP)
    parser.add_argument("--network", metavar="NETWORK", help="name of a file in configs/networks, or a path")
    parser.add_argument("--method", metavar="METHOD", help=METHOD_HELP)
    own, passed = split_words(words, ["--network", "--method"])
    options = parser.parse_args(own)
    files = [CONFIGS / "train.yaml"]
    files += [find_dataset(options.dataset)] if options.dataset else []
    files += [find_part("network", options.network)] if options.network else []
    if options.method == "auto":
        files += _advised_method(files, passed)
    elif options.method:
        files.append(find_part("method", options.method))
    return _run(run_id, [*files, *more], options.debug, passed)


def _advised_method(files: Sequence[Path], options: Sequence[str]) -> list[Path]:
    """Return the method that `crossval` has chosen for the dataset of the given config files."""
    from scripts.cli.overrides import read_mapping
    from scripts.crossval.estimate import advised_method

    names = [content["dataset_name"] for content in map(read_mapping, files) if "dataset_name" in content]
    given = option_value(options, "--crossval_dir")
    # Training may use a different output_dir than the cross-validation did.
    folders = [folder for folder in (option_value(options, "--output_dir"), ROOT / "outputs") if folder]
    chosen, sentence = advised_method(
        [given] if given else [Path(f, "crossval", names[-1]) for f in folders], names[-1]
    )
    print(sentence)
    return [Path(file) for file in chosen]


def predict(words: list[str]) -> int:
    """Segment images with a trained network."""
    parser = Parser(predict, "predict", PASSED_ON.format(file="configs/inference.yaml"))
    parser.usage = f"{parser.prog} INPUT [--output_dir FOLDER] [--dataset NAME] [--network NETWORK] [--KEY VALUE ...]"
    parser.add_argument(
        "input", metavar="INPUT", help="image, folder of images or of DICOM files, or list (.txt, .json)"
    )
    parser.add_argument("--output_dir", metavar="FOLDER", help="where NAME_seg.nii.gz is written (outputs/inference)")
    parser.add_argument("--dataset", metavar="NAME", help=MODEL_HELP)
    parser.add_argument("--network", metavar="NETWORK", help="network of a model.pt that does not record it")
    own, passed = split_words(words, ["--output_dir", "--dataset", "--network"])
    options = parser.parse_args(own)
    files = [CONFIGS / "inference.yaml"]
    given = ["--dataset_dir", options.input]
    given += ["--output_dir", options.output_dir] if options.output_dir else []
    if options.dataset:
        files.append(find_dataset(options.dataset))
        if option_value(passed, "--ckpt_dir") is None:
            given += ["--ckpt_dir", shown_path(TRAINED)]
    files += [find_part("network", options.network)] if options.network else []
    code = _run(None, files, options.debug, [*given, *passed])
    if code == 0:
        print(f"Report: {shell_line(['python', '-m', 'scripts', 'report', options.output_dir or 'outputs/inference'])}")
    return code


def info(words: list[str]) -> int:
    """Say what a weights file records: its network, preprocessing, classes, and how it was trained."""
    text = """\
Prints, as YAML, the size and digest of a model.pt, the network and the preprocessing that it needs, and the record of
its training: settings, seed, versions, digests of the data, git commit, times, final losses and validation metrics.
Files of another origin have fewer records."""
    parser = Parser(info, "info", text)
    parser.add_argument("file", metavar="FILE", help="model.pt, model_best.pt, or another file with weights")
    options = parser.parse_args(words)
    import yaml

    from scripts.training.run_record import describe_weights

    described = describe_weights(options.file)
    print(yaml.safe_dump(described, sort_keys=False, default_flow_style=None, allow_unicode=True, width=120), end="")
    return 0


def _run(run_id: str | None, files: Sequence[Path], debug: str, options: Sequence[str]) -> int:
    if option_value(options, "--config_file") is not None:
        raise UserError(
            "This command sets --config_file from the names of dataset and method. To list the files yourself, use "
            "`python -m monai.bundle run`."
        )
    run_in_monai(run_words(run_id, files, [*options, *(["--debug", "true"] if debug == "true" else [])]))
    return 0


COMMANDS: dict[str, Callable[[list[str]], int]] = {
    "new-dataset": new_dataset,
    "check": check,
    "train": train,
    "evaluate": evaluate,
    "compare": compare,
    "report": report,
    "crossval": crossval,
    "predict": predict,
    "pseudo-label": pseudo_label,
    "prioritise": prioritise,
    "export": export,
    "info": info,
    "convert-left-atrium": convert_left_atrium,
}
