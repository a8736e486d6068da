"""Requests of `sd2rt bench`, with random input images if the bundle's task needs them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sd2rt.engines.bundle.manifest import Manifest
from sd2rt.engines.bundle.model_kinds import TASKS, Task
from sd2rt.engines.errors import RequestError
from sd2rt.runtime.images.write import to_pil, write_png
from sd2rt.runtime.request.planned import plan_requests
from sd2rt.runtime.request.request import Request, make_request

PROMPT = "a photograph of an astronaut riding a horse"
Size = tuple[int, int]
_COARSE = 16
"""Grid spacing, in pixels, of the random values that input images are interpolated from."""


@dataclass(frozen=True, slots=True)
class Workload:
    """Requests for any size and number of images. Input images are random but reproducible.

    Every image has its own prompt and, if the task needs one, its own input image, as in a server's batch.
    """

    manifest: Manifest
    prompt: str
    seed: int
    settings: dict[str, Any]
    """Request fields shared by all images; None uses the bundle's default."""

    @property
    def task(self) -> Task:
        """The bundle's task with the fewest required inputs: text-to-image, if it is supported."""
        return min(
            (task for name, task in TASKS.items() if name in self.manifest.tasks),
            key=lambda task: len(task.required),
        )

    def check(self, size: Size) -> Request:
        """Return the resolved request for one image.

        Raises:
            RequestError: the bundle does not support it.
        """
        (planned,) = plan_requests(self.requests(size, 1), self.manifest)
        return planned.request

    def requests(self, size: Size, count: int) -> list[Request]:
        """Return requests for ``count`` images of a size (width, height) in pixels.

        Raises:
            RequestError: an option is invalid.
        """
        size_fields = self._size(size)
        requests = []
        for index in range(count):
            prompt = self.prompt if index == 0 else f"{self.prompt}, number {index + 1}"
            pictures = self._pictures(size, index)
            fields = {**self.settings, **size_fields, **pictures, "prompt": prompt, "seed": self.seed + index}
            requests.append(make_request(**fields))
        return requests

    def options(self, size: Size, folder: Path) -> list[str]:
        """Return the first request as options of `sd2rt run`, writing its input images to ``folder``."""
        names = {"num_inference_steps": "--steps", "guidance_scale": "--guidance", "sampler": "--sampler"}
        words = [f"--seed={self.seed}"]
        words += [
            f"{names[key]}={','.join(map(str, value)) if isinstance(value, tuple) else value}"
            for key, value in self.settings.items()
            if value is not None
        ]
        if self._size(size):
            words.append(f"--size={size[0]}x{size[1]}")
        for name, option in (("image", "--image"), ("mask_image", "--mask")):
            picture = self._pictures(size, 0).get(name)
            if picture is not None:
                path = folder / f"{name}.png"
                write_png(to_pil(picture.astype(np.float32)), path, {})
                words.append(f"{option}={path}")
        return words

    def _size(self, size: Size) -> dict[str, int]:
        """Return the request's size fields; none for upscalers, where the input image determines the size."""
        if self.manifest.low_resolution is not None:
            return {}
        return {"width": size[0], "height": size[1]}

    def _pictures(self, size: Size, index: int) -> dict[str, NDArray[Any]]:
        width, height = size
        if self.manifest.low_resolution is not None:
            factor = self.manifest.latents.vae_factor
            if width % factor or height % factor or not (width and height):
                raise RequestError(
                    f"--size {width}x{height} is not a multiple of the upscaling factor: use multiples of {factor}"
                )
            width, height = width // factor, height // factor
        pictures: dict[str, NDArray[Any]] = {}
        if "image" in self.task.required:
            pictures["image"] = picture(width, height, self.seed + index)
        if "mask_image" in self.task.required:
            pictures["mask_image"] = mask(width, height)
        return pictures


@lru_cache(maxsize=64)
def picture(width: int, height: int, seed: int) -> NDArray[np.float32]:
    """Return a smooth random image [H, W, 3] in [0, 1]. Cached, so that drawing it is not measured."""
    from PIL import Image

    rng = np.random.default_rng(seed)
    rows, columns = (side // _COARSE + 2 for side in (height, width))
    coarse = rng.integers(0, 256, (rows, columns, 3), np.uint8)
    smooth = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(smooth, np.float32) / np.float32(255)


def mask(width: int, height: int) -> NDArray[np.bool_]:
    """Return a mask [H, W] of the central quarter of an image."""
    marked = np.zeros((height, width), np.bool_)
    marked[height // 4 : height - height // 4, width // 4 : width - width // 4] = True
    return marked
