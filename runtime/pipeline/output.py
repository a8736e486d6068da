"""Images of a call, with the seeds that reproduce them."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING, Any, Generic

import numpy as np

from sd2rt.engines.errors import EngineError
from sd2rt.runtime.images.write import to_pil, write_png
from sd2rt.runtime.request.fields import Images, OutputType

if TYPE_CHECKING:
    from PIL.Image import Image

_SEEDS_SHOWN = 8
"""Seeds in the ``repr`` of an output."""


@dataclass(frozen=True, slots=True, repr=False)
class Output(Generic[Images]):
    """Images of a call in the order of its prompts, with the seed that reproduces each.

    With a variation all images have the same seed, and image i has ``variation_seed + i``.

    ``images`` is a list of PIL images, or an array: [n, H, W, 3] in [0, 1] for output type ``np``,
    [n, C, h, w] for ``latent``.
    """

    images: Images
    seeds: list[int]

    def __repr__(self) -> str:
        count, shown = len(self.seeds), ", ".join(map(str, self.seeds[:_SEEDS_SHOWN]))
        more = ", ..." if count > _SEEDS_SHOWN else ""
        return f"Output({_described(self.images)}, seeds=[{shown}{more}])"

    def _repr_html_(self) -> str | None:
        """Show the images side by side with their seeds, in notebooks; None for latents."""
        images: object = self.images
        if isinstance(images, np.ndarray):
            if images.ndim != 4 or images.shape[-1] != 3:
                return None
            images = [to_pil(unit) for unit in images]
        assert isinstance(images, list)
        return "".join(
            f'<figure style="display: inline-block; margin: 4px"><img src="data:image/png;base64,{_base64(image)}">'
            f"<figcaption>seed {seed}</figcaption></figure>"
            for image, seed in zip(images, self.seeds, strict=True)
        )


def joined(outputs: Sequence[Output[Any]], output_type: OutputType) -> Output[Any]:
    """Put the images of several outputs, of one size unless they are PIL images, into one."""
    seeds = [seed for output in outputs for seed in output.seeds]
    images = [image for output in outputs for image in output.images]
    return Output(images if output_type == "pil" else np.stack(images), seeds)


def unless_failed(outcomes: list[Output[Images] | EngineError]) -> list[Output[Images]]:
    """Return the outputs, or raise the first error."""
    outputs: list[Output[Images]] = []
    for outcome in outcomes:
        if isinstance(outcome, EngineError):
            raise outcome
        outputs.append(outcome)
    return outputs


def _described(images: object) -> str:
    """Summarize images: their number and size."""
    if isinstance(images, np.ndarray):
        return f"{images.dtype.name}{list(images.shape)}"
    assert isinstance(images, list)
    sizes = {f"{image.width}x{image.height}" for image in images}
    return (
        f"{len(images)} image{'' if len(images) == 1 else 's'} of {' and '.join(sorted(sizes)) or 'no size'}"
    )


def _base64(image: Image) -> str:
    file = BytesIO()
    write_png(image, file, {})
    return b64encode(file.getvalue()).decode()
