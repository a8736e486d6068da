"""Times between states: ready after start, a place free after a client left, ready after a worker was killed."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.recording import process, report
from benchmarks.serving.latency import PROMPT
from benchmarks.serving.server_process import Client, Server

READY_SECONDS, FRONT_BYTES = 3.0, 80 << 20
CANCEL_EXTRA_SECONDS = 0.05
DOWN_SECONDS, AGAIN_SECONDS = 1.0, 5.0
GROWTH_BYTES = 50 << 20
SLOW_CLIENTS, SLOW_RATIO = 200, 1.2


def starts(bundles: Sequence[str | Path], repetitions: int) -> dict[str, Any]:
    """Time from process start to ready, and the front's memory after an image."""
    seconds, memory = [], []
    for _ in range(repetitions):
        with Server(*bundles) as server:
            assert server.ready_seconds is not None
            seconds.append(server.ready_seconds)
            generate(server, 2)
            memory.append(process.memory(server.process.pid)[0])
    return {"ready_seconds": report.summary(seconds, 3), "front_bytes": report.summary(memory, 0)}


def generate(server: Server, steps: int, **fields: Any) -> int:
    """Generate an image; return the status."""
    client = Client(server)
    try:
        return client.generate({"prompt": PROMPT, "num_inference_steps": steps, "seed": 1, **fields})[0]
    finally:
        client.close()


def cancellations(server: Server, repetitions: int) -> dict[str, Any]:
    """Time from a client's leaving in mid-step until no request runs, beside the time of a step."""
    steps = 40
    began = time.perf_counter()
    if generate(server, steps) != 200:
        raise ValueError("the server does not generate")
    step = (time.perf_counter() - began) / steps
    body = json.dumps({"prompt": PROMPT, "num_inference_steps": 150, "seed": 1}).encode()
    head = b"POST /v1/images/generations HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
    waits = []
    for _ in range(repetitions):
        with socket.create_connection((server.host, server.port)) as leaving:
            leaving.sendall(head + f"content-length: {len(body)}\r\n\r\n".encode() + body)
            server.wait_until(lambda: _running(server) == 1)
            time.sleep(3 * step)
        left = time.perf_counter()
        server.wait_until(lambda: _running(server) == 0)
        waits.append(time.perf_counter() - left)
    return {"step_seconds": round(step, 4), "free_seconds": report.summary(waits)}


def _running(server: Server) -> int:
    """Images of which steps are made, as the worker says."""
    return int(json.loads(server.get("/health")[1])["running_images"])


def kills(server: Server, repetitions: int, pause: float) -> dict[str, Any]:
    """Kill the worker; time until ``/readyz`` is 503, and until an image is made again.

    Args:
        pause: seconds between kills: three deaths in a minute end the server.
    """
    down, again = [], []
    for repetition in range(repetitions):
        if repetition:
            time.sleep(pause)
        (worker,) = server.workers()
        os.kill(worker, signal.SIGKILL)
        down.append(server.wait_status(503))
        killed = time.monotonic() - down[-1]
        server.wait_status(200)
        if generate(server, 2) != 200:
            raise ValueError("the new worker does not generate")
        again.append(time.monotonic() - killed)
    return {"down_seconds": report.summary(down, 3), "again_seconds": report.summary(again, 3)}


def beside_slow_clients(server: Server, steps: int, pairs: int) -> dict[str, Any]:
    """Time of an image while 200 clients send their headers slowly, over the time without them, in turns."""
    ratios = []
    for pair in range(pairs + 1):
        alone = _seconds(server, steps)
        with contextlib.ExitStack() as stack:
            for _ in range(SLOW_CLIENTS):
                slow = stack.enter_context(socket.create_connection((server.host, server.port)))
                slow.sendall(b"POST /v1/images/generations HTTP/1.1\r\nhost:")
            beside = _seconds(server, steps)
        if pair:  # the first one warms
            ratios.append(beside / alone)
    return {"clients": SLOW_CLIENTS, "ratio": report.summary(ratios)}


def _seconds(server: Server, steps: int) -> float:
    began = time.perf_counter()
    if generate(server, steps) != 200:
        raise ValueError("the server does not generate")
    return time.perf_counter() - began


def growth(server: Server, requests: int) -> dict[str, Any]:
    """Memory, descriptors and threads of front and worker, before and after many requests of all kinds."""
    warm = max(requests // 10, 20)
    client = Client(server)

    def some(count: int) -> None:
        for index in range(count):
            client.generate(
                {"prompt": f"{PROMPT} {index}", "num_inference_steps": 1 + index % 3, "seed": index}
            )
            if index % 10 == 0:
                with contextlib.suppress(OSError, http.client.HTTPException):
                    server.get("/metrics")
                    server.get("/nothing")

    some(warm)
    before = _resources(server)
    some(requests)
    after = _resources(server)
    client.close()
    return {"requests": requests, "before": before, "after": after}


def _resources(server: Server) -> dict[str, dict[str, int]]:
    (worker,) = server.workers()
    return {
        name: {
            "rss_bytes": process.memory(pid)[0],
            "descriptors": len(os.listdir(f"/proc/{pid}/fd")),
            "threads": len(os.listdir(f"/proc/{pid}/task")),
        }
        for name, pid in (("front", server.process.pid), ("worker", worker))
    }
