# SPDX-License-Identifier: Apache-2.0
"""Compare the Dice of two evaluations, case by case."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from scipy import stats

from scripts.errors import UserError, first_line
from scripts.evaluation.report import decimals, interval_text, table_lines
from scripts.evaluation.statistics import MIN_CASES, bootstrap_interval
from scripts.files import csv_rows, write_text


def compare_runs(runs: Sequence[str | os.PathLike] | None, output_dir: str | os.PathLike | None = None) -> None:
    """Print a comparison of two evaluations, and write it as `compare.json`.

    Args:
        runs: two folders that hold the `metrics.csv` of an evaluation, or two such files.
        output_dir: folder for `compare.json`; `None` writes no file.

    Raises:
        UserError: if a file cannot be read or holds no metrics, the classes differ, or no case is in both.
    """
    if runs is None:
        raise UserError("Give the folders of two evaluations, as in --runs \"['outputs/a','outputs/b']\".")
    result = {"a": str(runs[0]), "b": str(runs[1]), **compare_dice(read_dice(runs[0]), read_dice(runs[1]))}
    print(format_comparison(result))
    if output_dir is not None:
        path = Path(output_dir) / "compare.json"
        write_text(path, json.dumps(result, indent=2, allow_nan=False) + "\n")
        print(f"Wrote {path}")


def read_dice(run: str | os.PathLike) -> dict[str, dict[str, float]]:
    """Read the Dice by class and case from the `metrics.csv` of an evaluation; absent structures are left out.

    Args:
        run: the file, or the folder that holds it.

    Raises:
        UserError: if there is no such file, or it was not written by `scripts.evaluation.report.write_report`.
    """
    path = Path(run) / "metrics.csv" if Path(run).is_dir() else Path(run)
    try:
        rows = csv_rows(path)
        dice: dict[str, dict[str, float]] = {row["class"]: {} for row in rows}
        for row in rows:
            if row["status"] != "absent":
                dice[row["class"]][row["case"]] = float(row["dice"])
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): run `evaluate` first.") from error
    except (KeyError, TypeError, ValueError, csv.Error) as error:
        raise UserError(f"{path} is not a metrics.csv of `evaluate` ({first_line(error)}).") from error
    if not dice:
        raise UserError(f"{path} holds no rows.")
    return dice


def compare_dice(a: Mapping[str, Mapping[str, float]], b: Mapping[str, Mapping[str, float]]) -> dict[str, Any]:
    """Compute the paired differences b - a of the mean Dice per case, and of the Dice of each class.

    The mean Dice of a case is the mean over the classes that are counted for this case in the run. If only one run
    predicts a structure that the reference does not have, it counts with Dice 0 in that run and is not counted in the
    other.

    Args:
        a: Dice by class and case, as returned by `read_dice`.
        b: the same for the other run.

    Returns:
        The entries of `paired`, the same for each class in `per_class`, and a sentence, `conclusion`.

    Raises:
        UserError: if the classes differ or no case is in both.
    """
    if set(a) != set(b):
        raise UserError(f"The runs have different classes, {', '.join(sorted(a))} and {', '.join(sorted(b))}.")
    means = [mean_per_case(run) for run in (a, b)]
    if not set(means[0]) & set(means[1]):
        raise UserError("The runs have no case in common: evaluate both on the same test cases.")
    overall = paired(*means)
    return {**overall, "per_class": {name: paired(a[name], b[name]) for name in a}, "conclusion": conclusion(overall)}


def paired(a: Mapping[str, float], b: Mapping[str, float]) -> dict[str, Any]:
    """Compute the differences b - a of the values of the same cases.

    Args:
        a: value by case.
        b: the same for the other run.

    Returns:
        `num_cases` (cases in both runs), `only_in_a` and `only_in_b` (names), `mean_a`, `mean_b`, `mean_difference`,
        `difference_interval` (as in `bootstrap_interval`), `better`, `worse`, `equal` (numbers of cases, b compared
        with a), and the two-sided `p_value` of the Wilcoxon signed-rank test. The test leaves out cases with equal
        values; `p_value` is `None` if all cases are equal. Without a common case, all means are `None`.

    Example:
        >>> result = paired({"x": 0.5, "y": 0.5}, {"x": 0.75, "y": 0.5, "z": 0.9})
        >>> result["mean_difference"], result["better"], result["equal"], result["only_in_b"]
        (0.125, 1, 1, ['z'])
    """
    cases = [case for case in a if case in b]
    differences = np.array([b[case] - a[case] for case in cases])
    unequal = differences[differences != 0]
    return {
        "num_cases": len(cases),
        "only_in_a": sorted(set(a) - set(b)),
        "only_in_b": sorted(set(b) - set(a)),
        "mean_a": fmean(a[case] for case in cases) if cases else None,
        "mean_b": fmean(b[case] for case in cases) if cases else None,
        "mean_difference": float(differences.mean()) if cases else None,
        "difference_interval": bootstrap_interval(differences.reshape(-1, 1)),
        "better": int((differences > 0).sum()),
        "worse": int((differences < 0).sum()),
        "equal": len(cases) - len(unequal),
        "p_value": float(stats.wilcoxon(unequal).pvalue) if len(unequal) else None,
    }


def conclusion(result: Mapping[str, Any]) -> str:
    """Say in one sentence what the test shows about the mean Dice, from the entries of `paired`."""
    count = result["better"] + result["worse"]
    if count == 0:
        return f"All {result['num_cases']} cases have the same Dice in both runs."
    p, smallest = result["p_value"], 2 / 2**count
    if count < MIN_CASES:
        return (
            f"With {count} differing cases the smallest two-sided p that the test can give is {smallest:g}, "
            f"so that no difference, however large, can reach 5 %."
        )
    if p < 0.05:
        return (
            f"The runs differ (p = {p:.2g}): B is better in {result['better']} of {count} differing cases; this "
            "compares two trained models, and other seeds may give another result."
        )
    return (
        f"The {count} differing cases do not show which run is better (p = {p:.2g}; the smallest possible p is "
        f"{smallest:.2g}); this is no proof that they are equally good."
    )


def format_comparison(result: Mapping[str, Any]) -> str:
    """Format the comparison as text: a table with a line per class and the mean, unmatched cases, and conclusion."""
    lines = [["Dice", "cases", "A", "B", "B - A", "95 % interval", "better", "worse", "equal", "p"]]
    for name, entry in [*result["per_class"].items(), ("mean", result)]:
        interval = interval_text(entry["difference_interval"])
        means = [decimals(entry[key]) for key in ("mean_a", "mean_b", "mean_difference")]
        counts = [str(entry[key]) for key in ("better", "worse", "equal")]
        lines.append([name, str(entry["num_cases"]), *means, interval, *counts, decimals(entry["p_value"])])
    text = table_lines(lines)
    for run in "ab":
        names = result[f"only_in_{run}"]
        text += [f"Only in {run.upper()}, not compared: {len(names)} ({', '.join(names)})"] if names else []
    return "\n".join([f"A: {result['a']}", f"B: {result['b']}", *text, result["conclusion"]])


def mean_per_case(dice: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Average the Dice of each case over the classes that are counted in it, from Dice by class and case."""
    cases = dict.fromkeys(case for of_class in dice.values() for case in of_class)
    return {case: fmean(d[case] for d in dice.values() if case in d) for case in cases}
