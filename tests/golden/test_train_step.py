# SPDX-License-Identifier: Apache-2.0
"""Whole training iterations of SS-Net, built from our parts, against the recorded ones."""

from __future__ import annotations

import re
from types import SimpleNamespace

import pytest
import torch
from torch.nn.functional import cross_entropy

from scripts.losses.base import WeightedLoss
from scripts.losses.contrast import LabelledContrastTerm, UnlabelledContrastTerm
from scripts.losses.schedules import RampUp
from scripts.losses.smoothness import SmoothnessTerm
from scripts.losses.supervised import LinearDiceTerm
from scripts.networks.heads import ProjectionHead
from scripts.prototypes.loss import ContrastivePrototypeLoss
from scripts.prototypes.memory import PrototypeMemory
from scripts.prototypes.selectors import ClassSelectors
from scripts.training.inferer import FeatureInferer
from scripts.training.memory_updater import MemoryBankUpdater
from tests.golden.golden_files import Golden, compare, found
from tests.golden.golden_network import load_by_rule, network_for, our_names, reference_state

ITERATIONS = 15000
LOSS, ADVERSARIAL, SELECTED, MEMORY, WEIGHTS = (5e-5, 5e-4), (1e-4, 5e-4), (5, 50), (5e-4, 3e-2), (3e-7, 1e-6)
"""Tolerances at the first and the second iteration, as in tests/golden/README.md."""


class Step:
    """The reference's network, heads, selectors, memory, loss and optimiser, built from our parts."""

    def __init__(self, golden):
        self.golden = golden
        golden |= {"mode_train": 1, "in_channels": golden["input_t0"].shape[1]}
        state, classes = reference_state(golden), golden["num_classes"]
        self.network = network_for(golden)
        width = self.network.decoder.output.conv.in_channels
        memory = PrototypeMemory(classes, 32, golden["elements_per_class"])
        self.projection = load_by_rule(ProjectionHead(width, 32), state, "projection_head")
        prediction = load_by_rule(ProjectionHead(32, 32), state, "prediction_head")
        selectors = ClassSelectors(classes, 32, "reference")
        for c in range(classes):
            load_by_rule(selectors.feature[c], state, f"contrastive_class_selector_{c}")
            load_by_rule(selectors.memory[c], state, f"contrastive_class_selector_memory{c}")
        contrast = ContrastivePrototypeLoss(
            memory,
            self.projection,
            prediction,
            selectors,
            samples_per_class=None,
            divisor="all",
            embeddings_through_heads="all",
        )
        self.rand = None
        ramp = {"end": 0.4, "stairs": 40}
        terms = {
            "dice": LinearDiceTerm(classes="first"),
            "contrast_labeled": LabelledContrastTerm(contrast, RampUp(0.1, **ramp)),
            "contrast_unlabeled": UnlabelledContrastTerm(contrast, RampUp(0.1, **ramp), confidence=0.0),
            "adversarial": SmoothnessTerm(
                RampUp(1.0, **ramp),
                probe=golden["vat_xi"],
                epsilon=golden["vat_epsilon"],
                clean_pass="own",
                noise=lambda _: self.rand - 0.5,
            ),
        }
        self.loss = WeightedLoss(terms, ITERATIONS)
        self.memory, self.selectors = memory, selectors
        self.updater = MemoryBankUpdater(memory, self.projection, selection="lowest", selectors=selectors)
        self.inferer = FeatureInferer("decoder.stage1")
        self.optimizer = torch.optim.SGD(
            [*self.network.parameters(), *self.loss.parameters()],
            lr=golden["learning_rate"],
            momentum=golden["momentum"],
            weight_decay=golden["weight_decay"],
        )
        self.names = our_names(golden)

    def run(self, t):
        """One iteration; the total, and the logits and labels of the labelled cases."""
        golden = self.golden
        labels = golden[f"label_t{t}"][: golden["labeled_batch_size"], None].long()
        self.rand, self.loss.step = golden[f"rand_t{t}"], golden["first_iteration"] + t
        self.optimizer.zero_grad()
        batch = self.inferer(golden[f"input_t{t}"], self.network, labels)
        self.updater(SimpleNamespace(state=SimpleNamespace(output={"pred": batch})))
        total = self.loss(batch)
        total.backward()
        return total, batch.labelled_logits.detach(), batch.labels

    def entry(self, key):
        """Our tensor for an entry of the reference's state dict."""
        if key in self.names:
            return self.named(self.network, self.names[key])
        module, _, rest = key.partition(".")
        heads = {
            "projection_head": self.projection,
            "prediction_head": self.loss.terms["contrast_labeled"].loss.prediction_head,
        }
        if module in heads:
            return self.named(heads[module], rest)
        kind = "memory" if "memory" in module else "feature"
        class_id = int(re.search(r"\d+$", module)[0])
        return self.named(getattr(self.selectors, kind)[class_id], rest)

    @staticmethod
    def named(module, name):
        return dict(module.named_parameters()).get(name, module.state_dict()[name])


def close_rows(ours, recorded, atol):
    """Whether each recorded row has one of ours within the tolerance; neighbours in the ranking may swap."""
    return torch.cdist(recorded, ours, p=float("inf")).min(dim=1).values.max() <= atol


@pytest.mark.parametrize("path", found("train_step*.npz"))
def test_recorded_iterations_are_reproduced(path):
    golden = Golden(path)
    step = Step(golden)
    for t in range(golden["num_iterations"]):
        late = min(t, 1)
        total, logits, labels = step.run(t)
        golden.check(total, f"out.total_t{t}", atol=LOSS[late], quantity="total")
        golden.check(
            cross_entropy(logits, labels), f"out.cross_entropy_t{t}", atol=LOSS[late], quantity="cross-entropy"
        )
        for name, value in step.loss.last.items():
            tolerance = (ADVERSARIAL if name == "adversarial" else LOSS)[late]
            golden.check(value, f"out.{name}_t{t}", atol=tolerance, quantity=name)
        golden.check(
            step.loss.terms["adversarial"].weight_at(step.loss.step, ITERATIONS), f"out.weight_t{t}", atol=1e-6
        )
        selected = ((logits.argmax(1) == labels) & (labels > 0)).sum()
        assert abs(int(selected) - golden[f"out.num_selected_t{t}"]) <= SELECTED[late]
        for c in range(golden["num_classes"]):
            recorded = golden.get(f"out.memory_t{t}_c{c}")
            assert len(step.memory.prototypes(c)) == max(0, int(golden[f"out.memory_rows_t{t}"][c]))
            assert recorded is None or close_rows(step.memory.prototypes(c), recorded, MEMORY[late])
        check_gradients(step, t)
        step.optimizer.step()
        check_weights(step, t)


def check_gradients(step, t):
    for key, recorded in step.golden.part(f"out.grad_norm_t{t}.").items():
        gradient = step.entry(key).grad
        ours = 0.0 if gradient is None else gradient.norm()
        rtol, atol = (1e-1, 1e-6) if t > 0 or key.startswith("encoder") else (2e-2, 1e-6)
        if t == 0 and key == "decoder.block_nine.conv.1.weight":
            rtol = 2e-4  # shows whether the contrast's gradient reaches the network
        if key.endswith(".bias") and recorded < 1e-5:
            rtol, atol = 0.0, 1e-5  # directly before a batch norm: the true gradient is zero
        compare(step.golden.name, f"gradient norm of {key.partition('.')[0]}", ours, recorded, atol, rtol)


def check_weights(step, t):
    for key in step.golden.part(f"after_t{t}."):
        golden_key = f"after_t{t}.{key}"
        step.golden.check(step.entry(key), golden_key, atol=WEIGHTS[min(t, 1)], quantity="weights after the step")
