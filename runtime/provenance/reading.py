"""Read the marks of an image file, made by any program."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np

from sd2rt.engines.errors import MissingDependencyError, RequestError
from sd2rt.engines.path_argument import checked_path
from sd2rt.engines.printable import shown
from sd2rt.engines.regular_file import read_regular
from sd2rt.runtime.images.read import MAX_PIXELS, decode_with_texts
from sd2rt.runtime.provenance.c2pa import Manifest, read_manifest
from sd2rt.runtime.provenance.watermark import MESSAGE, read
from sd2rt.runtime.provenance.xmp import GENERATED, read_source_type

_MAX_BYTES = 1 << 30

Unchecked: TypeAlias = Literal["unchecked"]


@dataclass(frozen=True, slots=True)
class Marks:
    """Marks of one image file."""

    name: str
    """The file's, for messages."""
    texts: dict[str, str]
    """Its texts by key, in which programs store generation settings."""
    source_type: str | None
    """Term of IPTC's vocabulary in the XMP packet."""
    watermarked: bool
    """The pixels have the watermark ``sdv2``."""
    manifest: Manifest | Unchecked | None
    """The C2PA manifest; ``unchecked`` without c2pa-python."""

    @property
    def altered(self) -> bool:
        """True if the file has a signature that does not cover it as it is now."""
        return isinstance(self.manifest, Manifest) and self.manifest.state == "invalid"

    @property
    def generated(self) -> bool:
        """True if the XMP packet, the watermark or an intact manifest says that a program made the picture."""
        intact = isinstance(self.manifest, Manifest) and not self.altered
        signed_type = self.manifest.source_type if intact and isinstance(self.manifest, Manifest) else None
        return self.watermarked or self.source_type in GENERATED or signed_type in GENERATED


def read_marks(path: str | os.PathLike[str], authorities: bytes | None = None) -> Marks:
    """Read the marks of an image file.

    Args:
        authorities: PEM certificates of authorities that are trusted to vouch for signers.

    Raises:
        RequestError: the file cannot be read, or is no image of a supported format.
    """
    path = checked_path(path, "the image")
    name = shown(str(path), 500)
    try:
        data = read_regular(path, _MAX_BYTES)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise RequestError(f"{name} cannot be read ({reason}): name an image file") from None
    image, texts, xmp = decode_with_texts(data, name, MAX_PIXELS)
    pixels = np.asarray(image.convert("RGB"))
    manifest: Manifest | Unchecked | None
    try:
        manifest = read_manifest(data, authorities)
    except MissingDependencyError:
        if authorities is not None:
            raise
        manifest = "unchecked"
    return Marks(name, texts, read_source_type(xmp), read(pixels) == MESSAGE, manifest)
