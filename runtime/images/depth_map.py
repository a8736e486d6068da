"""Depth maps: loaded from images or arrays, converted to the UNet's depth channel, saved as images."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sd2rt.engines.errors import RequestError
from sd2rt.runtime.images.convert import as_array, converted, described, is_array
from sd2rt.runtime.images.read import MAX_PIXELS, ImageSource, check_size, read_image
from sd2rt.runtime.images.resample import bicubic
from sd2rt.runtime.images.write import save_png

if TYPE_CHECKING:
    from PIL.Image import Image

_MAX_MAGNITUDE = 1e30
"""Low enough that differences and resampled values stay within float32."""


def load_depth(source: ImageSource, *, max_pixels: int = MAX_PIXELS) -> NDArray[np.float32]:
    """Load a depth map [H, W] at its original size and scale; :func:`depth_condition` normalises it later.

    Larger values are nearer, as in MiDaS and DPT. An image must be gray, with 8 or 16 bits; RGB with three equal
    channels counts as gray. An array must be numeric, [H, W] or, as in diffusers, [1, H, W].

    Raises:
        RequestError: the file cannot be read, has another format, several frames or damage; the image is
            coloured or has an alpha channel, has no pixels or more than ``max_pixels``; the array has another
            shape; or a value is not finite.
    """
    if is_array(source):
        name, values = "the depth map", as_array(source, "the depth map")
        if values.dtype.kind not in "fiu" or not (
            values.ndim == 2 or (values.ndim == 3 and values.shape[0] == 1)
        ):
            raise RequestError(
                f"the depth map is an array {described(values)}: use numbers of shape [H, W] or [1, H, W]"
            )
        height, width = values.shape[-2:]
        check_size(name, (width, height), max_pixels)
        values = values.reshape(height, width)
    else:
        name, image = read_image(source, "the depth map", max_pixels)
        values = _gray(image, name)
    with np.errstate(over="ignore"):
        depth = values.astype(np.float32)
    # Written so that NaN fails too.
    if not (np.abs(depth) <= _MAX_MAGNITUDE).all():
        raise RequestError(
            f"{name} ({described(values)}) has values that are not finite, or larger than {_MAX_MAGNITUDE:g}: "
            "use finite numbers"
        )
    return depth


def depth_condition(depth: NDArray[np.float32], height: int, width: int) -> NDArray[np.float32]:
    """Convert a depth map [H, W] to the UNet's fifth channel, [1, height, width] in [-1, 1], as diffusers does.

    The map is resampled bicubically, then stretched to the full range. A constant map becomes all zeros, the
    middle of the range; diffusers divides by zero in that case and samples with NaN.
    """
    values = bicubic(depth, height, width)
    low, high = values.min(), values.max()
    # Test the original too: rounding during resampling can make a constant map vary.
    if low == high or depth.min() == depth.max():
        return np.zeros((1, height, width), np.float32)
    scaled: NDArray[np.float32] = np.float32(2) * (values - low) / (high - low) - np.float32(1)
    return scaled[None]


def save_depth(depth: NDArray[np.float32], path: Path) -> None:
    """Write a depth map [H, W] atomically as a PNG; see :func:`depth_image`.

    Raises:
        OSError: the file cannot be written.
    """
    save_png(depth_image(depth), path, {})


def depth_image(depth: NDArray[np.float32]) -> Image:
    """Convert a depth map [H, W] to a gray image of 16 bits, scaled so that it spans 0 to 65535.

    A constant map becomes zeros.
    """
    from PIL.Image import fromarray

    wide = depth.astype(np.float64)
    low, high = wide.min(), wide.max()
    unit = (wide - low) / (high - low) if high > low else np.zeros_like(wide)
    return fromarray((unit * 0xFFFF).round().astype(np.uint16))


def _gray(image: Image, name: str) -> NDArray[Any]:
    if image.has_transparency_data:
        raise RequestError(
            f"{name} has an alpha channel, which depth maps cannot have: save it as plain gray"
        )
    if image.mode in ("L", "I", "F") or image.mode.startswith("I;16"):
        return np.asarray(image)
    channels = np.asarray(converted(image, "RGB", name))  # [H, W, 3]
    if (channels != channels[:, :, :1]).any():
        raise RequestError(f"{name} is coloured, but depth maps are gray: use an 8-bit or 16-bit gray image")
    return channels[:, :, 0]
