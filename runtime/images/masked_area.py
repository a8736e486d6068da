"""The rectangle that "only masked" inpainting paints: AUTOMATIC1111's rule for its place and its aspect ratio."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Area:
    """A rectangle of pixels, without its right column and lower row."""

    left: int
    top: int
    right: int
    bottom: int

    @property
    def box(self) -> tuple[int, int, int, int]:
        """The sides in Pillow's order."""
        return self.left, self.top, self.right, self.bottom

    @property
    def size(self) -> tuple[int, int]:
        return self.right - self.left, self.bottom - self.top


def masked_area(mask: NDArray[np.uint8], padding: int) -> Area | None:
    """Return the smallest area with all pixels of a mask [H, W] that are not black, padded inside the image.

    None if the mask is black.
    """
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return None
    height, width = mask.shape
    return Area(
        max(int(columns[0]) - padding, 0),
        max(int(rows[0]) - padding, 0),
        min(int(columns[-1]) + 1 + padding, width),
        min(int(rows[-1]) + 1 + padding, height),
    )


def with_aspect(area: Area, width: int, height: int, image_width: int, image_height: int) -> Area:
    """Expand an area to the aspect ratio of ``width`` x ``height``, as far as the image allows.

    Both sides grow alike; at an edge of the image the area moves inwards.
    """
    own_width, own_height = area.size
    wanted = width / height
    if own_width / own_height > wanted:
        top, bottom = _grown(area.top, area.bottom, int(own_width / wanted - own_height), limit=image_height)
        return Area(area.left, top, area.right, bottom)
    left, right = _grown(area.left, area.right, int(own_height * wanted - own_width), limit=image_width)
    return Area(left, area.top, right, area.bottom)


def _grown(low: int, high: int, more: int, *, limit: int) -> tuple[int, int]:
    """Grow an interval by ``more``, inside of 0 to ``limit``."""
    low, high = low - more // 2, high + more - more // 2
    if high > limit:
        low, high = low - (high - limit), limit
    if low < 0:
        low, high = 0, high - low
    return low, min(high, limit)
