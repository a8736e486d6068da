"""Valid image sizes in pixels, the sizes of their latents, and the size from which images are processed in tiles."""

from __future__ import annotations

import re
from typing import Literal

from sd2rt.engines.errors import RequestError

SIZE_MULTIPLE = 8
"""Sides of images are multiples of this many pixels, or of more: see ``Latents.size_multiple``."""
SMALLEST_SIDE = 64
LARGEST_SIDE = 4096
EARLIER_LATENT_MULTIPLE: Literal[8] = 8
"""Sides of latents are multiples of this in bundles of earlier versions, whose denoisers take no others."""
_SIZE = re.compile(r"([0-9]{1,9})(?:[xX]([0-9]{1,9}))?")

TILE = 128
"""Default maximum side, in latents, that is encoded, decoded or upscaled in one piece: 1024 pixels of SD2's images,
or 512 of the upscaler's output (128 of its input)."""


def parse_size(text: str, *, square: bool = False) -> tuple[int, int]:
    """Parse ``WxH`` to width and height in pixels; with ``square``, ``N`` means ``NxN``.

    Raises:
        ValueError: the text is not a size.
    """
    match = _SIZE.fullmatch(text)
    if match is None or (match[2] is None and not square):
        raise ValueError("it is not a size")
    return int(match[1]), int(match[2] or match[1])


def check_side(name: str, side: int, multiple: int = SIZE_MULTIPLE) -> None:
    """Check that a side in pixels is a multiple of ``multiple`` from 64 to 4096; the error suggests the nearest valid
    sides.

    Raises:
        RequestError: the side is invalid.
    """
    if SMALLEST_SIDE <= side <= LARGEST_SIDE and side % multiple == 0:
        return
    below = min(max(side // multiple * multiple, SMALLEST_SIDE), LARGEST_SIDE)
    above = min(below + multiple, LARGEST_SIDE)
    suggestion = f"{below} or {above}" if below < side < above else f"{below}"
    raise RequestError(
        f"{name} {side} is not a multiple of {multiple} from {SMALLEST_SIDE} to {LARGEST_SIDE}: use {suggestion}"
    )


def check_sides(width: int | None, height: int | None, multiple: int = SIZE_MULTIPLE) -> None:
    """Check both sides of an image, as :func:`check_side` does; None is not checked.

    Raises:
        RequestError: a side is invalid.
    """
    for name, side in (("width", width), ("height", height)):
        if side is not None:
            check_side(name, side, multiple)
