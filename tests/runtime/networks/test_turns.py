"""Turns: one thread at a time, in order, nested, and given up when a wish is fulfilled by another."""

from __future__ import annotations

import threading
import time

from sd2rt.runtime.networks.turns import Turns


def test_one_thread_at_a_time_and_no_thread_starves() -> None:
    turns, inside, counts = Turns(), [0], [0] * 4
    end = threading.Event()

    def act(index: int) -> None:
        while not end.is_set():
            with turns.turn(), turns.turn():
                inside[0] += 1
                assert inside[0] == 1
                time.sleep(0.0005)
                inside[0] -= 1
            counts[index] += 1

    threads = [threading.Thread(target=act, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    while max(counts) < 40:
        time.sleep(0.001)
    end.set()
    for thread in threads:
        thread.join(10)
    # In order of requests, so all have about as many.
    assert min(counts) >= max(counts) // 2


def test_a_fulfilled_wish_ends_the_wait() -> None:
    turns, fulfilled = Turns(), [False]
    granted: list[bool] = []
    turns.take()
    waiter = threading.Thread(target=lambda: granted.append(turns.take(lambda: fulfilled[0])))
    waiter.start()
    while not turns._waiters:
        time.sleep(0.001)
    assert not turns.wanted
    turns.wake()
    assert turns._waiters
    fulfilled[0] = True
    turns.wake()
    waiter.join(10)
    assert granted == [False]
    turns.give()
    assert turns.take(lambda: True)
    turns.give()


def test_a_turn_passes_over_fulfilled_wishes() -> None:
    turns, fulfilled = Turns(), [False]
    granted: dict[str, bool] = {}
    turns.take()

    def wish() -> None:
        granted["wish"] = turns.take(lambda: fulfilled[0])

    def turn() -> None:
        granted["turn"] = turns.take()
        turns.give()

    threads = []
    for number, act in enumerate((wish, turn)):
        threads.append(threading.Thread(target=act))
        threads[-1].start()
        while len(turns._waiters) <= number:
            time.sleep(0.001)
    assert turns.wanted
    fulfilled[0] = True
    turns.give()
    for thread in threads:
        thread.join(10)
    assert granted == {"wish": False, "turn": True}
