"""Paste the repainted area of an image back into the original."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_MIN_BLUR = 0.25
_FULL_WEIGHT = 0.98


def paste(
    original: NDArray[np.float32],
    generated: NDArray[np.float32],
    mask: NDArray[np.float32],
    blur: float,
) -> NDArray[np.float32]:
    """Blend the generated image into the original where the mask is 1. Images are [H, W, 3] in [0, 1].

    ``mask`` is [1, H, W] of 0 and 1. Pixels outside the mask always equal the original: the transition lies
    inside the mask, starts at its edge, and is about two and a half radii wide. ``blur`` is the radius in pixels
    (the standard deviation of a Gaussian); 0 gives a hard edge. If the mask is too thin to reach full weight
    anywhere, the radius is halved until it does; with several regions, the widest one counts.
    """
    weight = _weight(mask[0], blur)[:, :, None]
    pasted: NDArray[np.float32] = original * (1 - weight) + generated * weight
    return pasted


def _weight(mask: NDArray[np.float32], blur: float) -> NDArray[np.float32]:
    """Return blending weights [H, W]: 0 outside the mask and on a straight edge, 1 deep inside."""
    from PIL import Image, ImageFilter

    # Blurred in 8 bits. Only the upper half is used, so there are 128 weights, enough for 8-bit images.
    image = Image.fromarray((mask * np.float32(255)).astype(np.uint8))
    while blur >= _MIN_BLUR and mask.any():
        blurred = np.asarray(image.filter(ImageFilter.GaussianBlur(blur)), np.float32) / np.float32(255)
        soft: NDArray[np.float32] = mask * np.clip(2 * blurred - 1, 0, 1)
        if soft.max() > _FULL_WEIGHT:
            return soft
        blur /= 2
    return mask
