# SPDX-License-Identifier: Apache-2.0
"""The streams of labelled and unlabelled cases depend only on the seed and the iteration."""

from __future__ import annotations

import itertools
import os
import signal
import time

import pytest
import torch
from ignite.engine import Engine, Events
from monai.data import CacheDataset, MetaTensor
from monai.transforms import Compose, CopyItemsd, RandFlipd, RandGaussianNoised, RandSpatialCropd

from scripts.data.streams import (
    StreamPosition,
    TwoStreamBatchSampler,
    TwoStreamDataset,
    TwoStreamLoader,
    collate,
    heed_loader_alone,
    loader_workers,
)
from scripts.errors import UserError

CROP = (2, 3, 4)


def sampler(labelled=3, unlabelled=5, batch_labelled=2, batch_unlabelled=2, seed=0):
    return TwoStreamBatchSampler(labelled, unlabelled, batch_labelled, batch_unlabelled, seed)


def first(batches, number):
    return list(itertools.islice(batches, number))


def volume(value, path="x"):
    image = value + torch.arange(4 * 5 * 6, dtype=torch.float32).reshape(1, 4, 5, 6) / 1000
    return MetaTensor(image, meta={"filename_or_obj": path})


def datasets(labelled=3, unlabelled=4):
    """Case i of the labelled set has voxels in [i, i + 1), of the unlabelled set in [100 + i, 101 + i)."""
    labelled_items = [
        {"image": volume(i), "label": MetaTensor(torch.full((1, 4, 5, 6), i, dtype=torch.uint8)), "case": f"l{i}"}
        for i in range(labelled)
    ]
    unlabelled_items = [{"image": volume(100 + i), "case": f"u{i}"} for i in range(unlabelled)]
    both = ["image", "label"]
    random = [RandFlipd(both, prob=0.5, spatial_axis=2, allow_missing_keys=True)]
    noise = [RandGaussianNoised("image", prob=1.0, std=0.01)]
    crop = [RandSpatialCropd(both, roi_size=CROP, random_size=False, allow_missing_keys=True)]
    return (
        CacheDataset(labelled_items, Compose([*crop, *random, *noise]), progress=False),
        CacheDataset(
            unlabelled_items, Compose([*crop, *random, CopyItemsd("image", names="weak"), *noise]), progress=False
        ),
    )


# ------------------------------------------------------------------ sampler


def test_every_batch_holds_its_number_of_each_stream_labelled_first():
    for batch in first(iter(sampler(batch_labelled=2, batch_unlabelled=3)), 20):
        assert [stream for stream, _, _ in batch] == ["labelled"] * 2 + ["unlabelled"] * 3


@pytest.mark.parametrize(("stream", "size"), [("labelled", 3), ("unlabelled", 7)])
def test_each_pass_uses_every_case_once(stream, size):
    # Batches of 2 and of 3 do not divide 3 and 7: passes cross batches.
    batches = first(iter(sampler(3, 7, 2, 3)), 42)
    order = [index for batch in batches for name, index, _ in batch if name == stream]
    passes = [order[k : k + size] for k in range(0, len(order), size)]
    assert all(sorted(pass_index) == list(range(size)) for pass_index in passes)
    assert len({tuple(pass_index) for pass_index in passes}) > 1  # not one order for ever


def test_a_batch_does_not_depend_on_the_first_iteration():
    whole = first(iter(sampler()), 12)
    for start in (0, 1, 5, 11):
        late = sampler()
        late.start = start
        assert first(iter(late), 12 - start) == whole[start:]


def test_a_batch_does_not_depend_on_earlier_random_numbers():
    one = sampler()
    expected = sampler().batch(9)
    first(iter(one), 30)
    torch.rand(3)
    assert one.batch(9) == expected


def test_another_seed_gives_another_order_and_other_augmentation():
    a, b = first(iter(sampler(20, 20, seed=0)), 10), first(iter(sampler(20, 20, seed=1)), 10)
    assert [[i for _, i, _ in batch] for batch in a] != [[i for _, i, _ in batch] for batch in b]
    assert not {s for batch in a for _, _, s in batch} & {s for batch in b for _, _, s in batch}


def test_augmentation_seeds_differ_between_slots_iterations_and_streams():
    seeds = [seed for batch in first(iter(sampler(1, 1, 3, 3)), 50) for _, _, seed in batch]
    assert len(set(seeds)) == 50 * 6


def test_the_two_streams_have_different_orders():
    batches = first(iter(sampler(8, 8, 1, 1)), 24)
    assert [batch[0][1] for batch in batches] != [batch[1][1] for batch in batches]


def test_without_unlabelled_cases_labelled_batches_do_not_change():
    alone, both = first(iter(sampler(unlabelled=0)), 6), first(iter(sampler(unlabelled=5)), 6)
    assert alone == [batch[:2] for batch in both]


def test_a_batch_larger_than_the_set_repeats_cases_with_other_seeds():
    for batch in first(iter(sampler(labelled=1, unlabelled=2, batch_labelled=2, batch_unlabelled=4)), 5):
        assert [index for _, index, _ in batch[:2]] == [0, 0]
        assert sorted(index for _, index, _ in batch[2:]) == [0, 0, 1, 1]
        assert len({seed for _, _, seed in batch}) == 6


@pytest.mark.parametrize(("labelled", "per_batch", "length"), [(4, 2, 2), (5, 2, 3), (1, 4, 1)])
def test_the_length_is_the_number_of_batches_per_pass_over_labelled_cases(labelled, per_batch, length):
    assert len(sampler(labelled=labelled, batch_labelled=per_batch)) == length


@pytest.mark.parametrize(
    ("numbers", "names"),
    [
        ({"labelled": 0}, "--labelled_cases"),
        ({"batch_labelled": 0}, "batch_labelled.* 0"),
        ({"batch_unlabelled": -1}, "batch_unlabelled.* -1"),
    ],
)
def test_a_number_out_of_range_is_named(numbers, names):
    with pytest.raises(UserError, match=names):
        sampler(**numbers)


# ------------------------------------------------------------------ dataset and loader


def test_a_ticket_is_its_case_augmented_by_its_seed():
    labelled, unlabelled = datasets()
    item = TwoStreamDataset(labelled, unlabelled)[("unlabelled", 2, 77)]
    by_hand = {"image": volume(102), "case": "u2"}
    fresh = datasets()[1].transform
    fresh.set_random_state(77)
    torch.testing.assert_close(item["image"], fresh(by_hand)["image"], rtol=0, atol=0)
    assert item["case"] == "u2"


def test_a_ticket_gives_the_same_item_again_after_others():
    data = TwoStreamDataset(*datasets())
    before = data[("labelled", 1, 5)]
    other = data[("labelled", 1, 6)]
    data[("unlabelled", 0, 5)]
    after = data[("labelled", 1, 5)]
    assert torch.equal(before["image"], after["image"])
    assert torch.equal(before["label"], after["label"])
    assert not torch.equal(before["image"], other["image"])


def test_a_cropping_transform_that_returns_a_list_of_one_is_unpacked():
    data = CacheDataset([{"image": torch.ones(1, 2, 2, 2)}], Compose([lambda item: [item]]), progress=False)
    assert set(TwoStreamDataset(data, [])[("labelled", 0, 1)]) == {"image"}


def equal(a, b):
    return a.keys() == b.keys() and all(
        torch.equal(a[key], b[key]) if isinstance(a[key], torch.Tensor) else a[key] == b[key] for key in a
    )


def test_the_number_of_workers_changes_no_bit():
    batches = {n: first(iter(TwoStreamLoader(*datasets(), 2, 3, seed=4, num_workers=n)), 5) for n in (0, 1, 2)}
    for n in (1, 2):
        assert all(equal(a, b) for a, b in zip(batches[0], batches[n], strict=True))
    assert not equal(batches[0][0], batches[0][1])


def test_workers_that_fetch_ahead_do_not_shift_a_later_start():
    # A killed run's workers have drawn more batches than it has used; what counts is the start alone.
    loader = TwoStreamLoader(*datasets(), 1, 1, seed=4, num_workers=2)
    whole = first(iter(loader), 5)
    loader.batch_sampler.start = 3
    again = first(iter(loader), 2)
    assert all(equal(a, b) for a, b in zip(again, whole[3:], strict=True))


def test_an_empty_unlabelled_set_gives_labelled_batches():
    batch = next(iter(TwoStreamLoader(*datasets(unlabelled=0), 2, 2, seed=0)))
    assert batch["image"].shape == batch["label"].shape == (2, 1, *CROP)
    assert "weak" not in batch


def test_image_label_and_name_of_a_batch_belong_together():
    for batch in first(iter(TwoStreamLoader(*datasets(), 2, 3, seed=0)), 6):
        assert batch["image"].shape == (5, 1, *CROP)
        assert batch["label"].shape == (2, 1, *CROP)
        assert batch["weak"].shape == (3, 1, *CROP)
        values = batch["image"].mean(dim=(1, 2, 3, 4)).floor().int().tolist()
        assert batch["case"] == [f"l{v}" if v < 100 else f"u{v - 100}" for v in values]
        assert batch["label"][:, 0, 0, 0, 0].tolist() == values[:2]
        # The weak view has the same crop and flip; only noise of 0.01 lies between.
        assert not torch.equal(batch["weak"], batch["image"][2:])
        assert (batch["weak"] - batch["image"][2:]).abs().max() < 0.1


# ------------------------------------------------------------------ collate and prepare


def test_a_batch_holds_plain_tensors():
    items = [
        {"image": volume(1), "label": volume(2), "case": "a"},
        {"image": volume(3), "weak": volume(4), "case": "b"},
    ]
    batch = collate(items)
    assert all(type(batch[key]) is torch.Tensor for key in ("image", "label", "weak"))
    assert batch["weak"][0, 0, 0, 0, 0] == 4
    assert batch["case"] == ["a", "b"]


def test_a_loader_counts_its_first_unlabelled_batch_from_a_fraction_of_the_run():
    loader = TwoStreamLoader(*datasets(), 1, 2, seed=0, unlabelled_start=0.4, max_steps=9)
    assert [len(loader.batches.batch(i)) for i in range(6)] == [1, 1, 1, 1, 3, 3]  # 0.4 * 9 = 3.6


def test_the_weak_view_of_a_labelled_case_is_left_out():
    items = [
        {"image": volume(1), "label": volume(0), "weak": volume(9), "case": "a"},
        {"image": volume(2), "weak": volume(5), "case": "b"},
    ]
    assert collate(items)["weak"][:, 0, 0, 0, 0].tolist() == [5]
    assert "weak" not in collate(items[:1])


# ------------------------------------------------------------------ position in an engine


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("done", [0, 2, 3, 4])
def test_an_engine_that_starts_late_sees_the_batches_of_its_iterations(done, workers):
    expected = [batch["case"] for batch in first(iter(TwoStreamLoader(*datasets(), 1, 2, seed=3)), 9)]
    seen = []
    loader = TwoStreamLoader(*datasets(), 1, 2, seed=3, num_workers=workers)
    engine = Engine(lambda _, batch: seen.append(batch["case"]))

    @engine.on(Events.STARTED)
    def restore():
        engine.state.iteration, engine.state.epoch = done, done // 3

    StreamPosition(loader).attach(engine)
    # Three iterations an epoch: the run goes over two borders, on which the stream may neither repeat nor skip.
    engine.run(loader, max_epochs=3, epoch_length=3)
    assert seen == expected[done:]


def test_before_unlabelled_start_batches_hold_the_same_labelled_cases_only() -> None:
    always = TwoStreamBatchSampler(3, 5, 2, 1, seed=4)
    late = TwoStreamBatchSampler(3, 5, 2, 1, seed=4, unlabelled_start=2)
    assert [late.batch(i) for i in range(2)] == [always.batch(i)[:2] for i in range(2)]
    assert [late.batch(i) for i in range(2, 6)] == [always.batch(i) for i in range(2, 6)]


@pytest.mark.parametrize("key", ["image", "label", "weak"])
def test_items_of_different_shapes_are_refused_with_their_names(key):
    def item(name, side):
        shapes = {k: (1, side if k == key else 2, 2, 2) for k in ("image", "label", "weak")}
        return {"case": name, **{k: torch.zeros(shape) for k, shape in shapes.items()}}

    with pytest.raises(UserError, match=rf"{key}.*\(a\).*\(b\)") as caught:
        collate([item("a", 2), item("c", 2), item("b", 3)])
    assert "\n" not in str(caught.value)


# ------------------------------------------------------------------ several ranks


def as_rank(monkeypatch, number, ranks, **arguments):
    monkeypatch.setattr("scripts.data.streams.rank", lambda: number)
    monkeypatch.setattr("scripts.data.streams.num_ranks", lambda: ranks)
    return sampler(**arguments)


def test_ranks_share_the_batch_of_one_process_without_repetition(monkeypatch):
    """The seeds of the augmentation are shared too, so that ranks see the patches that one process would see."""
    per_rank = [as_rank(monkeypatch, r, 3, batch_labelled=1, batch_unlabelled=2) for r in range(3)]
    whole = as_rank(monkeypatch, 0, 1, batch_labelled=3, batch_unlabelled=6)
    for iteration in range(7):
        parts = [own.batch(iteration) for own in per_rank]
        gathered = [
            key for batch_index in zip(*parts, strict=True) for key in batch_index
        ]  # as `all_gather_batch` orders them
        assert gathered == whole.batch(iteration)
    assert len(per_rank[0]) == len(whole) == 1


def test_a_pass_over_all_ranks_uses_every_case_once(monkeypatch):
    ranks = [as_rank(monkeypatch, r, 2, labelled=4, unlabelled=8, batch_labelled=1) for r in range(2)]
    for stream, size, steps in (("labelled", 4, 2), ("unlabelled", 8, 2)):
        seen = [t[1] for step in range(steps) for own in ranks for t in own.batch(step) if t[0] == stream]
        assert sorted(seen) == list(range(size))


# ------------------------------------------------------------------ loader processes


@pytest.mark.parametrize(("sender", "status"), [("loader", 0), ("another", 7)])
def test_only_the_sigterm_of_its_loader_ends_a_worker(sender, status) -> None:
    ready, says_ready = os.pipe()
    worker = os.fork()
    if worker == 0:
        signal.signal(signal.SIGTERM, lambda *_: os._exit(1))  # what it had before
        heed_loader_alone()
        if sender == "another":
            os.kill(os.getpid(), signal.SIGTERM)
        os.write(says_ready, b".")
        time.sleep(0.3 if sender == "another" else 10)
        os._exit(7)
    os.read(ready, 1)
    if sender == "loader":
        os.kill(worker, signal.SIGTERM)
    assert os.waitstatus_to_exitcode(os.waitpid(worker, 0)[1]) == status


@pytest.mark.parametrize("full", [False, True])
def test_batches_arrive_where_shared_memory_is_full(full, monkeypatch) -> None:
    """The workers are forked, so they inherit the failing method."""

    def fail(tensor):
        raise RuntimeError("unable to allocate shared memory(shm) for file </torch_1>: No space left on device (28)")

    expected = [next(iter(TwoStreamLoader(*datasets(), 1, 2, seed=0, num_workers=0)))]
    if full:
        monkeypatch.setattr(torch.Tensor, "share_memory_", fail)
    loader = TwoStreamLoader(*datasets(), 1, 2, seed=0, num_workers=1)
    assert loader.timeout > 0
    for batch, alone in zip(itertools.islice(loader, 1), expected, strict=True):
        assert batch["case"] == alone["case"]
        for key in ("image", "label"):
            assert torch.equal(batch[key], alone[key]) and type(batch[key]) is torch.Tensor


@pytest.mark.parametrize(("wanted", "cores", "ranks", "workers"), [
    (0, 8, 1, 0), (3, 1, 1, 3), ("auto", 1, 1, 0), ("auto", 2, 1, 1), ("auto", 4, 2, 1), ("auto", 64, 1, 4),
])  # fmt: skip
def test_auto_leaves_a_core_of_each_rank_to_the_network(wanted, cores, ranks, workers, monkeypatch):
    monkeypatch.setattr("scripts.data.streams.available_cores", lambda: cores)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(ranks))
    assert loader_workers(wanted) == workers
