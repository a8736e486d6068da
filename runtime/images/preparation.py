"""Settings of AUTOMATIC1111's image-to-image: how an image is prepared, and how a result returns into it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

ResizeMode = Literal["stretch", "crop", "fill"]
LARGEST_BLUR = 256.0
"""Pixels."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Preparation:
    """Settings for :class:`~sd2rt.runtime.images.painting.Painting`."""

    resize_mode: ResizeMode = "stretch"
    """``stretch`` ignores the aspect ratio, ``crop`` cuts off what is outside of it, ``fill`` repeats the edges."""
    mask_blur: tuple[float, float] = (0.0, 0.0)
    """Standard deviation of the mask's blur across and down, in pixels."""
    invert_mask: bool = False
    """Repaint what is black."""
    fill_masked: bool = False
    """Start from the colours around the mask, and not from the pixels under it."""
    only_masked: bool = False
    """Paint the masked area alone, enlarged to the requested size, and return the whole image at its own size."""
    padding: int = 0
    """Pixels of the image around the masked area, with ``only_masked``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Enlargement:
    """Size of an upscaled image, by a factor or by both sides."""

    factor: float | None = None
    width: int | None = None
    height: int | None = None
    crop: bool = True
    """With both sides: cut off what exceeds them. Otherwise the image covers them, and keeps its aspect ratio."""

    def scale(self, width: int, height: int) -> float:
        """Return the factor that an image of this size is enlarged by."""
        if self.width is None or self.height is None:
            return 1.0 if self.factor is None else self.factor
        return max(self.width / width, self.height / height)

    def scaled(self, width: int, height: int) -> tuple[int, int]:
        """Return the size of an enlarged image of this size, before it is cropped."""
        scale = self.scale(width, height)
        return max(int(width * scale), 1), max(int(height * scale), 1)

    def size(self, width: int, height: int) -> tuple[int, int]:
        """Return the size of an enlarged image of this size."""
        if self.width is None or self.height is None or not self.crop:
            return self.scaled(width, height)
        return self.width, self.height
