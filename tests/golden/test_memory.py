# SPDX-License-Identifier: Apache-2.0
"""Memory updates against the recorded numbers of SS-Net and SemiSeg-Contrastive."""

from __future__ import annotations

import pytest
import torch

from scripts.prototypes.memory import PrototypeMemory
from scripts.prototypes.selectors import ClassSelectors, choose_embeddings, embeddings_per_image, select_indices
from tests.golden.golden_files import Golden, found, load_selector

FILES = found("memory_*.npz")


def selectors_of(golden):
    dim = golden["features_u0"].shape[1]
    selectors = ClassSelectors(golden["num_classes"], dim, "none")
    for c, selector in enumerate(selectors.feature):
        load_selector(selector, golden.part(f"feature_selector_c{c}."))
    return selectors.train(bool(golden["mode_train"]))


def memory_of(golden):
    """First in, first out if the file records a capacity, else replacement."""
    offered, dim = golden["elements_per_class"], golden["features_u0"].shape[1]
    if "memory_per_class" not in golden:
        return PrototypeMemory(golden["num_classes"], dim, offered)
    capacity = golden["memory_per_class"]
    return PrototypeMemory(golden["num_classes"], dim, capacity, "fifo", first_insertion=max(offered, capacity))


def rows_recorded(golden, when, t, c):
    return golden.get(f"{when}_u{t}_c{c}", torch.zeros(0, golden["features_u0"].shape[1]))


@pytest.mark.parametrize("path", FILES)
def test_recorded_sequence_of_updates_is_reproduced(path):
    golden = Golden(path)
    selectors, memory = selectors_of(golden), memory_of(golden)
    classes = range(golden["num_classes"])
    memory.update({c: rows_recorded(golden, "before", 0, c) for c in classes})
    for t in range(golden["num_updates"]):
        features, labels = golden[f"features_u{t}"], golden[f"labels_u{t}"]
        offered = {c: features[labels == c] for c in classes}
        for c in classes:
            assert torch.equal(memory.prototypes(c), rows_recorded(golden, "before", t, c)), (
                f"before update {t}, class {c}"
            )
        memory.update(
            {
                c: choose_embeddings(c, rows, golden["elements_per_class"], "lowest", selectors=selectors)
                for c, rows in offered.items()
                if len(rows) > 0
            }
        )
        for c in classes:
            recorded = rows_recorded(golden, "after", t, c)
            assert torch.equal(memory.prototypes(c), recorded), f"after update {t}, class {c}"
            if len(recorded) > 0:
                golden.check(memory.prototypes(c), f"after_u{t}_c{c}", atol=0, quantity="prototypes")
    for c, selector in enumerate(selectors.feature):
        for key in golden.part(f"after.feature_selector_c{c}.bn."):
            recorded = f"after.feature_selector_c{c}.bn.{key}"
            golden.check(getattr(selector[1], key), recorded, atol=1e-5, quantity="selector statistics")


@pytest.mark.parametrize("path", FILES)
def test_recorded_scores_and_orders_are_reproduced(path):
    golden = Golden(path)
    selectors = selectors_of(golden)
    for t in range(golden["num_updates"]):
        for c in range(golden["num_classes"]):
            if f"out.scores_u{t}_c{c}" in golden:
                rows = golden[f"features_u{t}"][golden[f"labels_u{t}"] == c]
                with torch.no_grad():
                    scores = selectors.feature_scores(c, rows)
                golden.check(scores, f"out.scores_u{t}_c{c}", atol=1e-5, quantity="scores")
                order = golden[f"out.order_u{t}_c{c}"]
                assert torch.equal(
                    select_indices(len(rows), golden["elements_per_class"], "lowest", scores),
                    order[: golden["elements_per_class"]],
                )


@pytest.mark.parametrize("path", found("memory_fifo_*.npz"))
def test_recorded_number_of_rows_an_image_offers_is_reproduced(path):
    golden = Golden(path)
    sampling = ("image", "class")[golden["sampling_rule"]]
    rows = embeddings_per_image(golden["memory_per_class"], golden["num_samples"], golden["num_classes"], sampling)
    assert rows == golden["out.per_class_samples_per_image"]
    assert rows * golden["batch_size"] == golden["elements_per_class"]
