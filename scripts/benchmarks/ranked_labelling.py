# SPDX-License-Identifier: Apache-2.0
"""Is it worth labelling the cases that `prioritise_unlabelled` puts first? Ranked additions against random ones.

    python -m scripts.benchmarks.ranked_labelling --dataset left_atrium --dataset_dir FOLDER --labelled 4 --add 4 \
        --draws 3 --folder ranking --results docs/results/ranked_labelling.csv

A first run has the first `labelled` training cases with labels and ranks the others. Then one run each with the `add`
cases that come first in the ranking, and with `draws` random choices of as many. All have the same seed and are
evaluated on the test cases, by which nothing is chosen. A row is written when its run is evaluated; rows that are there
are not run again. What stands behind `--` goes to every command as it is, e.g. `-- --max_steps 300`.
"""

from __future__ import annotations

import argparse
import csv
import json
import random
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from scripts.benchmarks.compare_methods import ROOT, config_files, run_once
from scripts.benchmarks.rows import append_row, read_rows
from scripts.data.datalist import load_cases
from scripts.errors import UserError

MEASURED = ("mean_dice", "mean_hd95_voxel", "mean_asd_voxel", "missed", "train_s")
COLUMNS = ("dataset", "choice", "added", *MEASURED)
BASE, RANKED, RANDOM = "none", "ranked", "random"


@dataclass(frozen=True)
class Campaign:
    """What all runs share.

    Attributes:
        dataset: file in configs/datasets, without .yaml.
        dataset_dir: its folder.
        labelled: so many training cases have a label at first.
        add: so many get one.
        folder: of datalists and of the first run's model and ranking.
        overrides: of every command.
    """

    dataset: str
    dataset_dir: Path
    labelled: int
    add: int
    folder: Path
    overrides: tuple[str, ...]

    def entries(self) -> dict[str, list[dict[str, str]]]:
        """Training and test cases of the dataset, with absolute paths."""
        cases = load_cases(self.dataset_dir.resolve(), "dataset.json")

        def plain(case: dict) -> dict[str, str]:
            return {"image": case["image"], "label": case["label"]}

        return {"training": [plain(case) for case in cases.labelled], "test": [plain(case) for case in cases.test]}

    def datalist(self, name: str, added: Sequence[str] = ()) -> Path:
        """Write the datalist in which `added` (images) come behind the cases that are labelled from the start."""
        content = self.entries()
        content["training"] = in_front(content["training"], self.labelled, added)
        path = self.folder / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        return path

    def words(self, datalist: Path, labelled: int) -> list[str]:
        """Options of a run's commands."""
        folder = ["--dataset_dir", str(self.dataset_dir), "--datalist", str(datalist.resolve())]
        return [*folder, "--labelled_cases", str(labelled), *self.overrides]

    def ranking(self) -> list[str]:
        """Images of the unlabelled cases, the one to label next first, by the first run's model."""
        files = [*config_files(self.dataset, "default"), "configs/labelling.yaml"]
        words = self.words(self.folder / f"{BASE}.json", self.labelled)
        folders = ["--output_dir", str(self.folder / "out"), "--ckpt_dir", str(self.folder / "models")]
        command = [sys.executable, "-m", "monai.bundle", "run", "prioritise_unlabelled", "--config_file", str(files)]
        subprocess.run([*command, *words, *folders], cwd=ROOT, check=True)
        with (self.folder / "out/prioritise_unlabelled.csv").open(encoding="utf-8", newline="") as file:
            return [row["image"] for row in csv.DictReader(file)]


def in_front(training: list[dict[str, str]], labelled: int, added: Sequence[str]) -> list[dict[str, str]]:
    """The first `labelled` cases, the added ones in their order, and the others.

    Raises:
        UserError: if an added image is none of the others'.
    """
    others = {case["image"]: case for case in training[labelled:]}
    foreign = [image for image in added if image not in others]
    if foreign:
        raise UserError(f"{foreign[0]} is no unlabelled training case of the datalist.")
    chosen = [others.pop(image) for image in added]
    return [*training[:labelled], *chosen, *others.values()]


def drawn(campaign: Campaign, draw: int) -> list[str]:
    """A random choice of images; each draw has a choice of its own."""
    images = [case["image"] for case in campaign.entries()["training"][campaign.labelled :]]
    return random.Random(draw).sample(images, campaign.add)


def run(campaign: Campaign, choice: str, added: Sequence[str], results: Path) -> None:
    """Train and evaluate with the added cases labelled, and write a row, unless it is there."""
    if any(row["dataset"] == campaign.dataset and row["choice"] == choice for row in read_rows(results)):
        return
    words = campaign.words(campaign.datalist(choice.replace(" ", "_"), added), campaign.labelled + len(added))
    if choice == BASE:
        row = run_once(campaign.dataset, "default", 0, words, campaign.folder)
    else:
        with tempfile.TemporaryDirectory() as folder:
            row = run_once(campaign.dataset, "default", 0, words, Path(folder))
    names = " ".join(Path(image).name.split(".")[0] for image in added)
    measured = {key: row[key] for key in MEASURED}
    append_row(results, COLUMNS, {"dataset": campaign.dataset, "choice": choice, "added": names, **measured})


def verdict(rows: Sequence[dict[str, str]]) -> str:
    """The ranked choice against the mean of the random ones."""
    dice = {row["choice"]: float(row["mean_dice"]) for row in rows}
    random_dice = [value for choice, value in dice.items() if choice.startswith(RANDOM)]
    mean = statistics.mean(random_dice)
    beaten = "is above" if dice[RANKED] > mean else "is not above"
    several = (
        f"mean {mean:.4f} of {len(random_dice)} random choices, from {min(random_dice):.4f} to {max(random_dice):.4f}"
    )
    return f"mean Dice without {dice[BASE]:.4f}; ranked {dice[RANKED]:.4f} {beaten} the {several}"


def main(argv: Sequence[str] | None = None) -> None:
    """Command line; see the module."""
    words = list(sys.argv[1:] if argv is None else argv)
    own, overrides = (words[: words.index("--")], words[words.index("--") + 1 :]) if "--" in words else (words, [])
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", required=True, help="file in configs/datasets, without .yaml")
    parser.add_argument("--dataset_dir", type=Path, required=True)
    parser.add_argument("--labelled", type=int, default=4)
    parser.add_argument("--add", type=int, default=4)
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("--folder", type=Path, required=True, help="for datalists and the first run's model")
    parser.add_argument("--results", type=Path, required=True)
    options = parser.parse_args(own)
    campaign = Campaign(
        options.dataset, options.dataset_dir.resolve(), options.labelled, options.add, options.folder.resolve(),
        tuple(overrides),
    )  # fmt: skip
    run(campaign, BASE, (), options.results)
    run(campaign, RANKED, campaign.ranking()[: options.add], options.results)
    for draw in range(options.draws):
        run(campaign, f"{RANDOM} {draw}", drawn(campaign, draw), options.results)
    print(verdict([row for row in read_rows(options.results) if row["dataset"] == options.dataset]))


if __name__ == "__main__":
    main()
