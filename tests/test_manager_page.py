# SPDX-License-Identifier: Apache-2.0
"""The worked example of docs/manager.md runs as it is printed there."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

PAGE = Path(__file__).resolve().parents[1] / "docs" / "manager.md"


def test_the_pages_training_loop_learns_logs_and_fills_the_memory(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    names: dict = {"__name__": "manager_page"}
    exec(compile(code, str(PAGE), "exec"), names)
    names["writer"].close()

    manager, model = names["manager"], names["model"]
    assert manager.memory_summary() == {0: 32, 1: 32, 2: 32}
    assert f"{manager.memory_summary()}\n" in capsys.readouterr().out
    image, label = names["batch"](2)
    with torch.no_grad():
        accuracy = (model(image)[0].argmax(dim=1) == label).float().mean().item()
    assert accuracy > 0.6  # a third by chance
    assert all(p.grad is not None for selector in manager.get_selectors()[0] for p in selector.parameters())

    log = EventAccumulator(str(tmp_path / "outputs/manager")).Reload()
    parts, kinds = ("contrastive", "intra", "inter", "total"), ("labelled", "unlabelled")
    assert set(log.Tags()["scalars"]) == {f"Loss/{part}_{kind}" for part in parts for kind in kinds}
    for kind in kinds:
        values = [event.value for event in log.Scalars(f"Loss/contrastive_{kind}")]
        assert len(values) == 30 and 0 < values[-1] < max(values)
