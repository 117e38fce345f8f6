# SPDX-License-Identifier: Apache-2.0
"""The memory bank with embeddings of two numbers."""

from __future__ import annotations

import copy
import io

import pytest
import torch

from scripts.prototypes.memory import PrototypeMemory


def rows(*firsts):
    """One embedding `(x, -x)` for each number."""
    return torch.tensor([[x, -x] for x in firsts], dtype=torch.float32).reshape(-1, 2)


def firsts(memory, class_id):
    return memory.prototypes(class_id)[:, 0].tolist()


def memory_of(strategy="replace", **options):
    return PrototypeMemory(
        **{"num_classes": 3, "feature_dim": 2, "elements_per_class": 4, "strategy": strategy} | options
    )


def test_new_memory_is_empty():
    memory = memory_of()
    assert memory.summary() == {0: 0, 1: 0, 2: 0}
    assert memory.prototypes(1).shape == (0, 2)
    assert (memory.num_classes, memory.elements_per_class, memory.feature_dim) == (3, 4, 2)


@pytest.mark.parametrize("strategy", ["replace", "fifo"])
def test_an_index_gives_the_prototypes_of_a_class(strategy):
    memory = memory_of(strategy)
    memory.update({1: rows(1, 2), 2: rows(7)})
    assert torch.equal(memory[1], memory.prototypes(1)) and memory[1].shape == (2, 2)
    assert [len(of_class) for of_class in memory] == [0, 2, 1]
    for beyond in (3, -1):
        with pytest.raises(IndexError, match=str(beyond)):
            memory[beyond]


@pytest.mark.parametrize("strategy", ["replace", "fifo"])
def test_absent_class_keeps_its_prototypes(strategy):
    memory = memory_of(strategy)
    memory.update({1: rows(1, 2), 2: rows(7)})
    memory.update({2: rows(8), 1: rows()})
    memory.update({})
    assert firsts(memory, 1) == [1, 2]
    assert firsts(memory, 0) == []


def test_replace_replaces_even_by_fewer_embeddings():
    memory = memory_of()
    memory.update({1: rows(1, 2, 3)})
    memory.update({1: rows(9)})
    assert firsts(memory, 1) == [9]
    assert memory.features[1, 1:].eq(0).all()  # nothing stale in a checkpoint


def test_replace_keeps_the_first_embeddings_of_too_many():
    memory = memory_of()
    memory.update({1: rows(1, 2, 3, 4, 5, 6)})
    assert firsts(memory, 1) == [1, 2, 3, 4]


def test_fifo_puts_the_newest_in_front_and_drops_the_oldest():
    memory = memory_of("fifo")
    memory.update({1: rows(1, 2)})
    memory.update({1: rows(3)})
    assert firsts(memory, 1) == [3, 1, 2]
    memory.update({1: rows(4, 5)})
    assert firsts(memory, 1) == [4, 5, 3, 1]


def test_fifo_holds_exactly_the_newest_when_a_step_brings_more_than_it_holds():
    memory = memory_of("fifo")
    memory.update({1: rows(1, 2)})
    memory.update({1: rows(11, 12, 13, 14, 15)})
    assert firsts(memory, 1) == [11, 12, 13, 14]


def test_first_insertion_may_be_larger_on_request():
    """As in the published queue, a class is cut only when it holds something already."""
    memory = memory_of("fifo", first_insertion=6)
    memory.update({1: rows(1, 2, 3, 4, 5, 6, 7)})
    assert firsts(memory, 1) == [1, 2, 3, 4, 5, 6]
    memory.update({1: rows(8), 2: rows(1, 2, 3, 4, 5)})
    assert firsts(memory, 1) == [8, 1, 2, 3]
    assert firsts(memory, 2) == [1, 2, 3, 4, 5]
    assert memory.elements_per_class == 4
    assert memory.features[1, 4:].eq(0).all()


def test_first_insertion_below_the_memorys_size_is_refused():
    with pytest.raises(ValueError, match=r"first_insertion.*elements_per_class"):
        memory_of(first_insertion=3)


def test_fifo_cuts_the_first_insertion_too():
    memory = memory_of("fifo")
    memory.update({1: rows(1, 2, 3, 4, 5)})
    assert firsts(memory, 1) == [1, 2, 3, 4]


@pytest.mark.parametrize("strategy", ["replace", "fifo"])
def test_embeddings_with_nan_or_infinity_are_dropped(strategy):
    memory = memory_of(strategy)
    bad = rows(1, 2, 3, 4)
    bad[0, 1], bad[2, 0], bad[3, 1] = float("nan"), float("inf"), -float("inf")
    memory.update({1: bad})
    assert firsts(memory, 1) == [2]
    memory.update({1: bad[[0, 2]]})
    assert firsts(memory, 1) == [2]


def test_bad_embeddings_do_not_take_the_place_of_good_ones():
    memory = memory_of()
    offered = torch.cat([rows(float("nan")), rows(1, 2, 3, 4)])
    memory.update({1: offered})
    assert firsts(memory, 1) == [1, 2, 3, 4]


def test_value_too_large_for_the_memorys_type_is_dropped():
    memory = memory_of().half()
    memory.update({1: rows(1e6, 2)})
    assert firsts(memory, 1) == [2]


@pytest.mark.parametrize("class_id", [-1, 3])
def test_class_outside_is_refused(class_id):
    with pytest.raises(ValueError, match=f"class {class_id}"):
        memory_of().update({class_id: rows(1)})


@pytest.mark.parametrize("bad", [torch.zeros(4, 3), torch.zeros(2), torch.zeros(1, 2, 2)])
def test_embeddings_of_another_width_are_refused(bad):
    with pytest.raises(ValueError, match=r"\(N, 2\).*class 1"):
        memory_of().update({1: bad})


@pytest.mark.parametrize("name", ["num_classes", "feature_dim", "elements_per_class"])
def test_count_below_one_is_refused_by_name(name):
    with pytest.raises(ValueError, match=name):
        memory_of(**{name: 0})


def test_unknown_strategy_is_refused():
    with pytest.raises(ValueError, match=r"strategy.*'queue'"):
        memory_of("queue")


@pytest.mark.parametrize("strategy", ["replace", "fifo"])
def test_saved_and_loaded_memory_goes_on_as_if_it_had_never_stopped(strategy):
    before, last = [{1: rows(1, 2, 3), 2: rows(4)}, {1: rows(5)}], {1: rows(6, 7), 0: rows(8)}
    never_stopped, stopped = memory_of(strategy), memory_of(strategy)
    for memory in (never_stopped, stopped):
        for step in before:
            memory.update(step)
    file = io.BytesIO()
    torch.save(stopped.state_dict(), file)
    file.seek(0)
    restored = memory_of(strategy)
    restored.load_state_dict(torch.load(file, weights_only=True))
    for memory in (never_stopped, restored):
        memory.update(last)
    assert restored.summary() == never_stopped.summary()
    for key, value in never_stopped.state_dict().items():
        assert torch.equal(restored.state_dict()[key], value)
    assert firsts(restored, 1) == ([6, 7] if strategy == "replace" else [6, 7, 5, 1])


def test_update_leaves_no_gradient_path():
    memory, offered = memory_of("fifo"), rows(1, 2).requires_grad_()
    memory.update({1: offered * 2})
    memory.update({1: offered * 3})
    assert not memory.features.requires_grad and not memory.prototypes(1).requires_grad
    assert list(memory.parameters()) == []


def test_memory_owns_its_embeddings():
    memory, offered = memory_of(), rows(1, 2)
    memory.update({1: offered})
    offered.zero_()
    assert firsts(memory, 1) == [1, 2]


def test_reading_changes_nothing():
    memory = memory_of("fifo")
    memory.update({1: rows(1, 2)})
    state = copy.deepcopy(memory.state_dict())
    memory.prototypes(1), memory.prototypes(0), memory.summary()
    assert all(torch.equal(value, state[key]) for key, value in memory.state_dict().items())
