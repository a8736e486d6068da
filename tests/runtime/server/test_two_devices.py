"""A worker for each of two GPUs, both simulated, behind one client."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sd2rt.runtime.server.errors import ServerError
from sd2rt.runtime.server.generation import Completed, GenerationRequest
from sd2rt.runtime.server.worker_settings import WorkerSettings

from ..pipeline.conftest import compiled
from .gpu_worker import COMMAND, DEVICES, install
from .serving import Serving, completed, serve, until

LONG = 900


def asked(name: str, steps: int = 3, **fields: Any) -> GenerationRequest:
    values = {"prompt": "a lighthouse", "seed": 7, "num_inference_steps": steps, "sampler": "euler-a"}
    return GenerationRequest(request_id=name, model="small", fields=values | fields)


def images(serving: Serving) -> dict[str, int]:
    """Unfinished images by device."""
    return {link.device: link.images for link in serving.client._links}


@pytest.fixture(scope="module")
def settings(small_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> WorkerSettings:
    with pytest.MonkeyPatch.context() as patch:
        install(patch)
        bundle = compiled(small_bundle, tmp_path_factory.mktemp("gpu") / "small", sys.modules["tensorrt"])
    return WorkerSettings(
        bundles={"small": str(bundle)},
        devices=DEVICES,
        backend="tensorrt",
        threads=1,
        max_images=8,
        max_batch=2,
    )


@pytest.fixture(scope="module")
def both(settings: WorkerSettings) -> Iterator[Serving]:
    with serve(settings, command=COMMAND) as serving:
        yield serving


def test_the_device_with_the_least_work_is_next(both: Serving) -> None:
    assert both.client.stats.up == dict.fromkeys(DEVICES, True)

    async def fill() -> dict[str, int]:
        long = asyncio.create_task(completed(both.client, asked("long", LONG)))
        await until(lambda: sum(images(both).values()) == 1)
        # Three of these are less work than that.
        others = [asyncio.create_task(completed(both.client, asked(f"{n}", LONG // 6))) for n in range(3)]
        await until(lambda: sum(images(both).values()) == 4)
        found = images(both)
        for task in (long, *others):
            task.cancel()
        await asyncio.gather(long, *others, return_exceptions=True)
        await until(lambda: not any(images(both).values()))
        return found

    assert sorted(both(fill).values()) == [1, 3]


def test_a_full_device_leaves_requests_to_the_other(both: Serving) -> None:
    """A device that admits no further image is not chosen, even if the other has more work."""

    async def fill() -> tuple[dict[str, int], ServerError]:
        many = asyncio.create_task(completed(both.client, replace(asked("many", 20), count=8)))
        await until(lambda: sum(images(both).values()) == 8)
        more = [asyncio.create_task(completed(both.client, asked(f"{n}", LONG))) for n in range(8)]
        await until(lambda: sum(images(both).values()) == 16)
        found = images(both)
        with pytest.raises(ServerError, match="16 of at most 16 images") as refused:
            await completed(both.client, asked("beyond"))
        for task in (many, *more):
            task.cancel()
        await asyncio.gather(many, *more, return_exceptions=True)
        await until(lambda: not any(images(both).values()))
        return found, refused.value

    found, error = both(fill)
    assert found == dict.fromkeys(DEVICES, 8)
    assert error.code == "queue_full"


def test_seeds_are_seeds_on_both_devices(both: Serving, settings: WorkerSettings) -> None:
    requests = [
        asked(f"{seed}", 2 + seed % 3, seed=seed, sampler=("ddim", "euler-a")[seed % 2]) for seed in range(8)
    ]
    used: set[str] = set()

    async def spread() -> list[Completed]:
        tasks = [asyncio.create_task(completed(both.client, request)) for request in requests]
        await until(lambda: sum(images(both).values()) == len(requests))
        used.update(device for device, count in images(both).items() if count)
        return await asyncio.gather(*tasks)

    results = both(spread)
    assert used == set(DEVICES)
    with serve(replace(settings, devices=("cuda:1",)), command=COMMAND) as alone:
        for request, result in zip(requests, results, strict=True):
            assert alone.generate(request).images == result.images


def test_one_dies_and_the_other_goes_on(both: Serving) -> None:
    client = both.client
    before = client.pids

    async def kill() -> None:
        first = asyncio.create_task(completed(client, asked("first", 200)))
        await until(lambda: any(images(both).values()))
        (hit,) = (device for device, count in images(both).items() if count)
        second = asyncio.create_task(completed(client, asked("second", 200)))
        await until(lambda: all(images(both).values()))
        os.kill(before[hit], signal.SIGKILL)
        with pytest.raises(ServerError) as died:
            await first
        assert died.value.code == "worker_died"
        # The server takes work while the device is away, and loses none of the other's.
        assert client.state == "ready"
        assert len((await completed(client, asked("third"))).images) == 1
        assert len((await second).images) == 1
        await until(lambda: all(client.stats.up.values()))
        assert client.pids[hit] != before[hit]
        (other,) = set(DEVICES) - {hit}
        assert client.pids[other] == before[other]
        assert client.stats.restarts == {"died": 1}

    both(kill)
