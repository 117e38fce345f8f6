# SPDX-License-Identifier: Apache-2.0
"""Pictures show the slices and classes in their titles."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from ignite.engine import Engine

from scripts.evaluation.overlay import PALETTE, OverlayPictures, draw_panels, overlay_panels


@pytest.fixture
def volumes() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    image = np.arange(6 * 8 * 10, dtype=np.float32).reshape(6, 8, 10)
    label = np.zeros((6, 8, 10), np.int64)
    label[4, 2, 7] = 2
    prediction = np.zeros_like(label)
    prediction[4, 2, 7] = 1
    return image, label, prediction


def test_panels_show_the_slices_through_the_structure(volumes) -> None:
    panels = overlay_panels(*volumes)
    captions = [caption for caption, _ in panels]
    assert captions[:3] == [
        "reference, slice 4 of axis 0",
        "reference, slice 2 of axis 1",
        "reference, slice 7 of axis 2",
    ]
    assert captions[3:] == [caption.replace("reference", "prediction") for caption in captions[:3]]
    shown = panels[2][1].astype(int)  # the first axis to the right, the second one up
    assert shown.shape == (8, 6, 3)
    assert (np.diff(shown[:, 0, 0]) < 0).all() and (np.diff(shown[0, :, 0]) > 0).all()


def test_reference_and_prediction_have_their_own_colours(volumes) -> None:
    image, label, prediction = volumes
    panels = overlay_panels(np.zeros_like(image), label, prediction)
    for (_, picture), colour in ((panels[0], PALETTE[1]), (panels[3], PALETTE[0])):
        coloured = picture[picture.any(axis=-1)]
        assert coloured.tolist() == (colour // 2)[None].tolist()  # half the colour, over black


def test_classes_beyond_the_palette_take_its_colours_again(volumes) -> None:
    image, label, _ = volumes
    first, again = (overlay_panels(image, label, label // 2 * n)[3][1] for n in (1, 1 + len(PALETTE)))
    assert (first == again).all()


def test_an_empty_reference_is_drawn_at_the_centre() -> None:
    empty = np.zeros((6, 8, 10), np.int64)
    assert overlay_panels(empty.astype(np.float32), empty, empty)[0][0] == "reference, slice 3 of axis 0"


def test_six_panels_fill_two_rows(volumes) -> None:
    blank = draw_panels([(" ", np.full((1, 1, 3), 255, np.uint8))] * 6, " ")
    drawn = draw_panels(overlay_panels(*volumes), "a title")
    assert drawn.size == blank.size
    different = (np.asarray(drawn) != np.asarray(blank)).any(axis=-1)
    rows, columns = np.array_split(different, 2), np.array_split(different, 3, axis=1)
    assert all(part.any() for part in (*rows, *columns))


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


@pytest.mark.parametrize("called", ["../../c", "a/b", "a\\b"])
def test_a_case_named_like_a_path_stays_in_the_folder(tmp_path: Path, called: str) -> None:
    run(OverlayPictures(tmp_path / "out/pictures"), cases=1, called=called)
    assert [path.parent for path in tmp_path.rglob("*") if path.is_file()] == [tmp_path / "out/pictures"]


def test_tensorboard_gets_the_step(tmp_path: Path) -> None:
    class Writer:
        def __init__(self) -> None:
            self.added: list[tuple[str, int]] = []

        def add_image(self, tag: str, picture: np.ndarray, step: int, dataformats: str) -> None:
            assert picture.shape[-1] == 3 and dataformats == "HWC"
            self.added.append((tag, step))

    writer = Writer()
    run(OverlayPictures(tmp_path, summary_writer=writer, step=lambda: 40), cases=1)
    assert writer.added == [("overlay/c0", 40)]
