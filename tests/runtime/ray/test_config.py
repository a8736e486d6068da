"""The processor's configuration."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from sd2rt.engines.errors import RequestError
from sd2rt.runtime.ray.config import ProcessorConfig
from sd2rt.runtime.ray.job import Job


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({}, "bundle of the processor: Field required"),
        ({"bundle": "demo", "actors": 2}, "actors of the processor is 2: Extra inputs are not permitted"),
        ({"bundle": "demo", "batch_size": 0}, "batch_size of the processor is 0: Input should be greater"),
        ({"bundle": "demo", "watermark": "x"}, "watermark of the processor is 'x': Input should be 'sdv2'"),
    ],
)
def test_what_is_refused(values: dict[str, Any], said: str) -> None:
    with pytest.raises(RequestError) as caught:
        ProcessorConfig.of(**values)
    assert str(caught.value).startswith(said)


@pytest.mark.parametrize(
    ("values", "cpus", "gpus", "threads"),
    [
        ({}, 1, 0, None),
        ({"threads": 4}, 4, 0, 4),
        ({"num_cpus": 2}, 2, 0, 2),
        ({"num_cpus": 2, "threads": 8}, 2, 0, 8),
        ({"device": "cuda"}, 1, 1, None),
        ({"device": "cuda", "num_gpus": 0.5}, 1, 0.5, None),
    ],
)
def test_what_an_actor_reserves(
    values: dict[str, Any], cpus: float, gpus: float, threads: int | None
) -> None:
    config = ProcessorConfig.of(bundle="demo", **values)
    assert (config.actor_cpus(), config.actor_gpus(), config.actor_threads()) == (cpus, gpus, threads)


def test_actors_have_absolute_paths(small_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(small_bundle.parent)
    options = {"seed": 4, "count": 3, "sampler": "DPM++ 2M Karras"}
    job = Job.of(ProcessorConfig.of(bundle=small_bundle.name, options=options))
    assert job.config.bundle == os.path.realpath(small_bundle)
    assert (job.seed, job.count, job.fields) == (4, 3, {"sampler": "dpmpp-2m", "schedule": "karras"})
