# SPDX-License-Identifier: Apache-2.0
"""Each measurement runs on tiny tensors, prints a table; no time is asserted."""

from __future__ import annotations

import pytest

from scripts.experiments import loss_cost

TINY = ("--patch", "16", "16", "16", "--repeats", "1")
REFERENCE = """
def contrastive_class_to_class_learned_memory(model, features, labels, num_classes, memory):
    assert all(hasattr(model, f"contrastive_class_selector_{kind}{c}") for kind in ("", "memory") for c in range(2))
    return features[labels == 1].square().mean().cuda()
"""


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch):
    """New processes would spend seconds on imports."""
    monkeypatch.setattr(loss_cost, "in_process", lambda function, *args: function(*args))


@pytest.mark.parametrize(
    ("words", "rows", "columns"),
    [
        (
            ("growth", "--classes", "2", "3", "--stored", "4"),
            2,
            ("classes", "prototypes", "memory update ms", "peak MiB"),
        ),
        (("reference", "--reference", "checkout"), 4, ("reference s", "ours s", "ratio", "difference of values")),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_a_measurement_prints_a_table(words, rows, columns, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "checkout/code/utils").mkdir(parents=True)
    (tmp_path / "checkout/code/utils/contrastive_losses.py").write_text(REFERENCE, encoding="utf-8")
    loss_cost.main([*words, *TINY])
    head, _, *lines = capsys.readouterr().out.splitlines()
    assert len(lines) == rows and set(columns) <= set(head.strip("| ").split(" | "))


def test_a_folder_without_the_reference_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="contrastive_losses"):
        loss_cost.load_reference(tmp_path)


def test_the_share_of_a_step_is_measured_in_a_run(tiny_demo, capsys):
    loss_cost.main(["step", "--dataset_dir", str(tiny_demo), "--repeats", "1"])
    *_, name, seconds, memory, contrast = capsys.readouterr().out.splitlines()[-1].strip("| ").split(" | ")
    assert name == "demo" and float(seconds) > 0
    assert 0 < float(memory) < 100 and 0 < float(contrast) < 100
