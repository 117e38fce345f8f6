# SPDX-License-Identifier: Apache-2.0
"""`python -m scripts`: names of datasets and methods, the commands that are run, and exit codes."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from scripts.cli import commands, runs
from scripts.cli.commands import COMMANDS, main
from scripts.cli.overrides import check_overrides
from scripts.cli.runs import find_dataset, find_part, remember, run_words, shell_line
from scripts.data.weights import save_weights
from scripts.errors import UserError
from scripts.networks.vnet import VNet
from tests import forked_command

ROOT = Path(__file__).parents[2]


@pytest.fixture
def started(monkeypatch, tmp_path) -> list[list[str]]:
    """Collects the arguments of the runs that would be started; the current folder is empty."""
    words: list[list[str]] = []
    monkeypatch.setattr(commands, "run_in_monai", words.append)
    monkeypatch.chdir(tmp_path)
    return words


def config(*names: object) -> str:
    files = [str(name if isinstance(name, Path) else ROOT / "configs" / str(name)) for name in names]
    return files[0] if len(files) == 1 else f"[{','.join(map(repr, files))}]"


# ------------------------------------------------------------------ help


def test_help_lists_every_command_and_imports_no_library() -> None:
    code = "import sys; from scripts.cli.commands import main; main(['--help']); print(sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    help_text, _, modules = done.stdout.rpartition("\n['")
    assert all(f"  {command} " in help_text for command in COMMANDS)
    assert not {"torch", "monai", "numpy"} & set(modules.split("', '"))


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_has_a_help(command, capsys) -> None:
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0
    assert f"python -m scripts {command}" in capsys.readouterr().out


# ------------------------------------------------------------------ names of datasets and methods


def test_a_dataset_is_found_by_path_folder_and_name(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(runs, "DATA", tmp_path / "bundle/data")
    places = [
        tmp_path / "mine.yaml",
        tmp_path / "bundle/data/in_data.yaml",
        tmp_path / "bundle/data/scans/in_folder.yaml",
        tmp_path / "elsewhere/noted.yaml",
    ]
    for place in places:
        place.parent.mkdir(parents=True, exist_ok=True)
        place.touch()
    remember("noted", places[3])
    assert find_dataset("mine.yaml") == find_dataset("mine") == Path("mine.yaml")
    assert find_dataset("elsewhere") == Path("elsewhere/noted.yaml")
    assert [find_dataset(place.stem) for place in places[1:]] == places[1:]
    assert find_dataset("hippocampus") == ROOT / "configs/datasets/hippocampus.yaml"


def test_the_current_folder_comes_first(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "hippocampus.yaml").touch()
    assert find_dataset("hippocampus") == Path("hippocampus.yaml")


@pytest.mark.parametrize("name", ["hipocampus", "none/hippocampus", "none.yaml", "hippocampus.yml", "empty"])
def test_an_unknown_dataset_is_named(name, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=name):
        find_dataset(name)


def test_an_unknown_name_is_refused_with_the_nearest() -> None:
    with pytest.raises(UserError, match=r"'hipocampus'.* hippocampus"):
        find_dataset("hipocampus")
    with pytest.raises(UserError, match=r"'snet'.* ssnet"):
        find_part("method", "snet")
    with pytest.raises(UserError, match=r"'zzz'.*supervised"):
        find_part("method", "zzz")


def advice(output_dir: Path, use: str) -> None:
    """A finished cross-validation of the left atrium."""
    (output_dir / "crossval/left_atrium").mkdir(parents=True)
    files = {"control": [str(ROOT / "configs/methods/supervised.yaml")], "method": []}
    result = {"use": use, "files": files, "sentences": ["Expect 0.8.", "They cost 1 point."]}
    (output_dir / "crossval/left_atrium/crossval.json").write_text(json.dumps(result))


@pytest.mark.parametrize(("use", "more"), [("control", ["methods/supervised.yaml"]), ("method", [])])
def test_the_method_auto_is_that_of_the_cross_validation(started, tmp_path, capsys, use, more) -> None:
    advice(tmp_path / "runs", use)
    assert main(["train", "left_atrium", "--method", "auto", f"--output_dir={tmp_path}/runs"]) == 0
    files = started[0][started[0].index("--config_file") + 1]
    assert files == config("train.yaml", "datasets/left_atrium.yaml", *more)
    assert "They cost 1 point." in capsys.readouterr().out


def test_the_method_auto_works_with_a_network_and_another_output_dir(started, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(commands, "ROOT", tmp_path)
    advice(tmp_path / "outputs", "control")
    words = ["--network", "vnet", "--method", "auto", "--output_dir", "elsewhere"]
    assert main(["train", "left_atrium", *words]) == 0
    files = ("train.yaml", "datasets/left_atrium.yaml", "networks/vnet.yaml", "methods/supervised.yaml")
    assert started[0][started[0].index("--config_file") + 1] == config(*files)


def test_the_method_auto_is_read_from_a_crossval_dir_of_its_own(started, tmp_path, monkeypatch) -> None:
    advice(tmp_path / "apart", "control")
    advice(tmp_path / "outputs", "method")
    monkeypatch.setattr(commands, "ROOT", tmp_path)
    given = ["--crossval_dir", f"{tmp_path}/apart/crossval/left_atrium"]
    assert main(["train", "left_atrium", "--method", "auto", *given]) == 0
    assert "supervised.yaml" in started[0][started[0].index("--config_file") + 1]
    # It stays an option of the run, whose alarms are calibrated by the same result.
    assert started[0][started[0].index("--crossval_dir") + 1] == given[1]
    check_overrides(["monai/bundle/__main__.py", *started[0][started[0].index("run") :]])


def test_a_training_ends_with_what_to_do_next(started, capsys) -> None:
    assert main(["train", "hippocampus", "--max_steps", "5", "--output_dir", "my runs"]) == 0
    last = capsys.readouterr().out.splitlines()[-2:]
    assert last[0].endswith("python -m scripts evaluate hippocampus --max_steps 5 --output_dir 'my runs'")
    assert last[1].endswith("tensorboard --logdir 'my runs'")


def test_the_method_auto_needs_no_other_option(started, tmp_path, monkeypatch) -> None:
    advice(tmp_path / "outputs", "control")
    monkeypatch.setattr(commands, "ROOT", tmp_path)
    assert main(["train", "left_atrium", "--method", "auto"]) == 0
    assert "supervised.yaml" in started[0][started[0].index("--config_file") + 1]


def test_the_method_auto_needs_a_cross_validation(started, tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.setattr(commands, "ROOT", tmp_path / "bundle")
    assert main(["train", "left_atrium", "--method", "auto", "--output_dir", str(tmp_path)]) == 2
    assert "crossval/left_atrium/crossval.json" in capsys.readouterr().err


def test_remembering_fails_silently_in_a_read_only_bundle(tmp_path, monkeypatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("BUNDLE_DATASETS", str(tmp_path / "file/datasets.json"))
    remember("mine", tmp_path / "mine.yaml")
    assert runs.remembered() == {}


# ------------------------------------------------------------------ the line that a command stands for


@pytest.mark.parametrize(
    ("words", "run_id", "files"),
    [
        (["train"], "training", ["train.yaml"]),
        (["check"], "check_data", ["train.yaml"]),
        (["train", "hippocampus"], "training", ["train.yaml", "datasets/hippocampus.yaml"]),
        (["train", "--method", "ssnet"], "training", ["train.yaml", "methods/ssnet.yaml"]),
        (
            ["evaluate", "hippocampus", "--method", "ssnet"],
            "evaluating",
            ["train.yaml", "datasets/hippocampus.yaml", "methods/ssnet.yaml", "evaluate.yaml"],
        ),
        (
            ["train", "--method", "self_training", "--network", "vnet"],
            "training",
            ["train.yaml", "networks/vnet.yaml", "methods/self_training.yaml"],
        ),
        (["pseudo-label"], "pseudo_label", ["train.yaml", "labelling.yaml"]),
        (["prioritise"], "prioritise_unlabelled", ["train.yaml", "labelling.yaml"]),
    ],
)
def test_a_command_runs_its_config_files(words, run_id, files, started) -> None:
    assert main(words) == 0
    assert started == [["run", run_id, "--config_file", config(*files), "--bundle_root", str(ROOT)]]


def test_the_next_step_after_an_evaluation_has_the_options_of_the_model(started, capsys) -> None:
    main(["evaluate", "demo", "--ckpt_dir", "m", "--label_values", "[0,10,20,40]", "--report", "false"])
    printed = capsys.readouterr().out.splitlines()[-1]
    words = shlex.split(printed.removeprefix("Predict: "))
    assert words[:6] == ["python", "-m", "scripts", "predict", "IMAGES", "--dataset"]
    assert words[6:] == ["demo", "--ckpt_dir", "m", "--label_values", "[0,10,20,40]"]


def test_predictions_are_evaluated_by_a_config_file_without_a_network(started) -> None:
    assert main(["evaluate", "hippocampus", "--predictions", "OUT"]) == 0
    assert started[0][1:4] == [
        *("evaluating", "--config_file"),
        config("train.yaml", "datasets/hippocampus.yaml", "predictions.yaml"),
    ]
    assert started[0][-2:] == ["--predictions", "OUT"]


def test_info_prints_what_a_weights_file_records_as_yaml(tmp_path, capsys) -> None:
    save_weights(VNet(out_channels=3, base_filters=2), tmp_path / "model.pt", run={"steps": 3, "git": None})
    assert main(["info", str(tmp_path / "model.pt")]) == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    assert printed["network"]["class"] == "VNet" and printed["network"]["arguments"]["out_channels"] == 3
    assert printed["run"] == {"steps": 3, "git": None}
    assert main(["info", str(tmp_path / "none.pt")]) == 2
    assert "none.pt" in capsys.readouterr().err


def test_other_options_are_passed_on_wherever_they_stand(started) -> None:
    main(["train", "--max_steps", "500", "--method", "ssnet", "--train::trainer::amp=true", "--spacing", "[1, 1, 1]"])
    assert started[0][6:] == ["--max_steps", "500", "--train::trainer::amp=true", "--spacing", "[1, 1, 1]"]
    assert "ssnet" in started[0][3]
    main(["train", "--bundle_root", "here", "--debug"])
    assert started[1][4:] == ["--bundle_root", "here", "--debug", "true"]


def test_predict_takes_the_model_of_training_once_a_dataset_is_named(started, tmp_path) -> None:
    main(["predict", "scans", "--output_dir", "out", "--mirror_axes", "[0]"])
    given = ["--dataset_dir", "scans", "--output_dir", "out"]
    assert started[0] == [
        *("run", "--config_file", config("inference.yaml"), "--bundle_root", str(ROOT)),
        *(*given, "--mirror_axes", "[0]"),
    ]
    (tmp_path / "mine.yaml").touch()
    main(["predict", "scans", "--dataset", "mine"])
    assert started[1][2] == config("inference.yaml", tmp_path / "mine.yaml")
    assert started[1][-2:] == ["--ckpt_dir", str(ROOT / "outputs/models")]
    main(["predict", "scans", "--dataset", "mine", "--ckpt_dir", "other"])
    assert started[2][-4:] == ["--dataset_dir", "scans", "--ckpt_dir", "other"]


def test_paths_are_short_in_the_bundles_folder(monkeypatch, tmp_path) -> None:
    monkeypatch.chdir(ROOT)
    files = [ROOT / "configs/train.yaml", tmp_path / "mine.yaml"]
    assert run_words("training", files, ["--seed", "1"]) == [
        *("run", "training", "--config_file", f"['configs/train.yaml','{tmp_path}/mine.yaml']", "--seed", "1")
    ]


@pytest.mark.parametrize("name", ["a b", "it's", 'a"b', "a$HOME", "a`id`", "a!b", "ü"])
def test_the_printed_line_can_be_pasted(name, monkeypatch) -> None:
    monkeypatch.chdir(ROOT)
    words = run_words("training", [ROOT / "configs/train.yaml", Path("/data", name)], ["--output_dir", name])
    assert shlex.split(shell_line(words)) == words


def test_the_printed_line_of_plain_paths_is_legible(monkeypatch) -> None:
    monkeypatch.chdir(ROOT)
    words = run_words("training", [ROOT / "configs/train.yaml", ROOT / "configs/datasets/demo.yaml"])
    assert shell_line(words) == "run training --config_file \"['configs/train.yaml','configs/datasets/demo.yaml']\""


# ------------------------------------------------------------------ how a command ends


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["tarin"], "train"),
        (["train", "nowhere.yaml"], "nowhere.yaml"),
        (["train", "--method", "snet"], "ssnet"),
        (["predict", "scan.nii.gz", "--network", "vnett"], "vnet"),
        (["train", "demo", "again"], "again"),
        (["train", "--config_file", "a.yaml"], "--config_file"),
        (["predict"], "INPUT"),
        (["compare", "outputs"], "RUN_B"),
        (["export", "tf"], "onnx"),
        (["export", "ts", "--dataset", "nowhere.yaml"], "nowhere.yaml"),
        (["new-dataset", "folder"], "--name"),
        (["convert-left-atrium", "folder"], "OUTPUT"),
    ],
)
def test_wrong_arguments_print_one_line_and_exit_with_2(words, named, capsys, started) -> None:
    assert main(words) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("Error: ") and named in line
    assert not started


def test_a_run_of_the_front_door_is_a_run_of_monai(tmp_path, capsys) -> None:
    """It also works if `scripts` cannot be imported from the current folder."""
    file = tmp_path / "run.yaml"
    file.write_text("text: unsaid\nrun: [\"$print('The text is', @text)\"]\n")
    runs.run_in_monai(["run", "--config_file", str(file), "--text", "said"])
    assert "The text is said" in capsys.readouterr().out


def test_a_run_opens_with_its_own_line(tmp_path) -> None:
    """MONAI's hints about foreign config files and about files in several folders do not come before it."""
    (tmp_path / "other").mkdir()
    first, second = tmp_path / "run.yaml", tmp_path / "other/text.yaml"
    first.write_text("run: [\"$print('The text is', @text)\"]\n")
    second.write_text("text: said\n")
    words = ["run", "--config_file", str([str(first), str(second)])]
    program = ["timeit", "-n", "1", "-r", "1", f"from scripts.cli.runs import run_in_monai; run_in_monai({words})"]
    done = forked_command.run(program, tmp_path, prepare=forked_command.forget_filters)
    assert done.output.startswith("python -m monai.bundle run") and "The text is said" in done.output
    assert "parsing config_file" not in done.errors and "Not all config files" not in done.output + done.errors


def test_an_error_inside_a_run_prints_one_line_and_exits_with_1(tiny_demo, tmp_path, capsys) -> None:
    (tmp_path / "mine.yaml").write_text(f"labelled_cases: $1 / 0\ndataset_dir: {tiny_demo}\n")
    words = ["check", str(tmp_path / "mine.yaml"), "--output_dir", str(tmp_path / "out")]
    assert main(words) == 1
    captured = capsys.readouterr()
    assert captured.out.startswith("python -m monai.bundle run check_data --config_file ")
    assert captured.err.strip().splitlines()[-1].startswith("Error: ")
    assert "division by zero" in captured.err and "Traceback" not in captured.err
    assert main([*words, "--debug"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_ctrl_c_exits_with_130(monkeypatch, capsys) -> None:
    def interrupted(_words):
        raise KeyboardInterrupt

    monkeypatch.setitem(COMMANDS, "train", interrupted)
    assert main(["train"]) == 130
    assert "Traceback" not in capsys.readouterr().err


def test_the_folder_scripts_can_be_started_from_anywhere(tmp_path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    words = [sys.executable, str(ROOT / "scripts"), "train", "hipocampus"]
    done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "hippocampus" in done.stderr
