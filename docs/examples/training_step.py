# SPDX-License-Identifier: Apache-2.0
r"""Print a flow chart of a training step, in Mermaid, from the trainer that a configuration builds.

    python docs/examples/training_step.py configs/train.yaml

The stages are those of MONAI's `SupervisedTrainer`; beside each event stand the handlers that listen to it, in their
order. docs/method.md shows the chart of `configs/train.yaml`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from ignite.engine import Events
from monai.bundle import ConfigWorkflow
from monai.engines import IterationEvents, SupervisedTrainer


def stages(trainer: SupervisedTrainer) -> list[tuple[str, Any]]:
    """What a step does, and the event that follows it."""
    batches, loss = trainer.data_loader.batches, trainer.loss_function
    patches = f"{batches.batch_labelled} labelled and {batches.batch_unlabelled} unlabelled patches"
    return [
        ("step begins", Events.ITERATION_STARTED),
        (f"{type(trainer.data_loader).__name__}<br>{patches}", Events.GET_BATCH_COMPLETED),
        (f"{type(trainer.inferer).__name__}, {type(trainer.network).__name__}<br>logits and features of all patches",
         IterationEvents.FORWARD_COMPLETED),
        (f"{type(loss).__name__}<br>{'<br>'.join(loss.terms)}", IterationEvents.LOSS_COMPLETED),
        ("gradients", IterationEvents.BACKWARD_COMPLETED),
        (type(trainer.optimizer).__name__, IterationEvents.MODEL_COMPLETED),
        ("step ends", Events.ITERATION_COMPLETED),
    ]  # fmt: skip


def handler_name(function: Callable) -> str:
    """The class of a handler, or the name of a plain function."""
    wrapped = getattr(function, "_parent", None)  # of events with a filter, such as every 100 steps
    function = function if wrapped is None else wrapped()
    owner = getattr(function, "__self__", function)
    return type(owner).__name__ if owner is not function or not hasattr(owner, "__name__") else function.__name__


def chart(trainer: SupervisedTrainer) -> str:
    """The flow chart; `trainer` has attached its handlers."""
    lines = ["flowchart TD"]
    for number, (title, event) in enumerate(stages(trainer)):
        lines.append(f'    s{number}["{title}"]' + (f"\n    s{number - 1} --> s{number}" if number else ""))
        # ignite sorts neither: this is the order in which it calls them.
        names = dict.fromkeys(handler_name(function) for function, *_ in trainer._event_handlers[event])
        if names:
            lines.append(f'    s{number} -. "{event.value}" .-> h{number}(["{"<br>".join(names)}"])')
    return "\n".join(lines)


def main() -> None:
    """Build the training of a config file, without running it."""
    workflow = ConfigWorkflow(
        workflow_type="train", config_file=sys.argv[1:], meta_file="configs/metadata.json", run_id="training",
        logging_file=False,
    )  # fmt: skip
    workflow.initialize()
    print(chart(workflow.parser.get_parsed_content("train::trainer")))


if __name__ == "__main__":
    main()
