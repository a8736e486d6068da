"""Depth maps: given as images or arrays, saved as images, and as the depth checkpoint's UNet takes them."""

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

_LARGEST = 1e30
"""Far from where the difference of two values, or a resampled one, leaves float32."""


def load_depth(source: ImageSource, *, max_pixels: int = MAX_PIXELS) -> NDArray[np.float32]:
    """A depth map [H, W] of its own size and in its own numbers; only their order and spacing count later.

    Larger is nearer, as in MiDaS' and DPT's maps. An image is gray, of 8 or 16 bits; one whose three channels
    are equal passes for gray. An array of numbers is [H, W], or [1, H, W] as diffusers takes it.

    Raises:
        RequestError: it cannot be read, is no PNG, JPEG or WebP, is animated or damaged, is coloured or has an
            alpha channel, has no pixels or more than ``max_pixels``, is an array of another shape, or holds
            values that are not finite.
    """
    if is_array(source):
        name, values = "the depth map", as_array(source, "the depth map")
        if values.dtype.kind not in "fiu" or not (
            values.ndim == 2 or (values.ndim == 3 and values.shape[0] == 1)
        ):
            raise RequestError(
                f"the depth map is an array {described(values)}: give numbers [H, W] or [1, H, W]"
            )
        height, width = values.shape[-2:]
        check_size(name, (width, height), max_pixels)
        values = values.reshape(height, width)
    else:
        name, image = read_image(source, "the depth map", max_pixels)
        values = _gray(image, name)
    with np.errstate(over="ignore"):
        depth = values.astype(np.float32)
    # So written that NaN fails too.
    if not (np.abs(depth) <= _LARGEST).all():
        raise RequestError(
            f"{name}, {described(values)}, holds values that are not finite or beyond {_LARGEST:g}: "
            "give finite numbers"
        )
    return depth


def depth_condition(depth: NDArray[np.float32], height: int, width: int) -> NDArray[np.float32]:
    """A depth map [H, W] as the UNet's fifth channel, [1, height, width] in [-1, 1], as diffusers makes it.

    It is resampled bicubically, then spread over the whole range. A constant map is all zeros, the middle of
    the range; diffusers divides by zero there, and draws from NaN.
    """
    values = bicubic(depth, height, width)
    low, high = values.min(), values.max()
    # A constant map need not come out constant: its resampled values are rounded differently.
    if low == high or depth.min() == depth.max():
        return np.zeros((1, height, width), np.float32)
    spread: NDArray[np.float32] = np.float32(2) * (values - low) / (high - low) - np.float32(1)
    return spread[None]


def save_depth(depth: NDArray[np.float32], path: Path) -> None:
    """Write a depth map [H, W] as a 16-bit gray PNG, its least value 0 and its largest 65535; whole or not at all.

    A constant map is all zeros.

    Raises:
        OSError: the file cannot be written.
    """
    from PIL import Image

    wide = depth.astype(np.float64)
    low, high = wide.min(), wide.max()
    unit = (wide - low) / (high - low) if high > low else np.zeros_like(wide)
    save_png(Image.fromarray((unit * 0xFFFF).round().astype(np.uint16)), path, {}, replace=True)


def _gray(image: Image, name: str) -> NDArray[Any]:
    if image.has_transparency_data:
        raise RequestError(f"{name} has an alpha channel, and a depth map has none: save it as plain gray")
    if image.mode in ("L", "I", "F") or image.mode.startswith("I;16"):
        return np.asarray(image)
    channels = np.asarray(converted(image, "RGB", name))  # [H, W, 3]
    if (channels != channels[:, :, :1]).any():
        raise RequestError(f"{name} is coloured, and a depth map is gray: give an 8- or 16-bit gray image")
    return channels[:, :, 0]
