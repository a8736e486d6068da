"""Generate images with diffusers from the same checkpoint, with torch's generator for each seed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import numpy as np
import torch
from PIL import Image

from benchmarks.demo.painter import Order, Picture, Settings, to_levels
from sd2rt.export.checkpoints.checkpoint import open_checkpoint
from sd2rt.export.reference import reference_pipeline, reference_scheduler
from sd2rt.runtime.samplers import sampler_config

_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


class DiffusersPainter:
    """A diffusers pipeline for a checkpoint in diffusers' layout.

    Raises:
        CheckpointError: the folder is not a checkpoint.
    """

    def __init__(
        self, checkpoint: str, *, device: str = "cpu", threads: int | None = None, precision: str = "fp32"
    ) -> None:
        if threads is not None:
            torch.set_num_threads(threads)
        self._checkpoint = open_checkpoint(checkpoint)
        self._pipeline: Any = reference_pipeline(self._checkpoint).to(device, _DTYPES[precision])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        del self._pipeline

    def paint(self, orders: Sequence[Order], settings: Settings) -> list[Picture]:
        default_sampler = self._checkpoint.sampler
        config = (
            default_sampler if settings.sampler is None else sampler_config(settings.sampler, default_sampler)
        )
        self._pipeline.scheduler = reference_scheduler(self._checkpoint.noise, config)
        options: dict[str, Any] = {
            name: value
            for name, value in (("strength", settings.strength), ("noise_level", settings.noise_level))
            if value is not None
        }
        images = [order.image for order in orders if order.image is not None]
        if images:
            options["image"] = [Image.fromarray(image) for image in images]
        masks = [order.mask for order in orders if order.mask is not None]
        if masks:
            options["mask_image"] = [Image.fromarray(mask.astype(np.uint8) * 255) for mask in masks]
            # Only the inpainting pipeline defaults to its own size instead of the image's.
            options["height"], options["width"] = masks[0].shape
        # Drawn on the CPU for any device, so that the noise equals sd2rt's.
        generators = [torch.Generator("cpu").manual_seed(order.seed) for order in orders]
        outputs = self._pipeline(
            prompt=[order.prompt for order in orders],
            negative_prompt=[order.negative for order in orders],
            generator=generators,
            num_inference_steps=settings.steps,
            guidance_scale=settings.guidance,
            output_type="np",
            **options,
        ).images
        return [to_levels(np.asarray(image)) for image in outputs]

    @torch.no_grad()
    def round_trip(self, picture: Picture) -> Picture:
        vae = self._pipeline.vae
        signed = torch.from_numpy(picture).to(vae.device, vae.dtype).movedim(-1, 0)[None] / 127.5 - 1
        image = vae.decode(vae.encode(signed).latent_dist.mode()).sample[0]
        return to_levels(image.movedim(0, -1).float().cpu().numpy() / 2 + 0.5)
