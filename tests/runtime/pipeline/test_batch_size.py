"""The number of images in a call, as asked for or chosen by measured costs."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sd2rt.engines.errors import OutOfMemoryError
from sd2rt.runtime import AsyncPipeline, Pipeline
from sd2rt.runtime.pipeline import batch_size

from .conftest import Open

H200 = {1: 0.167, 2: 0.183, 4: 0.240, 8: 0.425, 16: 0.832}


@pytest.fixture
def costs(monkeypatch: pytest.MonkeyPatch) -> dict[int, float]:
    """Costs of a call by images, in the place of measured ones."""
    seconds: dict[int, float] = {}
    monkeypatch.setattr(batch_size, "measured_seconds", lambda denoiser, dims: seconds[dims["B"]])
    return seconds


def test_a_cpu_keeps_its_default(small_bundle: Path, caplog: Any) -> None:
    """It measures for estimates; pictures are those of any other start."""
    options: dict[str, Any] = {"num_images_per_prompt": 5, "num_inference_steps": 2, "output_type": "latent"}
    with caplog.at_level(logging.INFO), Pipeline.open(small_bundle, max_batch="auto", threads=1) as pipe:
        assert (pipe.max_batch, pipe.batch_size.group, pipe.batch_size.shared) == (4, 4, 1)
        assert 1 in pipe.batch_size.seconds
        width, height = pipe.manifest.native_sizes[0]
        lane = (4, height // 8, width // 8), 77
        assert pipe.step_loop.scheduler.curve(lane).measured == dict(pipe.batch_size.seconds)
        images = pipe("a fox", seed=1, **options).images
    (line,) = [record.getMessage() for record in caplog.records if "batch size" in record.getMessage()]
    assert line.startswith("batch size 1, 4 of one run; milliseconds of a call by images: 1: ")
    with Pipeline.open(small_bundle, threads=1) as pipe:
        assert (pipe.max_batch, pipe.batch_size.shared, dict(pipe.batch_size.seconds)) == (4, 1, {})
        np.testing.assert_array_equal(images, pipe("a fox", seed=1, **options).images)


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        # The simulated engines take up to eight images.
        (H200, 8),
        ({1: 1.0, 2: 1.0, 4: 1.0, 8: 2.0}, 4),
        ({1: 1.0, 2: 2.0}, 1),
        ({1: 1.0, 2: 1.94}, 1),
        ({1: 1.0, 2: 1.2, 4: 2.4}, 2),
    ],
)
def test_a_gpu_takes_the_smallest_that_is_nearly_best(
    on_gpu: Open, costs: dict[int, float], seconds: dict[int, float], expected: int
) -> None:
    """Larger ones are not measured once an image gets no cheaper: the table has no cost of them."""
    costs.update(seconds)
    _, pipe = on_gpu("eager", max_batch="auto")
    assert (pipe.max_batch, pipe.batch_size.shared) == (expected, expected)
    assert pipe("a fox", num_inference_steps=2, output_type="np").images.std() > 0


def test_padding_is_part_of_the_curve(on_gpu: Open, costs: dict[int, float]) -> None:
    costs.update(H200)
    _, pipe = on_gpu("eager", max_batch="auto")
    width, height = pipe.manifest.native_sizes[0]
    curve = pipe.step_loop.scheduler.curve(((4, height // 8, width // 8), 77)).measured
    assert [curve[batch] for batch in range(1, 9)] == [0.167, 0.183, *[0.240] * 2, *[0.425] * 4]


def test_a_batch_without_memory_ends_the_measurement(on_gpu: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    def seconds(denoiser: Any, dims: Any) -> float:
        if dims["B"] > 2:
            raise OutOfMemoryError("denoiser: out of memory")
        return 1.0

    monkeypatch.setattr(batch_size, "measured_seconds", seconds)
    _, pipe = on_gpu("eager", max_batch="auto")
    assert (pipe.max_batch, dict(pipe.batch_size.seconds)) == (2, {1: 1.0, 2: 1.0})


def test_real_measurements_on_the_simulated_gpu(on_gpu: Open) -> None:
    gpu, pipe = on_gpu("eager", max_batch="auto")
    assert pipe.max_batch in pipe.batch_size.seconds
    assert all(seconds > 0 for seconds in pipe.batch_size.seconds.values())
    assert gpu.counts["capture"] == len(pipe.batch_size.seconds)


def test_tasks_open_with_it_too(small_bundle: Path) -> None:
    import asyncio

    async def opened() -> int:
        async with AsyncPipeline.open(small_bundle, threads=1, max_batch="auto") as pipe:
            return pipe.pipeline.batch_size.shared

    assert asyncio.run(opened()) == 1


def test_a_number_that_is_set_later(small_bundle: Path) -> None:
    with Pipeline.open(small_bundle, threads=1, max_batch=2) as pipe:
        assert (pipe.max_batch, pipe.batch_size.shared) == (2, 1)
        pipe.max_batch = 3
        assert (pipe.max_batch, pipe.batch_size.shared) == (3, 1)
