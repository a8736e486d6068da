"""Ends: drains, signals, workers that die, clients that leave."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from benchmarks.serving.server_process import Client, Server

FIELDS = {"prompt": "a red circle", "seed": 1}


def generate(server: Server, steps: int, **more: Any) -> tuple[int, dict[str, Any]]:
    client = Client(server)
    try:
        return client.generate({**FIELDS, "num_inference_steps": steps, **more})
    finally:
        client.close()


def metric(server: Server, name: str) -> float:
    lines = server.get("/metrics")[1].decode().splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name))


def started(server: Server, running: int, waiting: int) -> None:
    """Wait until so many requests run and wait."""
    server.wait_until(
        lambda: (
            (metric(server, "sd2rt_requests_running"), metric(server, "sd2rt_requests_waiting"))
            == (running, waiting)
        )
    )


def unfinished(server: Server) -> float:
    return metric(server, "sd2rt_requests_running") + metric(server, "sd2rt_requests_waiting")


def test_a_drain_finishes_what_runs_and_waits(demo_folders: dict[str, Path]) -> None:
    """New work is refused at the same address meanwhile, also on connections that are kept alive."""
    with Server(demo_folders["demo"]) as server, ThreadPoolExecutor(16) as threads:
        kept = Client(server)
        assert kept.generate({**FIELDS, "num_inference_steps": 1})[0] == 200
        work = [threads.submit(generate, server, 6, seed=index) for index in range(16)]
        server.wait_until(lambda: unfinished(server) == 16)
        server.process.send_signal(signal.SIGTERM)
        server.wait_status(503)
        assert server.get("/livez")[0] == 200
        for status, body in (kept.generate(FIELDS), generate(server, 1)):
            assert (status, body["error"]["code"]) == (503, "draining")
        assert [each.result()[0] for each in work] == [200] * 16
        assert server.wait() == 0
        assert not server.workers()


def test_a_second_signal_forces(demo_folders: dict[str, Path]) -> None:
    with Server(demo_folders["demo"]) as server, ThreadPoolExecutor(1) as threads:
        work = threads.submit(generate, server, 150, n=10)
        server.wait_until(lambda: unfinished(server) == 1)
        workers = server.workers()
        for _ in range(2):
            server.process.send_signal(signal.SIGTERM)
            time.sleep(0.2)
        assert server.wait() == 128 + signal.SIGTERM
        status, body = work.result()
        assert (status, body["error"]["code"]) == (503, "draining")
        wait_gone(workers)
        assert "Traceback" not in server.log


def wait_gone(pids: list[int]) -> None:
    until = time.monotonic() + 20
    while any(Path(f"/proc/{pid}").exists() for pid in pids):
        assert time.monotonic() < until, pids
        time.sleep(0.02)


def test_the_shutdown_timeout(demo_folders: dict[str, Path]) -> None:
    with (
        Server(demo_folders["demo"], "--shutdown-timeout", "0.5") as server,
        ThreadPoolExecutor(1) as threads,
    ):
        work = threads.submit(generate, server, 150, n=10)
        server.wait_until(lambda: unfinished(server) == 1)
        assert server.stop() == 128 + signal.SIGTERM
        assert work.result()[0] == 503


def test_a_job_can_be_fetched_during_a_drain(demo_folders: dict[str, Path]) -> None:
    with Server(demo_folders["demo"]) as server, httpx.Client(base_url=server.url, timeout=60) as client:
        job = client.post("/v1/jobs", json={**FIELDS, "num_inference_steps": 40}).json()["id"]
        with client.stream("GET", f"/v1/jobs/{job}/events") as events:
            server.process.send_signal(signal.SIGTERM)
            assert any(line == "event: completed" for line in events.iter_lines())
        assert client.get(f"/v1/jobs/{job}/image").status_code == 200
        assert server.wait() == 0


def test_a_worker_that_dies(demo_folders: dict[str, Path]) -> None:
    """Its request fails, readiness follows, and the next request is answered by another worker."""
    with Server(demo_folders["demo"]) as server, ThreadPoolExecutor(1) as threads:
        work = threads.submit(generate, server, 150, n=10)
        server.wait_until(lambda: metric(server, "sd2rt_requests_running") == 1)
        (worker,) = server.workers()
        os.kill(worker, signal.SIGKILL)
        status, body = work.result()
        assert (status, body["error"]["code"]) == (500, "worker_died")
        server.wait_status(200)
        assert generate(server, 2)[0] == 200
        assert metric(server, "sd2rt_worker_restarts_total") == 1
        assert server.get("/livez")[0] == 200


def test_a_worker_that_dies_in_mid_stream(demo_folders: dict[str, Path]) -> None:
    """The stream has begun with status 200, so the failure is an event of it."""
    with (
        Server(demo_folders["demo"]) as server,
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="x", max_retries=0) as client,
        client.images.generate(
            prompt="a red circle", stream=True, partial_images=3, extra_body={"num_inference_steps": 150}
        ) as stream,
    ):
        assert next(stream).type == "image_generation.partial_image"
        for worker in server.workers():
            os.kill(worker, signal.SIGKILL)
        with pytest.raises(openai.APIError) as error:
            list(stream)
        assert error.value.code == "worker_died"
        server.wait_status(200)


def test_a_front_that_is_killed_takes_its_worker_along(demo_folders: dict[str, Path]) -> None:
    with Server(demo_folders["demo"]) as server:
        workers = server.workers()
        assert workers
        os.kill(server.process.pid, signal.SIGKILL)
        server.process.wait()
        wait_gone(workers)


@pytest.mark.parametrize("stream", [False, True])
def test_clients_that_leave(demo_server: Server, stream: bool) -> None:
    """Running and waiting requests end, and another's goes on."""
    with ThreadPoolExecutor(1) as threads:
        other = threads.submit(generate, demo_server, 30)
        body = json.dumps({**FIELDS, "num_inference_steps": 50, "stream": stream}).encode()
        head = b"POST /v1/images/generations HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        with contextlib.ExitStack() as stack:
            for _ in range(10):
                leaving = stack.enter_context(socket.create_connection((demo_server.host, demo_server.port)))
                leaving.sendall(head + f"content-length: {len(body)}\r\n\r\n".encode() + body)
            demo_server.wait_until(lambda: unfinished(demo_server) >= 10)
        assert other.result()[0] == 200
        demo_server.wait_until(lambda: unfinished(demo_server) == 0)
    assert b'sd2rt_cancelled_total{reason="disconnected"}' in demo_server.get("/metrics")[1]


def test_overload(demo_folders: dict[str, Path]) -> None:
    """More than fits is refused at once with 429, and everything that is admitted is answered."""
    statuses: list[int] = []
    codes: set[str] = set()
    lock = threading.Lock()
    with Server(demo_folders["demo"], "--max-queue", "4") as server:

        def send(index: int) -> None:
            for round_ in range(3):
                status, body = generate(server, 5, seed=index * 10 + round_)
                with lock:
                    statuses.append(status)
                    if status != 200:
                        codes.add(body["error"]["code"])

        with ThreadPoolExecutor(16) as threads:
            list(threads.map(send, range(16)))
        assert server.get("/livez")[0] == 200
    assert set(statuses) == {200, 429}
    assert codes == {"queue_full"}
    assert statuses.count(200) >= 4
