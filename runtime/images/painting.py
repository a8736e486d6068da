"""AUTOMATIC1111's inpainting around a model: prepare image and mask, then paste the result into the original."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from sd2rt.engines.errors import RequestError
from sd2rt.runtime.images.convert import converted, eight_bits
from sd2rt.runtime.images.mask_blur import blurred
from sd2rt.runtime.images.masked_area import Area, masked_area, with_aspect
from sd2rt.runtime.images.preparation import Preparation
from sd2rt.runtime.images.resize_modes import fit

if TYPE_CHECKING:
    from PIL.Image import Image

_FILL_BLURS = ((256, 1), (64, 1), (16, 2), (4, 4), (2, 2), (0, 1))
"""Radii of the blurred copies that fill a mask, widest first, and how often each is laid over the last."""


class Painting:
    """An image prepared for a model, and the way back into the original.

    ``image`` and ``mask`` are inputs of a request of ``width`` x ``height``; :meth:`finish` takes its result. The
    request must not paste by itself.

    Args:
        image: RGB, at its original size.
        mask: mode L, of the same size; white is repainted. None for plain image-to-image.
        width, height: of the request, in pixels.
        settings: of the preparation.

    Raises:
        RequestError: the mask has another size, or nothing of it is to be repainted.
    """

    def __init__(
        self, image: Image, mask: Image | None, width: int, height: int, settings: Preparation
    ) -> None:
        self._area: Area | None = None
        self._original: Image | None = None
        """Image that the result is pasted into; None if it stays as it is."""
        self._weights: Image | None = None
        """Share of the result in each pixel, mode L, of the original's size."""
        self.mask: Image | None = None
        if mask is None:
            self.image = fit(image, width, height, settings.resize_mode)
            return
        if mask.size != image.size:
            sizes = ["x".join(map(str, each.size)) for each in (mask, image)]
            raise RequestError(
                f"the mask is {sizes[0]} pixels, but its image is {sizes[1]}: make them the same size"
            )
        soft = _softened(mask, settings)
        if settings.only_masked:
            self._area = self._found(soft, width, height, settings.padding)
            self._original, self._weights = image, soft
            image = fit(image.crop(self._area.box), width, height, "fill")
            self.mask = fit(soft.crop(self._area.box), width, height, "fill")
        else:
            image = fit(image, width, height, settings.resize_mode)
            self.mask = fit(soft, width, height, settings.resize_mode)
            # Full weight from half of white on, which the model repaints; the blur outside of it fades.
            self._original, self._weights = image, self.mask.point(lambda value: min(2 * value, 255))
        self.image = filled(image, self.mask) if settings.fill_masked else image

    @property
    def area(self) -> Area | None:
        """The area of the original that is painted, with ``only_masked``."""
        return self._area

    @property
    def whole_size(self) -> tuple[int, int] | None:
        """Width and height of finished results; None if it is that of what is generated."""
        return None if self._area is None or self._original is None else self._original.size

    def finish(self, result: Image) -> Image:
        """Paste a request's result into the original; without a mask it stays as it is."""
        if self._original is None or self._weights is None:
            return result
        from PIL import Image as Pillow

        if self._area is not None:
            whole = self._original.copy()
            whole.paste(fit(result, *self._area.size, "crop"), self._area.box)
            result = whole
        return Pillow.composite(result, self._original, self._weights)

    @staticmethod
    def _found(mask: Image, width: int, height: int, padding: int) -> Area:
        area = masked_area(np.asarray(mask), padding)
        if area is None:
            raise RequestError("the mask is black, so nothing is repainted: draw the area in white")
        return with_aspect(area, width, height, *mask.size)


def drawn_mask(image: Image) -> Image:
    """Convert a decoded image to a mask, mode L: white is repainted, or what is opaque if any pixel is not.

    Drawing programs send the second kind, and its colours have no meaning; more than half opaque is repainted.
    """
    image = eight_bits(image, "the mask")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or image.has_transparency_data:
        alpha = converted(image, "RGBA", "the mask").getchannel("A")
        if np.asarray(alpha).min() < 255:
            return alpha.point(lambda value: 255 if value > 128 else 0)
    return converted(image, "L", "the mask")


def filled(image: Image, mask: Image) -> Image:
    """Fill the masked pixels of an RGB image with colours of the pixels around them.

    Blurred copies of the image without its masked pixels are laid over one another, the widest blur first.
    """
    from PIL import Image as Pillow
    from PIL import ImageFilter, ImageOps

    # Premultiplied, so that pixels that are left out have no part in a blur.
    kept = Pillow.new("RGBa", image.size)
    kept.paste(image.convert("RGBA").convert("RGBa"), mask=ImageOps.invert(mask))
    result = Pillow.new("RGBA", image.size)
    for radius, times in _FILL_BLURS:
        layer = kept.filter(ImageFilter.GaussianBlur(radius)).convert("RGBA")
        for _ in range(times):
            result.alpha_composite(layer)
    return result.convert("RGB")


def _softened(mask: Image, settings: Preparation) -> Image:
    from PIL import Image as Pillow

    values = np.asarray(mask)
    if settings.invert_mask:
        values = np.uint8(255) - values
    return Pillow.fromarray(blurred(values, *settings.mask_blur))
