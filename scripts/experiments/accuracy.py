# SPDX-License-Identifier: Apache-2.0
r"""Measure the accuracy of methods by number of labelled cases and seed, and make a table and figures of the results.

    python -m scripts.experiments.accuracy run --dataset hippocampus --dataset_dir FOLDER \
        --methods default supervised vnet+supervised --labelled 2 4 --seeds 0 1 2 --results accuracy.csv
    python -m scripts.experiments.accuracy report accuracy.csv --figures FOLDER

A method is the name of a file in `configs/methods`, the name of a file in `configs/networks`, or both joined by `+`;
`default` is `configs/train.yaml` alone. Each run trains, then evaluates the weights of the last step once on the test
cases. Its row is written as soon as it is evaluated, and runs that have a row are skipped, so an interrupted command
continues where it stopped. Self-training has a second row, `METHOD, labels only`, for the network that labelled the
unlabelled cases, which was trained during the first part of the run. Options after `--` are passed to training and
evaluation unchanged. With `--keep FOLDER` runs are kept in that folder, and an interrupted training is resumed. With
`--minutes 9` training stops after 9 minutes, and the same command resumes it from the last checkpoint, for machines
that are available for minutes only:

    python -m scripts.experiments.accuracy run --dataset left_atrium_full --dataset_dir FOLDER --labelled 4 8 16 \
        --seeds 0 --results full.csv --keep runs --minutes 9
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, astuple, dataclass, fields
from pathlib import Path
from statistics import fmean
from typing import Any

from scripts.cli.runs import run_process
from scripts.data.datalist import read_datalist
from scripts.errors import UserError
from scripts.evaluation.comparison import mean_per_case, read_dice
from scripts.experiments.figures import figure
from scripts.files import csv_rows

ROOT = Path(__file__).resolve().parents[2]
CONTROL = "supervised"
LABELS_ONLY = ", labels only"
ALL = "all"


@dataclass(frozen=True)
class Run:
    """The values that identify a run, all as strings."""

    dataset: str
    datalist: str
    method: str
    labelled: str
    choice: str
    seed: str
    overrides: str


RUN_COLUMNS = tuple(field.name for field in fields(Run))
RESULTS = ("mean_dice", "mean_surface_dice", "mean_hd95_voxel", "mean_asd_voxel", "missed")
COLUMNS = (*RUN_COLUMNS, *RESULTS, "best_on_test_dice", "train_s", "threads", "dice_by_case")


def read_rows(path: Path) -> list[dict[str, str]]:
    """Read the rows of a CSV file; an empty list if the file does not exist yet."""
    return csv_rows(path) if path.is_file() else []


def append_row(path: Path, columns: Sequence[str], row: Mapping[str, Any]) -> None:
    """Append a row to a CSV file; a new file gets a header first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = not path.is_file()
    with path.open("a", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerow(row)


def config_files(dataset: str, method: str) -> list[str]:
    """Return the config files of a run, relative to the bundle's root.

    Raises:
        UserError: if a part of `method` is neither a network nor a method.
    """
    files = ["configs/train.yaml", f"configs/datasets/{dataset}.yaml"]
    for part in method.split("+"):
        found = [f"configs/{kind}/{part}.yaml" for kind in ("networks", "methods")]
        found = [file for file in found if (ROOT / file).is_file()]
        if not found and part != "default":
            raise UserError(f"There is no file {part}.yaml in configs/networks or configs/methods.")
        files += found
    return files


def without_folders(overrides: Sequence[str]) -> str:
    """Join overrides to one string, with only the last part of paths, so that results show no folders of a machine."""
    return " ".join(Path(word).name if "/" in word else word for word in overrides)


def datalist_of_choice(folder: Path, datalist: str, first: int) -> dict[str, Any]:
    """Return the datalist with rotated training cases, so that another case is the first labelled one.

    Args:
        folder: folder of the dataset; paths in a datalist are relative to it, wherever the datalist is.
        datalist: file of the datalist.
        first: index of the case that becomes the first.
    """
    content = read_datalist(folder, datalist)
    training = content["training"]
    first %= len(training)
    lists = {name: content[name] for name in ("unlabeled", "test")}
    return {"training": training[first:] + training[:first], **lists}


def run_once(
    run: Run, words: Sequence[str], folder: Path, best_on_test: bool, minutes: float | None = None
) -> list[dict[str, Any]]:
    """Train, evaluate on the test cases, and return the row of the run, and the labels-only row if there is one.

    Args:
        run: the run.
        words: additional options of training and evaluation.
        folder: output folder; a training that it already holds is resumed.
        best_on_test: whether to report also the checkpoint with the best Dice on the test cases.
        minutes: time limit after which the training is stopped; the next call resumes it. `None` for no limit.

    Raises:
        subprocess.CalledProcessError: if a command fails, after it has printed its output.
        subprocess.TimeoutExpired: if training has stopped after `minutes`.
    """
    files = config_files(run.dataset, run.method)

    def bundle(
        run_id: str, files: Sequence[str], *more: str, output: str = "out", seconds: float | None = None
    ) -> None:
        command = [sys.executable, "-m", "monai.bundle", "run", run_id, "--config_file", str(files)]
        folders = ["--output_dir", str(folder / output), "--ckpt_dir", str(folder / "models")]
        run_process(
            [*command, "--seed", run.seed, *folders, *words, *more], timeout=seconds, cwd=ROOT
        ).check_returncode()

    def evaluate(output: str, *more: str) -> dict[str, Any]:
        bundle("evaluating", [*files, "configs/evaluate.yaml"], "--report", "false", *more, output=output)
        return evaluation_results(folder / output)

    watched = ["--validate::dataset::data::items", "$@cases.test"]
    spent, start = folder / "seconds.txt", time.monotonic()
    earlier = float(spent.read_text()) if spent.is_file() else 0.0
    try:
        resumed = ["--resume", "true"] if any((folder / "models").glob("checkpoint_*.pt")) else []
        bundle("training", files, *(watched if best_on_test else []), *resumed, seconds=minutes and 60 * minutes)
    finally:
        seconds = earlier + time.monotonic() - start
        spent.write_text(str(seconds))
    row = {**asdict(run), "train_s": round(seconds), **evaluate("out")}
    rows = [row]
    if best_on_test:
        row["best_on_test_dice"] = evaluate("best_on_test", "--checkpoint", "model_best.pt")["mean_dice"]
    if (folder / "models/model_labels_only.pt").is_file():
        rows += [{**asdict(run), **evaluate("labels_only", "--checkpoint", "model_labels_only.pt")}]
        rows[-1]["method"] += LABELS_ONLY
    return [{**row, "threads": os.environ.get("OMP_NUM_THREADS", "")} for row in rows]


def evaluation_results(folder: Path) -> dict[str, Any]:
    """Return the columns of an evaluation's results."""
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    results = {key: summary[key] for key in RESULTS if key in summary}
    return {
        **{key: round(value, 4) if isinstance(value, float) else value for key, value in results.items()},
        "dice_by_case": " ".join(f"{value:.4f}" for value in mean_per_case(read_dice(folder)).values()),
    }


def measure(options: argparse.Namespace, overrides: Sequence[str]) -> None:
    """Run every combination that has no row yet."""
    for seed in options.seeds:
        for labelled in options.labelled:
            for method in options.methods:
                datalist, overridden = Path(options.datalist or "").name, without_folders(overrides)
                run = Run(options.dataset, datalist, method, labelled, str(options.choice), str(seed), overridden)
                done = {tuple(row[key] for key in RUN_COLUMNS) for row in read_rows(options.results)}
                if astuple(run) in done:
                    continue
                with _folder(options.keep, run) as folder:
                    words = [*_data_words(options, labelled, folder), *overrides]
                    try:
                        rows = run_once(run, words, folder, options.best_on_test, options.minutes)
                    except subprocess.TimeoutExpired:
                        print(f"{folder} is not finished: the same command continues it.")
                        return
                for row in rows:
                    append_row(options.results, COLUMNS, row)


@contextmanager
def _folder(keep: Path | None, run: Run) -> Iterator[Path]:
    """Yield a folder for a run: below `keep`, or a temporary one."""
    if keep is None:
        with tempfile.TemporaryDirectory() as temporary:
            yield Path(temporary)
        return
    digest = hashlib.sha256(repr(astuple(run)).encode()).hexdigest()[:8]
    folder = keep.absolute() / f"{run.dataset}_{run.method}_{run.labelled or 'default'}_{run.seed}_{digest}"
    folder.mkdir(parents=True, exist_ok=True)
    yield folder


def _data_words(options: argparse.Namespace, labelled: str, folder: Path) -> list[str]:
    """Return the options that select the data of a run."""
    words = [] if options.dataset_dir is None else ["--dataset_dir", str(options.dataset_dir)]
    words += [] if labelled == "" else ["--labelled_cases", "None" if labelled == ALL else labelled]
    datalist = options.datalist
    if options.choice:
        if options.dataset_dir is None or not labelled.isdigit():
            raise UserError("--choice needs --dataset_dir and a number of labelled cases.")
        content = datalist_of_choice(options.dataset_dir, datalist or "dataset.json", options.choice * int(labelled))
        datalist = folder / "dataset.json"
        datalist.write_text(json.dumps(content), encoding="utf-8")
    return words + ([] if datalist is None else ["--datalist", str(datalist)])


# ------------------------------------------------------------------ report

HEAD = ("data", "labelled", "method", "mean Dice, by seed", "mean", "share of the gap", "best on test", "95HD, voxels",
        "missed", "training")  # fmt: skip


def groups(rows: Sequence[Mapping[str, str]]) -> dict[tuple[str, ...], list[Mapping[str, str]]]:
    """Group rows that differ only in the seed, in the order of the file."""
    found: dict[tuple[str, ...], list[Mapping[str, str]]] = {}
    for row in rows:
        found.setdefault(tuple(row[key] for key in RUN_COLUMNS if key != "seed"), []).append(row)
    return found


def share_of_gap(method: float, control: float, everything: float) -> float:
    """(method - labels only) / (all labels - labels only): 0 is no gain, 1 is as good as labelling every case."""
    return (method - control) / (everything - control)


def report_lines(rows: Sequence[Mapping[str, str]]) -> Iterator[str]:
    """Yield the lines of a Markdown table, with one row for each group of runs.

    The gap is the difference between two means on the same dataset, datalist and network: the control with the same
    number of labelled cases, and any method with all labels, where no case is unlabelled. The control is `supervised`
    or, if it was not run, the labels-only result of the method (`METHOD, labels only`).
    """
    grouped = groups(rows)
    means = {key: fmean(float(row["mean_dice"]) for row in group) for key, group in grouped.items()}
    # By dataset, datalist, network, labelled cases, and method or `ALL`; not by overrides, which methods do not share.
    values: dict[tuple[str, ...], list[float]] = {}
    for (dataset, datalist, method, labelled, choice, _), group in grouped.items():
        network, name = _parts(method)
        kind = (ALL, ALL) if labelled == ALL else (labelled, choice, name)
        values.setdefault((dataset, datalist, network, *kind), []).extend(float(row["mean_dice"]) for row in group)
    yield f"| {' | '.join(HEAD)} |"
    yield f"|{'---|' * len(HEAD)}"
    for key, group in grouped.items():
        dataset, datalist, method, labelled, choice, overrides = key
        network, name = _parts(method)
        same = (dataset, datalist, network)
        everything = values.get((*same, ALL, ALL))
        chosen = (*same, labelled, choice)
        control = values.get((*chosen, CONTROL)) or values.get((*chosen, name + LABELS_ONLY))
        gap = ""
        if name != CONTROL and not name.endswith(LABELS_ONLY) and labelled != ALL and control and everything:
            gap = f"{share_of_gap(means[key], fmean(control), fmean(everything)):.0%}"
        best = [float(row["best_on_test_dice"]) for row in group if row["best_on_test_dice"]]
        minutes = [float(row["train_s"]) / 60 for row in group if row["train_s"]]
        cells = [
            " ".join(filter(None, (dataset, datalist))),
            labelled if choice in ("", "0") else f"{labelled}, choice {choice}",
            f"{method} `{overrides}`" if overrides else method,
            ", ".join(row["mean_dice"] for row in group),
            f"{means[key]:.4f}",
            gap,
            f"{fmean(best):.4f}" if best else "",
            f"{fmean(float(row['mean_hd95_voxel']) for row in group):.2f}",
            str(sum(int(row["missed"]) for row in group)),
            f"{fmean(minutes):.0f} min" if minutes else "",
        ]
        yield f"| {' | '.join(cells)} |"


def _parts(method: str) -> tuple[str, str]:
    """Split `network+method` into network and method."""
    parts = method.split("+")
    networks = [part for part in parts if (ROOT / f"configs/networks/{part}.yaml").is_file()]
    names = [part for part in parts if part not in networks]
    return "+".join(networks), "+".join(names) or "default"


def draw(rows: Sequence[Mapping[str, str]], folder: Path) -> list[Path]:
    """For each dataset and datalist, draw mean Dice by number of labels and, if known, minutes; bars span the seeds.

    Rows of another `--choice` of labelled cases are left out.
    """
    written = []
    for dataset, datalist in dict.fromkeys((row["dataset"], row["datalist"]) for row in rows):
        own = [row for row in rows if (row["dataset"], row["datalist"]) == (dataset, datalist)]
        own = [row for row in own if row["choice"] in ("", "0")]
        lines: dict[str, dict[int, list[Mapping[str, str]]]] = {}
        for (_, _, method, labelled, _, overrides), group in groups(own).items():
            if labelled.isdigit():
                lines.setdefault(" ".join(filter(None, (method, overrides))), {})[int(labelled)] = group
        numbers = sorted({number for line in lines.values() for number in line})
        if not numbers:
            continue
        timed = any(row["train_s"] for line in lines.values() for group in line.values() for row in group)
        name = "_".join(["accuracy", dataset, *Path(datalist).stem.split()])
        written.append(folder / f"{name}.png")
        with figure(written[-1], 2 if timed else 1, share_y=True) as panels:
            for index, (label, line) in enumerate(lines.items()):
                style: dict[str, Any] = {"color": f"C{index}", "marker": "os^D"[index // 10 % 4]}
                # side by side, so that methods with equal numbers of labels do not hide each other
                shift = min(0.1, 0.6 / len(lines)) * (index - (len(lines) - 1) / 2)
                dice = {number: [float(row["mean_dice"]) for row in line[number]] for number in sorted(line)}
                means = [fmean(values) for values in dice.values()]
                below = [mean - min(values) for mean, values in zip(means, dice.values(), strict=True)]
                above = [max(values) - mean for mean, values in zip(means, dice.values(), strict=True)]
                places = [numbers.index(number) + shift for number in dice]
                label = "\n   ".join(textwrap.wrap(label, 70))
                panels[0].errorbar(places, means, [below, above], capsize=3, label=label, **style)
                for number, mean in zip(dice, means, strict=True):
                    minutes = [float(row["train_s"]) / 60 for row in line[number] if row["train_s"]]
                    if minutes:
                        panels[1].plot(fmean(minutes), mean, **style)
                        panels[1].annotate(
                            str(number), (fmean(minutes), mean), xytext=(5, 3), textcoords="offset points", fontsize=8
                        )
            everything = [float(row["mean_dice"]) for row in own if row["labelled"] == ALL]
            for axes in panels:
                if everything:
                    axes.axhline(max(everything), linestyle=":", color="grey", label="all training cases labelled")
            panels[0].set_xticks(range(len(numbers)), [str(number) for number in numbers])
            panels[0].set(
                xlim=(-0.5, len(numbers) - 0.5), xlabel="labelled cases", ylabel="mean Dice of the test cases",
                title=", ".join(filter(None, (dataset, datalist))),
            )  # fmt: skip
            if timed:
                panels[1].set(xlabel="training, minutes", title="by time; numbers: labelled cases")
    return written


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line described at the top of this module."""
    words = list(sys.argv[1:] if argv is None else argv)
    own, overrides = (words[: words.index("--")], words[words.index("--") + 1 :]) if "--" in words else (words, [])
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="train and evaluate")
    run.add_argument("--dataset", default="demo", help="file in configs/datasets, without .yaml")
    run.add_argument("--dataset_dir", type=Path, help="folder of the dataset (default: as its file says)")
    run.add_argument("--datalist", help="another datalist than that of the dataset's file")
    run.add_argument("--methods", nargs="+", default=["default", CONTROL])
    run.add_argument(
        "--labelled", nargs="+", default=[""], help="numbers of labelled cases, or `all` (default: as the file says)"
    )
    run.add_argument(
        "--choice", type=int, default=0, help="0: the first cases of the list are labelled; 1: the next ones; ..."
    )
    run.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    run.add_argument(
        "--best_on_test",
        action="store_true",
        help="also report the best checkpoint on the test cases, as much literature does",
    )
    run.add_argument("--results", type=Path, required=True, help="CSV file to which rows are appended")
    run.add_argument("--keep", type=Path, metavar="FOLDER", help="keep the runs here, and resume those that are there")
    run.add_argument("--minutes", type=float, help="stop a training after them (needs --keep)")
    report = commands.add_parser("report", help="print a table of the results")
    report.add_argument("results", type=Path)
    report.add_argument("--figures", type=Path, help="folder for figures")
    options = parser.parse_args(own)
    if options.command == "run":
        if options.minutes is not None and options.keep is None:
            raise UserError("--minutes needs --keep FOLDER, from which the training is resumed.")
        measure(options, overrides)
        return
    rows = read_rows(options.results)
    print("\n".join(report_lines(rows)))
    if options.figures:
        print("\n".join(f"Wrote {path}" for path in draw(rows, options.figures)))


if __name__ == "__main__":
    main()
