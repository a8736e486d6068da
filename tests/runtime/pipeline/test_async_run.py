"""Previews of a run for asyncio."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from sd2rt.engines.errors import RequestError
from sd2rt.runtime import AsyncPipeline, Pipeline

OPTIONS: dict[str, Any] = {"prompt": "a lighthouse", "num_inference_steps": 4, "seed": 3, "width": 128}


def pixels(picture: Image.Image) -> bytes:
    return picture.tobytes()


@pytest.fixture(scope="module")
def expected(small_bundle: Path) -> list[bytes]:
    with Pipeline.open(small_bundle, threads=1) as pipe:
        return [pixels(pipe(**{**OPTIONS, "seed": seed}).images[0]) for seed in range(6)]


def test_decoded_progress(small_bundle: Path, expected: list[bytes]) -> None:
    async def watch() -> None:
        async with AsyncPipeline.open(small_bundle, threads=1) as pipe:
            async with pipe.stream(previews="decoder", **OPTIONS) as run:
                steps = []
                async for progress in run:
                    steps.append(progress.done)
                    (picture,) = progress.previews()
                    assert picture.size == (128, 64)
                (output,) = await run.result()
            assert steps == sorted(set(steps))
            assert steps[-1] == progress.total
            assert pixels(picture) == pixels(output.images[0]) == expected[3]

    asyncio.run(watch())


def test_decoded_on_request(small_bundle: Path, expected: list[bytes]) -> None:
    async def watch() -> None:
        async with AsyncPipeline.open(small_bundle, threads=1) as pipe:
            async with pipe.stream(previews=True, **OPTIONS) as run:
                progress = await anext(run)
                (rough,), (picture,) = progress.previews(), await progress.decoded()
                assert (rough.size, picture.size) == ((16, 8), (128, 64))
                last = progress
                async for later in run:
                    last = later
                    # The latents of the step are decoded, not those that the run has by now.
                    (again,) = await progress.decoded()
                    assert pixels(again) == pixels(picture)
                (end,) = await last.decoded()
                assert pixels(end) == expected[3]
                (output,) = await run.result()
            assert pixels(output.images[0]) == expected[3]
            with pytest.raises(RequestError, match="this run is closed"):
                await last.decoded()
            async with pipe.stream(**OPTIONS) as run:
                progress = await anext(run)
                assert progress.latents is None
                assert progress.previews() == await progress.decoded() == []

    asyncio.run(watch())


def test_many_tasks_with_previews(small_bundle: Path, expected: list[bytes]) -> None:
    """Some are cancelled while they wait for a preview; the others' pictures are their own."""

    async def watched(pipe: AsyncPipeline, seed: int) -> Any:
        async with pipe.stream(previews="decoder", **{**OPTIONS, "seed": seed}) as run:
            async for progress in run:
                (picture,) = progress.previews()
            (output,) = await run.result()
            return picture, output.images[0]

    async def cancelled(pipe: AsyncPipeline, seed: int) -> None:
        task = asyncio.create_task(watched(pipe, seed))
        await asyncio.sleep(seed * 0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    async def all_of_them() -> None:
        async with AsyncPipeline.open(small_bundle, threads=1) as pipe:
            kept = asyncio.gather(*(watched(pipe, seed) for seed in range(6)))
            await asyncio.gather(*(cancelled(pipe, seed) for seed in range(6)))
            for seed, (picture, image) in enumerate(await kept):
                assert pixels(picture) == pixels(image) == expected[seed]

    asyncio.run(all_of_them())


@pytest.mark.parametrize("previews", ["matrix", 1, None, []])
def test_previews_that_there_are_not(small_bundle: Path, previews: Any) -> None:
    async def start() -> None:
        async with AsyncPipeline.open(small_bundle, threads=1) as pipe:
            with pytest.raises(RequestError, match=r"previews is .*: give True, False or 'decoder'"):
                pipe.stream("a lighthouse", previews=previews)

    asyncio.run(start())
