"""Generate images with a pipeline that has diffusers' call signature: diffusers, optimum-onnx, optimum-intel."""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.peers.job import Generate, Image, Job
from benchmarks.peers.step_clock import StepClock


def maker(pipeline: Any, job: Job, *, dtype: Any = None, device: str = "cpu") -> Generate:
    """Return a function that generates images with ``pipeline`` from latents of ``dtype`` (default: float32).

    The initial latents are drawn in float32 and then rounded: torch draws different numbers in half precision, which
    would make the images incomparable.
    """
    import torch

    # torch does not always follow the environment variables; other runtimes get their threads when opened.
    torch.set_num_threads(job.threads)
    pipeline.set_progress_bar_config(disable=True)
    on_gpu = device != "cpu"

    def generate(steps: int, seed: int) -> tuple[Image, list[float]]:
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

    return generate
