# SPDX-License-Identifier: Apache-2.0
"""Signs of life between ranks, here threads with a store in memory."""

from __future__ import annotations

import queue
import time

import pytest
from torch.distributed import HashStore

from scripts.distributed.watch import RankWatch

PATIENCE, INTERVAL = 0.4, 0.05


class Watches:
    """Two or more started watches and the sentences with which they end."""

    def __init__(self, count: int, store: HashStore | None = None) -> None:
        self.store, self.sentences = store or HashStore(), queue.Queue()
        self.all = [
            RankWatch(self.store, r, count, PATIENCE, INTERVAL, lambda text, r=r: self.sentences.put((r, text)))
            for r in range(count)
        ]
        for watch in self.all:
            watch.start()

    def die(self, number: int) -> None:
        """Its threads end without a goodbye."""
        self.all[number]._leaving.set()

    def leave(self) -> None:
        for watch in self.all:
            watch.leave()


def test_a_rank_that_stops_signing_is_named_by_the_others() -> None:
    watches = Watches(3)
    time.sleep(3 * INTERVAL)
    watches.die(1)
    found = dict(watches.sentences.get(timeout=10 * PATIENCE) for _ in range(2))
    assert set(found) == {0, 2}
    assert all("Process 1 " in text and "--resume true" in text for text in found.values())
    watches.leave()


def test_a_rank_that_never_signed_is_missed_too() -> None:
    store, sentences = HashStore(), queue.Queue()
    watch = RankWatch(store, 0, 2, PATIENCE, INTERVAL, sentences.put)
    watch.start()
    assert "Process 1 " in sentences.get(timeout=10 * PATIENCE)
    watch.leave()


def test_nobody_is_missed_while_all_sign_nor_after_a_goodbye() -> None:
    watches = Watches(2)
    time.sleep(2 * PATIENCE)
    watches.all[1].leave()
    time.sleep(2 * PATIENCE)
    assert watches.sentences.empty()
    watches.leave()


def refuse(*_) -> None:
    raise RuntimeError("connection reset")


@pytest.mark.parametrize("answer", [refuse, lambda *_: time.sleep(4 * PATIENCE)], ids=["gone", "frozen"])
def test_a_store_that_does_not_answer_means_that_the_first_node_is_gone(answer) -> None:
    class Gone(HashStore):
        set = get = answer

    sentences = queue.Queue()
    watch = RankWatch(HashStore(), 0, 2, PATIENCE, INTERVAL, sentences.put)
    watch.store = Gone()
    watch.start()
    assert "node of the first process" in sentences.get(timeout=10 * PATIENCE)
    watch.leave()


@pytest.mark.parametrize("number", [0, 1])
def test_leaving_twice_or_before_the_others_is_no_error(number) -> None:
    watches = Watches(2)
    watches.all[number].leave()
    watches.leave()
    assert watches.sentences.empty()
