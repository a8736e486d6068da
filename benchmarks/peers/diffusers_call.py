"""An image by a pipeline that is called as diffusers' own are: theirs, optimum-onnx's and optimum-intel's."""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.peers.job import Image, Job, Make
from benchmarks.peers.step_clock import StepClock


def maker(pipeline: Any, job: Job, *, dtype: Any = None, device: str = "cpu") -> Make:
    """Images by ``pipeline``, whose latents are of ``dtype`` (float32 if left out).

    The first latents are drawn in float32 whatever they are rounded to: torch draws other numbers in half
    precision, and the images could not be compared.
    """
    import torch

    # The environment does not always decide; the other runtimes are told where they are opened.
    torch.set_num_threads(job.threads)
    pipeline.set_progress_bar_config(disable=True)
    on_gpu = device != "cpu"

    def make(steps: int, seed: int) -> tuple[Image, list[float]]:
        clock = StepClock(torch.cuda.synchronize if on_gpu else None)
        noise = torch.randn(job.latent_shape, generator=torch.Generator("cpu").manual_seed(seed))

        def stamp(pipe: Any, step: int, timestep: object, tensors: dict[str, Any]) -> dict[str, Any]:
            clock.stamp(step + 1, len(pipe.scheduler.timesteps))
            return {}

        images = pipeline(
            prompt=job.prompt,
            num_inference_steps=steps,
            width=job.width,
            height=job.height,
            latents=noise.to(device, dtype or torch.float32),
            output_type="np",
            callback_on_step_end=stamp,
        ).images
        return np.asarray(images[0], np.float32), clock.seconds

    return make
