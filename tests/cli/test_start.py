# SPDX-License-Identifier: Apache-2.0
"""The first entries of every config check the command line, turn errors into one line, and seed the generators."""

from __future__ import annotations

import logging
import os
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from scripts.cli.start import begin, ready
from scripts.errors import UserError
from tests import forked_command

ROOT = Path(__file__).parents[2]
MAIN = "/venv/lib/python3.11/site-packages/monai/bundle/__main__.py"


def command(config, *words):
    return [MAIN, "run", "training", "--config_file", config, *words]


def reported(capsys):
    """What the hook prints about an exception that ends the process."""
    try:
        try:
            raise UserError("The folder x does not exist.")
        except UserError as error:
            raise RuntimeError("Failed to instantiate cases") from error
    except RuntimeError as error:
        sys.excepthook(type(error), error, error.__traceback__)
    return capsys.readouterr().err


def test_a_misspelt_option_is_refused(config):
    with pytest.raises(UserError, match=r"--max_step\b"):
        begin(argv=command(config, "--max_step", "5"))


def test_a_value_out_of_range_is_refused(config):
    with pytest.raises(UserError, match="max_steps"):
        begin(argv=command(config, "--max_steps", "0"))


def test_the_command_line_is_checked_if_a_word_replaces_initialize(config, tmp_path):
    with pytest.raises(UserError, match="'seed'"):
        ready([tmp_path], command(config, "seed", "3"))


def test_an_error_that_ends_the_process_is_printed_in_one_line(config, capsys):
    begin(argv=command(config))
    assert reported(capsys).strip() == "Error: The folder x does not exist."


@pytest.mark.parametrize(
    ("words", "traceback"), [(["--debug"], True), (["--debug=true"], True), (["--debug", "false"], False)]
)
def test_debug_shows_the_traceback_before_the_sentence(config, words, traceback, capsys):
    begin(argv=command(config, *words))
    text = reported(capsys)
    assert ("Traceback" in text) is traceback
    assert text.rstrip().endswith("Error: The folder x does not exist.")


def test_the_missing_decoder_is_not_mentioned_although_logging_conf_resets_levels(config, caplog):
    begin(argv=command(config))
    logger = logging.getLogger("monai.data.nvimgcodec_pydicom_plugin")
    logger.setLevel(logging.NOTSET)  # as `fileConfig` does with loggers below those that it configures
    logger.addHandler(caplog.handler)
    try:
        logger.warning("It is not available.")
        logger.error("It is broken.")
    finally:
        logger.removeHandler(caplog.handler)
    assert {record.levelname for record in caplog.records if record.name == logger.name} == {"ERROR"}


def test_another_program_keeps_its_options_and_its_hook():
    begin(argv=["/usr/bin/monailabel", "run", "training", "--nonsense", "1"])
    assert sys.excepthook is sys.__excepthook__


def test_monais_own_command_prints_one_line_before_it_writes_anything(tmp_path):
    files = ["--config_file", "configs/train.yaml", "--bundle_root", str(tmp_path)]
    words = ["run", "training", *files, "--max_step", "5"]
    done = forked_command.run(
        ["monai.bundle", *words], tmp_path / "streams", prepare=partial(os.chdir, ROOT), timeout=60
    )
    assert done.code == 1
    assert "Traceback" not in done.errors
    assert "--max_steps" in done.errors.strip().splitlines()[-1]
    assert [path.name for path in tmp_path.iterdir()] == ["streams"]


def test_the_seed_determines_weights_made_afterwards():
    weights = []
    for seed in (3, 3, 4):
        begin(seed=seed, argv=["pytest"])
        weights.append((torch.nn.Linear(2, 2).weight, np.random.rand()))
    assert torch.equal(weights[0][0], weights[1][0]) and weights[0][1] == weights[1][1]
    assert not torch.equal(weights[0][0], weights[2][0]) and weights[0][1] != weights[2][1]


def test_without_a_seed_the_generators_do_not_change():
    torch.manual_seed(9)
    begin(argv=["pytest"])
    assert torch.rand(1) == torch.rand(1, generator=torch.Generator().manual_seed(9))


@pytest.mark.parametrize("seed", [-1, "three", 1.5])
def test_a_seed_that_is_not_a_whole_number_is_refused(seed):
    with pytest.raises(UserError, match="seed"):
        begin(seed=seed, argv=["pytest"])
