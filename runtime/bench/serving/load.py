"""Requests at random times, whether earlier ones are answered or not (an open loop)."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any

from sd2rt.runtime.bench.serving.client import Answer, Client, Target

MAX_OPEN = 512
"""Requests that are open at once; later ones wait in the client, and their waiting counts."""


@dataclass(frozen=True, slots=True)
class Arrival:
    """A request, and the second at which it is sent."""

    at: float
    fields: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Outcome:
    """An answered request."""

    arrival: Arrival
    seconds: float
    """From the arrival to the whole answer."""
    answer: Answer


def poisson_arrivals(
    rate: float, seconds: float, steps: Sequence[int], seed: int, fields: dict[str, Any]
) -> list[Arrival]:
    """Draw arrivals of a Poisson process of ``rate`` requests a second, each with steps drawn from ``steps``."""
    draw = random.Random(seed)
    arrivals: list[Arrival] = []
    at = draw.expovariate(rate)
    while at < seconds:
        own = {"num_inference_steps": draw.choice(steps), "seed": draw.getrandbits(31)}
        arrivals.append(Arrival(at, {**fields, **own}))
        at += draw.expovariate(rate)
    return arrivals


def offer(
    target: Target, arrivals: Sequence[Arrival], told: Callable[[int], None] = lambda done: None
) -> list[Outcome]:
    """Send each request at its time, and wait for all answers.

    Args:
        told: called with the number of answers, in the calling thread.
    """
    waiting: SimpleQueue[Arrival | None] = SimpleQueue()
    outcomes: SimpleQueue[Outcome] = SimpleQueue()
    began = time.monotonic()

    def send() -> None:
        with target.connect() as client:
            while (arrival := waiting.get()) is not None:
                outcomes.put(Outcome(arrival, *_timed(client, arrival, began)))

    senders: list[threading.Thread] = []
    done: list[Outcome] = []
    try:
        for number, arrival in enumerate(arrivals):
            _sleep_until(began + arrival.at)
            done += _taken(outcomes)
            told(len(done))
            # A sender for each request that may be open.
            if number - len(done) >= len(senders) and len(senders) < MAX_OPEN:
                senders.append(threading.Thread(target=send, daemon=True))
                senders[-1].start()
            waiting.put(arrival)
        while len(done) < len(arrivals):
            done.append(outcomes.get())
            told(len(done))
    finally:
        for _ in senders:
            waiting.put(None)
    for sender in senders:
        sender.join()
    return done


def _timed(client: Client, arrival: Arrival, began: float) -> tuple[float, Answer]:
    answer = client.generate(arrival.fields)
    return time.monotonic() - began - arrival.at, answer


def _taken(outcomes: SimpleQueue[Outcome]) -> Iterator[Outcome]:
    while not outcomes.empty():
        yield outcomes.get()


def _sleep_until(moment: float) -> None:
    time.sleep(max(0.0, moment - time.monotonic()))
