"""Convert arrays and PIL images of any mode to the few types that the runtime uses."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sd2rt.engines.errors import RequestError

if TYPE_CHECKING:
    from PIL.Image import Image


def is_array(source: object) -> bool:
    """Return True for NumPy arrays and for anything that NumPy can convert, such as other libraries' tensors."""
    return hasattr(source, "__array__")


def as_array(source: Any, name: str) -> NDArray[Any]:
    """Convert to a NumPy array. ``name`` is used in messages.

    Raises:
        RequestError: NumPy cannot read it, for example a tensor on a GPU.
    """
    try:
        return np.asarray(source)
    except (AttributeError, TypeError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise RequestError(f"{name} cannot be read as an array ({reason}): use a NumPy array") from None


def described(array: NDArray[Any]) -> str:
    """Return dtype and shape for messages, like ``float32[64, 64]``."""
    return f"{array.dtype}{list(array.shape)}"


def to_bytes(unit: NDArray[Any], name: str) -> NDArray[np.uint8]:
    """Convert floats in [0, 1] to uint8, rounding half to even.

    Raises:
        RequestError: a value is not finite or not in [0, 1].
    """
    # Written so that NaN fails too.
    if not ((unit >= 0) & (unit <= 1)).all():
        raise RequestError(
            f"{name} has floats from {unit.min():g} to {unit.max():g}: use floats in [0, 1], or uint8"
        )
    return (unit.astype(np.float32) * np.float32(255)).round().astype(np.uint8)


def eight_bits(image: Image, name: str) -> Image:
    """Convert a 16-bit gray image to 8 bits by rounding (65535 = 257 x 255); Pillow would clip at 255.

    Images of other modes are returned unchanged. ``name`` is used in messages.

    Raises:
        RequestError: the image holds floats, or integers outside the 16-bit range.
    """
    if image.mode == "F":
        raise RequestError(f"{name} has float pixels (mode F): use an 8-bit or 16-bit image")
    if image.mode != "I" and not image.mode.startswith("I;16"):
        return image
    from PIL import Image as Pillow

    values = np.asarray(image)
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > 0xFFFF:
        raise RequestError(f"{name} has values from {low} to {high}: use an 8-bit or 16-bit image")
    gray = Pillow.fromarray(((values.astype(np.uint32) + 128) // 257).astype(np.uint8))
    key = image.info.get("transparency")
    if isinstance(key, int):
        gray.putalpha(Pillow.fromarray(np.where(values == key, 0, 255).astype(np.uint8)))
    return gray


def converted(image: Image, mode: str, name: str) -> Image:
    """Convert an 8-bit image to another mode with Pillow.

    Raises:
        RequestError: Pillow cannot convert this mode.
    """
    try:
        return (image.convert("LA") if image.mode == "La" else image).convert(mode)
    except (ValueError, OSError) as error:
        reason = " ".join(str(error).split())
        raise RequestError(f"{name} has mode {image.mode} ({reason}): use an RGB image") from None


def over_white(image: Image, name: str) -> Image:
    """Composite an 8-bit image over white, as RGB; opaque pixels keep their colour.

    Raises:
        RequestError: Pillow cannot convert its mode.
    """
    from PIL import Image as Pillow

    if not image.has_transparency_data:
        return converted(image, "RGB", name)
    white = Pillow.new("RGBA", image.size, "white")
    return Pillow.alpha_composite(white, converted(image, "RGBA", name)).convert("RGB")
