# SPDX-License-Identifier: Apache-2.0
"""The method document's interface: what each call writes, computes and refuses."""

from __future__ import annotations

import copy
import io
import math

import pytest
import torch

from scripts.prototypes.loss import ContrastivePrototypeLoss, compactness, separation
from scripts.prototypes.manager import ContrastivePrototypeManager

EAST, NORTH, WEST = [1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]


def manager_of(**options):
    return ContrastivePrototypeManager(**{"num_classes": 3, "feature_dim": 2, "elements_per_class": 4} | options)


def sure(classes, probability=0.98, num_classes=3):
    """Probabilities `(N, K)` that give each class that probability."""
    rows = torch.full((len(classes), num_classes), (1 - probability) / (num_classes - 1))
    rows[range(len(classes)), classes] = probability
    return rows


def features(*rows):
    return torch.tensor(rows, requires_grad=True)


# ------------------------------------------------------------------ memory


def test_new_features_of_a_class_take_the_place_of_the_old():
    manager = manager_of()
    offered = features(EAST, WEST)
    manager.update_memory({1: offered, 2: features(NORTH)})
    manager.update_memory({1: features(NORTH)})
    assert manager.memory_summary() == {0: 0, 1: 1, 2: 1}
    assert manager.memory.prototypes(1).tolist() == [NORTH]
    assert not manager.memory.prototypes(2).requires_grad


def test_the_most_probable_features_enter_on_request():
    probabilities = sure([1] * 4)
    probabilities[:, 1] = torch.tensor([0.5, 0.9, 0.4, 0.8])
    probabilities[:, 0] = 0.98 - probabilities[:, 1]
    probabilities[:, 2] = 0.02
    manager = manager_of(selection="confidence", elements_per_class=2, predictions="probabilities")
    rows = torch.tensor([[0.0, 1.0], [1.0, 1.0], [2.0, 1.0], [3.0, 1.0]])
    manager.update_and_compute_loss(rows, probabilities, torch.ones(4))
    assert manager.memory.prototypes(1)[:, 0].tolist() == [1, 3]


@pytest.mark.parametrize(("selection", "kept"), [(None, "lowest"), ("highest", "highest")])
def test_selectors_choose_what_enters_and_the_documents_sort_keeps_the_lowest(selection, kept):
    torch.manual_seed(0)
    manager = manager_of(use_learned_selector=True, selection=selection).eval()
    rows = torch.randn(9, 2)
    scores = manager.get_selectors()[0][2](rows).argsort(descending=kept == "highest")
    manager.update_memory({2: rows})
    assert torch.equal(manager.memory.prototypes(2), rows[scores[:4]])


def test_two_updates_with_the_same_state_and_input_give_the_same_memory():
    manager = manager_of(use_learned_selector=True)
    twin, rows = copy.deepcopy(manager), torch.randn(9, 2)
    manager.update_memory({1: rows})
    twin.update_memory({1: rows})
    for key, value in manager.state_dict().items():
        assert torch.equal(value, twin.state_dict()[key]), key


# ------------------------------------------------------------------ losses


def test_contrast_is_the_mean_cosine_distance_to_the_memory_of_the_own_class():
    manager = manager_of()
    manager.update_memory({1: torch.tensor([EAST, EAST]), 2: torch.tensor([NORTH, NORTH])})
    value = manager.contrastive_class_to_class_learned_memory(
        features(EAST, WEST, NORTH, NORTH), torch.tensor([1, 1, 2, 2])
    )
    assert value.item() == pytest.approx(0.5)  # class 1: mean of 0 and 2; class 2: 0


def test_the_memory_is_written_before_the_loss_is_computed():
    manager = manager_of()
    manager.update_memory({1: torch.tensor([WEST, WEST])})
    _, parts = manager.update_and_compute_loss(features(EAST, EAST), sure([1, 1]), torch.tensor([1, 1]))
    assert parts["contrastive"] == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("learned", [False, True])
def test_the_loss_is_the_weighted_sum_of_its_parts(learned):
    torch.manual_seed(0)
    manager = manager_of(use_learned_selector=learned, margin=1.5).eval()
    rows, labels = torch.randn(12, 2, requires_grad=True), torch.tensor([0, 1, 2] * 4)
    loss, parts = manager.update_and_compute_loss(
        rows, sure(labels), labels, contrastive_weight=2.0, intra_weight=0.5, inter_weight=0.25
    )
    expected = {
        "contrastive": manager.contrastive_class_to_class_learned_memory(rows, labels).item(),
        "intra": compactness(rows, labels, 3).item(),
        "inter": separation(rows, labels, 3, margin=1.5).item(),
    }
    total = 2 * expected["contrastive"] + 0.5 * expected["intra"] + 0.25 * expected["inter"]
    assert parts == pytest.approx(expected | {"total": total}, rel=1e-5)
    assert all(value > 0.01 for value in expected.values())
    assert loss.item() == pytest.approx(total, rel=1e-5)


def test_a_part_of_weight_0_is_not_computed(monkeypatch):
    def fail(*_):
        raise AssertionError

    monkeypatch.setattr("scripts.prototypes.manager.compactness", fail)
    monkeypatch.setattr(ContrastivePrototypeLoss, "forward", fail)
    rows, labels = features(EAST, EAST, NORTH), torch.tensor([1, 1, 2])
    _, parts = manager_of(margin=1.5).update_and_compute_loss(
        rows, sure(labels), labels, contrastive_weight=0, intra_weight=0
    )
    assert parts == pytest.approx({"inter": 0.5, "total": 0.05}, rel=1e-5)


@pytest.mark.parametrize("part", ["contrastive_weight", "intra_weight", "inter_weight"])
def test_each_loss_alone_moves_the_features_downhill(part):
    """The document's auxiliary losses see detached features and do nothing; these pull and push."""
    torch.manual_seed(0)
    weights = {"contrastive_weight": 0.0, "intra_weight": 0.0, "inter_weight": 0.0} | {part: 1.0}
    start, labels = torch.rand(8, 2) + torch.tensor([1.0, 0.0]), torch.tensor([1, 1, 1, 1, 2, 2, 2, 2])
    manager = manager_of(selection="confidence")

    def loss_at(rows):
        manager.update_memory({1: torch.tensor([NORTH] * 4), 2: torch.tensor([WEST] * 4)})
        if part == "contrastive_weight":
            return manager.contrastive_class_to_class_learned_memory(rows, labels)
        return manager.update_and_compute_loss(rows, sure(labels), labels, **weights)[0]

    rows = start.clone().requires_grad_()
    before = loss_at(rows)
    before.backward()
    assert (rows.grad.norm(dim=1) > 1e-4).all()
    moved = start - 0.2 * rows.grad
    assert loss_at(moved).item() < before.item() - 1e-4


def test_selectors_learn_and_have_an_optimiser_of_their_own():
    torch.manual_seed(0)
    manager = manager_of(use_learned_selector=True)
    feature_selectors, memory_selectors = manager.get_selectors()
    optimiser = torch.optim.Adam([*feature_selectors.parameters(), *memory_selectors.parameters()], lr=0.001)
    before = copy.deepcopy(feature_selectors[1].state_dict())
    labels = torch.tensor([1] * 6)
    loss, _ = manager.update_and_compute_loss(torch.randn(6, 2, requires_grad=True), sure(labels), labels)
    loss.backward()
    optimiser.step()
    assert not torch.equal(feature_selectors[1][3].weight, before["3.weight"])
    assert memory_selectors[1][3].weight.grad.abs().sum() > 0


def test_without_selectors_there_are_none_and_the_loss_has_no_parameters():
    manager = manager_of()
    assert manager.get_selectors() == (None, None)
    assert list(manager.parameters()) == []


# ------------------------------------------------------------------ forms of input


def maps_of(rows, shape):
    """Embeddings `(N, C)` as maps `(B, C, ...)`."""
    return rows.reshape(*shape, -1).movedim(-1, 1)


@pytest.mark.parametrize("channel", [False, True])
@pytest.mark.parametrize("shape", [(2, 2, 1, 3), (2, 2, 3)])
def test_maps_and_embeddings_give_the_same(shape, channel):
    torch.manual_seed(0)
    rows, labels = torch.randn(12, 2), torch.randint(3, (12,))
    flat, mapped = manager_of(elements_per_class=12), manager_of(elements_per_class=12)
    expected, parts = flat.update_and_compute_loss(rows, sure(labels), labels)
    label_maps = labels.reshape(shape).float()
    value, parts_of_maps = mapped.update_and_compute_loss(
        maps_of(rows, shape), maps_of(sure(labels), shape), label_maps[:, None] if channel else label_maps
    )
    torch.testing.assert_close(value, expected)
    assert parts_of_maps == pytest.approx(parts)
    assert all(torch.equal(mapped.memory.prototypes(c), flat.memory.prototypes(c)) for c in range(3))


def test_labels_and_predictions_are_brought_to_coarser_features():
    labels = torch.tensor([1, 1, 2, 2]).repeat(1, 2, 2, 1)
    maps = torch.tensor([EAST, NORTH]).T.reshape(1, 2, 1, 1, 2)
    predictions = maps_of(sure(labels.flatten()), labels.shape)
    for given in (labels, None):
        manager = manager_of(predictions="probabilities")
        manager.update_and_compute_loss(maps, predictions, given)
        assert manager.memory.prototypes(1).tolist() == [EAST] and manager.memory.prototypes(2).tolist() == [NORTH]


@pytest.mark.parametrize("arguments", [{"labels": None}, {"labels": torch.tensor([2, 2, 2]), "is_labeled": False}])
def test_unlabelled_features_enter_under_a_confident_pseudo_label(arguments):
    predictions = torch.cat([sure([1], 0.95), sure([2], 0.85), sure([0], 0.91)])
    manager = manager_of(predictions="probabilities")
    manager.update_and_compute_loss(features(EAST, NORTH, WEST), predictions, **arguments)
    assert manager.memory_summary() == {0: 1, 1: 1, 2: 0}
    lower = manager_of(predictions="probabilities", confidence=0.8)
    lower.update_and_compute_loss(features(EAST, NORTH, WEST), predictions, **arguments)
    assert lower.memory_summary() == {0: 1, 1: 1, 2: 1}


def test_predictions_are_read_as_the_constructor_says():
    """Logits (1, 0, 0) are a probability of 0.58; as probabilities they would be certainty."""
    predictions = torch.tensor([[0.0, 1.0, 0.0]] * 2)
    for said, expected in (("logits", 0), ("probabilities", 2)):
        manager = manager_of(predictions=said)
        manager.update_and_compute_loss(features(EAST, EAST), predictions, None)
        assert manager.memory_summary()[1] == expected


def test_voxels_of_no_class_take_no_part():
    manager = manager_of()
    rows = features(EAST, EAST, WEST)
    loss, _ = manager.update_and_compute_loss(rows, sure([1, 1, 1]), torch.tensor([1, 1, -1]))
    loss.backward()
    assert manager.memory_summary()[1] == 2 and rows.grad[2].eq(0).all()


# ------------------------------------------------------------------ nothing to act on


@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize(
    ("rows", "labels"),
    [(features(EAST, NORTH), None), (features(EAST), torch.tensor([1])), (torch.zeros(0, 2, requires_grad=True), None)],
    ids=["all below the confidence", "one feature", "no feature"],
)
def test_without_suitable_features_loss_and_gradient_are_0(rows, labels, learned):
    manager = manager_of(use_learned_selector=learned)
    loss, parts = manager.update_and_compute_loss(rows, torch.zeros(len(rows), 3), labels)
    rows.grad = None
    loss.backward()
    assert parts == {"contrastive": 0.0, "intra": 0.0, "inter": 0.0, "total": 0.0}
    assert rows.grad.eq(0).all()


def test_a_class_that_never_appears_keeps_an_empty_memory_and_harms_nothing():
    manager = manager_of(use_learned_selector=True)
    for _ in range(3):
        loss, _ = manager.update_and_compute_loss(torch.randn(6, 2), sure([1] * 6), torch.ones(6))
        assert math.isfinite(loss.item())
    assert manager.memory_summary() == {0: 0, 1: 4, 2: 0}


# ------------------------------------------------------------------ mistakes


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"features": torch.zeros(2, 3)}, r"feature_dim.* 3"),
        ({"features": torch.tensor([EAST, [math.nan, 0.0]])}, "1 of 2 features"),
        ({"labels": torch.tensor([1, 3])}, r"\[0, 3\).* 1 to 3"),
        ({"labels": torch.tensor([1, 1, 1])}, "2 embeddings and 3 labels"),
        ({"predictions": torch.zeros(2, 4)}, r"predictions.*\(2, 4\)"),
        ({"predictions": torch.zeros(5, 3)}, "2 features.* 5"),
        ({"predictions": torch.full((2, 3), math.nan)}, "predictions.*NaN"),
    ],
)
@pytest.mark.parametrize("learned", [False, True])
def test_wrong_input_is_refused_and_leaves_everything_as_it_was(changes, message, learned):
    manager = manager_of(use_learned_selector=learned)
    before = copy.deepcopy(manager.state_dict())
    arguments = {"features": torch.tensor([EAST, EAST]), "predictions": sure([1, 1]), "labels": torch.tensor([1, 1])}
    with pytest.raises(ValueError, match=message):
        manager.update_and_compute_loss(**arguments | changes)
    assert all(torch.equal(value, before[key]) for key, value in manager.state_dict().items())


@pytest.mark.parametrize("predictions", [[[2.0, -1.0, 0.0]], [[0.9, 0.9, 0.9]], [[0.0, 0.0, 0.0]]])
def test_predictions_that_are_not_probabilities_are_refused(predictions):
    with pytest.raises(ValueError, match="predictions='logits'"):
        manager_of(predictions="probabilities").update_and_compute_loss(
            features(EAST), torch.tensor(predictions), torch.tensor([1])
        )


@pytest.mark.parametrize("learned", [False, True])
def test_update_memory_refuses_foreign_classes_and_widths_and_leaves_out_embeddings_that_are_not_finite(learned):
    manager = manager_of(use_learned_selector=learned)
    with pytest.raises(ValueError, match="class 3"):
        manager.update_memory({3: torch.zeros(9, 2)})
    with pytest.raises(ValueError, match=r"\(9, 3\).*class 1"):
        manager.update_memory({1: torch.zeros(9, 3)})
    rows = torch.rand(9, 2)
    rows[::2] = math.nan
    manager.update_memory({1: rows})
    assert manager.memory_summary()[1] == 4
    assert all(value.isfinite().all() for value in manager.state_dict().values())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"predictions": "scores"}, "predictions.*'scores'"),
        ({"confidence": 1.2}, r"confidence.* 1\.2"),
        ({"margin": 0.0}, r"margin.* 0\.0"),
        ({"selection": "best"}, "selection.*'best'"),
        ({"selection": "highest"}, "selection='highest'.*selectors"),
        ({"divisor": "some"}, "divisor.*'some'"),
        ({"memory_weighting": "mean", "use_learned_selector": True}, "memory_weighting.*'mean'"),
        ({"feature_dim": 0}, "feature_dim"),
    ],
)
def test_wrong_argument_of_the_constructor_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        manager_of(**options)


# ------------------------------------------------------------------ state


@pytest.mark.parametrize("learned", [False, True])
def test_saved_restored_and_one_more_step_equals_never_having_stopped(learned):
    torch.manual_seed(0)
    steps = [(torch.randn(20, 2), torch.randint(3, (20,))) for _ in range(3)]

    def build():
        manager = manager_of(use_learned_selector=learned, selection=None if learned else "confidence")
        parameters = list(manager.parameters()) or [torch.nn.Parameter(torch.zeros(1))]
        return manager, torch.optim.Adam(parameters, lr=0.01)

    def step(manager, optimiser, rows, labels):
        rows = rows.clone().requires_grad_()
        loss, _ = manager.update_and_compute_loss(rows, sure(labels), labels)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        return rows.grad

    whole, optimiser = build()
    for one in steps[:2]:
        step(whole, optimiser, *one)
    file = io.BytesIO()
    torch.save({"manager": whole.state_dict(), "optimiser": optimiser.state_dict()}, file)
    file.seek(0)
    restored, other = build()
    state = torch.load(file, weights_only=True)
    restored.load_state_dict(state["manager"])
    other.load_state_dict(state["optimiser"])
    assert torch.equal(step(whole, optimiser, *steps[2]), step(restored, other, *steps[2]))
    for key, value in whole.state_dict().items():
        assert torch.equal(value, restored.state_dict()[key]), key
