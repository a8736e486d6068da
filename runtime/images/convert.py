"""Arrays and Pillow's images of any kind, brought to the few kinds that are computed with."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sd2rt.engines.errors import RequestError

if TYPE_CHECKING:
    from PIL.Image import Image


def is_array(source: object) -> bool:
    """Whether NumPy would take it for an array; tensors of other libraries are among them."""
    return hasattr(source, "__array__")


def as_array(source: Any, what: str) -> NDArray[Any]:
    """A NumPy array; ``what`` names it in messages.

    Raises:
        RequestError: a tensor that NumPy cannot read, as one on a GPU.
    """
    try:
        return np.asarray(source)
    except (AttributeError, TypeError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise RequestError(f"{what} cannot be read as an array ({reason}): give a NumPy array") from None


def described(array: NDArray[Any]) -> str:
    """``float32[64, 64]``, for messages."""
    return f"{array.dtype}{list(array.shape)}"


def to_bytes(unit: NDArray[Any], what: str) -> NDArray[np.uint8]:
    """Floats in [0, 1] to 8 bits, rounded half to even.

    Raises:
        RequestError: a value is not finite, or outside.
    """
    # So written that NaN fails too.
    if not ((unit >= 0) & (unit <= 1)).all():
        raise RequestError(
            f"{what} holds floats from {unit.min():g} to {unit.max():g}: give floats in [0, 1], or uint8"
        )
    return (unit.astype(np.float32) * np.float32(255)).round().astype(np.uint8)


def eight_bits(image: Image, name: str) -> Image:
    """16-bit gray to 8 bits, rounded (65535 is 257 x 255); Pillow's own conversion would clip it at 255.

    An image of any other mode is given back; ``name`` is for messages.

    Raises:
        RequestError: its values are floats, or not those of 16 bits.
    """
    if image.mode == "F":
        raise RequestError(f"{name} is an image of floats (mode F): give one of 8 or 16 bits")
    if image.mode != "I" and not image.mode.startswith("I;16"):
        return image
    from PIL import Image as Pillow

    values = np.asarray(image)
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > 0xFFFF:
        raise RequestError(f"{name} holds values from {low} to {high}: give an image of 8 or 16 bits")
    gray = Pillow.fromarray(((values.astype(np.uint32) + 128) // 257).astype(np.uint8))
    key = image.info.get("transparency")
    if isinstance(key, int):
        gray.putalpha(Pillow.fromarray(np.where(values == key, 0, 255).astype(np.uint8)))
    return gray


def converted(image: Image, mode: str, name: str) -> Image:
    """An 8-bit image in another mode, as Pillow converts it.

    Raises:
        RequestError: Pillow cannot.
    """
    try:
        return (image.convert("LA") if image.mode == "La" else image).convert(mode)
    except (ValueError, OSError) as error:
        reason = " ".join(str(error).split())
        raise RequestError(f"{name} is of mode {image.mode} ({reason}): give an RGB image") from None


def over_white(image: Image, name: str) -> Image:
    """An 8-bit image as RGB, with white where it is transparent; an opaque pixel keeps its colour.

    Raises:
        RequestError: Pillow cannot convert its mode.
    """
    from PIL import Image as Pillow

    if not image.has_transparency_data:
        return converted(image, "RGB", name)
    white = Pillow.new("RGBA", image.size, "white")
    return Pillow.alpha_composite(white, converted(image, "RGBA", name)).convert("RGB")
