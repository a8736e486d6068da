"""What was made anew, back into the picture that it was made for."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_LEAST_BLUR = 0.25
_FULL = 0.98


def paste(
    original: NDArray[np.float32],
    generated: NDArray[np.float32],
    mask: NDArray[np.float32],
    blur: float,
) -> NDArray[np.float32]:
    """The generated picture where the mask is 1, the original where it is 0: all [H, W, 3] in [0, 1].

    ``mask`` is [1, H, W] of 0 and 1. A pixel outside it is exactly the original's, whatever ``blur``: the
    transition is inside, from the mask's edge on, and about two and a half radii wide. ``blur`` is the radius
    in pixels (the standard deviation of a Gaussian); 0 is a hard edge. A mask too thin for it to reach full
    weight anywhere has a smaller one, halved until it does; of several regions the widest decides.
    """
    weight = _weight(mask[0], blur)[:, :, None]
    pasted: NDArray[np.float32] = original * (1 - weight) + generated * weight
    return pasted


def _weight(mask: NDArray[np.float32], blur: float) -> NDArray[np.float32]:
    """[H, W]: 0 outside the mask and on a straight edge, 1 deep inside."""
    from PIL import Image, ImageFilter

    # In 8 bits, of which the upper half counts: 128 weights, for pictures of 256 values.
    image = Image.fromarray((mask * np.float32(255)).astype(np.uint8))
    while blur >= _LEAST_BLUR and mask.any():
        blurred = np.asarray(image.filter(ImageFilter.GaussianBlur(blur)), np.float32) / np.float32(255)
        soft: NDArray[np.float32] = mask * np.clip(2 * blurred - 1, 0, 1)
        if soft.max() > _FULL:
            return soft
        blur /= 2
    return mask
