"""sd2rt's own pipeline on the bundle. Its options are further arguments of ``Pipeline.open``."""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.peers.job import Image, Job, Make, UnavailableError, require
from benchmarks.peers.step_clock import StepClock

PACKAGES = ("sd2rt", "onnxruntime", "onnxruntime-gpu", "openvino", "tensorrt", "numpy")


def prepare(job: Job) -> None:
    """Nothing: the bundle is there."""
    require("sd2rt.runtime")
    if job.options.get("bundle", job.bundle) is None:
        raise UnavailableError("no bundle was given")


def open_pipeline(job: Job) -> Make:
    from sd2rt.engines.errors import MissingDependencyError, RequestError
    from sd2rt.runtime import Pipeline

    arguments = {"threads": job.threads, "max_batch": 1} | job.options
    bundle = arguments.pop("bundle", job.bundle)
    try:
        pipeline = Pipeline.open(bundle, **arguments)
    except (MissingDependencyError, RequestError) as error:
        raise UnavailableError(str(error)) from error
    on_gpu = str(arguments.get("device", "cpu")).startswith("cuda")

    def make(steps: int, seed: int) -> tuple[Image, list[float]]:
        asked: dict[str, Any] = {"num_inference_steps": steps, "seed": seed, "output_type": "np"}
        with pipeline.stream(job.prompt, width=job.width, height=job.height, **asked) as run:
            clock: StepClock | None = None
            for progress in run:
                # Taking the latents waits for the device.
                clock = clock or StepClock(progress.latents if on_gpu else None)
                clock.stamp(progress.step, progress.steps)
            images = run.result()[0].images
        return np.asarray(images[0]), [] if clock is None else clock.seconds

    return make
