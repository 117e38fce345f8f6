# SPDX-License-Identifier: Apache-2.0
"""Overrides are checked before anything is done, and a mistake is told in one sentence."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.bundle import ConfigWorkflow

from scripts.cli.overrides import check_overrides, is_command_line
from scripts.cli.start import begin, check_command_line, ready, root_user_error, wants_traceback
from scripts.errors import UserError

ROOT = Path(__file__).parents[2]
MAIN = "/venv/lib/python3.11/site-packages/monai/bundle/__main__.py"
BASE = """
seed: 0
max_steps: 300
learning_rate: 0.002
rate: "$@learning_rate * @rate_factor"
train:
  trainer:
    max_epochs: "@max_steps"
training: ["$@train::trainer"]
network: {_target_: scripts.networks.vnet.VNet, norm: instance}
optimizer: {_target_: dict, lr: 1}
stages: [1, 2]
"""
LATER = """
val_interval: 5
+training: ["$@post"]
train::trainer::amp: false
"""


@pytest.fixture(autouse=True)
def process_as_it_was(monkeypatch):
    check_command_line.cache_clear()
    monkeypatch.setattr(sys, "excepthook", sys.__excepthook__)
    flags = torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark
    yield
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = flags


@pytest.fixture
def config(tmp_path):
    (tmp_path / "base.yaml").write_text(BASE)
    (tmp_path / "later.yaml").write_text(LATER)
    return str(tmp_path / "base.yaml")


def command(config, *words):
    return [MAIN, "run", "training", "--config_file", config, *words]


def refusal(config, *words):
    with pytest.raises(UserError) as caught:
        check_overrides(command(config, *words))
    message = str(caught.value)
    assert "\n" not in message
    return message


# ------------------------------------------------------------------ what is refused


@pytest.mark.parametrize(
    ("option", "nearest"),
    [("max_step", "max_steps"), ("learning_rat", "learning_rate"), ("config_flie", "config_file"), ("sed", "seed")],
)
@pytest.mark.parametrize("form", ["two words", "equals"])
def test_a_misspelt_override_is_refused_with_the_nearest_name(config, option, nearest, form):
    words = [f"--{option}", "5"] if form == "two words" else [f"--{option}=5"]
    message = refusal(config, *words)
    assert f"--{option} " in message
    assert f"Did you mean --{nearest}?" in message


def test_an_override_like_nothing_is_refused_with_where_to_look(config):
    message = refusal(config, "--zzzzzz", "5")
    assert "--zzzzzz" in message
    assert "configs/train.yaml" in message
    assert "Did you mean" not in message


def test_one_misspelt_override_among_right_ones_is_found(config):
    assert "'max_stepz'" in refusal(config, "--seed", "3", "--max_stepz", "5", "--learning_rate", "0.1")


@pytest.mark.parametrize("option", ["trian::trainer::max_epochs", "trian#trainer#max_epochs"])
def test_a_misspelt_block_of_a_nested_override_is_refused(config, option):
    assert option in refusal(config, f"--{option}", "5")


@pytest.mark.parametrize(
    ("option", "hint"),
    [
        ("trian::trainer::max_epochs", "--train::trainer::max_epochs?"),
        ("train::trainer::max_epohcs", "--train::trainer::max_epochs?"),
        ("train::trianer::max_epochs", "--train::trainer?"),
        ("network::base_filtres", "--network::base_filters?"),
        ("stages::3", "'stages' has: 0, 1."),
        ("seed::first", "'seed' has: -."),
    ],
)
def test_a_misspelt_part_of_a_nested_override_is_refused_with_the_nearest_name(config, option, hint):
    assert hint in refusal(config, f"--{option}", "5")


@pytest.mark.parametrize("words", [["-max_stepz", "5"], ["-max_stepz=5"], ["--max-stepz", "5"]])
def test_other_forms_of_an_option_are_read_as_the_command_line_reads_them(config, words):
    assert "Did you mean --max_steps?" in refusal(config, *words)


@pytest.mark.parametrize("words", [["--max_steps=5", "oops"], ["--debug=true", "oops"], ["--seed", "3", "oops"]])
def test_a_word_that_belongs_to_no_option_is_refused(config, words):
    assert "'oops' stands alone" in refusal(config, *words)


@pytest.mark.parametrize("words", [["seed", "3"], ["--max_steps", "5", "seed", "3"]])
def test_a_key_without_dashes_is_refused_with_what_to_write(config, words):
    # MONAI would take these words for init_id and final_id.
    assert "--seed VALUE" in refusal(config, *words)


# ------------------------------------------------------------------ what is accepted


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["--max_steps", "5"],
        ["--max_steps=5", "--seed=3"],
        ["--train::trainer::max_epochs", "5"],
        ["--train#trainer#max_epochs", "5"],
        ["--train", "{'trainer': {}}"],
        ["--rate_factor", "2"],  # no file defines it, but one refers to it as @rate_factor
        ["--meta_file", "m.json", "--logging_file", "l.conf", "--init_id", "initialize", "--workflow_type", "train"],
        ["--debug"],
        ["--debug", "--seed", "3"],
        ["--run_id", "training"],
        ["-max_steps", "5"],
        ["--max-steps", "5"],
        ["--tracking", "mlflow", "--experiment_name", "first", "--tracking_uri", "here"],
        ["--network::base_filters", "4"],  # an argument that the configuration leaves at its default
        ["--network::norm", "batch"],
        ["--network::_target_", "SegResNet", "--network::init_filters", "8"],
        ["--network", "{'_target_': 'SegResNet'}", "--network::init_filters", "8"],
        ["--optimizer::anything", "5"],  # it takes any argument
        ["--stages::1", "5"],
        ["--max_steps", "-5"],
        ["--seed", "max_steps"],  # a value may be the name of a key
    ],
)
def test_a_known_override_passes(config, words):
    check_overrides(command(config, *words))


def test_keys_of_every_config_file_are_known(config):
    both = f"['{config}','{config.replace('base', 'later')}']"
    for option in ("val_interval", "seed", "post", "training", "train::trainer::amp"):
        check_overrides(command(both, f"--{option}", "1"))
    assert "--val_interval" in refusal(config, "--val_interval", "1")


def test_the_config_file_may_be_given_with_an_equals_sign(config):
    check_overrides([MAIN, "run", "training", f"--config_file={config}", "--max_steps", "5"])


def test_every_key_at_the_top_of_the_training_config_can_be_overridden():
    text = (ROOT / "configs" / "train.yaml").read_text()
    keys = [line.split(":")[0] for line in text.splitlines() if line[:1].isalpha()]
    assert len(keys) > 30
    check_overrides(command(str(ROOT / "configs" / "train.yaml"), *[f"--{key}=1" for key in keys]))


# ------------------------------------------------------------------ which process it is


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["pytest"],
        [MAIN],
        [MAIN, "ckpt_export", "--filepath", "model.ts"],
        ["/usr/bin/monailabel", "run", "training", "--nonsense", "1"],
    ],
)
def test_another_program_keeps_its_options_and_its_hook(argv):
    assert not is_command_line(argv)
    begin(argv=argv)
    assert sys.excepthook is sys.__excepthook__


def test_monais_own_command_is_known_by_its_path(config):
    assert is_command_line(command(config))


# ------------------------------------------------------------------ the report


def raised(function, *args):
    try:
        function(*args)
    except BaseException as error:
        return error
    raise AssertionError("nothing was raised")


def reported(error, capsys):
    sys.excepthook(type(error), error, error.__traceback__)
    return capsys.readouterr().err


def wrapped():
    try:
        try:
            raise UserError("The folder x does not exist.")
        except UserError as error:
            raise RuntimeError("Failed to instantiate cases") from error
    except RuntimeError as error:
        raise ValueError("Failed to evaluate") from error


def during_another():
    try:
        raise UserError("The folder x does not exist.")
    except UserError:
        raise KeyError("cleaning up failed") from None


@pytest.mark.parametrize("function", [wrapped, during_another])
def test_a_mistake_is_found_through_whatever_wraps_it(function):
    assert str(root_user_error(raised(function))) == "The folder x does not exist."


def test_an_error_that_is_no_mistake_is_not_taken_for_one():
    assert root_user_error(None) is None
    assert root_user_error(raised(lambda: 1 / 0)) is None


def test_causes_that_refer_to_each_other_end():
    a, b = ValueError("a"), ValueError("b")
    a.__cause__, b.__cause__ = b, a
    assert root_user_error(a) is None


def test_a_mistake_is_printed_as_one_sentence_without_a_traceback(config, capsys):
    error = raised(begin, None, command(config, "--max_step", "5"))
    text = reported(error, capsys)
    assert text.strip() == f"Error: {error}"
    assert "Traceback" not in text
    assert reported(raised(wrapped), capsys).strip() == "Error: The folder x does not exist."


def test_debug_keeps_the_traceback_and_ends_with_the_sentence(config, capsys):
    begin(argv=command(config, "--debug"))
    text = reported(raised(wrapped), capsys)
    assert "Traceback" in text
    assert text.rstrip().endswith("Error: The folder x does not exist.")


def test_another_error_is_one_sentence_too_and_keeps_its_traceback_for_debug(config, capsys):
    begin(argv=command(config))
    text = reported(raised(lambda: 1 / 0), capsys)
    assert "Traceback" not in text
    assert text.startswith("\nError: ") and "division by zero (ZeroDivisionError)" in text and "--debug true" in text
    begin(argv=command(config, "--debug", "true"))
    assert "Traceback" in reported(raised(lambda: 1 / 0), capsys)


@pytest.mark.parametrize(
    ("words", "wanted"), [(["--debug"], True), (["--debug=true"], True), (["--debug", "false"], False), ([], False)]
)
def test_a_traceback_is_wanted_in_every_form_of_debug(words, wanted):
    assert wants_traceback(command("x.yaml", *words)) is wanted


def test_a_misspelt_run_is_told_with_the_nearest(config):
    with pytest.raises(UserError, match=r"'trainign'.*did you mean training\?"):
        check_overrides([MAIN, "run", "trainign", "--config_file", config])


def test_a_key_of_a_later_file_that_nothing_uses_is_refused_with_the_nearest(config, tmp_path):
    (tmp_path / "mine.yaml").write_text("max_stepz: 5\n")
    with pytest.raises(UserError, match=r"'max_stepz' of .*mine.yaml.*did you mean max_steps\?"):
        check_overrides(command(f"['{config}','{tmp_path}/mine.yaml']"))


@pytest.mark.parametrize("text", ["max_steps: 5", "rate_factor: 2", "flip_axes: [0]", "_note: mine", "train#x: 1"])
def test_a_key_of_a_later_file_that_some_command_uses_passes(config, tmp_path, text):
    (tmp_path / "mine.yaml").write_text(text + "\n")
    check_overrides(command(f"['{config}','{tmp_path}/mine.yaml']"))


@pytest.mark.parametrize("text", ["max_steps: 5\nmax_steps: 6", "network:\n  norm: batch\n  norm: instance"])
def test_a_key_twice_in_one_file_is_refused(config, tmp_path, text):
    (tmp_path / "mine.yaml").write_text(text + "\n")
    with pytest.raises(UserError, match=r"mine.yaml has a key twice .*(max_steps|norm)"):
        check_overrides(command(f"['{config}','{tmp_path}/mine.yaml']"))


def test_values_of_the_command_line_stand_before_those_of_files(config):
    values = check_overrides(command(config, "--max_steps", "7", "--stages", "[3]"))
    assert (values["max_steps"], values["stages"], values["seed"]) == (7, [3], 0)


def test_a_mistake_inside_a_config_is_found_behind_monais_errors(tmp_path):
    (tmp_path / "run.yaml").write_text(
        f"""
        dataset: {{_target_: scripts.data.spec.DatasetSpec, directory: "{tmp_path}/nowhere"}}
        cases: {{_target_: scripts.data.datalist.load_cases, dataset: "@dataset"}}
        number: "$len(@cases.labelled)"
        run: ["$print(@number)"]
        """
    )
    workflow = ConfigWorkflow(config_file=str(tmp_path / "run.yaml"), workflow_type="train")
    workflow.initialize()
    error = raised(workflow.run)
    assert not isinstance(error, UserError)
    assert f"{tmp_path}/nowhere (dataset_dir) does not exist" in str(root_user_error(error))


def test_the_command_line_itself_prints_one_sentence_and_fails(tmp_path):
    # In a process of its own: what sys.argv is there, only there it shows.
    files = ["--config_file", "configs/train.yaml", "--bundle_root", str(tmp_path)]
    words = ["run", "training", *files, "--max_step", "5"]
    done = subprocess.run(
        [sys.executable, "-m", "monai.bundle", *words], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "Did you mean --max_steps?" in done.stderr.strip().splitlines()[-1]
    assert not list(tmp_path.iterdir()), "the mistake was found only after work had begun"


# ------------------------------------------------------------------ seeds and files


def test_the_seed_decides_weights_made_afterwards():
    weights = []
    for seed in (3, 3, 4):
        begin(seed=seed, argv=["pytest"])
        weights.append((torch.nn.Linear(2, 2).weight, np.random.rand()))
    assert torch.equal(weights[0][0], weights[1][0]) and weights[0][1] == weights[1][1]
    assert not torch.equal(weights[0][0], weights[2][0]) and weights[0][1] != weights[2][1]


def test_without_a_seed_generators_are_left_alone():
    torch.manual_seed(9)
    begin(argv=["pytest"])
    assert torch.rand(1) == torch.rand(1, generator=torch.Generator().manual_seed(9))


@pytest.mark.parametrize("seed", [-1, "three", 1.5])
def test_a_seed_that_is_no_whole_number_is_refused(seed):
    with pytest.raises(UserError, match="seed must be a whole number of at least 0"):
        begin(seed=seed, argv=["pytest"])


def test_the_command_line_is_checked_where_a_word_alone_has_replaced_initialize(config, tmp_path):
    with pytest.raises(UserError, match="'seed' stands alone"):
        ready([tmp_path], command(config, "seed", "3"))


class Broken(torch.utils.data.Dataset):
    def __init__(self, wrapped):
        self.wrapped = wrapped

    def __len__(self):
        return 2

    def __getitem__(self, index):
        try:
            raise UserError("case_1 holds the label value 7: correct the file.")
        except UserError as error:
            if self.wrapped:  # as MONAI's transforms do
                raise RuntimeError("applying transform") from error
            raise


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("workers", [0, 1])
def test_a_mistake_found_while_loading_is_the_same_sentence_with_and_without_worker_processes(wrapped, workers):
    loader = torch.utils.data.DataLoader(Broken(wrapped), num_workers=workers)
    with pytest.raises((UserError, RuntimeError)) as caught:
        next(iter(loader))
    assert str(root_user_error(caught.value)) == "case_1 holds the label value 7: correct the file."
