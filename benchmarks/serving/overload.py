"""More requests than the server can make, for a while: what it makes, what it refuses, and how it feels."""

from __future__ import annotations

import threading
import time
from collections import Counter
from typing import Any

from benchmarks.recording import report
from benchmarks.serving.latency import PROMPT
from benchmarks.serving.server_process import Client, Server, in_threads
from sd2rt.runtime.bench.serving.load import poisson_arrivals

GOODPUT, LIVEZ_SECONDS = 0.9, 0.1
"""Least share of the capacity, and largest 99th percentile of a probe's time."""
_BUSY_CLIENTS = 4
_SENDERS = 64
_PROBE_SECONDS = 0.05


def capacity(server: Server, steps: int, seconds: float) -> float:
    """Images a second of as many clients as keep the device busy."""
    finished = 0
    lock = threading.Lock()
    began = time.monotonic()

    def send(index: int) -> None:
        nonlocal finished
        client = Client(server)
        while time.monotonic() - began < seconds:
            status, _ = client.generate({"prompt": PROMPT, "num_inference_steps": steps, "seed": index})
            with lock:
                finished += status == 200 and time.monotonic() - began <= seconds
        client.close()

    with in_threads(send, _BUSY_CLIENTS):
        pass
    return finished / seconds


def overload(server: Server, steps: int, rate: float, seconds: float, seed: int) -> dict[str, Any]:
    """Send Poisson arrivals at a rate (requests a second), and probe ``/livez`` meanwhile.

    Arrivals that find all threads of the sender busy are sent when one is free.
    """
    statuses: Counter[str] = Counter()
    livez: list[float] = []
    lock = threading.Lock()
    pending = iter(poisson_arrivals(rate, seconds, (steps,), seed, {"prompt": PROMPT}))
    made = 0
    began = time.monotonic()

    def send(_: int) -> None:
        nonlocal made
        client = Client(server)
        while True:
            with lock:
                arrival = next(pending, None)
            if arrival is None or time.monotonic() - began > seconds:
                break
            time.sleep(max(0.0, began + arrival.at - time.monotonic()))
            status, body = client.generate(arrival.fields)
            with lock:
                statuses[str(status) if status == 200 else f"{status} {body['error']['code']}"] += 1
                made += status == 200 and time.monotonic() - began <= seconds
        client.close()

    def probe(_: int) -> None:
        while time.monotonic() - began < seconds:
            asked = time.monotonic()
            status, _body = server.get("/livez")
            livez.append(time.monotonic() - asked if status == 200 else float("inf"))
            time.sleep(_PROBE_SECONDS)

    with in_threads(probe, 1), in_threads(send, _SENDERS):
        pass
    livez.sort()
    return {
        "rate": rate,
        "seconds": seconds,
        "statuses": dict(sorted(statuses.items())),
        "images_per_second": made / seconds,
        "livez_seconds": report.summary(livez) | {"p99": round(livez[(len(livez) - 1) * 99 // 100], 4)},
    }
