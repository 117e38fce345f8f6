# SPDX-License-Identifier: Apache-2.0
"""Pictures show the slices and classes in their titles."""

from __future__ import annotations

import gc
from pathlib import Path

import numpy as np
import pytest
import torch
from ignite.engine import Engine
from matplotlib.artist import Artist

from scripts.evaluation.overlay import OverlayPictures, overlay_figure


@pytest.fixture
def volumes() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    image = np.arange(6 * 8 * 10, dtype=np.float32).reshape(6, 8, 10)
    label = np.zeros((6, 8, 10), np.int64)
    label[4, 2, 7] = 2
    prediction = np.zeros_like(label)
    prediction[4, 2, 7] = 1
    return image, label, prediction


def test_panels_show_the_slices_through_the_structure(volumes) -> None:
    figure = overlay_figure(*volumes, "title")
    titles = [axes.get_title() for axes in figure.axes]
    assert titles[:3] == [
        "reference, slice 4 of axis 0",
        "reference, slice 2 of axis 1",
        "reference, slice 7 of axis 2",
    ]
    assert titles[3:] == [title.replace("reference", "prediction") for title in titles[:3]]
    shown = figure.axes[2].images[0].get_array()
    np.testing.assert_array_equal(shown, volumes[0][:, :, 7].T)


def test_reference_and_prediction_have_their_own_colours(volumes) -> None:
    figure = overlay_figure(*volumes, "title")
    reference, prediction = figure.axes[0].images[1].get_array(), figure.axes[3].images[1].get_array()
    assert reference.compressed().tolist() == [1]  # class 2 has the second colour
    assert prediction.compressed().tolist() == [0]


def test_an_empty_reference_is_drawn_at_the_centre() -> None:
    empty = np.zeros((6, 8, 10), np.int64)
    figure = overlay_figure(empty.astype(np.float32), empty, empty, "title")
    assert figure.axes[0].get_title() == "reference, slice 3 of axis 0"


def run(handler: OverlayPictures, cases: int, called: str = "c") -> None:
    def step(engine: Engine, number: int) -> list[dict]:
        engine.state.batch = [{"image": torch.rand(1, 4, 4, 4), "case": f"{called}{number}"}]
        one_hot = torch.zeros(3, 4, 4, 4)
        one_hot[0] = 1
        return [{"label": one_hot, "pred": torch.zeros(1, 4, 4, 4)}]

    engine = Engine(step)
    handler.attach(engine)
    engine.run(list(range(cases)))


def test_at_most_limit_cases_are_drawn_under_their_names(tmp_path: Path) -> None:
    run(OverlayPictures(tmp_path / "pictures", limit=2), cases=3)
    assert sorted(path.name for path in (tmp_path / "pictures").iterdir()) == ["c0.png", "c1.png"]


def test_figures_are_freed_after_the_run(tmp_path: Path) -> None:
    gc.collect()
    gc.disable()  # otherwise an automatic collection may free the figures
    try:
        run(OverlayPictures(tmp_path, limit=2), cases=3)
        alive = [thing for thing in gc.get_objects() if issubclass(type(thing), Artist)]
    finally:
        gc.enable()
    assert alive == []


@pytest.mark.parametrize("called", ["../../c", "a/b", "a\\b"])
def test_a_case_named_like_a_path_stays_in_the_folder(tmp_path: Path, called: str) -> None:
    run(OverlayPictures(tmp_path / "out/pictures"), cases=1, called=called)
    assert [path.parent for path in tmp_path.rglob("*") if path.is_file()] == [tmp_path / "out/pictures"]


def test_tensorboard_gets_the_step(tmp_path: Path) -> None:
    class Writer:
        def __init__(self) -> None:
            self.added: list[tuple[str, int]] = []

        def add_figure(self, tag: str, figure: object, global_step: int) -> None:
            self.added.append((tag, global_step))

    writer = Writer()
    run(OverlayPictures(tmp_path, summary_writer=writer, step=lambda: 40), cases=1)
    assert writer.added == [("overlay/c0", 40)]
