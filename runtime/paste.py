"""What was made anew, back into the picture that it was made for."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def paste(
    original: NDArray[np.float32],
    generated: NDArray[np.float32],
    mask: NDArray[np.float32],
    blur: float,
) -> NDArray[np.float32]:
    """The generated picture where the mask is 1, the original where it is 0: all [H, W, 3] in [0, 1].

    ``mask`` is [1, H, W] of 0 and 1. A pixel outside it is exactly the original's, whatever ``blur``: the
    transition is inside, from the mask's edge on, and about two and a half radii wide. ``blur`` is the radius
    in pixels (the standard deviation of a Gaussian); 0 is a hard edge. Where a region is narrower than about
    a radius and a half, none of it is generated: take a smaller radius for thin masks.
    """
    weight = _weight(mask[0], blur)[:, :, None]
    pasted: NDArray[np.float32] = original * (1 - weight) + generated * weight
    return pasted


def _weight(mask: NDArray[np.float32], blur: float) -> NDArray[np.float32]:
    """[H, W]: 0 outside the mask and on a straight edge, 1 deep inside."""
    if blur == 0:
        return mask
    from PIL import Image, ImageFilter

    # In 8 bits, of which the upper half counts: 128 weights, for pictures of 256 values.
    image = Image.fromarray((mask * np.float32(255)).astype(np.uint8))
    blurred = np.asarray(image.filter(ImageFilter.GaussianBlur(blur)), np.float32) / np.float32(255)
    soft: NDArray[np.float32] = mask * np.clip(2 * blurred - 1, 0, 1)
    return soft
