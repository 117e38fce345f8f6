# SPDX-License-Identifier: Apache-2.0
"""How cases are divided into folds, which commands a cross-validation runs, and that finished folds are kept."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from scripts.crossval import runs
from scripts.crossval.runs import find_patients, fold_datalist, make_folds
from scripts.data.datalist import load_cases
from scripts.data.spec import CaseLists, DatasetSpec
from scripts.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
METHOD = str(ROOT / "configs/methods/self_training.yaml")
ARGV = ["monai/bundle/__main__.py", "run", "crossval", "--config_file"]
LISTS = CaseLists(
    labelled=[{"case": name, "image": f"/d/{name}/imaging.nii", "label": f"/d/{name}/l.nii"} for name in "abc"],
    unlabelled=[{"case": "u", "image": "/d/u/imaging.nii"}],
)


def argv(*options: str, method: str | None = METHOD) -> list[str]:
    files = [str(ROOT / "configs/train.yaml"), *([method] if method else []), str(ROOT / "configs/crossval.yaml")]
    return [*ARGV, str(files), *options]


class Bundle:
    """Stands for the bundle's own commands: writes their results."""

    def __init__(self) -> None:
        self.commands: list[dict[str, str]] = []
        self.fail_at: int | None = None

    def __call__(self, command: list[str], stdout, **_) -> subprocess.CompletedProcess:
        words = command[command.index("run") + 1 :]
        options = dict(zip(words[1::2], words[2::2], strict=True))
        self.commands.append({"run_id": words[0], **options})
        if len(self.commands) == self.fail_at:
            stdout.write("INFO something\nError: The disk of scans is gone.\n")
            return subprocess.CompletedProcess(command, 2)
        out = Path(options["--output_dir"])
        out.mkdir(parents=True, exist_ok=True)
        if words[0] == "training":
            Path(options["--ckpt_dir"]).mkdir(exist_ok=True)
            (Path(options["--ckpt_dir"]) / "model.pt").write_text("")
        else:
            value = 0.5 if "supervised" in options["--config_file"] else 0.6
            # Each held-out image has the same file name, so evaluation gives each the same name of a case.
            (out / "metrics.csv").write_text(f"case,class,label,dice,status\nimaging,organ,1,{value},ok\n")
        return subprocess.CompletedProcess(command, 0)


@pytest.fixture
def bundle(monkeypatch) -> Bundle:
    stand_in = Bundle()
    monkeypatch.setattr(runs, "run_process", stand_in)
    return stand_in


def test_each_fold_trains_and_evaluates_the_control_and_the_method(bundle, tmp_path, capsys) -> None:
    result = runs.cross_validate(LISTS, tmp_path, argv=argv("--max_steps", "7"))
    assert [command["run_id"] for command in bundle.commands] == ["training", "evaluating", "evaluating"] * 6
    assert [command.get("--largest_component") for command in bundle.commands] == [None, "true", None] * 6
    assert [("self_training" in c["--config_file"], "supervised" in c["--config_file"]) for c in bundle.commands] == [
        *[(False, True)] * 3,
        *[(True, False)] * 3,
    ] * 3
    assert {command["--max_steps"] for command in bundle.commands} == {"7"}
    for command in bundle.commands:
        datalist = json.loads(Path(command["--datalist"]).read_text())
        held_out = datalist["test"][0]["case"]
        trained = [entry["case"] for entry in datalist["training"] + datalist["unlabeled"]]
        assert sorted([held_out, *trained]) == ["a", "b", "c", "u"]
        assert command["--labelled_cases"] == "2"
    assert result["control"] == {"a": 0.5, "b": 0.5, "c": 0.5}
    assert result["method"] == {"a": 0.6, "b": 0.6, "c": 0.6}
    assert result["use"] == "method" and result["files"]["method"] == [METHOD]
    assert json.loads((tmp_path / "crossval.json").read_text()) == result
    assert (tmp_path / "crossval.csv").read_text().splitlines()[:2] == [
        "fold,case,class,arm,dice",
        "1,a,organ,control,0.5",
    ]
    assert "Fold 3 of 3" in capsys.readouterr().out


def test_the_confidence_of_held_out_cases_calibrates_the_predicted_dice(tmp_path, monkeypatch) -> None:
    class WithConfidence(Bundle):
        def __call__(self, command: list[str], stdout, **options) -> subprocess.CompletedProcess:
            done = super().__call__(command, stdout, **options)
            table = Path(self.commands[-1]["--output_dir"]) / "metrics.csv"
            if table.is_file():
                lines = table.read_text().splitlines()
                rows = [lines[0] + ",confidence", lines[1] + ",0.8", "imaging,absent,2,,absent,0.0"]
                table.write_text("\n".join(rows) + "\n")
            return done

    monkeypatch.setattr(runs, "run_process", WithConfidence())
    result = runs.cross_validate(LISTS, tmp_path, argv=argv())
    assert result["use"] == "method"
    assert result["calibration"] == {"factor": 0.75, "cases": 3, "error": 0.0, "predicted": [0.6, 0.6]}


def test_a_finished_fold_is_not_run_again(bundle, tmp_path) -> None:
    bundle.fail_at = 9  # the last evaluation of the second fold's control
    with pytest.raises(UserError, match=r"The disk of scans is gone.*log\.txt"):
        runs.cross_validate(LISTS, tmp_path, argv=argv())
    runs.cross_validate(LISTS, tmp_path, argv=argv())
    trained = [c for c in bundle.commands if c["run_id"] == "training"]
    assert [str(Path(c["--ckpt_dir"]).parent.relative_to(tmp_path)) for c in trained] == [
        *("fold_1/control", "fold_1/method", "fold_2/control"),
        *("fold_2/control", "fold_2/method", "fold_3/control", "fold_3/method"),
    ]
    assert all(command["--resume"] == "true" for command in trained)


def test_an_option_of_the_command_line_is_not_judged(bundle, tmp_path) -> None:
    runs.cross_validate(LISTS, tmp_path, argv=argv("--largest_component", "true"))
    assert [command["run_id"] for command in bundle.commands[:4]] == ["training", "evaluating"] * 2
    assert {command["--largest_component"] for command in bundle.commands} == {"true"}


def test_mirrored_passes_are_evaluated_where_training_mirrors(bundle, tmp_path) -> None:
    runs.cross_validate(LISTS, tmp_path, flip_axes=[0, 1], argv=argv())
    # The result shows it as an option to type, which must be one word.
    assert [command.get("--mirror_axes") for command in bundle.commands[:4]] == [None, "[0,1]", None, None]


def test_folds_of_other_settings_are_not_mixed(bundle, tmp_path) -> None:
    runs.cross_validate(LISTS, tmp_path, argv=argv())
    with pytest.raises(UserError, match=str(tmp_path)):
        runs.cross_validate(LISTS, tmp_path, argv=argv("--max_steps", "9"))


@pytest.mark.parametrize("option", ["debug", "resume", "num_workers", "cache"])
def test_options_without_effect_on_the_results_may_change(bundle, tmp_path, option) -> None:
    runs.cross_validate(LISTS, tmp_path, argv=argv("--max_steps", "7", "--seed", "1"))
    done = len(bundle.commands)
    runs.cross_validate(LISTS, tmp_path, argv=argv("--seed", "1", "--max_steps", "7", f"--{option}", "true"))
    assert len(bundle.commands) == done


def test_folds_of_an_edited_config_file_are_not_mixed(bundle, tmp_path) -> None:
    method = tmp_path / "method.yaml"
    method.write_text(Path(METHOD).read_text())
    runs.cross_validate(LISTS, tmp_path / "out", argv=argv(method=str(method)))
    method.write_text(method.read_text().replace("value: 1.0", "value: 0.5"))
    with pytest.raises(UserError, match="config files"):
        runs.cross_validate(LISTS, tmp_path / "out", argv=argv(method=str(method)))


def test_a_setting_with_which_training_could_not_begin_may_be_corrected(bundle, tmp_path) -> None:
    bundle.fail_at = 1
    with pytest.raises(UserError, match="The disk of scans is gone"):
        runs.cross_validate(LISTS, tmp_path, argv=argv("--batch_labelled", "400"))
    runs.cross_validate(LISTS, tmp_path, argv=argv("--batch_labelled", "4"))
    assert len(bundle.commands) == 1 + 18


def test_a_method_outside_of_the_bundle_is_not_in_the_control(bundle, tmp_path) -> None:
    method = tmp_path / "my, method.yaml"
    method.write_text(Path(METHOD).read_text())
    result = runs.cross_validate(LISTS, tmp_path / "out", argv=argv(method=str(method)))
    assert [str(method) in command["--config_file"] for command in bundle.commands[:6]] == [False] * 3 + [True] * 3
    assert result["files"]["method"] == [str(method)]


def test_an_error_of_an_earlier_attempt_is_not_reported_again(bundle, tmp_path, monkeypatch) -> None:
    bundle.fail_at = 1
    with pytest.raises(UserError, match="The disk of scans is gone"):
        runs.cross_validate(LISTS, tmp_path, argv=argv())
    monkeypatch.setattr(runs, "run_process", lambda command, **_: subprocess.CompletedProcess(command, -9))
    with pytest.raises(UserError, match="code -9"):
        runs.cross_validate(LISTS, tmp_path, argv=argv())


@pytest.mark.parametrize(
    ("option", "kept"),
    [
        ("--terms::pseudo_labels::weight", False),
        ("--batch_unlabelled", False),
        ("--method_handlers::0::source", False),
        ("--terms::supervised::weight", True),
        ("--learning_rate_curve::warmup", True),
    ],
)
def test_an_option_that_the_control_does_not_know_is_only_given_to_the_method(bundle, tmp_path, option, kept) -> None:
    runs.cross_validate(LISTS, tmp_path, argv=argv(option, "1", method=None))
    control, method = bundle.commands[0], bundle.commands[3]
    assert (option in control, option in method) == (kept, True)


def test_an_option_of_the_method_alone_is_not_given_to_the_control(bundle, tmp_path) -> None:
    runs.cross_validate(LISTS, tmp_path, argv=argv("--restart", "0.4", "--learning_rate", "0.01"))
    control, method = bundle.commands[0], bundle.commands[3]
    assert "--restart" not in control and control["--learning_rate"] == "0.01"
    assert method["--restart"] == "0.4"


@pytest.mark.parametrize("keep", [True, "true", False])
def test_models_are_kept_on_demand(bundle, tmp_path, keep) -> None:
    runs.cross_validate(LISTS, tmp_path, keep_models=keep, argv=argv())
    assert len(list(tmp_path.glob("fold_*/*/models/model.pt"))) == (6 if keep else 0)


@pytest.mark.parametrize("case", ["supervised", "no unlabelled"])
def test_without_unlabelled_cases_or_method_only_the_control_runs(bundle, tmp_path, case) -> None:
    lists = LISTS if case == "supervised" else CaseLists(labelled=LISTS.labelled)
    words = argv(method=str(ROOT / "configs/methods/supervised.yaml")) if case == "supervised" else argv(method=None)
    result = runs.cross_validate(lists, tmp_path, argv=words)
    assert len(bundle.commands) == 9
    assert result["method"] is None and result["use"] == "control"


def cases(*names: str) -> list[dict[str, str]]:
    return [{"case": name, "image": f"{name}.nii.gz", "label": f"{name}_seg.nii.gz"} for name in names]


def folds_of(found: list[dict[str, str]], number: int | None = None, pattern: str | None = None):
    return make_folds(found, find_patients(CaseLists(labelled=found), pattern), number)


def names(folds) -> list[list[str]]:
    return [[case["case"] for case in fold] for fold in folds]


def test_up_to_ten_cases_are_left_out_one_by_one_and_more_make_five_folds() -> None:
    ten = cases(*"abcdefghij")
    assert names(folds_of(ten)) == [[name] for name in "abcdefghij"]
    assert names(folds_of([*ten, *cases("k")])) == [list("afk"), list("bg"), list("ch"), list("di"), list("ej")]


def test_cases_of_a_patient_stay_together() -> None:
    folds = folds_of(cases("p1_a", "p2_a", "p1_b", "p3_a", "p2_b"), 2, pattern=r"^p\d")
    assert names(folds) == [["p1_a", "p1_b", "p3_a"], ["p2_a", "p2_b"]]


@pytest.mark.parametrize("number", [1, 4])
def test_a_number_of_folds_out_of_range_is_refused(number) -> None:
    with pytest.raises(UserError, match="folds"):
        folds_of(cases(*"abc"), number)


def test_a_single_patient_cannot_be_cross_validated() -> None:
    with pytest.raises(UserError, match="labelled_cases"):
        folds_of(cases("p1_a", "p1_b"), pattern=r"^p\d")


def test_the_held_out_case_is_in_no_other_list(tiny_demo: Path, tmp_path: Path) -> None:
    lists = load_cases(DatasetSpec(tiny_demo, labelled_cases=3))
    held_out = lists.labelled[1]
    (tmp_path / "fold.json").write_text(json.dumps(fold_datalist(lists, [held_out], find_patients(lists))))
    fold = load_cases(DatasetSpec(tiny_demo, str(tmp_path / "fold.json"), labelled_cases=2))
    assert fold.test == [held_out]
    assert fold.labelled == [lists.labelled[0], lists.labelled[2]]
    assert fold.unlabelled == lists.unlabelled
    assert fold.validation == []


def test_a_case_of_two_channels_keeps_both(tmp_path: Path) -> None:
    lists = CaseLists(labelled=[{"case": "a", "image": ["t1.nii", "t2.nii"], "label": "l.nii"}, *cases("b")])
    (entry,) = fold_datalist(lists, lists.labelled[1:], find_patients(lists))["training"]
    assert entry["image"] == [str(Path("t1.nii").absolute()), str(Path("t2.nii").absolute())]


def test_no_image_of_a_held_out_patient_trains() -> None:
    unlabelled = [{"case": name, "image": f"{name}.nii.gz"} for name in ("p1_c", "p2_b", "p4_a")]
    lists = CaseLists(labelled=cases("p1_a", "p2_a", "p3_a"), unlabelled=unlabelled)
    patient = find_patients(lists, r"^p\d")
    fold = fold_datalist(lists, lists.labelled[:1], patient)
    assert [[case["case"] for case in fold[part]] for part in ("training", "unlabeled", "test")] == [
        ["p2_a", "p3_a"], ["p2_b", "p4_a"], ["p1_a"],
    ]  # fmt: skip
