"""Decoded tensors to images, and images to files that say how they were made."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
from numpy.typing import NDArray

from sd2rt.engines.bundle.files import atomic_write
from sd2rt.engines.errors import EngineError

if TYPE_CHECKING:
    from PIL.Image import Image


class NotFiniteError(EngineError):
    """A decoded image holds values that are no colours."""


def to_unit(decoded: NDArray[np.float32]) -> NDArray[np.float32]:
    """A decoder's output [3, H, W] in [-1, 1] to [H, W, 3] in [0, 1], clipped.

    Raises:
        NotFiniteError: a value is not finite; it would come out black.
    """
    if not np.isfinite(decoded).all():
        raise NotFiniteError(
            "the decoder's output is not finite: its weights overflow in this precision; use a fp32 bundle"
        )
    unit: NDArray[np.float32] = np.clip(decoded * np.float32(0.5) + np.float32(0.5), 0, 1)
    return unit.transpose(1, 2, 0)


def to_pil(unit: NDArray[np.float32]) -> Image:
    """[H, W, 3] in [0, 1] to an 8-bit RGB image, rounded as diffusers rounds (half to even)."""
    from PIL import Image

    return Image.fromarray((unit * 255).round().astype(np.uint8))


def write_png(image: Image, target: Path | BinaryIO, text: dict[str, str]) -> None:
    """Encode a PNG with text chunks into a file.

    Raises:
        OSError: it cannot be written.
    """
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    for key, value in text.items():
        info.add_itxt(key, value) if not value.isascii() else info.add_text(key, value)
    image.save(target, format="PNG", pnginfo=info)


def save_png(image: Image, path: Path, text: dict[str, str], *, replace: bool) -> None:
    """Write a PNG with text chunks; the file appears whole or not at all.

    Raises:
        FileExistsError: there is a file of that name, and ``replace`` is false.
        OSError: the file cannot be written.
    """
    if not replace:
        # Taken before it is written: two processes cannot both find the name free.
        path.touch(exist_ok=False)
    try:
        with atomic_write(path) as temporary:
            write_png(image, temporary, text)
    except BaseException:
        if not replace:
            path.unlink(missing_ok=True)
        raise
