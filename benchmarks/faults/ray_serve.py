"""Deaths under Ray Serve: replicas and their workers are killed while clients send one request after another.

A case held if each failed request failed in one of the ways that a killed process explains, every picture is that of
an undisturbed request, all replicas came back, and no worker outlived its replica.
"""

from __future__ import annotations

import base64
import http.client
import io
import itertools
import os
import signal
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

from PIL import Image

from benchmarks.faults.recorder import Recorder
from benchmarks.recording.bundle import build_demo
from benchmarks.recording.process import command_line, wait_until
from benchmarks.serving.ray_cluster import Answer, RayCluster

CASES = 5
"""Kills of each kind."""
REPLICAS, CLIENTS = 2, 4
NAME = "faults"
_PATH = "/v1/images/generations"
_SEEDS = 8
_LIMIT_SECONDS = 90.0
_APART_SECONDS = 25.0
"""Between kills of workers: three deaths of a replica's workers in a minute would end that replica too."""
_EXPECTED = frozenset({"500 worker_died", "500 of Ray", "503 of Ray", "no answer"})


class _Outcome(NamedTuple):
    at: float
    """Time of the answer."""
    seconds: float
    """Since the request was sent."""
    kind: str


class Load:
    """Clients in threads, each sending a request when it has the answer to the last; a context manager.

    Args:
        cluster: with an application at /.
        expected: pixels of undisturbed requests by seed.
    """

    def __init__(self, cluster: RayCluster, expected: dict[int, bytes]) -> None:
        self._cluster, self._expected = cluster, expected
        self._numbers = itertools.count()
        self._ending = threading.Event()
        self._lock = threading.Lock()
        self._outcomes: list[_Outcome] = []
        self._began = [0.0] * CLIENTS
        self._threads = [threading.Thread(target=self._run, args=(client,)) for client in range(CLIENTS)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._ending.set()
        for thread in self._threads:
            thread.join()

    def since(self, start: float) -> list[_Outcome]:
        """Return the answers since a time of :func:`time.monotonic`."""
        with self._lock:
            return [each for each in self._outcomes if each.at >= start]

    def oldest(self) -> float:
        """Return the time at which the oldest open request was sent."""
        return min(self._began)

    def _run(self, client: int) -> None:
        while not self._ending.is_set():
            began = self._began[client] = time.monotonic()
            kind = self._kind(next(self._numbers))
            at = time.monotonic()
            with self._lock:
                self._outcomes.append(_Outcome(at, at - began, kind))

    def _kind(self, number: int) -> str:
        try:
            answer = self._cluster.ask(_PATH, _body(number), timeout=_LIMIT_SECONDS)
        except (OSError, http.client.HTTPException):
            return "no answer"
        if answer.status == 200:
            return "picture" if _picture(answer) == self._expected[number % _SEEDS] else "another picture"
        return f"{answer.status} {answer.code or 'of Ray'}"


def run(recorder: Recorder, cases: int, seed: int) -> None:
    """Kill replicas ``cases`` times with SIGKILL, and workers as often."""
    source = Random(seed)
    with tempfile.TemporaryDirectory(prefix="sd2rt-faults-") as name, RayCluster() as cluster:
        bundle = build_demo(Path(name))
        cluster.deploy(NAME, bundle=str(bundle), no_auth=True, num_replicas=REPLICAS, num_cpus=0.5, threads=1)
        expected = {seed: _picture(cluster.ask(_PATH, _body(seed))) for seed in range(_SEEDS)}
        with Load(cluster, expected) as load:
            for group, kills_worker in (("replica killed", False), ("worker of a replica killed", True)):
                for case in range(cases):
                    began = time.monotonic()
                    _case(recorder, group, case, cluster, load, source, kills_worker)
                    if kills_worker and case + 1 < cases:
                        time.sleep(max(0.0, _APART_SECONDS - (time.monotonic() - began)))


def _case(
    recorder: Recorder,
    group: str,
    case: int,
    cluster: RayCluster,
    load: Load,
    source: Random,
    kills_worker: bool,
) -> None:
    wait_until(lambda: _is_whole(cluster), _LIMIT_SECONDS)
    time.sleep(1 + source.random())
    before = cluster.replicas(NAME)
    replica = source.choice(sorted(before))
    (worker,) = before[replica]
    start = time.monotonic()
    os.kill(worker if kills_worker else replica, signal.SIGKILL)
    try:
        orphan_seconds = wait_until(lambda: not command_line(worker), _LIMIT_SECONDS)
        wait_until(lambda: _is_whole(cluster), _LIMIT_SECONDS)
        whole_seconds = time.monotonic() - start
        # Requests that were under way have been answered, whatever they waited for.
        wait_until(lambda: load.oldest() > start + whole_seconds, _LIMIT_SECONDS)
    except TimeoutError as error:
        recorder.record(group, "hang", f"{case}", str(error))
        return
    outcomes = load.since(start)
    errors = Counter(each.kind for each in outcomes if each.kind != "picture")
    pictures = [each for each in outcomes if each.kind == "picture"]
    if not pictures:
        recorder.record(group, "wrong", f"{case}", f"no picture, answers: {dict(errors)}")
        return
    recorder.note(
        group,
        {
            "worker_gone_seconds": round(orphan_seconds, 3),
            "whole_seconds": round(whole_seconds, 2),
            "last_error_seconds": round(
                max((each.at - start for each in outcomes if each.kind != "picture"), default=0.0), 2
            ),
            "longest_pause_seconds": round(_longest_pause(start, [each.at for each in pictures]), 2),
            "slowest_picture_seconds": round(max(each.seconds for each in pictures), 2),
            "pictures": len(pictures),
            "errors": dict(errors),
        },
    )
    if unexpected := errors.keys() - _EXPECTED:
        recorder.record(group, "wrong", f"{case}", f"answers: {', '.join(sorted(unexpected))}")
    elif kills_worker and replica not in cluster.replicas(NAME):
        recorder.record(group, "wrong", f"{case}", "the replica of the killed worker was replaced")
    else:
        recorder.record(group, "held", f"{case}", f"whole after {whole_seconds:.2f} s, errors {dict(errors)}")


def _body(number: int) -> dict[str, Any]:
    """Return a request that no other equals, with one of a few pictures: spaces after a prompt change nothing.

    Equal requests in two dead workers would be refused as their cause.
    """
    return {
        "prompt": "a red circle" + " " * (number // _SEEDS),
        "num_inference_steps": 20,
        "seed": number % _SEEDS,
        "size": "128x128",
    }


def _picture(answer: Answer) -> bytes:
    with Image.open(io.BytesIO(base64.b64decode(answer.json["data"][0]["b64_json"]))) as image:
        return image.tobytes()


def _longest_pause(start: float, times: list[float]) -> float:
    """Longest time without a picture."""
    return max(later - earlier for earlier, later in zip([start, *times], times, strict=False))


def _is_whole(cluster: RayCluster) -> bool:
    """True if Ray has found all replicas ready, and each has a worker."""
    from ray import serve

    replicas = cluster.replicas(NAME)
    if len(replicas) != REPLICAS or any(len(workers) != 1 for workers in replicas.values()):
        return False
    deployment = serve.status().applications[NAME].deployments["sd2rt"]
    return sum(count for state, count in deployment.replica_states.items() if state == "RUNNING") == REPLICAS
