"""Differences between two images."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.peers.job import Image


def difference(image: Image, reference: Image) -> dict[str, Any]:
    """Return differences on the scale of 0 to 255; ``psnr_db`` is None for equal images.

    Raises:
        ValueError: the sizes differ, or the image has non-finite values.
    """
    if image.shape != reference.shape:
        raise ValueError(f"the image is {image.shape}, the reference is {reference.shape}")
    if not np.isfinite(image).all():
        raise ValueError("the image has non-finite values")
    error = (image.astype(np.float64) - reference) * 255
    square = float(np.mean(error**2))
    pixels = np.abs(eight_bits(image).astype(int) - eight_bits(reference))
    return {
        "max_pixel": int(pixels.max()),
        "pixels_that_differ": float((pixels > 0).mean()),
        "max_before_rounding": float(np.abs(error).max()),
        "psnr_db": None if square == 0 else float(10 * np.log10(255**2 / square)),
        "pixel_std": float(reference.std() * 255),
    }


def eight_bits(image: Image) -> NDArray[np.uint8]:
    """Round as when writing a PNG."""
    return (image * 255).round().astype(np.uint8)
