"""A second pass over a picture, enlarged: AUTOMATIC1111's hires fix."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict

from sd2rt.engines.errors import RequestError
from sd2rt.runtime.request.request import Request, make_request

LatentMethod = Literal["bilinear", "nearest", "nearest-exact", "bicubic", "bicubic-antialiased"]
PixelMethod = Literal["lanczos", "nearest-pixels"]
EnlargeMethod = LatentMethod | PixelMethod

LATENT_METHODS: tuple[LatentMethod, ...] = get_args(LatentMethod)


@dataclass(frozen=True, slots=True)
class SecondPass:
    """Image-to-image over the enlarged result of a first request."""

    method: EnlargeMethod
    """Interpolation of latents, or of pixels, which are encoded again."""
    fields: dict[str, Any]
    """Request fields that differ from the first request's: always width, height and strength."""

    @property
    def on_latents(self) -> bool:
        """True if latents are enlarged, rather than pixels."""
        return self.method in LATENT_METHODS


class RecordedSecondPass(BaseModel):
    """A second pass as recorded in a file."""

    model_config = ConfigDict(extra="ignore", frozen=True, strict=True)

    method: EnlargeMethod
    request: dict[str, Any]

    def checked(self, not_recorded: Collection[str]) -> SecondPass:
        """Return the second pass, without fields that requests do not have, and those that files do not record.

        Raises:
            RequestError: a field is missing or invalid.
        """
        fields = {
            name: value
            for name, value in self.request.items()
            if name in Request.model_fields and name not in not_recorded
        }
        if any(fields.get(name) is None for name in ("width", "height", "strength")):
            raise RequestError("its second pass lacks a size or a strength")
        make_request(**{"prompt": "", **fields})
        return SecondPass(self.method, fields)
