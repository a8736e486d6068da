"""All marks that a run was asked for, in the order in which they are applied.

1. The watermark changes pixels, so it comes before the encoder.
2. The settings and the XMP packet are written by the encoder, into the file.
3. The C2PA signature covers the file's bytes, so it comes last.
"""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sd2rt.engines.errors import RequestError
from sd2rt.runtime.provenance.xmp import source_type_of, xmp_packet

if TYPE_CHECKING:
    from PIL.Image import Image

    from sd2rt.runtime.images.formats import FileFormat
    from sd2rt.runtime.provenance.c2pa import Signer
    from sd2rt.runtime.provenance.watermark import Watermark


@dataclass(frozen=True, slots=True)
class Stamps:
    """Marks of the pictures of a run. Any thread may use them."""

    metadata: bool = True
    """Write the generation settings and the XMP packet."""
    watermark: Watermark = "none"
    signer: Signer | None = None

    @classmethod
    def of(
        cls,
        *,
        metadata: bool = True,
        watermark: Watermark = "none",
        c2pa_cert: str | os.PathLike[str] | None = None,
        c2pa_key: str | os.PathLike[str] | None = None,
    ) -> Stamps:
        """Check the arguments, and read the files.

        Args:
            metadata: False to write neither settings nor XMP.
            watermark: ``sdv2``, the reference Stable Diffusion 2's, or ``none``.
            c2pa_cert: PEM file of the signer's certificate, and of those between it and an authority.
            c2pa_key: PEM file of its private key.

        Raises:
            RequestError: the arguments contradict each other, or certificate and key cannot sign.
            MissingDependencyError: there is a certificate, and c2pa-python is not installed.
        """
        if watermark != "none":
            from sd2rt.runtime.provenance.watermark import check_watermark

            check_watermark(watermark)
        if (c2pa_cert is None) != (c2pa_key is None):
            given, missing = ("certificate", "key") if c2pa_key is None else ("key", "certificate")
            raise RequestError(f"there is a C2PA {given} without its {missing}: give both")
        if c2pa_cert is None or c2pa_key is None:
            return cls(metadata, watermark)
        if not metadata:
            raise RequestError("a C2PA signature is metadata, and there is to be none: leave one of them out")
        from sd2rt.runtime.provenance.c2pa import Signer

        return cls(metadata, watermark, Signer.of(c2pa_cert, c2pa_key))

    def check_size(self, width: int, height: int) -> None:
        """Check that a picture of a size can be stamped, before it is drawn.

        Raises:
            RequestError: it is too small for the watermark.
        """
        if self.watermark != "none":
            from sd2rt.runtime.provenance.watermark import check_watermark_size

            check_watermark_size(width, height)

    def applied(
        self,
        image: Image,
        file_format: FileFormat,
        from_image: bool,
        encode: Callable[[Image, str | None], bytes],
        name: str = "the image",
    ) -> bytes:
        """Return a picture's file with all marks, in their order.

        Warns if the watermark cannot be read back from the file.

        Args:
            from_image: the picture started from an image.
            encode: makes the file of the marked picture and the XMP packet, which is None without metadata.
            name: the picture's, for the warning.

        Raises:
            RequestError: the picture is too small for the watermark.
            EngineError: signing failed.
        """
        marked = self.on_pixels(image)
        data = encode(marked, self.xmp(from_image))
        if self.watermark != "none" and not _is_readable(marked, data, file_format):
            warnings.warn(
                f"the watermark {self.watermark} cannot be read back from {name} as {file_format}: XMP and C2PA, "
                "unlike it, do not depend on the pixels",
                stacklevel=2,
            )
        return self.signed(data, file_format, from_image)

    def on_pixels(self, image: Image) -> Image:
        """Return the picture with the watermark, if one was asked for.

        Raises:
            RequestError: it is too small.
        """
        if self.watermark == "none":
            return image
        import numpy as np
        from PIL import Image as Pillow

        from sd2rt.runtime.provenance.watermark import embed

        return Pillow.fromarray(embed(np.asarray(image.convert("RGB"))))

    def xmp(self, from_image: bool) -> str | None:
        """Return the XMP packet of a picture; None without metadata.

        Args:
            from_image: the picture started from an image.
        """
        return xmp_packet(source_type_of(from_image)) if self.metadata else None

    def signed(self, data: bytes, file_format: FileFormat, from_image: bool) -> bytes:
        """Return the bytes of a file with a signature, if one was asked for.

        Raises:
            EngineError: signing failed.
        """
        if self.signer is None:
            return data
        return self.signer.sign(data, file_format, source_type_of(from_image))


def _is_readable(marked: Image, data: bytes, file_format: FileFormat) -> bool:
    import numpy as np
    from PIL import Image as Pillow

    from sd2rt.runtime.provenance.watermark import MESSAGE, read

    # A PNG has the same pixels; others lose some.
    written = marked if file_format == "png" else Pillow.open(io.BytesIO(data))
    return read(np.asarray(written.convert("RGB"))) == MESSAGE
