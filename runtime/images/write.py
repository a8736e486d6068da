"""Convert decoded tensors to images, and write PNG files with generation metadata."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
from numpy.typing import NDArray

from sd2rt.engines.bundle.files import atomic_write
from sd2rt.engines.errors import NotFiniteError, RequestError

if TYPE_CHECKING:
    from PIL.Image import Image


def to_unit(decoded: NDArray[np.float32]) -> NDArray[np.float32]:
    """Convert a decoder's output [3, H, W] in [-1, 1] to [H, W, 3] in [0, 1], with clipping.

    Raises:
        NotFiniteError: a value is not finite; the image would be black.
    """
    if not np.isfinite(decoded).all():
        raise NotFiniteError(
            "the decoder's output is not finite: it overflowed in this precision, use an fp32 bundle",
            "decode",
        )
    unit: NDArray[np.float32] = np.clip(decoded * np.float32(0.5) + np.float32(0.5), 0, 1)
    return unit.transpose(1, 2, 0)


def to_pil(unit: NDArray[np.float32]) -> Image:
    """Convert [H, W, 3] in [0, 1] to an 8-bit RGB image, rounding half to even as in diffusers.

    Raises:
        RequestError: the array has another shape, or is not of numbers.
    """
    from PIL import Image

    if not isinstance(unit, np.ndarray) or unit.ndim != 3 or unit.shape[-1] != 3 or unit.dtype.kind != "f":
        kind = f"{unit.dtype} {list(unit.shape)}" if isinstance(unit, np.ndarray) else type(unit).__name__
        raise RequestError(f"to_pil takes an array [H, W, 3] of floats in [0, 1], and got {kind}")
    return Image.fromarray((unit * 255).round().astype(np.uint8))


PNG_LEVEL = 6
"""zlib's own default."""
_XMP_KEYWORD = "XML:com.adobe.xmp"


def write_png(
    image: Image,
    target: Path | BinaryIO,
    text: dict[str, str],
    level: int = PNG_LEVEL,
    xmp: str | None = None,
) -> None:
    """Encode an image as PNG with text chunks, into a file or stream.

    Args:
        level: effort of compression, 0 to 9.
        xmp: an XMP packet.

    Raises:
        OSError: writing failed.
    """
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    for key, value in text.items():
        info.add_itxt(key, value) if not value.isascii() else info.add_text(key, value)
    if xmp is not None:
        # Not compressed: the XMP specification requires it of this keyword.
        info.add_itxt(_XMP_KEYWORD, xmp)
    image.save(target, format="PNG", pnginfo=info, compress_level=level)


def save_png(image: Image, path: Path, text: dict[str, str]) -> None:
    """Write a PNG with text chunks atomically, replacing an existing file.

    Raises:
        OSError: writing failed.
    """
    with atomic_write(path) as temporary:
        write_png(image, temporary, text)
