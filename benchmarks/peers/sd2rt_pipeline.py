"""sd2rt's pipeline on the bundle. Options are additional arguments of ``Pipeline.open``."""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.peers.job import Generate, Image, Job, UnavailableError, require
from benchmarks.peers.step_clock import StepClock

PACKAGES = ("sd2rt", "onnxruntime", "onnxruntime-gpu", "openvino", "tensorrt", "numpy")


def prepare(job: Job) -> None:
    """Check for sd2rt and the bundle; nothing is exported."""
    require("sd2rt.runtime")
    if job.options.get("bundle", job.bundle) is None:
        raise UnavailableError("no bundle: the job has none")


def open_pipeline(job: Job) -> Generate:
    from sd2rt.engines.errors import MissingDependencyError, RequestError
    from sd2rt.runtime import Pipeline

    arguments = {"threads": job.threads, "max_batch": 1} | job.options
    bundle = arguments.pop("bundle", job.bundle)
    try:
        pipeline = Pipeline.open(bundle, **arguments)
    except (MissingDependencyError, RequestError) as error:
        raise UnavailableError(str(error)) from error
    on_gpu = str(arguments.get("device", "cpu")).startswith("cuda")

    def generate(steps: int, seed: int) -> tuple[Image, list[float]]:
        settings: dict[str, Any] = {"num_inference_steps": steps, "seed": seed, "output_type": "np"}
        with pipeline.stream(job.prompt, width=job.width, height=job.height, **settings) as run:
            clock: StepClock | None = None
            for progress in run:
                # Reading the latents synchronises with the device.
                clock = clock or StepClock(progress.latents if on_gpu else None)
                clock.stamp(progress.step, progress.steps)
            images = run.result()[0].images
        return np.asarray(images[0]), [] if clock is None else clock.seconds

    return generate
