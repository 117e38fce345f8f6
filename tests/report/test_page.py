# SPDX-License-Identifier: Apache-2.0
"""The page says what the files say, whatever the names and however many cases."""

from __future__ import annotations

import json
import re
import time
from html.parser import HTMLParser
from pathlib import Path

import nibabel
import numpy as np
import pytest

from scripts.errors import UserError
from scripts.evaluation.comparison import compare_dice, read_dice
from scripts.files import csv_rows
from scripts.report.content import LABELS, SHOWN
from scripts.report.page import as_code, write_report
from tests.report.output_folder import SPACING, write_evaluation

HOSTILE = ['a "b" <script>alert(1)</script>', "träger's $x_1$ & {{ 7 * 7 }}", "</details> 心臓"]


class Page(HTMLParser):
    """Elements of a page with their attributes and text."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.cells: list[tuple[dict[str, str], str]] = []
        self.words: list[str] = []
        self.open_cell: dict[str, str] | None = None
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        self.open_cell = self.tags[-1][1] if "data-value" in self.tags[-1][1] else None

    def handle_data(self, data) -> None:
        self.words.append(data)
        if self.open_cell is not None:
            self.cells.append((self.open_cell, data.strip()))

    def handle_endtag(self, tag) -> None:
        self.open_cell = None

    def all(self, tag: str, **wanted: str) -> list[dict[str, str]]:
        return [found for name, found in self.tags if name == tag and wanted.items() <= found.items()]


def report_of(folder: Path) -> Page:
    return Page(write_report(folder))


def test_every_number_is_that_of_the_files(tmp_path: Path) -> None:
    folder = write_evaluation(tmp_path, [f"case {n}" for n in range(7)], ["liver", "left kidney"])
    page, summary = report_of(folder), json.loads((folder / "summary.json").read_text())
    shown = {(a["data-key"], a["data-value"], text) for a, text in page.cells if "data-key" in a}
    expected = set()
    for entry in (summary, *summary["per_class"].values()):
        for key in SHOWN:
            value = entry[f"mean_{key}"]
            expected.add((f"mean_{key}", str(value), f"{value:.{2 if key.endswith('mm') else 3}f}"))
        expected |= {(key, str(entry[key]), str(entry[key])) for key in ("num_cases", "missed", "false_positives")}
        low, high = entry["dice_interval"]
        assert f"{low:.3f} to {high:.3f}" in " ".join(page.words)
    assert shown == expected
    rows = csv_rows(folder / "metrics.csv")
    in_table = [(a["data-value"], float(text)) for a, text in page.cells if "data-key" not in a]
    by_dice = sorted({row["case"] for row in rows}, key=lambda c: sum(float(r["dice"]) for r in rows if r["case"] == c))
    values = [row[key] for case in by_dice for row in rows if row["case"] == case for key in SHOWN]
    assert [value for value, _ in in_table] == values
    assert all(abs(float(value) - text) <= 0.005 for value, text in in_table)
    assert set(SHOWN) <= set(LABELS)


def test_worst_cases_come_first_with_pictures_of_three_planes(tmp_path: Path) -> None:
    page = report_of(write_evaluation(tmp_path, ["good", "bad", "worse"]))
    assert [card["data-name"] for card in page.all("details") if "data-name" in card] == ["worse", "bad", "good"]
    assert len(page.all("image")) == len(page.all("input", type="range")) == 9
    assert all(image["href"].startswith("data:image/webp;base64,UklGR") for image in page.all("image"))


def test_hostile_names_are_text(tmp_path: Path) -> None:
    folder = write_evaluation(tmp_path / "ou t'put", HOSTILE, ["<b>liver</b>", "$\\frac$", "</style>"])
    path = write_report(folder)
    page = Page(path)
    assert {card["data-name"] for card in page.all("details") if "data-name" in card} == set(HOSTILE)
    assert "alert(1)</script>" not in path.read_text(encoding="utf-8")
    assert not page.all("b") and len(page.all("style")) == 1
    assert any("{{ 7 * 7 }}" in word for word in page.words)
    assert not re.findall(r'(?:src|href)="(?!data:|#)', path.read_text(encoding="utf-8").replace("xlink:href", "href"))


@pytest.mark.parametrize("count", [1, 13])
def test_any_number_of_structures(tmp_path: Path, count: int) -> None:
    page = report_of(write_evaluation(tmp_path, ["a", "b"], [f"structure {n}" for n in range(count)]))
    dots = {dot["style"] for dot in page.all("span", **{"class": "dot"})}
    assert len(dots) == count  # each structure has its own colour
    assert len(page.all("select", id="structure")) == (count > 1)
    assert len(page.all("tr", **{"data-rank": "0"})) == count


def test_structures_that_nowhere_exist_have_no_numbers(tmp_path: Path) -> None:
    folder = write_evaluation(tmp_path, ["a", "b"], empty_references=True)
    page = report_of(folder)
    assert {text for a, text in page.cells if a.get("data-key") == "mean_dice"} == {"0.000"}
    assert any("false positive" in word for word in page.words)


def test_a_case_whose_files_are_gone_says_so_and_the_others_are_shown(tmp_path: Path) -> None:
    folder = write_evaluation(tmp_path, ["a", "b"])
    (folder / "images/0.nii.gz").unlink()
    page = report_of(folder)
    assert len(page.all("image")) == 3
    assert any("images/0.nii.gz" in word for word in page.words)


def test_pictures_of_an_earlier_evaluation_are_not_shown_beside_new_numbers(tmp_path: Path) -> None:
    folder = write_evaluation(tmp_path, ["a", "b"])
    text = (folder / "metrics.csv").read_text()
    dice = next(row["dice"] for row in csv_rows(folder / "metrics.csv") if row["case"] == "b")
    (folder / "metrics.csv").write_text(text.replace(f",{dice},", ",0.5,"))
    page = report_of(folder)
    assert len(page.all("image")) == 3
    assert any("1_prediction.nii.gz" in word for word in page.words)


def test_500_cases_fit_by_a_sample_that_the_page_names(tmp_path: Path) -> None:
    folder = write_evaluation(tmp_path, [f"case {n}" for n in range(500)], shape=(12, 10, 6), distinct=5)
    path = write_report(folder)
    page = Page(path)
    assert path.stat().st_size < 15_000_000
    cards = [card for card in page.all("details") if "data-name" in card]
    assert len(cards) == 500 and len(page.all("image")) == 3 * 60
    assert any("60 of 500 cases" in word for word in page.words)


@pytest.mark.slow
def test_20_cases_of_a_usual_size_take_less_than_a_minute(tmp_path: Path) -> None:
    folder = write_evaluation(tmp_path, [f"case {n}" for n in range(20)], shape=(200, 150, 88), distinct=2)
    begun = time.process_time()
    path = write_report(folder)
    assert time.process_time() - begun < 60
    assert path.stat().st_size < 15_000_000 and len(Page(path).all("image")) == 60


def test_an_evaluation_without_volumes_has_its_numbers(tmp_path: Path) -> None:
    folder = write_evaluation(tmp_path, ["a", "b"])
    (folder / "predictions/cases.json").unlink()
    page = report_of(folder)
    assert not page.all("image") and len(page.all("tr", **{"data-structure": "1"})) == 2


def test_after_a_training_the_page_shows_its_record_and_no_cases(tmp_path: Path) -> None:
    run = {"steps": 40, "settings": {"dataset_name": "scans", "max_steps": 40}, "command": "python -m x"}
    (tmp_path / "run.json").write_text(json.dumps(run))
    page = report_of(tmp_path)
    assert {"scans", "40"} <= set(page.words) and any("max_steps: 40" in word for word in page.words)
    assert not page.all("section", id="cases") and not page.all("section", id="result")


def test_commands_in_sentences_are_code_and_nothing_else_is_markup() -> None:
    assert as_code("`train <x>` takes <b>") == "<code>train &lt;x&gt;</code> takes &lt;b&gt;"


def test_a_folder_without_results_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=str(tmp_path)):
        write_report(tmp_path)
    (tmp_path / "metrics.csv").write_text("case,dice\na,1\n")
    with pytest.raises(UserError, match=str(tmp_path)):
        write_report(tmp_path)


def test_a_comparison_has_the_numbers_of_compare(tmp_path: Path) -> None:
    names = [f"case {n}" for n in range(7)]
    a, b = (write_evaluation(tmp_path / name, names, ["liver", "spleen"]) for name in "ab")
    rows = (b / "metrics.csv").read_text().splitlines()
    better = [re.sub(r",0\.(\d)", lambda m: f",0.9{m[1]}", row, count=1) for row in rows]
    (b / "metrics.csv").write_text("\n".join(better) + "\n")
    result = compare_dice(read_dice(a), read_dice(b))
    text = " ".join(Page(write_report(b, compare=[str(a)])).words)
    assert result["conclusion"] in text
    for entry in (result, *result["per_class"].values()):
        assert f"{entry['mean_a']:.3f} {entry['mean_b']:.3f} {entry['mean_difference']:.3f}" in text
    with pytest.raises(UserError, match="nowhere"):
        write_report(b, compare=str(tmp_path / "nowhere"))


def test_a_cross_validation_in_the_folder_is_told(tmp_path: Path) -> None:
    folder = write_evaluation(tmp_path, ["a", "b"])
    path = tmp_path / "crossval/mine/crossval.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"control": {"x": 0.5}, "method": {"x": 0.6}, "sentences": ["Expect <0.6>."]}))
    page = report_of(folder)
    assert "Expect <0.6>." in page.words and page.all("section", id="crossval")
    path.write_text("{}")
    with pytest.raises(UserError, match=str(path)):
        write_report(folder)


def test_the_table_has_volumes_in_millilitres(tmp_path: Path) -> None:
    folder = write_evaluation(tmp_path, ["a"])
    entry = json.loads((folder / "predictions/cases.json").read_text())["cases"][0]
    voxels = np.asarray(nibabel.load(folder / "predictions" / entry["prediction"]).dataobj).astype(bool).sum()
    (shown,) = [float(cell["data-ml"]) for cell in report_of(folder).all("td") if "data-ml" in cell]
    assert shown == pytest.approx(voxels * np.prod(SPACING) / 1000, abs=0.001)
