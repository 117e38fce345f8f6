# SPDX-License-Identifier: Apache-2.0
"""A comparison runs each combination once and continues where it stopped; its table is right."""

from __future__ import annotations

import csv
import json
import subprocess
from contextlib import contextmanager
from pathlib import Path

import pytest

from scripts.data.datalist import load_cases
from scripts.data.spec import DatasetSpec
from scripts.errors import UserError
from scripts.experiments import accuracy, figures

METRICS = "case,class,label,dice,status\na,organ,1,0.4,found\na,tumour,2,0.6,found\nb,organ,1,0.9,found\n"
SUMMARY = {"mean_dice": 0.5, "mean_surface_dice": 0.75, "mean_hd95_voxel": 2.0, "mean_asd_voxel": 1.0, "missed": 0}


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, str]]:
    """The options of the commands that would be run; instead of running them, results are written."""
    called: list[dict[str, str]] = []

    def run(command: list[str], **_: object) -> subprocess.CompletedProcess:
        words = command[command.index("run") + 1 :]
        called.append({"run_id": words[0], **dict(zip(words[1::2], words[2::2], strict=True))})
        datalist = called[-1].get("--datalist")
        called[-1]["content"] = Path(datalist).read_text() if datalist and Path(datalist).is_file() else ""
        out = Path(called[-1]["--output_dir"])
        out.mkdir(exist_ok=True)
        best = called[-1].get("--checkpoint") == "model_best.pt"
        (out / "summary.json").write_text(json.dumps({**SUMMARY, **({"mean_dice": 0.6} if best else {})}))
        (out / "metrics.csv").write_text(METRICS)
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(accuracy, "run_process", run)
    return called


@pytest.fixture
def run(tmp_path):
    """Run the command with a results file, and return its rows."""

    def call(*words: str) -> list[dict[str, str]]:
        own, passed = (words[: words.index("--")], words[words.index("--") :]) if "--" in words else (words, ())
        accuracy.main(["run", *own, "--results", str(tmp_path / "a.csv"), *passed])
        with (tmp_path / "a.csv").open() as file:
            return list(csv.DictReader(file))

    return call


def test_every_combination_is_trained_and_evaluated_once(commands, run) -> None:
    words = ["--methods", "default", "supervised", "--labelled", "2", "all", "--seeds", "0", "1"]
    rows = run(*words)
    assert [command["run_id"] for command in commands] == ["training", "evaluating"] * 8
    assert [(row["method"], row["labelled"], row["seed"]) for row in rows] == [
        (method, labelled, seed) for seed in "01" for labelled in ("2", "all") for method in ("default", "supervised")
    ]
    assert [c["--labelled_cases"] for c in commands[::2]] == ["2", "2", "None", "None"] * 2
    run(*words)
    assert len(commands) == 16
    run(*words, "--", "--max_steps", "4")
    assert len(commands) == 32


def test_a_row_holds_the_results(commands, run) -> None:
    (row,) = run("--methods", "default", "--seeds", "3")
    assert {key: float(row[key]) for key in SUMMARY} == SUMMARY
    assert row["dice_by_case"] == "0.5000 0.9000"
    assert row["best_on_test_dice"] == "" and row["seed"] == "3" and row["labelled"] == ""
    assert all(command["--seed"] == "3" and "--labelled_cases" not in command for command in commands)


def test_config_files_come_in_the_order_dataset_network_method_evaluation(commands, run) -> None:
    run("--dataset", "hippocampus", "--methods", "vnet+self_training", "--seeds", "0")
    files = ["train", "datasets/hippocampus", "networks/vnet", "methods/self_training"]
    assert commands[0]["--config_file"] == str([f"configs/{name}.yaml" for name in files])
    assert commands[1]["--config_file"] == str([f"configs/{name}.yaml" for name in [*files, "evaluate"]])


def test_an_unknown_method_is_refused_before_anything_runs(commands, run) -> None:
    with pytest.raises(UserError, match=r"sself_training\.yaml"):
        run("--methods", "vnet+sself_training", "--seeds", "0")
    assert not commands


def test_the_best_checkpoint_on_the_test_cases_is_a_column_of_its_own(commands, run) -> None:
    (row,) = run("--methods", "default", "--seeds", "0", "--best_on_test")
    assert (row["mean_dice"], row["best_on_test_dice"]) == ("0.5", "0.6")
    assert commands[0]["--validate::dataset::data::items"] == "$@cases.test"
    assert [command.get("--checkpoint") for command in commands] == [None, None, "model_best.pt"]


def test_the_network_of_the_labels_has_a_row_of_its_own(commands, run, monkeypatch) -> None:
    recorded = accuracy.run_process

    def write_model(command: list[str], **options: object) -> subprocess.CompletedProcess:
        models = Path(command[command.index("--ckpt_dir") + 1])
        models.mkdir(exist_ok=True)
        (models / "model_labels_only.pt").touch()
        return recorded(command, **options)

    monkeypatch.setattr(accuracy, "run_process", write_model)
    first, second = run("--methods", "self_training", "--seeds", "0")
    assert [c.get("--checkpoint") for c in commands] == [None, None, "model_labels_only.pt"]
    assert (first["method"], second["method"]) == ("self_training", "self_training, labels only")
    assert first["train_s"] != "" and second["train_s"] == ""
    run("--methods", "self_training", "--seeds", "0")
    assert len(commands) == 3
    assert "| self_training, labels only |" in "\n".join(accuracy.report_lines([first, second]))


def test_a_training_that_takes_longer_than_its_minutes_is_resumed_by_the_same_command(
    commands, run, monkeypatch, tmp_path, capsys
) -> None:
    recorded = accuracy.run_process

    def too_long(command: list[str], timeout: float | None = None, **options: object) -> subprocess.CompletedProcess:
        done = recorded(command, **options)
        if timeout is not None and len(commands) < 4:
            if len(commands) > 1:  # the first one ends before its first checkpoint
                models = Path(commands[-1]["--ckpt_dir"])
                models.mkdir(exist_ok=True)
                (models / "checkpoint_00000004.pt").touch()
            raise subprocess.TimeoutExpired(command, timeout)
        return done

    monkeypatch.setattr(accuracy, "run_process", too_long)
    words = ["--methods", "default", "--seeds", "0", "1", "--minutes", "9", "--keep", str(tmp_path / "runs")]
    for _ in range(3):
        accuracy.main(["run", *words, "--results", str(tmp_path / "a.csv")])
        assert not (tmp_path / "a.csv").exists()
    assert "default_0_" in capsys.readouterr().out
    rows = run(*words)
    assert [(c["run_id"], c["--seed"], c.get("--resume")) for c in commands] == [
        ("training", "0", None), ("training", "0", None), ("training", "0", "true"), ("training", "0", "true"),
        ("evaluating", "0", None),
        ("training", "1", None), ("evaluating", "1", None),
    ]  # fmt: skip
    assert len({c["--ckpt_dir"] for c in commands}) == 2 and [row["seed"] for row in rows] == ["0", "1"]


def test_minutes_need_a_folder_that_is_kept(tmp_path) -> None:
    with pytest.raises(UserError, match="--keep"):
        accuracy.main(["run", "--minutes", "9", "--results", str(tmp_path / "a.csv")])


def test_the_best_on_test_run_is_a_valid_command(make_workflow) -> None:
    workflow = make_workflow("train.yaml", max_steps=1, **{"validate::dataset::data::items": "$@cases.test"})
    content = workflow.parser.get_parsed_content
    assert content("validate::dataset").data == content("cases").test
    assert content("train::trainer")
    assert any(type(handler).__name__ == "Validation" for handler in content("train::handlers")[0].handlers)


def test_other_cases_are_labelled_by_choice(commands, run, tiny_demo, tmp_path) -> None:
    words = ["--dataset_dir", str(tiny_demo), "--labelled", "2", "--seeds", "0", "--methods", "default"]
    (row,) = run(*words, "--choice", "1")
    (tmp_path / "rotated.json").write_text(commands[0]["content"])
    before = load_cases(DatasetSpec(tiny_demo, labelled_cases=6))
    after = load_cases(DatasetSpec(tiny_demo, str(tmp_path / "rotated.json"), labelled_cases=6))
    assert after.labelled == before.labelled[2:] + before.labelled[:2]
    assert after.test == before.test
    assert (row["choice"], row["datalist"]) == ("1", "")


def test_results_show_no_folder_of_this_machine(commands, run) -> None:
    (row,) = run("--methods", "default", "--seeds", "0", "--", "--cache_dir", "/some/where/cache")
    assert row["overrides"] == "--cache_dir cache"
    assert commands[0]["--cache_dir"] == "/some/where/cache"


def rows_of(*entries: tuple[str, str, str, float]) -> list[dict[str, str]]:
    common = dict.fromkeys(accuracy.COLUMNS, "") | {"dataset": "demo", "mean_hd95_voxel": "2", "missed": "1"}
    return [
        {**common, "method": method, "labelled": labelled, "seed": seed, "mean_dice": str(dice), "train_s": "120"}
        for method, labelled, seed, dice in entries
    ]


def keep_figures(monkeypatch) -> list:
    """A list that gets the panels of every figure that `accuracy` draws."""
    kept: list = []

    @contextmanager
    def keep(path, panels, share_y):
        with figures.figure(path, panels, share_y) as axes:
            yield axes
        kept.extend(axes)

    monkeypatch.setattr(accuracy, "figure", keep)
    return kept


ROWS = rows_of(
    ("supervised", "2", "0", 0.6),
    ("supervised", "2", "1", 0.7),
    ("supervised", "all", "0", 0.85),
    ("default", "2", "0", 0.7),
    ("default", "2", "1", 0.8),
    ("vnet+default", "2", "0", 0.9),
)


def test_the_report_closes_the_gap_of_the_same_network() -> None:
    lines = [line.strip("| ").split(" | ") for line in accuracy.report_lines(ROWS)][2:]
    cells = {(line[2], line[1]): line for line in lines}
    assert cells["supervised", "2"][3:6] == ["0.6, 0.7", "0.6500", ""]
    assert cells["default", "2"][3:6] == ["0.7, 0.8", "0.7500", "50%"]
    assert cells["vnet+default", "2"][5] == ""
    assert cells["default", "2"][-2:] == ["2", "2 min"]


def test_without_supervised_runs_the_gap_is_that_of_a_runs_own_labels() -> None:
    rows = rows_of(
        ("default", "2", "0", 0.7),
        ("default, labels only", "2", "0", 0.5),
        ("default", "all", "0", 0.9),
        ("mean_teacher", "2", "0", 0.8),
    )
    gaps = [line.strip("| ").split(" | ")[5] for line in list(accuracy.report_lines(rows))[2:]]
    assert gaps == ["50%", "", "", ""]


def test_other_labelled_cases_have_a_row_and_a_control_of_their_own(tmp_path, monkeypatch) -> None:
    first = rows_of(("default", "2", "0", 0.7), ("default, labels only", "2", "0", 0.5), ("default", "all", "0", 0.9))
    other = rows_of(("default", "2", "0", 0.8), ("default, labels only", "2", "0", 0.6))
    rows = [{**row, "choice": choice} for choice, part in (("0", first), ("1", other)) for row in part]
    table = {tuple(line.strip("| ").split(" | ")[1:6]) for line in accuracy.report_lines(rows)}
    assert ("2", "default", "0.7", "0.7000", "50%") in table
    assert ("2, choice 1", "default", "0.8", "0.8000", "67%") in table
    kept = keep_figures(monkeypatch)
    accuracy.draw(rows, tmp_path)
    assert [list(bars.lines[0].get_ydata()) for bars in kept[0].containers] == [[0.7], [0.5]]


def test_each_dataset_and_datalist_has_a_figure(tmp_path, capsys) -> None:
    for row in [*ROWS, {**ROWS[0], "datalist": "other volumes.json"}]:
        accuracy.append_row(tmp_path / "a.csv", accuracy.COLUMNS, row)
    accuracy.main(["report", str(tmp_path / "a.csv"), "--figures", str(tmp_path / "figures")])
    files = {file.name for file in (tmp_path / "figures").iterdir() if file.stat().st_size > 10_000}
    assert files == {"accuracy_demo.png", "accuracy_demo_other_volumes.png"}
    assert "| demo | 2 | default |" in capsys.readouterr().out


def test_a_figure_shows_means_and_the_span_of_the_seeds_of_each_method(tmp_path, monkeypatch) -> None:
    kept = keep_figures(monkeypatch)
    rows = rows_of(
        ("default", "16", "0", 0.9),
        ("default", "4", "0", 0.6),
        ("default", "4", "1", 0.8),
        ("supervised", "4", "0", 0.5),
        ("supervised", "all", "0", 0.95),
    )
    accuracy.draw(rows, tmp_path)
    by_labels, _ = kept
    assert [tick.get_text() for tick in by_labels.get_xticklabels()] == ["4", "16"]
    first, second = by_labels.containers
    assert first.get_label() == "default" and first.lines[0].get_ydata() == pytest.approx([0.7, 0.9])
    (bars,) = first.lines[2]
    assert bars.get_segments()[0][:, 1] == pytest.approx([0.6, 0.8])
    assert list(second.lines[0].get_ydata()) == [0.5]
    assert 0 < second.lines[0].get_xdata()[0] - first.lines[0].get_xdata()[0] < 0.5  # beside each other
    assert any(list(line.get_ydata()) == [0.95, 0.95] for line in by_labels.lines)
