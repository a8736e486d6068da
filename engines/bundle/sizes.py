"""Valid image sizes in pixels, the sizes of their latents, and the size from which images are processed in tiles."""

from __future__ import annotations

import re

from sd2rt.engines.errors import RequestError

SIZE_MULTIPLE = 64
LARGEST_SIDE = 4096
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


def latent_sides(width: int, height: int, factor: int) -> tuple[int, int]:
    """Height and width of the latents of an image, with ``factor`` pixels per latent along a side.

    The denoiser needs sides that are multiples of 8; upscaled images of other sizes are padded.
    """
    return -(-height // factor // 8) * 8, -(-width // factor // 8) * 8


def check_side(name: str, side: int) -> None:
    """Check that a side in pixels is a multiple of 64 from 64 to 4096; the error suggests the nearest valid sides.

    Raises:
        RequestError: the side is invalid.
    """
    if SIZE_MULTIPLE <= side <= LARGEST_SIDE and side % SIZE_MULTIPLE == 0:
        return
    below = min(max(side // SIZE_MULTIPLE * SIZE_MULTIPLE, SIZE_MULTIPLE), LARGEST_SIDE)
    above = min(below + SIZE_MULTIPLE, LARGEST_SIDE)
    suggestion = f"{below} or {above}" if below < side < above else f"{below}"
    raise RequestError(
        f"{name} {side} is not a multiple of {SIZE_MULTIPLE} from {SIZE_MULTIPLE} to {LARGEST_SIDE}: use {suggestion}"
    )
