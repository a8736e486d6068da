"""A first image of a bundle that was loaded: it shows that the bundle can draw, and measures a step."""

from __future__ import annotations

from typing import Any

from sd2rt.engines.bundle.manifest import Manifest
from sd2rt.engines.bundle.model_kinds import TASKS
from sd2rt.runtime.pipeline.async_pipeline import AsyncPipeline
from sd2rt.runtime.request.request import Request, make_request

_STEPS = 2
"""The first allocates; the second is measured as later ones are."""
_SMALL_SIDE = 64


async def warm_up(pipeline: AsyncPipeline) -> None:
    """Generate an image of the bundle's native size in a few steps.

    Raises:
        EngineError: the device failed.
    """
    if pipeline.pipeline.device.kind == "cuda":
        manifest = pipeline.pipeline.manifest
        image_inputs = any("image" in TASKS[name].required for name in manifest.tasks)
        # Sizes of calls are captured and allocated now, not in the middle of traffic.
        await pipeline.warm_up(image_inputs=image_inputs)
    planned = pipeline.pipeline.plan([_request(pipeline.pipeline.manifest)])
    async with pipeline.stream_planned(planned, request_id="warm-up") as run:
        await run.outcomes()


def _request(manifest: Manifest) -> Request[Any]:
    from PIL import Image

    name, defaults = next(iter(manifest.tasks.items()))
    fields: dict[str, Any] = {"prompt": "", "seed": 0, "num_inference_steps": _STEPS}
    if "image" in TASKS[name].required:
        # An upscaler's result is four times as large.
        size = manifest.native_sizes[0] if manifest.low_resolution is None else (_SMALL_SIDE, _SMALL_SIDE)
        fields["image"] = Image.new("RGB", size, "gray")
        if defaults.strength is not None:
            fields["strength"] = 1.0
        if "mask_image" in TASKS[name].required:
            fields["mask_image"] = Image.new("L", size, "white")
            fields["mask_image"].paste("black", (0, 0, size[0], size[1] // 2))
    return make_request(**fields)
