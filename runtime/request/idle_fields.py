"""Fields of a request that were set and cannot change its images."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from sd2rt.runtime.request.request import Request

_PASTE_BLUR = Request.model_fields["paste_blur"].default
_MASK_PADDING = Request.model_fields["mask_padding"].default


def idle_fields(request: Request[Any]) -> Iterator[str]:
    """Yield a note for each field that has no effect, for a request with its bundle's defaults."""
    scale = request.guidance_scale
    assert scale is not None
    if (max(scale) if isinstance(scale, tuple) else scale) <= 1:
        for name, given in (
            ("the negative prompt", request.negative_prompt or request.negative_prompt_embeds is not None),
            ("the guidance interval", request.guidance_interval is not None),
            ("the guidance rescale", request.guidance_rescale > 0),
        ):
            if given:
                yield f"{name} has no effect without guidance, at a scale of 1 or less"
    if request.variation_seed is not None and not request.varied:
        yield "the variation seed has no effect at a variation strength of 0"
    if request.paste_blur != _PASTE_BLUR and not (request.paste or request.only_masked):
        yield "the paste blur has no effect without paste"
    if request.mask_padding != _MASK_PADDING and not request.only_masked:
        yield "the mask padding has no effect unless only the masked area is painted"
