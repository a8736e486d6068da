"""The application under a real Ray Serve: as `sd2rt serve` answers, behind Ray's proxy."""

from __future__ import annotations

import base64
import io
import json
import os
import signal
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from benchmarks.recording.process import command_line, wait_until
from benchmarks.serving.ray_cluster import Answer, RayCluster, events, send_request
from sd2rt.engines.demo.build import build_demo
from sd2rt.runtime import Pipeline
from sd2rt.runtime.provenance.reading import read_marks
from sd2rt.runtime.provenance.watermark import embed

from ...lora_files import ATTENTION, demo_shapes, draw, write

KEY = "a-key-for-tests"
MAX_QUEUE = 4
RULES = """
def refuse(image):
    return True
"""
AUTHORIZED = {"Authorization": f"Bearer {KEY}"}
GENERATIONS = "/v1/images/generations"
FIELDS: dict[str, Any] = {"prompt": "a red circle", "num_inference_steps": 2, "seed": 1, "size": "256x256"}
LONG = FIELDS | {"num_inference_steps": 1000}
"""Takes far longer than a test waits for a request to be given up."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two bundles, a LoRA, a file of keys, and a module with a safety check."""
    folder = tmp_path_factory.mktemp("ray")
    for name in ("demo", "demo-v"):
        build_demo(name, folder / name)
    write(folder / "ink.safetensors", "kohya", draw(ATTENTION, demo_shapes(), seed=1))
    (folder / "keys").write_text(KEY)
    (folder / "rules.py").write_text(RULES)
    return folder


@pytest.fixture(scope="module")
def ray_cluster(folder: Path) -> Iterator[RayCluster]:
    """Ray without applications. Tests that use it are one group, so that one worker of pytest-xdist starts Ray."""
    pytest.importorskip("ray.serve", reason="Ray Serve is not installed (extra ray)")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(folder))
        with RayCluster() as cluster:
            yield cluster


@pytest.fixture(scope="module")
def served(ray_cluster: RayCluster, folder: Path) -> RayCluster:
    """The application `main`, of one replica with two bundles, keys, a LoRA and the watermark."""
    ray_cluster.deploy(
        "main",
        bundle=f"{folder / 'demo'},{folder / 'demo-v'}",
        api_key_file=str(folder / "keys"),
        lora=f"ink={folder / 'ink.safetensors'}",
        watermark="sdv2",
        max_queue=str(MAX_QUEUE),
        max_steps=1000,
        num_cpus=0.5,
    )
    return ray_cluster


def ask(cluster: RayCluster, path: str = GENERATIONS, body: Any = None, **headers: str) -> Answer:
    return cluster.ask(path, body, AUTHORIZED | headers)


def picture(answer: Answer) -> bytes:
    assert answer.status == 200, answer.body
    return base64.b64decode(answer.json["data"][0]["b64_json"])


def pixels(data: bytes) -> NDArray[np.uint8]:
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image)


def images(cluster: RayCluster, state: str) -> int:
    """Number of waiting or running images, of the application at /."""
    return int(ask(cluster, "/health").json[f"{state}_images"])


def is_idle(cluster: RayCluster) -> bool:
    return images(cluster, "waiting") == images(cluster, "running") == 0


def begin(cluster: RayCluster, **fields: Any) -> HTTPConnection:
    """Send a long request that is watched, without waiting for its answer."""
    connection = cluster.connect()
    send_request(connection, GENERATIONS, LONG | fields, AUTHORIZED)
    return connection


def leave(connection: HTTPConnection) -> None:
    assert isinstance(connection.sock, socket.socket)
    connection.sock.shutdown(socket.SHUT_RDWR)
    connection.close()


def only_replica(cluster: RayCluster, name: str = "main") -> tuple[int, int]:
    """Processes of an application's one replica and of its worker."""
    ((replica, (worker,)),) = cluster.replicas(name).items()
    return replica, worker


def test_the_same_seed_makes_the_pixels_of_a_pipeline(served: RayCluster, folder: Path) -> None:
    requests = [
        {
            "prompt": f"a red circle {seed}",
            "num_inference_steps": 2 + seed % 2,
            "seed": seed,
            "size": "256x256",
        }
        for seed in range(MAX_QUEUE)
    ]
    with ThreadPoolExecutor(len(requests)) as pool:
        answers = list(pool.map(lambda body: ask(served, body=body), requests))
    with Pipeline.open(folder / "demo", device="cpu") as pipeline:
        for body, answer in zip(requests, answers, strict=True):
            given: dict[str, Any] = {name: value for name, value in body.items() if name != "size"}
            (image,) = pipeline(**given, width=256, height=256).images
            np.testing.assert_array_equal(pixels(picture(answer)), embed(np.asarray(image)))
            assert answer.json["data"][0]["seed"] == body["seed"]


def test_pictures_are_marked(served: RayCluster, tmp_path: Path) -> None:
    file = tmp_path / "picture.png"
    file.write_bytes(picture(ask(served, body=FIELDS)))
    marks = read_marks(file)
    assert marks.watermarked
    assert marks.source_type == "trainedAlgorithmicMedia"
    assert "parameters" in marks.texts


def test_a_lora_is_chosen_by_name(served: RayCluster) -> None:
    without = pixels(picture(ask(served, body=FIELDS)))
    drawn = pixels(picture(ask(served, body=FIELDS | {"loras": [{"name": "ink", "scale": 1.0}]})))
    assert not np.array_equal(without, drawn)
    refused = ask(served, body=FIELDS | {"loras": [{"name": "oil", "scale": 1.0}]})
    assert (refused.status, refused.code) == (400, "invalid_value")


def test_keys_are_asked_for(served: RayCluster) -> None:
    assert served.ask("/livez").status == served.ask("/readyz").status == 200
    for headers in ({}, {"Authorization": "Bearer another"}):
        refused = served.ask(GENERATIONS, FIELDS, headers)
        assert (refused.status, refused.code) == (401, "invalid_api_key")


def test_one_request_id_is_sent_back(served: RayCluster) -> None:
    with ExitStack() as stack:
        connection = served.connect()
        stack.callback(connection.close)
        connection.request("GET", "/version", headers=AUTHORIZED | {"x-request-id": "mine-7"})
        answer = connection.getresponse()
        assert answer.headers.get_all("x-request-id") == ["mine-7"]


def test_a_model_is_chosen_in_the_body_or_by_the_header(served: RayCluster) -> None:
    by_header = ask(served, body=FIELDS, serve_multiplexed_model_id="demo-v")
    by_body = ask(served, body=FIELDS | {"model": "demo-v"})
    assert by_header.json["sd2rt"]["model"] == by_body.json["sd2rt"]["model"] == "demo-v"
    assert np.array_equal(pixels(picture(by_header)), pixels(picture(by_body)))
    # The body decides.
    both = ask(served, body=FIELDS | {"model": "demo"}, serve_multiplexed_model_id="demo-v")
    assert both.json["sd2rt"]["model"] == "demo"
    unknown = ask(served, body=FIELDS, serve_multiplexed_model_id="other")
    assert (unknown.status, unknown.code) == (404, "model_not_found")


def test_a_stream_arrives_while_it_is_made(served: RayCluster) -> None:
    # The first partial image comes after a quarter of the steps.
    connection = begin(served, stream=True, partial_images=3, num_inference_steps=100)
    response = connection.getresponse()
    assert response.headers["content-type"].startswith("text/event-stream")
    first = next(line for line in events(response) if line.startswith("data:"))
    assert json.loads(first.removeprefix("data:"))["type"] == "image_generation.partial_image"
    # It is not finished, and so nothing was held back until its end.
    assert images(served, "running") == 1
    leave(connection)
    wait_until(lambda: is_idle(served))


def test_a_client_that_leaves_gives_up_its_images(served: RayCluster) -> None:
    def cancelled() -> float:
        lines = ask(served, "/metrics").body.decode().splitlines()
        start = 'sd2rt_cancelled_total{reason="disconnected"}'
        return next((float(line.split()[-1]) for line in lines if line.startswith(start)), 0.0)

    before = cancelled()
    connections = [begin(served, seed=1), begin(served, seed=2, stream=True), begin(served, seed=3)]
    wait_until(lambda: images(served, "waiting") + images(served, "running") == 3)
    for connection in connections:
        leave(connection)
    wait_until(lambda: is_idle(served))
    assert cancelled() == before + 3
    assert ask(served, body=FIELDS).status == 200


def test_the_queue_is_the_bound(served: RayCluster) -> None:
    connections = [begin(served, seed=seed) for seed in range(MAX_QUEUE)]
    wait_until(lambda: images(served, "waiting") + images(served, "running") == MAX_QUEUE)
    refused = ask(served, body=FIELDS)
    assert (refused.status, refused.code) == (429, "queue_full")
    assert 1 <= int(refused.headers["retry-after"]) <= 120
    for connection in connections:
        leave(connection)
    wait_until(lambda: is_idle(served))


def test_requests_wait_while_a_dead_worker_is_replaced(served: RayCluster) -> None:
    replica, worker = only_replica(served)
    with ThreadPoolExecutor(1) as pool:
        lost = pool.submit(ask, served, GENERATIONS, LONG)
        wait_until(lambda: images(served, "running") == 1)
        os.kill(worker, signal.SIGKILL)
        failed = lost.result()
    assert (failed.status, failed.code) == (500, "worker_died")
    # Not refused by 503: Ray would send everything to a replica that refuses at once.
    assert ask(served, body=FIELDS).status == 200
    after = only_replica(served)
    assert after[0] == replica
    assert after[1] != worker


def test_a_dead_replica_is_replaced_and_leaves_no_worker(served: RayCluster) -> None:
    replica, worker = only_replica(served)
    os.kill(replica, signal.SIGKILL)
    wait_until(lambda: not command_line(worker))
    wait_until(lambda: served.ask("/readyz").status == 200)
    assert ask(served, body=FIELDS).status == 200
    assert only_replica(served)[0] != replica


def test_a_deleted_application_finishes_its_work(ray_cluster: RayCluster, folder: Path) -> None:
    body = {"prompt": "a star", "num_inference_steps": 60, "seed": 1}
    ray_cluster.deploy("short", "/short", bundle=str(folder / "demo"), no_auth="true", num_cpus=0.5)
    _, worker = only_replica(ray_cluster, "short")
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(ray_cluster.ask, f"/short{GENERATIONS}", body)
        wait_until(lambda: ray_cluster.ask("/short/health").json["running_images"] == 1)
        ray_cluster.delete("short")
        assert answer.result().status == 200
    assert not command_line(worker)


def test_a_job_is_finished_before_its_replica_ends(
    ray_cluster: RayCluster, folder: Path, tmp_path: Path
) -> None:
    """Nobody is connected for a job: Ray does not wait for it."""
    (folder / "seen.py").write_text(
        f"def note(image):\n    open({str(tmp_path / 'finished')!r}, 'w').close()\n    return False\n"
    )
    settings: dict[str, Any] = {"bundle": str(folder / "demo"), "no_auth": True, "num_cpus": 0.5}
    ray_cluster.deploy("jobs", "/jobs", safety="seen:note", **settings)
    started = ray_cluster.ask("/jobs/v1/jobs", {"prompt": "a star", "num_inference_steps": 60})
    assert started.status == 202, started.body
    ray_cluster.delete("jobs")
    assert (tmp_path / "finished").exists()


def test_the_header_leads_to_the_replica_that_has_the_bundle(ray_cluster: RayCluster, folder: Path) -> None:
    ray_cluster.deploy(
        "two",
        "/two",
        bundle=f"{folder / 'demo'},{folder / 'demo-v'}",
        keep=1,
        no_auth=True,
        num_replicas=2,
        num_cpus=0.5,
    )
    names = ("demo-v", "demo")
    for name in names:
        headers = {"serve_multiplexed_model_id": name}
        body = {"prompt": "a star", "num_inference_steps": 2}
        assert ray_cluster.ask(f"/two{GENERATIONS}", body, headers).status == 200

    def loaded(name: str) -> list[str]:
        models = ray_cluster.ask("/two/v1/models", headers={"serve_multiplexed_model_id": name}).json["data"]
        return [model["id"] for model in models if model["sd2rt"]["loaded"]]

    # Each of the two has one bundle, and Ray hears of it a little later.
    wait_until(lambda: all(loaded(name) == [name] for name in names for _ in range(8)))
    ray_cluster.delete("two")


def test_a_safety_check_refuses(ray_cluster: RayCluster, folder: Path) -> None:
    ray_cluster.deploy(
        "refusing",
        "/refusing",
        bundle=str(folder / "demo"),
        no_auth=True,
        num_cpus=0.5,
        safety="rules:refuse",
    )
    refused = ray_cluster.ask(f"/refusing{GENERATIONS}", {"prompt": "a star", "num_inference_steps": 2})
    assert (refused.status, refused.code) == (400, "content_policy_violation")
    ray_cluster.delete("refusing")


def test_a_replica_that_cannot_start_says_why(
    ray_cluster: RayCluster, folder: Path, captured_status: Callable[[str], str]
) -> None:
    with pytest.raises(RuntimeError):
        ray_cluster.deploy("missing", "/missing", bundle=str(folder / "nothing"), no_auth=True, num_cpus=0.5)
    assert f"there is no bundle {folder / 'nothing'}" in captured_status("missing")
    ray_cluster.delete("missing")


@pytest.fixture
def captured_status() -> Callable[[str], str]:
    """Ray's message on an application's deployments."""
    from ray import serve

    def status(name: str) -> str:
        return " ".join(each.message for each in serve.status().applications[name].deployments.values())

    return status
