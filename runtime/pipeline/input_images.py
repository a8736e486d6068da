"""The image and mask of a request as its networks see them, and the way of a result back into the original."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from sd2rt.engines.interface import Float32Array
from sd2rt.runtime.request.request import Request

if TYPE_CHECKING:
    from PIL.Image import Image

    from sd2rt.runtime.images.painting import Painting


class InputImages:
    """Image and mask of a request, fitted to the size of its latents.

    Args:
        width, height: of what is generated, in pixels.

    Raises:
        RequestError: only the masked area is to be painted, and the mask is black.
    """

    def __init__(self, request: Request[Any], width: int, height: int) -> None:
        self._request, self._width, self._height = request, width, height
        self._painting: Painting | None = None
        self.image: Any = request.image
        """RGB, or None; stretched to the size by whoever uses it, if it has another one."""
        self.mask: Any = request.mask_image
        """L or RGB, of the image's size, or None."""
        if request.only_masked:
            from sd2rt.runtime.images.painting import Painting
            from sd2rt.runtime.images.preparation import Preparation

            settings = Preparation(only_masked=True, padding=request.mask_padding)
            mask = request.mask_image.convert("L")
            self._painting = painting = Painting(request.image, mask, width, height, settings)
            self.image, self.mask = painting.image, painting.mask
        elif request.resize_mode != "stretch":
            self.image = None if self.image is None else self._fit(self.image)
            self.mask = None if self.mask is None else self._fit(self.mask)

    @property
    def key(self) -> tuple[object, ...]:
        """Size and settings on which the fitted image depends, for caches."""
        request = self._request
        padding = request.mask_padding if request.only_masked else None
        return self._width, self._height, request.resize_mode, padding

    def fitted_depth(self, depth: Float32Array) -> Float32Array:
        """Fit a depth map [H', W'] to the size like the image; stretched ones are resized by whoever uses them."""
        if self._request.resize_mode == "stretch":
            return depth
        from PIL import Image as Pillow

        return np.asarray(self._fit(Pillow.fromarray(depth)), np.float32)

    def finish(self, unit: Float32Array) -> Float32Array:
        """Paste original pixels outside of the mask into a result [H, W, 3] in [0, 1], if requested.

        Returns:
            the result, or the whole original if only the masked area was painted.
        """
        request, image, mask = self._request, self.image, self.mask
        if not (request.paste or request.only_masked) or image is None or mask is None:
            return unit
        from sd2rt.runtime.images.init_image import resized
        from sd2rt.runtime.images.mask import mask_values
        from sd2rt.runtime.images.paste import paste

        if self._painting is None:
            original = _unit(resized(image, self._width, self._height))
            return paste(original, unit, mask_values(mask, self._width, self._height), request.paste_blur)
        image, mask = request.image, request.mask_image
        original = _unit(image)
        whole = self._within(original.copy(), unit)
        return paste(original, whole, mask_values(mask, *image.size), request.paste_blur)

    def _within(self, whole: Float32Array, unit: Float32Array) -> Float32Array:
        """Put the painted area into the original [H, W, 3]."""
        from sd2rt.runtime.images.resize_modes import fit
        from sd2rt.runtime.images.write import to_pil

        area = None if self._painting is None else self._painting.area
        if area is not None:
            painted = fit(to_pil(unit), *area.size, "crop")
            whole[area.top : area.bottom, area.left : area.right] = _unit(painted)
        return whole

    def _fit(self, image: Image) -> Image:
        from sd2rt.runtime.images.resize_modes import fit

        return fit(image, self._width, self._height, self._request.resize_mode)


def _unit(image: Any) -> Float32Array:
    return np.asarray(image, np.float32) / np.float32(255)
