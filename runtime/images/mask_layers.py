"""Masks with transparent areas, which programs use in opposite ways."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sd2rt.engines.errors import RequestError

if TYPE_CHECKING:
    from PIL.Image import Image

_HALF = 128
_TOLERANCE = 32
"""Difference from a colour that still counts as the same."""
_FEW = 0.01
"""Share of the visible pixels that may have another colour."""
_MOST_SAMPLES = 1 << 20
_OTHERWISE = "; use a mask without transparency, white where it is repainted, if that is wrong"


def read_layer(rgba: Image, name: str) -> tuple[Image | None, str | None]:
    """Read a picture with an alpha channel as a mask, mode L, with a sentence that continues its name.

    The mask is None if the transparency says nothing, and the colours are the mask: it is the same everywhere, or
    nowhere less than half.

    1. If what is visible is black and white, both of them, its white is repainted.
    2. If it has one colour other than black or dark gray, and at least half of the picture's border is transparent,
       it is painted on an empty layer: the paint is repainted.
    3. Else it is a picture from which areas were erased: the transparent areas are repainted, as in OpenAI's API and
       ComfyUI.

    Raises:
        RequestError: the alpha channel holds only 0 and 1.
    """
    from PIL import Image

    values = np.asarray(rgba)
    colours, alpha = values[..., :3], values[..., 3]
    low, high = int(alpha.min()), int(alpha.max())
    if low == 0 and high == 1:
        raise RequestError(f"{name} has an alpha channel of only 0 and 1 of 255: use 0 and 255")
    if low == high and low > 0:
        return None, None
    if low >= _HALF:
        return None, "is nowhere transparent by more than half: its brightness is the mask"
    visible = alpha.astype(np.uint16) * 2 >= high
    shown = colours[visible] if high > 0 else colours[:0].reshape(-1, 3)
    shown = shown[:: 1 + len(shown) // _MOST_SAMPLES]
    if len(shown) and _black_and_white(shown):
        white = (shown.max(1) >= _HALF) * np.uint8(255)
        mask = np.zeros(alpha.shape, np.uint8)
        mask[visible] = white
        return (
            Image.fromarray(mask),
            f"is black and white with transparent areas: its white is repainted, the rest is kept{_OTHERWISE}",
        )
    if len(shown) and _one_bright_colour(shown) and not _closed(visible):
        painted = np.round(alpha * (255 / high)).astype(np.uint8)
        return Image.fromarray(painted), f"is a transparent layer: the paint on it is repainted{_OTHERWISE}"
    return (
        Image.fromarray(np.uint8(255) - alpha),
        f"has transparent areas: these are repainted, as in OpenAI's API{_OTHERWISE}",
    )


def _closed(visible: NDArray[np.bool_]) -> bool:
    """Return True if more than half of the border is visible."""
    edges = (visible[0], visible[-1], visible[1:-1, 0], visible[1:-1, -1])
    border = np.concatenate(edges)
    return bool(border.mean() > 0.5)


def _black_and_white(shown: NDArray[Any]) -> bool:
    black, white = (shown.max(1) <= _TOLERANCE).mean(), (shown.min(1) >= 255 - _TOLERANCE).mean()
    return bool(min(black, white) > _FEW and black + white >= 1 - _FEW)


def _one_bright_colour(shown: NDArray[Any]) -> bool:
    colour = np.median(shown, axis=0)
    if colour.max() < _HALF and colour.max() - colour.min() <= _TOLERANCE:
        return False
    near = (np.abs(shown - colour) <= _TOLERANCE).all(1)
    return bool(near.mean() >= 1 - _FEW)
