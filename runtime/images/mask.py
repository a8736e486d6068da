"""Inpainting masks: white marks the pixels to repaint."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sd2rt.engines.errors import RequestError
from sd2rt.runtime.images.convert import as_array, converted, described, eight_bits, is_array, to_bytes
from sd2rt.runtime.images.mask_layers import read_layer
from sd2rt.runtime.images.read import MAX_PIXELS, ImageSource, check_size, read_image

if TYPE_CHECKING:
    from PIL.Image import Image

_HALF = 128
_COLOURED = 64
"""Difference between the largest and the smallest channel of a coloured pixel; JPEG changes gray by less."""
_FEW = 0.002
"""Share of the pixels that does not count."""


def load_mask(source: ImageSource, *, max_pixels: int = MAX_PIXELS) -> Image:
    """Load a mask at its original size, mode L or RGB: white is repainted, black is kept.

    Brightness is the mask, unless the picture has transparent areas: then
    :func:`~sd2rt.runtime.images.mask_layers.read_layer` decides by the whole of it, with a warning that states the
    reading. RGB stays RGB, because diffusers resizes a mask before converting it to gray and :func:`mask_values` must
    do the same. All other modes become L. Colours are warned of.

    An array must be [H, W]: bool (True is repainted), uint8 (255 is repainted), or floats in [0, 1], which are
    rounded to 8 bits.

    Raises:
        RequestError: the file cannot be read, has another format, several frames or damage; the image has no
            pixels or more than ``max_pixels``; the array has another shape or dtype; the values are 0 and 1 of 255 or
            of 65535; or colours whose brightness is all on one side of half.
    """
    if is_array(source):
        return _from_array(as_array(source, "the mask"), max_pixels)
    name, original = read_image(source, "the mask", max_pixels)
    image = eight_bits(original, name)
    _check_16_bits(original, image, name)
    if image.has_transparency_data:
        rgba = converted(image, "RGBA", name)
        layer, reading = read_layer(rgba, name)
        if reading is not None:
            warnings.warn(f"{name} {reading}", stacklevel=2)
        if layer is not None:
            return layer
        colours = rgba.convert("RGB")
        image = colours if image.mode.startswith("RGB") else colours.convert("L")
    mask = image if image.mode in ("L", "RGB") else converted(image, "L", name)
    _check_values(mask, image, name)
    return mask


def transparent_repainted(image: Image) -> Image:
    """Convert a decoded mask to gray by OpenAI's rule: transparent pixels, if there are any, are repainted."""
    from PIL import ImageOps

    image = eight_bits(image, "the mask")
    if image.has_transparency_data:
        alpha = converted(image, "RGBA", "the mask").getchannel("A")
        if np.asarray(alpha).min() < 255:
            return ImageOps.invert(alpha)
    return image


def mask_values(mask: Image, width: int, height: int) -> NDArray[np.float32]:
    """Resize and binarise a mask to [1, height, width] of 0 and 1, as diffusers' mask processor does.

    The mask is resized with Lanczos' filter in its own mode, converted to gray, and thresholded: half of white
    and brighter is 1.
    """
    from PIL.Image import Resampling

    gray = mask.resize((width, height), Resampling.LANCZOS).convert("L")
    unit = np.asarray(gray, np.float32) / np.float32(255)
    return (unit >= 0.5).astype(np.float32)[None]


def extent_note(values: NDArray[np.float32]) -> str | None:
    """Note that a mask of 0 and 1 repaints nothing or everything, or None."""
    if values.any() and not values.all():
        return None
    extent = "nothing" if not values.any() else "everything"
    return f"the mask repaints {extent}: white is repainted, black is kept"


def _check_16_bits(original: Image, image: Image, name: str) -> None:
    """Check that 8 bits in a 16-bit image are not taken for black.

    Raises:
        RequestError: they would be.
    """
    if original is image:
        return
    largest = int(np.asarray(original).max())
    if 0 < largest <= 255:
        raise RequestError(
            f"{name} has values up to {largest} of 65535, which are black: use 65535 for what is repainted, "
            "or an 8-bit image"
        )


def _check_values(mask: Image, image: Image, name: str) -> None:
    """Check that a mask without transparency says by its brightness what is repainted; warn of colours.

    Args:
        mask: the mask, L or RGB.
        image: the same before it was converted to gray.

    Raises:
        RequestError: it does not.
    """
    if max(high for _, high in _extrema(mask)) == 1:
        # White is 255, so this mask would repaint nothing.
        raise RequestError(f"{name} holds only 0 and 1 of 255: use 0 and 255")
    if image.mode in ("L", "1"):
        return
    channels = np.asarray(converted(image, "RGB", name))
    difference = channels.max(2) - channels.min(2)
    if (difference > _COLOURED).mean() < _FEW:
        return
    bright = float((np.asarray(mask.convert("L")) >= _HALF).mean())
    if not _FEW <= bright <= 1 - _FEW:
        extent = "nothing" if bright < _FEW else "everything"
        raise RequestError(
            f"{name} has colours, and by its brightness {extent} would be repainted: use white for what is "
            "repainted, black for the rest"
        )
    warnings.warn(
        f"{name} has colours: what is brighter than half of white is repainted, the rest is kept",
        stacklevel=3,
    )


def _extrema(image: Image) -> list[tuple[Any, Any]]:
    extrema: Any = image.getextrema()
    return list(extrema) if isinstance(extrema[0], tuple) else [extrema]


def _from_array(array: NDArray[Any], max_pixels: int) -> Image:
    from PIL import Image

    if array.ndim != 2 or not (array.dtype in (np.bool_, np.uint8) or array.dtype.kind == "f"):
        raise RequestError(
            f"the mask is an array {described(array)}: use [H, W] of bool, uint8, or floats in [0, 1]"
        )
    check_size("the mask", (array.shape[1], array.shape[0]), max_pixels)
    if array.dtype == np.uint8 and array.max() == 1:
        raise RequestError("the mask is a uint8 array of 0 and 1: use bool, or 0 and 255")
    if array.dtype == np.bool_:
        array = array.astype(np.uint8) * np.uint8(255)
    elif array.dtype.kind == "f":
        array = to_bytes(array, "the mask")
        if array.max() == 1:
            raise RequestError(
                "the mask has floats up to 1/255: use floats in [0, 1], 1 for what is repainted"
            )
    return Image.fromarray(np.ascontiguousarray(array))
