# SPDX-License-Identifier: Apache-2.0
"""Unknown options, unknown keys and unreadable config files are refused; options that MONAI knows pass."""

from __future__ import annotations

from pathlib import Path

import pytest

from scripts.cli.overrides import check_overrides, is_command_line
from scripts.errors import UserError

ROOT = Path(__file__).parents[2]
MAIN = "/venv/lib/python3.11/site-packages/monai/bundle/__main__.py"


def command(config, *words):
    return [MAIN, "run", "training", "--config_file", config, *words]


def refusal(config, *words):
    with pytest.raises(UserError) as caught:
        check_overrides(command(config, *words))
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    ("option", "nearest"),
    [("max_step", "max_steps"), ("learning_rat", "learning_rate"), ("config_flie", "config_file"), ("sed", "seed")],
)
@pytest.mark.parametrize("form", ["--{} 5", "--{}=5", "-{} 5", "-{}=5"])
def test_a_misspelt_option_is_refused_with_the_nearest(config, option, nearest, form):
    message = refusal(config, *form.format(option).split())
    assert f"--{option}" in message and f"--{nearest}" in message


def test_a_dash_inside_an_option_is_an_underscore(config):
    assert "--max_steps" in refusal(config, "--max-stepz", "5")


def test_an_option_unlike_any_key_is_refused_with_the_file_that_lists_the_keys(config):
    message = refusal(config, "--zzzzzz", "5")
    assert "--zzzzzz" in message and "configs/train.yaml" in message


def test_one_misspelt_option_among_right_ones_is_found(config):
    assert "max_stepz" in refusal(config, "--seed", "3", "--max_stepz", "5", "--learning_rate", "0.1")


@pytest.mark.parametrize(
    ("option", "hint"),
    [
        ("trian::trainer::max_epochs", "--train::trainer::max_epochs"),
        ("trian#trainer#max_epochs", "--train::trainer::max_epochs"),
        ("train::trainer::max_epohcs", "--train::trainer::max_epochs"),
        ("train::trianer::max_epochs", "--train::trainer::max_epochs"),
        ("train#trainr#x", "--train::trainer"),
        ("network::base_filtres", "--network::base_filters"),
        ("stages::3", "0, 1"),
        ("seed::first", "seed"),
    ],
)
def test_a_misspelt_part_of_a_nested_option_is_refused_with_the_nearest(config, option, hint):
    message = refusal(config, f"--{option}", "5")
    assert option in message and hint in message


@pytest.mark.parametrize("words", [["--max_steps=5", "oops"], ["--debug=true", "oops"], ["--seed", "3", "oops"]])
def test_a_word_that_belongs_to_no_option_is_refused(config, words):
    assert "'oops'" in refusal(config, *words)


@pytest.mark.parametrize("words", [["seed", "3"], ["--max_steps", "5", "seed", "3"]])
def test_a_key_without_dashes_is_refused(config, words):
    """MONAI would take these words for the lists to initialise and to finalise with."""
    assert "--seed" in refusal(config, *words)


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["--max_steps", "5"],
        ["--max_steps=5", "--seed=3"],
        ["-max_steps", "5"],
        ["--max-steps", "5"],
        ["--max_steps", "-5"],
        ["--seed", "max_steps"],  # the name of a key as a value
        ["--train::trainer::max_epochs", "5"],
        ["--train#trainer#max_epochs", "5"],
        ["--train", "{'trainer': {}}"],
        ["--rate_factor", "2"],  # a key that no file defines, but one refers to
        ["--meta_file", "m.json", "--logging_file", "l.conf", "--init_id", "initialize", "--workflow_type", "train"],
        ["--debug"],
        ["--debug", "--seed", "3"],
        ["--run_id", "training"],
        ["--tracking", "mlflow", "--experiment_name", "first", "--tracking_uri", "here"],
        ["--network::base_filters", "4"],  # an argument that the file leaves at its default
        ["--network::norm", "batch"],
        ["--network::_target_", "SegResNet", "--network::init_filters", "8"],
        ["--network", "{'_target_': 'SegResNet'}", "--network::init_filters", "8"],
        ["--optimizer::anything", "5"],  # its class takes any argument
        ["--stages::1", "5"],
    ],
)
def test_a_known_option_passes(config, words):
    check_overrides(command(config, *words))


def test_keys_of_every_config_file_are_known(config):
    both = f"['{config}','{config.replace('base', 'later')}']"
    for option in ("val_interval", "seed", "post", "training", "train::trainer::amp"):
        check_overrides(command(both, f"--{option}", "1"))
    assert "--val_interval" in refusal(config, "--val_interval", "1")


def test_every_key_at_the_top_of_the_training_config_can_be_overridden():
    text = (ROOT / "configs" / "train.yaml").read_text()
    keys = [line.split(":")[0] for line in text.splitlines() if line[:1].isalpha()]
    assert len(keys) > 30
    check_overrides(command(str(ROOT / "configs" / "train.yaml"), *[f"--{key}=1" for key in keys]))


def test_values_of_the_command_line_replace_those_of_files(config):
    values = check_overrides(command(config, "--max_steps", "7", "--stages", "[3]"))
    assert (values["max_steps"], values["stages"], values["seed"]) == (7, [3], 0)


# ------------------------------------------------------------------ files


def test_the_config_file_may_be_given_with_an_equals_sign_or_by_an_args_file(config, tmp_path):
    check_overrides([MAIN, "run", "training", f"--config_file={config}", "--max_steps", "5"])
    (tmp_path / "args.yaml").write_text(f"config_file: {config}\n")
    check_overrides([MAIN, "run", "training", "--args_file", str(tmp_path / "args.yaml"), "--max_steps", "5"])


@pytest.mark.parametrize("text", [None, "a: [1", "a: 1: 2", "- 1", "only words", "", "{a: 1"])
@pytest.mark.parametrize("option", ["config_file", "args_file"])
def test_a_file_that_is_missing_or_holds_no_keys_is_named(config, tmp_path, option, text):
    file = tmp_path / "wrong.yaml"
    if text is not None:
        file.write_text(text)
    words = (
        ["--config_file", str(file)] if option == "config_file" else ["--config_file", config, "--args_file", str(file)]
    )
    with pytest.raises(UserError, match=r"wrong\.yaml"):
        check_overrides([MAIN, "run", "training", *words])


def test_no_config_file_at_all_is_refused():
    with pytest.raises(UserError, match="--config_file"):
        check_overrides([MAIN, "run", "training"])


def test_a_misspelt_list_to_run_is_refused_with_the_nearest(config):
    with pytest.raises(UserError, match=r"'trainign'.* training"):
        check_overrides([MAIN, "run", "trainign", "--config_file", config])


def test_a_key_of_a_later_file_that_nothing_uses_is_refused_with_the_nearest(config, tmp_path):
    (tmp_path / "mine.yaml").write_text("max_stepz: 5\n")
    message = refusal(f"['{config}','{tmp_path}/mine.yaml']")
    assert "'max_stepz'" in message and "mine.yaml" in message and "max_steps" in message


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("train::guardd::max_norm: 5", "train::guard::max_norm"),
        ("trainn#guard#max_norm: 5", "train::guard::max_norm"),
        ("train::guard::max_nrom: 5", "max_norm"),
        ("train::deterministic_transforms::2::kyes: image", "keys"),
        ("train::deterministic_transforms::99::keys: image", "train::deterministic_transforms"),
        ("seed::x: 3", "seed"),
        ("network_def: {_target_: scripts.networks.vnet.VNet, base_filterz: 4}", "base_filters"),
        ("intensity:\n  _target_: Compose\n  transforms:\n  - {_target_: ScaleIntensityd, keyz: image}", "keys"),
        ("+terms: {more: {_target_: scripts.losses.unlabelled.EntropyTerm, wieght: 1}}", "weight"),
    ],
)
def test_a_misspelt_part_of_a_nested_key_is_refused_with_its_file_and_the_nearest(tmp_path, text, meant):
    (tmp_path / "mine.yaml").write_text(text + "\n")
    message = refusal(f"['{ROOT}/configs/train.yaml','{tmp_path}/mine.yaml']")
    assert "mine.yaml" in message and meant in message


@pytest.mark.parametrize(
    "text",
    [
        "terms::more: {_target_: scripts.losses.unlabelled.EntropyTerm, weight: 0.1}",
        "train::guard::patience: 2",
        "train::trainer::amp: true",
        "network_def: {_target_: monai.networks.nets.UNet, spatial_dims: 3, in_channels: 1, out_channels: 4}",
        "extra_optimizer: {_target_: torch.optim.SGD, _disabled_: true, params: [], lr: 1}",
        "intensity: {_target_: $dict, anything: 1}",
    ],
)
def test_arguments_that_a_component_has_pass(tmp_path, text):
    (tmp_path / "mine.yaml").write_text(text + "\n")
    check_overrides(command(f"['{ROOT}/configs/train.yaml','{tmp_path}/mine.yaml']"))


@pytest.mark.parametrize("text", ["max_steps: 5", "rate_factor: 2", "flip_axes: [0]", "_note: mine", "train#x: 1"])
def test_a_key_of_a_later_file_that_some_command_uses_passes(config, tmp_path, text):
    (tmp_path / "mine.yaml").write_text(text + "\n")
    check_overrides(command(f"['{config}','{tmp_path}/mine.yaml']"))


@pytest.mark.parametrize("text", ["max_steps: 5\nmax_steps: 6", "network:\n  norm: batch\n  norm: instance"])
def test_a_duplicate_key_in_one_file_is_refused(config, tmp_path, text):
    (tmp_path / "mine.yaml").write_text(text + "\n")
    with pytest.raises(UserError, match=r"mine\.yaml.*(max_steps|norm)"):
        check_overrides(command(f"['{config}','{tmp_path}/mine.yaml']"))


# ------------------------------------------------------------------ blocks


@pytest.mark.parametrize(
    ("text", "option", "lost", "instead"),
    [
        ("train: {trainer: {amp: true}}", "", "@train::inferer", "`train::trainer::amp: True`"),
        ("train::trainer: {amp: true}", "", "_target_", "`train::trainer::amp: True`"),
        ("network_def:\n  base_filters: 4", "", "_target_", "`network_def::base_filters: 4`"),
        ("validate: {inferer: {overlap: 0.25}}", "", "@validate::evaluator", "`validate::inferer::overlap: 0.25`"),
        ("max_steps: 5", "--network_def {'base_filters':8}", "_target_", "`--network_def::base_filters 8`"),
        ("max_steps: 5", "--network_def {...}", "_target_", "--network_def::"),
        ("max_steps: 5", "--train {'trainer':{'amp':True}}", "@train::inferer", "`--train::trainer::amp True`"),
    ],
)
def test_a_block_that_drops_what_is_needed_is_refused_with_the_way_to_write_one_value(
    tmp_path, text, option, lost, instead
):
    (tmp_path / "mine.yaml").write_text(text + "\n")
    message = refusal(f"['{ROOT}/configs/train.yaml','{tmp_path}/mine.yaml']", *option.split())
    assert lost.partition("::")[0].strip("@") in message and instead in message
    assert ("the command line" if option else "mine.yaml") in message


@pytest.mark.parametrize("folder", ["methods", "networks", "datasets"])
def test_blocks_of_the_bundles_own_files_drop_nothing_that_is_needed(folder):
    for file in sorted((ROOT / "configs" / folder).glob("*.yaml")):
        check_overrides(command(f"['{ROOT}/configs/train.yaml','{file}','{ROOT}/configs/evaluate.yaml']"))


@pytest.mark.parametrize("text", ["terms: {only: {_target_: dict}}", "deep_layers: {a: 1}", "+terms: {more: 1}"])
def test_a_block_may_be_replaced_by_another_whole_one(tmp_path, text):
    (tmp_path / "mine.yaml").write_text(text + "\n")
    check_overrides(command(f"['{ROOT}/configs/train.yaml','{tmp_path}/mine.yaml']"))


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
def test_another_program_is_not_taken_for_monais_run(argv):
    assert not is_command_line(argv)


def test_monais_run_is_recognised_by_its_path(config):
    assert is_command_line(command(config))


@pytest.mark.parametrize(("former", "now"), [("cache_rate", "cache"), ("unlabelled_from", "unlabelled_start")])
def test_a_former_key_is_refused_with_the_one_that_does_its_work(config, former, now):
    assert refusal(config, f"--{former}", "0.5").endswith(f"--{now}?")
