"""What `sd2rt bench` asks of a bundle: requests for images, with pictures to start from where its kind wants them."""

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
"""Pixels between two of the numbers that a picture is drawn through."""


@dataclass(frozen=True, slots=True)
class Workload:
    """The images that are asked for, of any size and number; their pictures are random, and the same every time.

    Every image has its own prompt and, where one is needed, its own picture, as in a server's batch.
    """

    manifest: Manifest
    prompt: str
    seed: int
    settings: dict[str, Any]
    """Fields of a request that hold for all images; those of None are the bundle's own."""

    @property
    def task(self) -> Task:
        """The first of the bundle's tasks that needs the least: text-to-image, where it does that."""
        return min(
            (task for name, task in TASKS.items() if name in self.manifest.tasks),
            key=lambda task: len(task.required),
        )

    def check(self, size: Size) -> Request:
        """The request for one image, resolved: what the bundle makes of what is asked.

        Raises:
            RequestError: it cannot be honoured.
        """
        (planned,) = plan_requests(self.requests(size, 1), self.manifest)
        return planned.request

    def requests(self, size: Size, count: int) -> list[Request]:
        """Requests for so many images of a size in pixels.

        Raises:
            RequestError: an option cannot be honoured.
        """
        own = self._size(size)
        made = []
        for index in range(count):
            prompt = self.prompt if index == 0 else f"{self.prompt}, number {index + 1}"
            pictures = self._pictures(size, index)
            fields = {**self.settings, **own, **pictures, "prompt": prompt, "seed": self.seed + index}
            made.append(make_request(**fields))
        return made

    def options(self, size: Size, folder: Path) -> list[str]:
        """The first image's request as options of `sd2rt run`; its pictures are written into ``folder``."""
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
        """Fields for the size; none where the picture's own decides."""
        if self.manifest.low_resolution is not None:
            return {}
        return {"width": size[0], "height": size[1]}

    def _pictures(self, size: Size, index: int) -> dict[str, NDArray[Any]]:
        width, height = size
        if self.manifest.low_resolution is not None:
            times = self.manifest.latents.vae_factor
            if width % times or height % times or not (width and height):
                raise RequestError(
                    f"--size {width}x{height} is not {times} times an image's: give multiples of {times}"
                )
            width, height = width // times, height // times
        pictures: dict[str, NDArray[Any]] = {}
        if "image" in self.task.required:
            pictures["image"] = picture(width, height, self.seed + index)
        if "mask_image" in self.task.required:
            pictures["mask_image"] = mask(width, height)
        return pictures


@lru_cache(maxsize=64)
def picture(width: int, height: int, seed: int) -> NDArray[np.float32]:
    """A smooth random picture [H, W, 3] in [0, 1]; remembered, as drawing it is no part of what is measured."""
    from PIL import Image

    rng = np.random.default_rng(seed)
    rows, columns = (side // _COARSE + 2 for side in (height, width))
    coarse = rng.integers(0, 256, (rows, columns, 3), np.uint8)
    smooth = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(smooth, np.float32) / np.float32(255)


def mask(width: int, height: int) -> NDArray[np.bool_]:
    """The middle quarter of an image [H, W]."""
    marked = np.zeros((height, width), np.bool_)
    marked[height // 4 : height - height // 4, width // 4 : width - width // 4] = True
    return marked
