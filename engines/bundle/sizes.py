"""Sizes of images in pixels, and of latents: what is allowed, and from where on tiles are worked on."""

from __future__ import annotations

import re

from sd2rt.engines.errors import RequestError

SIZE_MULTIPLE = 64
LARGEST_SIDE = 4096
_SIZE = re.compile(r"([0-9]{1,9})(?:[xX]([0-9]{1,9}))?")

TILE = 128
"""The longest side of latents that is encoded, decoded or upscaled at once, where nobody says otherwise: that of 1024
pixels of SD2's images, or of the 512 that the upscaler makes of 128."""


def parse_size(text: str, *, square: bool = False) -> tuple[int, int]:
    """Width and height in pixels of ``WxH``, and where ``square`` of ``N``, which is both.

    Raises:
        ValueError: the text is neither.
    """
    match = _SIZE.fullmatch(text)
    if match is None or (match[2] is None and not square):
        raise ValueError("it is no size")
    return int(match[1]), int(match[2] or match[1])


def check_side(name: str, side: int) -> None:
    """Refuse a side in pixels that is not a multiple of 64, naming the valid ones next to it.

    Raises:
        RequestError: it is not, or is out of range.
    """
    if SIZE_MULTIPLE <= side <= LARGEST_SIDE and side % SIZE_MULTIPLE == 0:
        return
    below = min(max(side // SIZE_MULTIPLE * SIZE_MULTIPLE, SIZE_MULTIPLE), LARGEST_SIDE)
    above = min(below + SIZE_MULTIPLE, LARGEST_SIDE)
    near = f"{below} or {above}" if below < side < above else f"{below}"
    raise RequestError(
        f"{name} {side} is not a multiple of {SIZE_MULTIPLE} from {SIZE_MULTIPLE} to {LARGEST_SIDE}: use {near}"
    )
