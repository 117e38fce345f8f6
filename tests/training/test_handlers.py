# SPDX-License-Identifier: Apache-2.0
"""The order in which a training run's handlers are attached."""

from __future__ import annotations

import pytest


@pytest.fixture
def names(make_workflow):
    """Class names of the handlers of a run with validation cases, in the order in which they are attached."""

    def of(*files: str, **overrides) -> list[str]:
        return [type(handler).__name__ for handler in handlers_of(make_workflow("train.yaml", *files, **overrides))]

    return of


def handlers_of(workflow) -> list:
    workflow.parser.get_parsed_content("train::trainer")  # attaches them
    (handlers,) = workflow.parser.get_parsed_content("train::handlers")
    return handlers.handlers


BEFORE = [
    ("MemoryBankUpdater", "GradientGuard"),
    ("TrainingCheckpoint", "Validation"),  # a validation that fails loses no step
    ("Validation", "StopOnSignal"),  # its result is in the checkpoint of a run that is stopped
    ("LrScheduleHandler", "TrainingCheckpoint"),  # otherwise the learning rate lags one step after a resume
    ("TeacherUpdater", "TrainingCheckpoint"),
    ("RankSynchroniser", "GradientGuard"),  # all ranks must judge the same gradient
    ("GradientGuard", "TeacherUpdater"),  # the teacher does not follow an undone step
    ("TrainingCheckpoint", "StopOnSignal"),
    ("StopOnSignal", "RunProgressBar"),  # ignite calls only the first listener of an exception
    ("TrainingCheckpoint", "StopAtStep"),  # a resumed run must know its step before it may stop
    ("FinalModelSaver", "StopAtStep"),
    ("TrainingCheckpoint", "RunRecord"),  # which notes the restored step
    ("RunRecord", "FinalModelSaver"),  # which writes the finished record into the model
]


def test_handlers_are_attached_in_the_required_order(names):
    order = names()
    assert len(order) == len(set(order))
    for first, second in BEFORE:
        assert order.index(first) < order.index(second), (first, second)
    assert order[-1] == "StopAtStep"


def test_a_handler_of_the_method_comes_first(names):
    order = names("methods/prototype_selectors.yaml")
    assert order[:2] == ["ExtraOptimizer", "MemoryBankUpdater"]


def test_the_checkpoint_stores_the_settings_that_a_resume_must_share(make_workflow):
    workflow = make_workflow(
        "train.yaml", labelled_cases=2, batch_unlabelled=1, learning_rate=0.003, seed=5, unlabelled_start=0.25
    )
    (checkpoint,) = [each for each in handlers_of(workflow) if type(each).__name__ == "TrainingCheckpoint"]
    settings = checkpoint.settings
    assert (settings["labelled"], settings["unlabelled"]) == (2, 4)
    assert (settings["batch_labelled"], settings["batch_unlabelled"]) == (1, 1)
    assert (settings["learning_rate"], settings["seed"], settings["roi_size"]) == (0.003, 5, [32, 32, 16])
    assert settings["terms"] == [
        "supervised",
        "pseudo_labels",
        "contrast_labelled",
        "contrast_unlabelled",
        "deep_supervision",
    ]
    assert (settings["feature_layer"], settings["teacher_decay"]) == ("decoder.2", 0.99)
    assert settings["unlabelled_start"] == 0.25, "a fraction, so that max_steps may be raised"
    assert {"spacing", "label_names"} <= set(settings)
    assert not {"directory", "labelled_cases"} & set(settings)
