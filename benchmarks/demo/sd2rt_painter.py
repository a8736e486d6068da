"""Generate images with sd2rt from a bundle, without torch in the process."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import numpy as np
from PIL import Image

from benchmarks.demo.painter import Order, Picture, Settings, to_levels
from sd2rt.engines.bundle.schema import ComputePrecision
from sd2rt.runtime import Pipeline, Request


class Sd2rtPainter:
    """An sd2rt pipeline on a bundle, given by name or path.

    Args:
        precision: ``fp32`` or ``fp16`` must be the bundle's precision; ``bf16`` is a compute precision.

    Raises:
        ValueError: the bundle has another precision.
    """

    def __init__(
        self,
        bundle: str,
        *,
        device: str = "cpu",
        threads: int | None = None,
        batch: int | None = None,
        precision: str = "fp32",
    ) -> None:
        chosen: ComputePrecision | None = "bf16" if precision == "bf16" else None
        self._pipeline = Pipeline.open(
            bundle, device=device, threads=threads, max_batch=batch, precision=chosen
        )
        if self._pipeline.precision != precision:
            actual = self._pipeline.precision
            self._pipeline.close()
            raise ValueError(f"{bundle} is {actual}, not {precision}: build it with --precision {precision}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._pipeline.close()

    @property
    def pipeline(self) -> Pipeline:
        """The opened pipeline."""
        return self._pipeline

    def paint(self, orders: Sequence[Order], settings: Settings) -> list[Picture]:
        outputs = self._pipeline.generate([_request(order, settings) for order in orders])
        return [to_levels(output.images[0]) for output in outputs]

    def round_trip(self, picture: Picture) -> Picture:
        latents = self._pipeline.manifest.latents
        height, width = (side // latents.vae_factor for side in picture.shape[:2])
        session = self._pipeline.engine("encoder").session({"B": 1, "h": height, "w": width})
        signed = np.moveaxis(picture.astype(np.float32) / 127.5 - 1, -1, 0)
        session.buffers["image"].write(signed[None])
        session.launch()
        mean = session.buffers["moments"].read()[0, : latents.channels]
        image = self._pipeline.decode(np.float32(latents.scaling_factor) * mean)
        return to_levels(np.moveaxis(image, 0, -1) / 2 + 0.5)


def _request(order: Order, settings: Settings) -> Request[Any]:
    image, mask = order.image, order.mask
    return Request.model_validate(
        {
            "prompt": order.prompt,
            "negative_prompt": order.negative,
            "seed": order.seed,
            "image": None if image is None else Image.fromarray(image),
            "mask_image": None if mask is None else Image.fromarray(mask.astype(np.uint8) * 255),
            "num_inference_steps": settings.steps,
            "guidance_scale": settings.guidance,
            "sampler": settings.sampler,
            "strength": settings.strength,
            "noise_level": settings.noise_level,
            "output_type": "np",
        }
    )
