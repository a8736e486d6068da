"""AUTOMATIC1111's ways to bring an image to a size of another aspect ratio, and its size of upscaled images."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sd2rt.runtime.images.init_image import resized
from sd2rt.runtime.images.preparation import Enlargement, ResizeMode

if TYPE_CHECKING:
    from PIL.Image import Image


def fit(image: Image, width: int, height: int, mode: ResizeMode) -> Image:
    """Return an image of ``width`` x ``height`` pixels, resized with Lanczos' filter.

    ``crop`` centres an image that covers the size. ``fill`` centres one that is inside of it, and repeats its outer
    rows or columns up to the edge.
    """
    if mode == "stretch":
        return resized(image, width, height)
    from PIL import Image as Pillow

    wide = image.width / image.height > width / height
    # The side that decides the scale: the shorter one to cover, the longer one to stay inside.
    if wide == (mode == "fill"):
        inner = (width, image.height * width // image.width)
    else:
        inner = (image.width * height // image.height, height)
    scaled = resized(image, max(inner[0], 1), max(inner[1], 1))
    left, top = width // 2 - scaled.width // 2, height // 2 - scaled.height // 2
    result = Pillow.new(image.mode, (width, height))
    result.paste(scaled, (left, top))
    if mode == "fill":
        # Boxes without an extent: each is an edge of the image.
        if top > 0:
            result.paste(_edge(scaled, (width, top), 0), (0, 0))
            result.paste(_edge(scaled, (width, top), scaled.height), (0, top + scaled.height))
        elif left > 0:
            result.paste(_side(scaled, (left, height), 0), (0, 0))
            result.paste(_side(scaled, (left, height), scaled.width), (left + scaled.width, 0))
    return result


def _edge(image: Image, size: tuple[int, int], row: int) -> Image:
    return image.resize(size, box=(0, row, image.width, row))


def _side(image: Image, size: tuple[int, int], column: int) -> Image:
    return image.resize(size, box=(column, 0, column, image.height))


def enlarged(image: Image, original: tuple[int, int], wanted: Enlargement) -> Image:
    """Bring an upscaled image to the size that was asked for.

    Args:
        image: the upscaler's result.
        original: width and height of the image that was upscaled.
        wanted: the size.
    """
    size = wanted.scaled(*original)
    result = image if image.size == size else resized(image, *size)
    if wanted.width is None or wanted.height is None or not wanted.crop:
        return result
    left, top = (result.width - wanted.width) // 2, (result.height - wanted.height) // 2
    return result.crop((left, top, left + wanted.width, top + wanted.height))
