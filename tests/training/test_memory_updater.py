# SPDX-License-Identifier: Apache-2.0
"""Which voxels enter the memory, and when: checked on a few voxels, then in MONAI's stock trainer."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from monai.data import DataLoader, MetaTensor
from monai.engines import SupervisedTrainer
from monai.losses import DiceCELoss
from torch import nn

from scripts.errors import UserError
from scripts.networks.heads import ProjectionHead
from scripts.prototypes.loss import ContrastivePrototypeLoss
from scripts.prototypes.memory import PrototypeMemory
from scripts.prototypes.selectors import ClassSelectors
from scripts.training.inferer import FeatureInferer
from scripts.training.memory_updater import MemoryBankUpdater
from scripts.training.trainer import prepare_two_stream_batch
from tests.losses.batches import make_batch

CLASSES = 3


def logits_of(predicted, probability):
    """Logits `(1, 3, 1, 1, N)` in which `predicted` has `probability` and the others share the rest."""
    probabilities = torch.full((len(predicted), CLASSES), 0.0)
    for voxel, (c, p) in enumerate(zip(predicted, probability, strict=True)):
        probabilities[voxel] = (1 - p) / 2
        probabilities[voxel, c] = p
    return probabilities.log().T.reshape(1, CLASSES, 1, 1, -1)


def batch_of(labels, predicted, probability=None, unlabelled=None, unlabelled_probability=None):
    """A step's batch: the feature of voxel n is (n, 1), counted on from the labelled to the unlabelled case."""
    n = len(labels)
    logits = [logits_of(predicted, probability or [0.9] * n)]
    features = [torch.stack([torch.arange(n), torch.ones(n)]).float().reshape(1, 2, 1, 1, n)]
    if unlabelled is not None:
        logits.append(logits_of(unlabelled, unlabelled_probability or [0.99] * n))
        features.append(features[0] + torch.tensor([n, 0.0]).reshape(1, 2, 1, 1, 1))
    return make_batch(torch.cat(logits), torch.cat(features), torch.tensor(labels).reshape(1, 1, 1, n))


def update(updater, batch):
    updater(SimpleNamespace(state=SimpleNamespace(output={"pred": batch})))


def stored(batch, room=8, **options):
    """Voxel numbers in the memory after one update, by class."""
    memory = PrototypeMemory(CLASSES, 2, room)
    update(MemoryBankUpdater(memory, **options), batch)
    return {c: memory.prototypes(c)[:, 0].tolist() for c in range(CLASSES) if len(memory.prototypes(c)) > 0}


def test_only_voxels_that_are_predicted_correctly_enter():
    batch = batch_of(labels=[1, 1, 2, 2, 0], predicted=[1, 2, 2, 1, 0])
    assert stored(batch) == {1: [0], 2: [2]}


def test_wrongly_predicted_voxels_enter_on_request():
    batch = batch_of(labels=[1, 1, 2, 2, 0], predicted=[1, 2, 2, 1, 0])
    assert stored(batch, only_correct=False) == {1: [0, 1], 2: [2, 3]}


def test_ignored_voxels_never_enter():
    batch = batch_of(labels=[1, -1, 2, -1, -1], predicted=[1, 1, 2, 2, 0])
    assert stored(batch, include_background=True) == {1: [0], 2: [2]}
    assert stored(batch, include_background=True, only_correct=False, selection="confidence") == {1: [0], 2: [2]}


def test_background_enters_only_on_request():
    batch = batch_of(labels=[0, 1, 0, 0], predicted=[0, 1, 0, 1], unlabelled=[0, 0, 0, 0])
    assert stored(batch) == {1: [1]}
    assert stored(batch, include_background=True) == {0: [0, 2], 1: [1]}


def test_unlabelled_voxels_stay_out_by_default():
    assert stored(batch_of([1, 1, 0], [1, 1, 0], unlabelled=[1, 2, 2])) == {1: [0, 1]}


def test_confident_unlabelled_voxels_rank_behind_labelled_ones():
    batch = batch_of([1, 1, 0], [1, 1, 0], unlabelled=[1, 2, 1], unlabelled_probability=[0.96, 0.99, 0.94])
    assert stored(batch, source="both") == {1: [0, 1, 3], 2: [4]}
    assert stored(batch, source="both", confidence=0.98) == {1: [0, 1], 2: [4]}
    assert stored(batch, source="both", confidence=0.0) == {1: [0, 1, 3, 5], 2: [4]}


def test_unlabelled_voxels_without_a_pseudo_label_never_enter():
    batch = batch_of([0, 1], [0, 1], unlabelled=[1, 2])
    nothing = torch.tensor([1.0, math.nan])  # the second voxel has none
    batch = replace(batch, teacher_logits=batch.unlabelled_logits * nothing)
    updater = MemoryBankUpdater(PrototypeMemory(CLASSES, 2, 8), source="both", confidence=0.0)
    assert stored(batch, source="both", confidence=0.0) == {1: [1, 2]}
    sampled = updater.sample(batch, 4)["unlabelled voxel"]
    assert {c: len(rows) for c, rows in sampled.items()} == {1: 1}


def test_unlabelled_voxels_take_only_the_room_that_labelled_ones_leave():
    batch = batch_of([1, 1, 2], [1, 1, 2], unlabelled=[1, 1, 2])
    assert stored(batch, room=2, source="both") == {1: [0, 1], 2: [2, 5]}
    memory = stored(batch, room=3, source="both")
    assert memory[1][:2] == [0, 1] and memory[1][2] in (3, 4)


def test_a_teacher_labels_the_unlabelled_voxels():
    batch = batch_of([1, 1], [1, 1], unlabelled=[1, 1])
    batch = replace(batch, teacher_logits=logits_of([2, 2], [0.99, 0.5]))
    assert stored(batch, source="both") == {1: [0, 1], 2: [2]}


def test_confidence_ranks_by_probability_when_there_are_more_than_fit():
    batch = batch_of([1, 1, 1, 1], [1, 1, 1, 1], probability=[0.7, 0.8, 0.6, 0.95])
    assert stored(batch, room=2, selection="confidence") == {1: [3, 1]}


def test_ranking_is_by_the_probability_of_the_label_and_not_of_the_wrong_answer():
    """A voxel that is certainly predicted as another class is a poor example of its own."""
    batch = batch_of([1, 1, 1], [1, 2, 1], probability=[0.6, 0.98, 0.7])
    assert stored(batch, room=2, selection="confidence", only_correct=False) == {1: [2, 0]}


class FarFromTwo(nn.Module):
    """Replaces class selectors: a feature's score grows with its first number's distance from 2."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def feature_scores(self, class_id, features):
        self.calls.append((class_id, len(features)))
        return (features[:, 0] - 2).abs()


@pytest.mark.parametrize(("selection", "expected"), [("lowest", [2, 1, 3]), ("highest", [5, 0, 4])])
def test_a_class_selector_ranks_voxels_only_if_there_are_too_many(selection, expected):
    selectors = FarFromTwo()
    batch = batch_of([1] * 6 + [2] * 3, [1] * 6 + [2] * 3)
    assert stored(batch, room=3, selection=selection, selectors=selectors) == {1: expected, 2: [6, 7, 8]}
    assert selectors.calls == [(1, 6)]


def test_a_selector_judges_projected_embeddings():
    class Mirror(nn.Module):
        def forward(self, rows):
            return rows * torch.tensor([-1.0, 1.0])

    batch = batch_of([1] * 4, [1] * 4)  # mirrored: 0, -1, -2, -3, so the farthest from 2 is -3
    found = stored(batch, room=1, projection_head=Mirror(), selection="highest", selectors=FarFromTwo())
    assert found == {1: [-3]}


def test_a_step_may_offer_fewer_or_more_embeddings_than_the_memory_holds():
    batch = batch_of([1, 1, 1, 1], [1, 1, 1, 1])
    assert len(stored(batch, room=8, embeddings_per_step=2)[1]) == 2
    assert len(stored(batch, room=2, embeddings_per_step=8)[1]) == 2


def test_random_voxels_follow_the_global_generator():
    batch = batch_of([1] * 40, [1] * 40)
    torch.manual_seed(1)
    first, other = stored(batch, room=5), stored(batch, room=5)
    torch.manual_seed(1)
    assert stored(batch, room=5) == first != other
    assert len(set(first[1])) == 5


def test_labels_and_ranking_are_brought_to_coarser_features():
    """Four voxels along an axis, two cells: each cell takes the label and the probability of its second voxel."""
    batch = batch_of([2, 1, 2, 1], [2, 1, 2, 1], probability=[0.99, 0.6, 0.5, 0.8])
    batch = replace(batch, features=torch.tensor([[10.0, 20.0], [1.0, 1.0]]).reshape(1, 2, 1, 1, 2))
    assert stored(batch) == {1: [10.0, 20.0]}
    assert stored(batch, room=1, selection="confidence") == {1: [20.0]}


def test_class_that_is_not_in_the_batch_keeps_its_prototypes():
    memory = PrototypeMemory(CLASSES, 2, 4)
    memory.update({2: torch.tensor([[7.0, 7.0]])})
    batch = batch_of([1, 2], [1, 1])
    update(MemoryBankUpdater(memory), batch)
    assert memory.prototypes(2).tolist() == [[7.0, 7.0]] and memory.prototypes(1).tolist() == [[0.0, 1.0]]


@pytest.mark.parametrize("training", [True, False])
def test_the_projection_head_runs_in_evaluation_mode_and_keeps_its_mode(training):
    torch.manual_seed(0)
    head = ProjectionHead(2, 2).train(training)
    head[1].running_mean.fill_(0.3)
    state = copy.deepcopy(head.state_dict())
    memory = PrototypeMemory(CLASSES, 2, 8)
    update(MemoryBankUpdater(memory, head), batch_of([1, 1], [1, 1]))
    assert head.training is training and head[1].training is training
    assert all(torch.equal(value, state[key]) for key, value in head.state_dict().items())
    by_hand = copy.deepcopy(head).eval()(torch.tensor([[0.0, 1.0], [1.0, 1.0]]))
    torch.testing.assert_close(memory.prototypes(1), by_hand.detach())
    assert not memory.prototypes(1).requires_grad


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"source": "all"}, "source.*'all'"),
        ({"confidence": 1.5}, r"confidence.* 1\.5"),
        ({"labelled_confidence": -0.1}, r"labelled_confidence.* -0\.1"),
        ({"features_from": "student"}, "features_from.*'student'"),
        ({"features_from": "teacher", "source": "both"}, "features_from.*source"),
        ({"selection": "best"}, "selection.*'best'"),
        ({"selection": "lowest"}, "selection='lowest'.*selectors"),
        ({"embeddings_per_step": 0}, "embeddings_per_step.* 0"),
    ],
)
def test_wrong_argument_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        MemoryBankUpdater(PrototypeMemory(CLASSES, 2), **options)


class Bright(nn.Module):
    """A learnable network that finds bright voxels: class 1 where the image is 1, 0 where it is -1."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Conv3d(1, 4, 1, bias=False)
        self.output = nn.Conv3d(4, 2, 1, bias=False)
        with torch.no_grad():
            self.embed.weight.copy_(torch.tensor([1.0, -1.0, 2.0, 0.5]).reshape(4, 1, 1, 1, 1))
            self.output.weight.copy_(torch.tensor([[-1.0, 1, -1, 0], [1, -1, 1, 0]]).reshape(2, 4, 1, 1, 1))

    def forward(self, x):
        return self.output(self.embed(x))


def train(batches, loss_function, memory, network, head, **options):
    """Two steps (or as many as there are batches) of MONAI's own trainer."""
    parameters = [*network.parameters(), *head.parameters()]
    trainer = SupervisedTrainer(
        device=torch.device("cpu"),
        max_epochs=1,
        train_data_loader=batches,
        network=network,
        optimizer=torch.optim.SGD(parameters, lr=0.05),
        loss_function=loss_function,
        prepare_batch=prepare_two_stream_batch,
        inferer=FeatureInferer("embed", divisor=1),
        decollate=False,
        train_handlers=[MemoryBankUpdater(memory, head, **options)],
    )
    trainer.run()
    return trainer


def one_batch():
    label = torch.zeros(2, 1, 2, 3, 4)
    label[:, :, 1] = 1
    return {"image": 2 * label - 1, "label": label}


def meta_loader():
    """Two batches as MONAI's loader makes them: MetaTensors with the metadata of each case."""
    label = one_batch()["label"][0]
    affine = torch.diag(torch.tensor([1.0, 2.0, 3.0, 1.0]))
    items = [
        {key: MetaTensor(value, affine=affine, meta={"filename_or_obj": f"{i}.nii"}) for key, value in case.items()}
        for i, case in enumerate([{"image": 2 * label - 1, "label": label}] * 4)
    ]
    return DataLoader(items, batch_size=2, num_workers=0)


@pytest.mark.parametrize("batches", [lambda: [one_batch(), one_batch()], meta_loader], ids=["Tensor", "MetaTensor"])
def test_stock_trainer_fills_the_memory_before_the_loss_reads_it(batches):
    torch.manual_seed(0)
    network, head, memory = Bright(), ProjectionHead(4, 3), PrototypeMemory(2, 3, 5)
    contrast, supervised = ContrastivePrototypeLoss(memory, head), DiceCELoss(to_onehot_y=True, softmax=True)
    seen = []

    def loss(batch, label):
        with torch.no_grad():
            rows = batch.features.movedim(1, -1)[batch.labels == 1]
            seen.append((memory.prototypes(1).clone(), copy.deepcopy(head).eval()(rows)))
        return supervised(batch.logits, label) + contrast(batch.features, batch.labels)

    before = copy.deepcopy(network.state_dict())
    train(batches(), loss, memory, network, head)
    assert memory.summary() == {0: 0, 1: 5}
    assert len(seen) == 2
    for rows, projected in seen:
        # What the loss finds are this step's projections (all voxels of class 1 look alike here).
        assert rows.shape == (5, 3)
        torch.testing.assert_close(rows, projected[:5])
    assert not torch.equal(seen[0][0], seen[1][0])
    assert all(not torch.equal(value, before[key]) for key, value in network.state_dict().items())
    assert type(memory.features) is torch.Tensor
    # The loss ran the head in training mode once a step; the updater added nothing to its statistics.
    assert head[1].num_batches_tracked == 2


def test_a_loss_in_one_line_trains_with_the_stock_trainer():
    torch.manual_seed(0)  # with some weights no ReLU of a head this small is active
    memory, head = PrototypeMemory(2, 3, 5), ProjectionHead(4, 3)
    contrast, supervised = ContrastivePrototypeLoss(memory, head), DiceCELoss(to_onehot_y=True, softmax=True)
    trainer = train(
        [one_batch(), one_batch()],
        lambda batch, label: supervised(batch.logits, label) + contrast(batch.features, batch.labels),
        memory,
        Bright(),
        head,
    )
    assert trainer.state.iteration == 2 and memory.summary()[1] == 5
    assert head[3].weight.grad.abs().sum() > 0


def test_network_that_is_always_wrong_leaves_the_memory_empty():
    network = Bright()
    with torch.no_grad():
        network.output.weight.neg_()
    memory, head = PrototypeMemory(2, 3, 5), ProjectionHead(4, 3)
    train([one_batch()], lambda batch, label: batch.logits.sum() * 0, memory, network, head)
    assert memory.summary() == {0: 0, 1: 0}


def test_labelled_voxels_below_their_confidence_stay_out():
    batch = batch_of([1, 1, 1], [1, 1, 1], probability=[0.94, 0.96, 0.5])
    assert stored(batch, labelled_confidence=0.95) == {1: [1]}
    assert stored(batch, labelled_confidence=0.95, only_correct=False) == {1: [1]}


def test_the_teachers_features_and_predictions_fill_the_memory_on_request():
    """The teacher is wrong on the second voxel, the network on the third; the teacher's features are ten larger."""
    batch = batch_of([1, 1, 1], [1, 1, 2], unlabelled=[1, 1, 1])
    asked = []

    def teacher_pass(images):
        asked.append(images)
        return logits_of([1, 2, 1], [0.99] * 3), batch.labelled_features + 10

    batch = replace(batch, images=torch.arange(6.0).reshape(2, 1, 1, 1, 3), teacher_pass=teacher_pass)
    assert stored(batch, features_from="teacher") == {1: [10, 12]}
    assert stored(batch) == {1: [0, 1]}
    assert [images.flatten().tolist() for images in asked] == [[0, 1, 2]]


def test_teachers_features_without_a_teacher_are_refused_with_the_key_to_set():
    batch = batch_of([1, 1], [1, 1])
    with pytest.raises(UserError, match="pseudo_label_teacher"):
        stored(batch, features_from="teacher")


def test_labels_that_the_memory_has_no_class_for_are_refused():
    with pytest.raises(ValueError, match=r"\[0, 3\).* 1 to 3"):
        stored(batch_of([1, 3], [1, 1]))


def test_voxels_that_are_not_finite_neither_enter_nor_move_a_selector():
    torch.manual_seed(0)
    selectors = ClassSelectors(CLASSES, 2, "none")
    batch = batch_of([1] * 5, [1] * 5)
    batch.features[0, 0, 0, 0, 2] = float("nan")
    assert 2 not in stored(batch, room=3, selection="highest", selectors=selectors)[1]
    assert all(value.isfinite().all() for value in selectors.state_dict().values())
