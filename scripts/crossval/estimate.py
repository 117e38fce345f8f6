# SPDX-License-Identifier: Apache-2.0
"""Results of a cross-validation: the expected Dice on a new scan, and whether the unlabelled scans help."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from scripts.errors import UserError
from scripts.evaluation.comparison import compare_dice, mean_per_case
from scripts.evaluation.report import decimals, table_lines

LEVEL = 0.9
RESULT = "crossval.json"

Dice = Mapping[str, Mapping[str, float]]
"""Dice by class and case, as returned by `scripts.evaluation.comparison.read_dice`."""

PLAIN = ""
"""Name of the evaluation without options."""

ALONE = "Nothing was compared with training on the labels alone: `train --method auto` uses the labels alone."


def prediction_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Return the interval between two order statistics that contains a new value with a known probability.

    If n values and a new one are exchangeable, the new value lies between the k-th lowest and the k-th highest with a
    probability of (n + 1 - 2 k) / (n + 1), whatever their distribution (Wilks, 1941). k is the largest number for which
    this is at least 90 %, or 1 if there is none, because fewer than 19 values cannot give 90 %.

    Args:
        values: n values.

    Returns:
        Lower end, upper end and probability.

    Example:
        >>> prediction_interval([0.8, 0.9, 0.85, 0.7])
        (0.7, 0.9, 0.6)
    """
    ordered, n = sorted(values), len(values)
    k = max(1, math.floor((1 - LEVEL) / 2 * (n + 1) + 1e-9))
    return ordered[k - 1], ordered[n - k], (n + 1 - 2 * k) / (n + 1)


def evaluate_folds(
    control: Mapping[str, Dice],
    method: Mapping[str, Dice] | None,
    unlabelled: int,
    folds: Sequence[Sequence[str]],
    confidence: Mapping[str, Mapping[str, float]] | None = None,
) -> dict[str, Any]:
    """Compare the method with its control on the held-out cases, and choose one of them.

    The method is chosen if its mean Dice over the held-out cases is higher, and more cases are better than worse. The
    same rule decides which options of evaluation and inference help the chosen one.

    Args:
        control: Dice of the held-out cases after training on labels alone, by option of evaluation, such as
            `--largest_component true`; `PLAIN` is the evaluation without options.
        method: the same for the method; `None` if the method is the control.
        unlabelled: number of unlabelled cases.
        folds: names of the held-out cases of each fold.
        confidence: mean confidence of each case, for `control` and `method`; `None` if it was not measured.

    Returns:
        A dictionary with these keys:

        - `use`: `method` or `control`.
        - `control` and `method`: mean Dice by case; `method` may be `None`.
        - `expected`: `mean`, `low`, `high` and `probability` for the chosen one, see `prediction_interval`.
        - `comparison`: result of `compare_dice`, or `None`.
        - `options`: the options that help.
        - `calibration`: result of `calibrate`, or `None`.
        - `sentences`: the conclusions; the last sentence is about the method.

    Raises:
        UserError: if no held-out case has a structure, so that nothing can be measured.
    """
    of_control = mean_per_case(control[PLAIN])
    if not of_control:
        raise UserError("No held-out case has a structure that can be measured: check the labels with `check`.")
    comparison = None if method is None else compare_dice(control[PLAIN], method[PLAIN])
    helps = comparison is not None and _helps(comparison)
    chosen = method if method is not None and helps else control
    values = mean_per_case(chosen[PLAIN])
    low, high, probability = prediction_interval(list(values.values()))
    expected = {"mean": fmean(values.values()), "low": low, "high": high, "probability": probability}
    changes = {option: compare_dice(chosen[PLAIN], chosen[option]) for option in chosen if option != PLAIN}
    sentences = [_expectation(expected, len(values), folds)]
    sentences += [_option(option, change) for option, change in changes.items()]
    use = "method" if helps else "control"
    of_use = (confidence or {}).get(use, {})
    calibration = calibrate({case: (of_use[case], dice) for case, dice in values.items() if case in of_use})
    sentences += _calibrated(calibration)
    sentences.append(ALONE if comparison is None else _gain(comparison, unlabelled))
    return {
        "use": use,
        "control": of_control,
        "method": None if method is None else mean_per_case(method[PLAIN]),
        "expected": expected,
        "comparison": comparison,
        "options": [option for option, change in changes.items() if _helps(change)],
        "calibration": calibration,
        "sentences": sentences,
    }


def _expectation(expected: Mapping[str, float], count: int, folds: Sequence[Sequence[str]]) -> str:
    kind = "leave-one-out" if all(len(fold) == 1 for fold in folds) else f"{len(folds)} folds"
    text = (
        f"Expect a Dice of {expected['mean']:.2f} on a further scan of the same kind: it was between "
        f"{expected['low']:.2f} and {expected['high']:.2f} on held-out cases ({kind}, {count} cases), and a "
        f"further scan falls into this range with a probability of {expected['probability']:.0%}"
    )
    return text + (
        "." if expected["probability"] >= LEVEL else f". No {LEVEL:.0%} range can be given from fewer than 19 cases."
    )


def _helps(comparison: Mapping[str, Any]) -> bool:
    return comparison["mean_difference"] > 0 and comparison["better"] > comparison["worse"]


def _option(option: str, change: Mapping[str, Any]) -> str:
    advice = "use it with `predict` and `evaluate`" if _helps(change) else "leave it out"
    return (
        f"`{option}` changes the Dice by {100 * change['mean_difference']:+.1f} points ({change['better']} better, "
        f"{change['worse']} worse): {advice}."
    )


def _calibrated(calibration: Mapping[str, Any] | None) -> list[str]:
    if calibration is None or calibration["error"] is None:
        return []
    return [
        f"The Dice predicted from the confidence of a held-out case was off by {calibration['error']:.2f} on average. "
        "The next training records this calibration in its weights."
    ]


def _gain(comparison: Mapping[str, Any], unlabelled: int) -> str:
    points, better = 100 * comparison["mean_difference"], comparison["better"]
    changed = f"added {points:.1f} points of Dice" if points >= 0 else f"cost {-points:.1f} points of Dice"
    choice = "uses them" if _helps(comparison) else "uses the labels alone"
    return (
        f"The {unlabelled} unlabelled scans {changed} on average; {better} of {comparison['num_cases']} held-out cases "
        f"were better with them. `train --method auto` {choice}. {comparison['conclusion']}"
    )


def calibrate(of_cases: Mapping[str, tuple[float, float]]) -> dict[str, Any] | None:
    """Relate the confidence of a prediction to its Dice on held-out cases.

    A single factor is fitted, because a few held-out cases from one source differ too little in confidence to fit a
    curve.

    Args:
        of_cases: confidence and Dice by case, both in [0, 1].

    Returns:
        `factor` (mean Dice divided by mean confidence), `cases` (their number), `error` (mean absolute error of the
        predicted Dice, if the factor for each case is computed from the other cases; `None` for a single case) and
        `predicted` (lowest and highest predicted Dice). `None` if no case has a confidence above 0.

    Example:
        >>> calibrate({"a": (0.8, 0.6), "b": (0.8, 0.8)})
        {'factor': 0.875, 'cases': 2, 'error': 0.2, 'predicted': [0.7, 0.7]}
    """
    known = {case: pair for case, pair in of_cases.items() if pair[0] > 0}
    if not known:
        return None

    def factor_of(cases: Iterable[str]) -> float:
        confidence, dice = zip(*(known[case] for case in cases), strict=True)
        return fmean(dice) / fmean(confidence)

    errors = [
        abs(min(1.0, confidence * factor_of(other for other in known if other != case)) - dice)
        for case, (confidence, dice) in known.items()
        if len(known) > 1
    ]
    factor = factor_of(known)
    predicted = [min(1.0, factor * confidence) for confidence, _ in known.values()]
    return {
        "factor": round(factor, 4),
        "cases": len(known),
        "error": round(fmean(errors), 4) if errors else None,
        "predicted": [round(min(predicted), 4), round(max(predicted), 4)],
    }


def format_result(result: Mapping[str, Any]) -> str:
    """Format the result of `evaluate_folds`: a table with a row per held-out case and the means, then the sentences."""
    of_control, of_method = result["control"], result["method"]
    rows = [["case", "labels only", *([] if of_method is None else ["method", "difference"])]]

    def add(name: str, a: float | None, b: float | None) -> None:
        cells = [] if of_method is None else [decimals(b), "-" if a is None or b is None else f"{b - a:+.4f}"]
        rows.append([name, decimals(a), *cells])

    for case in of_control | (of_method or {}):
        add(case, of_control.get(case), (of_method or {}).get(case))
    add("mean", fmean(of_control.values()), fmean(of_method.values()) if of_method else None)
    return "\n".join([*table_lines(rows), *result["sentences"]])


def advised_method(directories: Sequence[str | Path], dataset: str) -> tuple[list[str], str]:
    """Return the method that a cross-validation has chosen, for `train --method auto`.

    Args:
        directories: folders to search for its result; the first one that holds it is used.
        dataset: name of the dataset.

    Returns:
        Config files of the method (none for the default method), and the sentence about the effect of the unlabelled
        scans.

    Raises:
        UserError: if the dataset has no finished cross-validation in these folders.
    """
    paths = [Path(folder) / RESULT for folder in directories]
    path = next(filter(Path.is_file, paths), paths[0])
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
        return result["files"][result["use"]], result["sentences"][-1]
    except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
        raise UserError(
            f"{path} is not the result of a cross-validation: run `python -m scripts crossval {dataset}` first, or "
            "name a method."
        ) from error
