"""Initial images of requests: load as RGB, resize, and convert to the VAE encoder's input."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sd2rt.engines.bundle.sizes import LARGEST_SIDE, SMALLEST_SIDE
from sd2rt.engines.errors import RequestError
from sd2rt.runtime.images.convert import as_array, described, eight_bits, is_array, over_white, to_bytes
from sd2rt.runtime.images.read import MAX_PIXELS, ImageSource, check_size, read_image

if TYPE_CHECKING:
    from PIL.Image import Image


def load_image(source: ImageSource, *, max_pixels: int = MAX_PIXELS) -> Image:
    """Load an image as RGB, upright and at its original size.

    Transparent areas are composited over white. Dropping the alpha channel, as diffusers does, would reveal the
    hidden colours stored under it: usually black, or leftovers of an editor. 16-bit gray is rounded to 8 bits;
    CMYK is converted without its colour profile.

    An array must be uint8 [H, W, 3] or [H, W], or floats [H, W, 3] in [0, 1], which are rounded to 8 bits.

    Raises:
        RequestError: the file cannot be read, has another format, several frames or damage; the image has no
            pixels or more than ``max_pixels``; or the array has another shape or dtype.
    """
    if is_array(source):
        return _from_array(as_array(source, "the image"), max_pixels)
    name, image = read_image(source, "the image", max_pixels)
    return over_white(eight_bits(image, name), name)


def to_tensor(image: Image) -> NDArray[np.float32]:
    """Convert an RGB image to the VAE encoder's input, [3, H, W] in [-1, 1], bit-identical to diffusers."""
    unit = np.asarray(image, np.float32) / np.float32(255)
    return np.ascontiguousarray((np.float32(2) * unit - np.float32(1)).transpose(2, 0, 1))


def resized(image: Image, width: int, height: int) -> Image:
    """Return a copy resized to ``width`` x ``height`` pixels with Lanczos' filter, as in diffusers."""
    from PIL.Image import Resampling

    return image.resize((width, height), Resampling.LANCZOS)


def fitting_size(image: Image, multiple: int) -> tuple[int, int]:
    """Return the image's width and height rounded down to multiples of ``multiple`` (at least 64).

    Raises:
        RequestError: a side is larger than a request may have.
    """
    width, height = (max(side // multiple * multiple, SMALLEST_SIDE) for side in image.size)
    if max(width, height) > LARGEST_SIDE:
        raise RequestError(
            f"the image is {image.width}x{image.height} pixels, but a side can be at most {LARGEST_SIDE}: "
            "set width and height, or use a smaller image"
        )
    return width, height


def _from_array(array: NDArray[Any], max_pixels: int) -> Image:
    from PIL import Image

    coloured = array.ndim == 3 and array.shape[2] == 3
    if not (array.dtype == np.uint8 and (coloured or array.ndim == 2)) and not (
        array.dtype.kind == "f" and coloured
    ):
        raise RequestError(
            f"the image is an array {described(array)}: use uint8 [H, W, 3] or [H, W], or floats [H, W, 3] in [0, 1]"
        )
    check_size("the image", (array.shape[1], array.shape[0]), max_pixels)
    if array.dtype.kind == "f":
        array = to_bytes(array, "the image")
    return Image.fromarray(np.ascontiguousarray(array)).convert("RGB")
