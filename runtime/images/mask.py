"""Inpainting masks: white marks the pixels to repaint."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sd2rt.engines.errors import RequestError
from sd2rt.runtime.images.convert import as_array, converted, described, eight_bits, is_array, to_bytes
from sd2rt.runtime.images.read import MAX_PIXELS, ImageSource, check_size, read_image

if TYPE_CHECKING:
    from PIL.Image import Image


def load_mask(source: ImageSource, *, max_pixels: int = MAX_PIXELS) -> Image:
    """Load a mask at its original size, mode L or RGB: white is repainted, black is kept.

    If any pixel is transparent, the alpha channel is the mask and the colours are ignored: transparent areas are
    repainted, as in OpenAI's API and ComfyUI. Otherwise brightness is the mask. RGB stays RGB, because
    diffusers resizes a mask before converting it to gray and :func:`mask_values` must do the same. All other
    modes become L.

    An array must be [H, W]: bool (True is repainted), uint8 (255 is repainted), or floats in [0, 1], which are
    rounded to 8 bits.

    Raises:
        RequestError: the file cannot be read, is not a PNG, JPEG or WebP, or is animated or damaged; the image has no
            pixels or more than ``max_pixels``; or the array has another shape or dtype.
    """
    if is_array(source):
        return _from_array(as_array(source, "the mask"), max_pixels)
    from PIL import ImageOps

    name, image = read_image(source, "the mask", max_pixels)
    image = eight_bits(image, name)
    if image.has_transparency_data:
        rgba = converted(image, "RGBA", name)
        alpha = rgba.getchannel("A")
        if np.asarray(alpha).min() < 255:
            return ImageOps.invert(alpha)
        colours = rgba.convert("RGB")
        return colours if image.mode.startswith("RGB") else colours.convert("L")
    return image if image.mode in ("L", "RGB") else converted(image, "L", name)


def mask_values(mask: Image, width: int, height: int) -> NDArray[np.float32]:
    """Resize and binarise a mask to [1, height, width] of 0 and 1, as diffusers' mask processor does.

    The mask is resized with Lanczos' filter in its own mode, converted to gray, and thresholded: half of white
    and brighter is 1.
    """
    from PIL.Image import Resampling

    gray = mask.resize((width, height), Resampling.LANCZOS).convert("L")
    unit = np.asarray(gray, np.float32) / np.float32(255)
    return (unit >= 0.5).astype(np.float32)[None]


def _from_array(array: NDArray[Any], max_pixels: int) -> Image:
    from PIL import Image

    if array.ndim != 2 or not (array.dtype in (np.bool_, np.uint8) or array.dtype.kind == "f"):
        raise RequestError(
            f"the mask is an array {described(array)}: use [H, W] of bool, uint8, or floats in [0, 1]"
        )
    check_size("the mask", (array.shape[1], array.shape[0]), max_pixels)
    if array.dtype == np.uint8 and array.max() == 1:
        # White is 255, so this mask would silently repaint nothing.
        raise RequestError("the mask is a uint8 array of 0 and 1: use bool, or 0 and 255")
    if array.dtype == np.bool_:
        array = array.astype(np.uint8) * np.uint8(255)
    elif array.dtype.kind == "f":
        array = to_bytes(array, "the mask")
    return Image.fromarray(np.ascontiguousarray(array))
