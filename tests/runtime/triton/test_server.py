"""NVIDIA's Triton Inference Server with a repository of `sd2rt triton`, and its own clients over gRPC and HTTP."""

from __future__ import annotations

import base64
import io
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from PIL import Image

from benchmarks.deploy.triton_process import VARIABLE, Triton, find_venv
from benchmarks.faults.recorder import Recorder
from benchmarks.faults.triton import (
    FIELDS,
    HOSTILE,
    LONG,
    hostile,
    killed_servers,
    killed_stubs,
    killed_workers,
    leaving,
    write_repository,
)
from sd2rt.engines.demo.build import build_demo
from sd2rt.runtime.pipeline.pipeline import Pipeline

VENV = find_venv()
pytestmark = pytest.mark.skipif(VENV is None, reason=f"{VARIABLE} names no environment with nvidia-pytriton")


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundles") / "demo"
    build_demo("demo", folder)
    return folder


@pytest.fixture(scope="module")
def repository(demo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_repository(demo, tmp_path_factory.mktemp("models") / "models")


@pytest.fixture(scope="module")
def server(repository: Path) -> Iterator[Triton]:
    """Streams the demo; a test that kills something leaves it as it was."""
    assert VENV is not None
    with Triton(repository, VENV) as triton:
        yield triton


@pytest.fixture(scope="module")
def expected(server: Triton) -> dict[str, Any]:
    return server.clients.ask("stream", fields=FIELDS)


def pixels(answer: dict[str, Any]) -> Any:
    (data,) = answer["images"]
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))


def test_the_same_seed_makes_the_same_pixels(demo: Path, expected: dict[str, Any]) -> None:
    with Pipeline.open(demo) as pipeline:
        fields: dict[str, Any] = dict(FIELDS)
        wanted = pipeline(**{name: fields[name] for name in ("prompt", "seed", "num_inference_steps")})
    assert np.array_equal(pixels(expected), np.asarray(wanted.images[0]))
    assert expected["seeds"] == [7]
    assert expected["facts"]["sizes"] == [[128, 128]]


def test_responses_follow_the_steps(expected: dict[str, Any]) -> None:
    """Steps that are made while a response is sent may share the next one; the last is always there."""
    steps = [step for step, _ in expected["steps"]]
    assert steps == sorted(set(steps))
    assert len(steps) > 1
    assert expected["steps"][-1] == [8, 8]


def test_generate_stream(server: Triton, expected: dict[str, Any]) -> None:
    """Over HTTP without a client of Triton's, images are text."""
    status, body = server.post(
        "/v2/models/demo/generate_stream", {**FIELDS, "options": '{"response_format": "b64_json"}'}
    )
    assert status == 200
    events = [json.loads(line.removeprefix("data: ")) for line in body.splitlines() if line]
    assert any(event.get("step") == 8 for event in events)
    assert [event["image"] for event in events if "image" in event] == expected["images"]


def test_http_clients_are_refused_by_streaming_models(server: Triton) -> None:
    assert "decoupled" in server.clients.ask("http", fields=FIELDS)["error"]


def test_images_in_requests(server: Triton, expected: dict[str, Any]) -> None:
    fields = {
        **FIELDS,
        "image": expected["images"][0],
        "options": '{"strength": 0.5, "output_format": "webp"}',
    }
    answer = server.clients.ask("stream", fields=fields)
    assert answer["facts"]["task"] == "image-to-image"
    assert Image.open(io.BytesIO(base64.b64decode(answer["images"][0]))).format == "WEBP"
    assert not np.array_equal(pixels(answer), pixels(expected))


def test_requests_share_steps(server: Triton, expected: dict[str, Any]) -> None:
    """Nine at once, of other lengths: the one has the picture that it has alone."""
    others = [
        server.clients.send(
            "stream", fields={"prompt": "a star", "seed": index, "num_inference_steps": 4 + index}
        )
        for index in range(8)
    ]
    assert server.clients.ask("stream", fields=FIELDS)["images"] == expected["images"]
    assert len({other.result(120)["images"][0] for other in others}) == 8


@pytest.mark.parametrize("group", ["leaving", "hostile", "workers", "stubs", "servers"])
def test_faults(server: Triton, repository: Path, expected: dict[str, Any], group: str) -> None:
    """A few cases of those that `python -m benchmarks.faults triton` counts."""
    assert VENV is not None
    source = Random(1)
    with Recorder() as recorder:
        match group:
            case "leaving":
                leaving(recorder, server, expected, 2, source)
            case "hostile":
                hostile(recorder, server, expected, len(HOSTILE))
            case "workers":
                killed_workers(recorder, server, expected, 1, source)
            case "stubs":
                killed_stubs(recorder, repository, VENV, expected, 1, source)
            case "servers":
                killed_servers(recorder, repository, VENV, expected, 1, source)
    assert recorder.faults == []


def test_an_update_loses_no_request(
    server: Triton, demo: Path, repository: Path, expected: dict[str, Any]
) -> None:
    """The next version is loaded beside the first, which finishes what it has."""
    running = server.clients.send("stream", fields={**LONG, "n": 1})
    answers: list[dict[str, Any]] = []
    over = threading.Event()

    def ask() -> None:
        while not over.is_set():
            answers.append(server.clients.ask("stream", fields=FIELDS))

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        write_repository(demo, repository)
        assert [each.name for each in sorted((repository / "demo").glob("[0-9]*"))] == ["1", "2"]
        server.load()
    finally:
        over.set()
        asking.join()
    answers.append(server.clients.ask("stream", fields=FIELDS))
    assert "images" in running.result(120)
    assert len(answers) > 1
    assert [answer.get("error") for answer in answers] == [None] * len(answers)
    assert all(answer["images"] == expected["images"] for answer in answers)


def test_single_responses(demo: Path, expected: dict[str, Any], tmp_path: Path) -> None:
    """Clients without streams have the same picture, and the bundle lies in the repository."""
    assert VENV is not None
    repository = write_repository(demo, tmp_path / "models", "--single-response", "--copy")
    with Triton(repository, VENV) as server:
        for op in ("grpc", "http"):
            assert server.clients.ask(op, fields=FIELDS)["images"] == expected["images"]
            error = server.clients.ask(op, fields={"prompt": "a", "width": 100, "height": 100})["error"]
            assert "size_not_supported: width 100" in error
        status, body = server.post(
            "/v2/models/demo/generate", {**FIELDS, "options": '{"response_format": "b64_json"}'}
        )
        assert (status, json.loads(body)["image"]) == (200, expected["images"][0])
        assert server.stop() == 0
