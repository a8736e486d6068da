"""Images of a call, with the seeds that reproduce them."""

from __future__ import annotations

import os
from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic

import numpy as np

from sd2rt.engines.errors import EngineError, RequestError
from sd2rt.engines.path_argument import checked_path
from sd2rt.runtime.images.formats import FileFormat
from sd2rt.runtime.images.write import to_pil, write_png
from sd2rt.runtime.metadata.save import ImageTarget
from sd2rt.runtime.provenance.stamps import Stamps
from sd2rt.runtime.request.fields import Images, OutputType

if TYPE_CHECKING:
    from PIL.Image import Image

    from sd2rt.runtime.provenance.watermark import Watermark

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
    recipes: list[dict[str, Any]] = field(default_factory=list, compare=False)
    """Generation settings of each image, as :meth:`save` writes them."""

    def __repr__(self) -> str:
        count, shown = len(self.seeds), ", ".join(map(str, self.seeds[:_SEEDS_SHOWN]))
        more = ", ..." if count > _SEEDS_SHOWN else ""
        return f"Output({_described(self.images)}, seeds=[{shown}{more}])"

    def save(
        self,
        path: str | os.PathLike[str],
        *,
        format: FileFormat | None = None,
        quality: int | None = None,
        metadata: bool = True,
        watermark: Watermark = "none",
        c2pa_cert: str | os.PathLike[str] | None = None,
        c2pa_key: str | os.PathLike[str] | None = None,
    ) -> list[Path]:
        """Save the images with their recipes, which ``sd2rt run --from`` and :func:`sd2rt.read_recipe` read.

        Files also have an XMP packet, which declares that they are generated.

        Args:
            path: a .png, .jpg or .webp file for one image, which is replaced; or a folder for any number, in which
                files are named by seed and none is replaced.
            format: ``png``, ``jpeg`` or ``webp`` for files in a folder; None for PNG, or by the name of the file.
            quality: of JPEG and WebP, 0 to 100; None for 90.
            metadata: False to write neither recipes nor XMP.
            watermark: ``sdv2`` for the invisible watermark of the reference Stable Diffusion 2, in images of at least
                256x256 pixels.
            c2pa_cert: PEM file of a certificate chain, to sign each file with a C2PA manifest.
            c2pa_key: PEM file of the certificate's private key.

        Returns:
            The paths of the files.

        Raises:
            RequestError: the images are latents, or several for one file, or too small for a watermark, or an
                argument is invalid.
            EngineError: a file cannot be signed or written.
            MissingDependencyError: files are to be signed, and c2pa-python is not installed.
        """
        stamps = Stamps.of(metadata=metadata, watermark=watermark, c2pa_cert=c2pa_cert, c2pa_key=c2pa_key)
        target = ImageTarget.of(checked_path(path, "the output"), format, quality, stamps=stamps)
        images = self._pictures()
        if images is None:
            raise RequestError("latents are no images: generate with output_type 'pil' or 'np'")
        if target.is_file and len(images) != 1:
            raise RequestError(
                f"{target.path} is one file, and there are {len(images)} images: name a folder"
            )
        for image in images:
            stamps.check_size(image.width, image.height)
        recipes = self.recipes or [{} for _ in images]
        return [
            target.save(image, recipe, str(seed) if not recipe else "")
            for image, recipe, seed in zip(images, recipes, self.seeds, strict=True)
        ]

    def _pictures(self) -> list[Image] | None:
        """Return the images as PIL images; None for latents."""
        images: object = self.images
        if isinstance(images, np.ndarray):
            if images.ndim != 4 or images.shape[-1] != 3:
                return None
            return [to_pil(unit) for unit in images]
        assert isinstance(images, list)
        return images

    def _repr_html_(self) -> str | None:
        """Show the images side by side with their seeds, in notebooks; None for latents."""
        images = self._pictures()
        if images is None:
            return None
        return "".join(
            f'<figure style="display: inline-block; margin: 4px"><img src="data:image/png;base64,{_base64(image)}">'
            f"<figcaption>seed {seed}</figcaption></figure>"
            for image, seed in zip(images, self.seeds, strict=True)
        )


def joined(outputs: Sequence[Output[Any]], output_type: OutputType) -> Output[Any]:
    """Put the images of several outputs, of one size unless they are PIL images, into one."""
    seeds = [seed for output in outputs for seed in output.seeds]
    images = [image for output in outputs for image in output.images]
    recipes = [recipe for output in outputs for recipe in output.recipes]
    return Output(images if output_type == "pil" else np.stack(images), seeds, recipes)


def images_to_upscale(images: Any) -> list[Any]:
    """List the images of another pipeline's output, of a list or array, or a single image.

    Raises:
        RequestError: there is none, or they are latents.
    """
    source = images.images if isinstance(images, Output) else images
    if isinstance(source, np.ndarray) and source.ndim == 4 and source.shape[-1] != 3:
        raise RequestError(
            f"cannot upscale an array of shape {list(source.shape)}: generate the images with output_type 'pil' "
            "or 'np', not 'latent'"
        )
    several = isinstance(source, list | tuple) or (isinstance(source, np.ndarray) and source.ndim == 4)
    inputs = list(source) if several else [source]
    if not inputs:
        raise RequestError("no image to upscale: give at least one")
    return inputs


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
