"""Jobs, against a real server."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from benchmarks.serving.server_process import Server
from sd2rt.runtime import Pipeline
from sd2rt.runtime.images.depth_map import depth_image

PROMPT = "a large green triangle on a gray background"


@pytest.fixture(scope="module")
def client(demo_server: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=demo_server.url, timeout=60) as client:
        yield client


def start(client: httpx.Client, key: str | None = None, **fields: Any) -> httpx.Response:
    headers = {} if key is None else {"idempotency-key": key}
    return client.post(
        "/v1/jobs", json={"prompt": PROMPT, "num_inference_steps": 4, **fields}, headers=headers
    )


def events(client: httpx.Client, identity: str) -> list[tuple[str, dict[str, Any]]]:
    """Read a job's events to their end."""
    found, name = [], ""
    with client.stream("GET", f"/v1/jobs/{identity}/events") as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        for line in answer.iter_lines():
            if line.startswith("event: "):
                name = line.removeprefix("event: ")
            elif line.startswith("data: "):
                found.append((name, json.loads(line.removeprefix("data: "))))
    return found


def test_from_start_to_image(client: httpx.Client) -> None:
    answer = start(client, n=2, seed=7, previews=True, foo=1)
    assert answer.status_code == 202
    job = answer.json()
    assert answer.headers["location"] == f"/v1/jobs/{job['id']}"
    assert job["ignored"] == ["foo"]
    seen = events(client, job["id"])
    assert seen[-1][0] == "completed"
    assert {name for name, _ in seen[:-1]} <= {"progress"}
    previews = [data["preview_b64"] for _, data in seen if "preview_b64" in data]
    for preview in previews:
        assert Image.open(io.BytesIO(base64.b64decode(preview))).format == "PNG"
    done = client.get(f"/v1/jobs/{job['id']}").json()
    assert done == seen[-1][1]
    assert [image["seed"] for image in done["images"]] == [7, 8]
    pictures = [client.get(image["path"]) for image in done["images"]]
    assert [found.headers["x-seed"] for found in pictures] == ["7", "8"]
    assert pictures[0].headers["content-type"] == "image/png"
    through_openai = client.post(
        "/v1/images/generations", json={"prompt": PROMPT, "num_inference_steps": 4, "seed": 8}
    ).json()
    expected = Image.open(io.BytesIO(base64.b64decode(through_openai["data"][0]["b64_json"])))
    assert Image.open(io.BytesIO(pictures[1].content)).tobytes() == expected.tobytes()
    assert client.get(f"/v1/jobs/{job['id']}/image?index=2").status_code == 404
    assert client.get(f"/v1/jobs/{job['id']}/image?index=x").status_code == 400


def test_the_same_key_is_the_same_job(client: httpx.Client) -> None:
    first, second = start(client, "one", seed=1), start(client, "one", seed=1)
    assert (first.status_code, second.status_code) == (202, 200)
    assert first.json()["id"] == second.json()["id"]
    other = start(client, "one", seed=2)
    assert (other.status_code, other.json()["error"]["code"]) == (409, "idempotency_conflict")
    assert start(client, "\x7f").status_code == 400
    assert start(client, "x" * 300).status_code == 400


def test_a_deleted_job_is_cancelled_and_gone(client: httpx.Client, demo_server: Server) -> None:
    job = start(client, num_inference_steps=50, n=10).json()
    assert client.get(f"/v1/jobs/{job['id']}/image").status_code == 404
    assert client.delete(f"/v1/jobs/{job['id']}").status_code == 204
    assert client.get(f"/v1/jobs/{job['id']}").status_code == 404
    assert client.delete(f"/v1/jobs/{job['id']}").status_code == 404
    demo_server.wait_until(lambda: b"sd2rt_requests_running 0.0" in demo_server.get("/metrics")[1])
    assert b'sd2rt_cancelled_total{reason="deleted"}' in demo_server.get("/metrics")[1]


def test_an_image_in_base64(client: httpx.Client) -> None:
    file = io.BytesIO()
    Image.new("RGB", (128, 128), (200, 30, 30)).save(file, "PNG")
    job = start(client, image=base64.b64encode(file.getvalue()).decode(), strength=0.5, seed=1)
    assert job.status_code == 202
    assert events(client, job.json()["id"])[-1][0] == "completed"


@pytest.mark.parametrize("image", ["/etc/passwd", "-", "file:///etc/passwd", "http://127.0.0.1/x.png", "", 5])
def test_paths_and_urls_are_not_read(client: httpx.Client, image: object) -> None:
    answer = start(client, image=image)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_image")


def test_refusals_are_statuses(client: httpx.Client) -> None:
    for fields in ({"size": "1x1"}, {"model": "x"}, {"stream": True}, {"n": 0}, {"clip_skip": 99}):
        assert 400 <= start(client, **fields).status_code < 500
    assert client.get("/v1/jobs/nothing").status_code == 404
    assert client.get("/v1/jobs").status_code == 405


def test_callers_do_not_see_each_other(demo_folders: dict[str, Path]) -> None:
    """Another's job is not there, neither to read nor to delete; deleting one's own leaves the other's running."""
    with Server(demo_folders["demo"], "--api-key", "a", "--api-key", "b") as server:
        first = httpx.Client(base_url=server.url, headers={"authorization": "Bearer a"}, timeout=60)
        second = httpx.Client(base_url=server.url, headers={"authorization": "Bearer b"}, timeout=60)
        with first, second:
            own = start(first, "key", num_inference_steps=30, seed=1).json()["id"]
            other = start(second, "key", num_inference_steps=30, seed=2).json()["id"]
            assert own != other
            for path in ("", "/events", "/image"):
                assert second.get(f"/v1/jobs/{own}{path}").status_code == 404
            assert second.delete(f"/v1/jobs/{own}").status_code == 404
            assert second.delete(f"/v1/jobs/{other}").status_code == 204
            assert events(first, own)[-1][0] == "completed"


def test_bounded_by_size(demo_folders: dict[str, Path]) -> None:
    with Server(demo_folders["demo"], "--job-mb", "1") as server, httpx.Client(base_url=server.url) as client:
        identities = []
        for index in range(4):
            job = start(client, size="512x512", num_inference_steps=1, n=1, seed=index).json()["id"]
            assert events(client, job)[-1][0] == "completed"
            identities.append(job)
        there = [client.get(f"/v1/jobs/{job}").status_code for job in identities]
        assert there[0] == 404
        assert there[-1] == 200


def test_places_in_the_queue(client: httpx.Client) -> None:
    """They count what waits on the device, in order of arrival, and end with the first step."""
    jobs = [start(client, num_inference_steps=50, n=10).json()["id"] for _ in range(6)]
    try:
        states = [client.get(f"/v1/jobs/{job}").json() for job in jobs]
        waiting = [state["queue_position"] for state in states if state["status"] == "queued"]
        assert waiting == sorted(set(waiting))
        assert all(place >= 1 for place in waiting)
        assert all(state["queue_position"] is None for state in states if state["status"] == "running")
    finally:
        for job in jobs:
            client.delete(f"/v1/jobs/{job}")


def test_a_job_in_the_queue_moves_up(demo_folders: dict[str, Path]) -> None:
    """Those who watch it see that, with nothing else happening to the job."""
    with Server(demo_folders["demo"]) as server, httpx.Client(base_url=server.url, timeout=60) as client:
        jobs = [start(client, num_inference_steps=50, n=6).json()["id"] for _ in range(8)]
        places: list[int | None] = []
        with client.stream("GET", f"/v1/jobs/{jobs[-1]}/events") as answer:
            lines = (line for line in answer.iter_lines() if line.startswith("data: "))
            places.append(json.loads(next(lines).removeprefix("data: "))["queue_position"])
            for job in jobs[:-1]:
                assert httpx.delete(f"{server.url}/v1/jobs/{job}").status_code == 204
            while places[-1] is not None:
                places.append(json.loads(next(lines).removeprefix("data: "))["queue_position"])
        client.delete(f"/v1/jobs/{jobs[-1]}")
        numbers = [place for place in places if place is not None]
        assert numbers == sorted(numbers, reverse=True)


def test_the_depth_map(client: httpx.Client, demo_folders: dict[str, Path]) -> None:
    """A depth model's job with previews has the estimator's map, and used as one it leads to the same picture."""
    file = io.BytesIO()
    Image.effect_mandelbrot((128, 128), (-2, -1.5, 1, 1.5), 50).convert("RGB").save(file, "PNG")
    image = base64.b64encode(file.getvalue()).decode()
    fields: dict[str, Any] = {"model": "demo-depth", "image": image, "seed": 1}
    job = start(client, previews=True, **fields).json()["id"]
    end = events(client, job)[-1][1]
    assert end["depth_map"] == f"/v1/jobs/{job}/depth_map"
    answer = client.get(end["depth_map"])
    assert answer.headers["content-type"] == "image/png"
    depth = Image.open(io.BytesIO(answer.content))
    assert depth.mode.startswith("I")
    assert depth.getextrema() == (0, 0xFFFF)
    with Pipeline.open(demo_folders["demo-depth"], device="cpu") as pipeline:
        expected = depth_image(pipeline.depth(Image.open(file)))
    assert np.array_equal(np.asarray(depth), np.asarray(expected))
    plain = start(client, **fields).json()["id"]
    assert events(client, plain)[-1][1]["depth_map"] is None
    assert client.get(f"/v1/jobs/{plain}/depth_map").status_code == 204
