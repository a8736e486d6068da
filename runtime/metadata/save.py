"""Save images with their generation settings: PNG, JPEG or WebP; a file that is named, or new files in a folder."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain, count
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from sd2rt.engines.bundle.files import atomic_write, write_new
from sd2rt.engines.errors import EngineError, RequestError
from sd2rt.engines.printable import repr_of, shown
from sd2rt.runtime.images.encode import encode
from sd2rt.runtime.images.formats import SUFFIXES, FileFormat, suffix_of
from sd2rt.runtime.images.write import PNG_LEVEL
from sd2rt.runtime.metadata.png import png_text, started_from_image
from sd2rt.runtime.metadata.recipe import A1111_CHUNK, CHUNK

if TYPE_CHECKING:
    from PIL.Image import Image

QUALITY = 90
"""Of JPEG and WebP files that are saved."""


class Stamping(Protocol):
    """Marks of pictures."""

    @property
    def metadata(self) -> bool:
        """Write the generation settings and an XMP packet."""
        ...

    def check_size(self, width: int, height: int) -> None:
        """Raise RequestError if a picture of a size cannot have the marks."""
        ...

    def applied(
        self,
        image: Image,
        file_format: FileFormat,
        from_image: bool,
        encode: Callable[[Image, str | None], bytes],
        name: str,
    ) -> bytes:
        """Return the marked file, which ``encode`` makes of the picture with marked pixels and an XMP packet.

        ``name`` is the picture's in warnings.
        """
        ...


@dataclass(frozen=True, slots=True)
class ImageTarget:
    """A file or a folder for images, the format to write, and the marks to set."""

    path: Path
    is_file: bool
    stamps: Stamping
    file_format: FileFormat = "png"
    quality: int | None = None

    @classmethod
    def of(
        cls,
        path: str | os.PathLike[str],
        file_format: FileFormat | None = None,
        quality: int | None = None,
        *,
        stamps: Stamping,
    ) -> ImageTarget:
        """Choose file or folder, and the format, by a path.

        Raises:
            RequestError: the path has the suffix of another format or of none, or the quality does not apply.
        """
        path = Path(path)
        suffix = path.suffix.lower()
        if file_format is not None and file_format not in SUFFIXES.values():
            raise RequestError(f"the format is {shown(repr_of(file_format))}: use png, jpeg or webp")
        is_file = suffix in SUFFIXES and not os.path.isdir(path)
        if suffix and not is_file and not os.path.isdir(path):
            raise RequestError(
                f"{shown(str(path))} is neither a folder nor a .png, .jpg or .webp file: use one of these"
            )
        if is_file and file_format not in (None, SUFFIXES[suffix]):
            raise RequestError(
                f"{shown(str(path))} ends in {suffix}, but the format is {file_format}: change one of them"
            )
        chosen = SUFFIXES[suffix] if is_file else file_format or "png"
        if quality is not None and chosen == "png":
            raise RequestError(
                "quality is for jpeg and webp, and PNG is lossless: leave it out, or choose a format"
            )
        if quality is not None and not (isinstance(quality, int) and 0 <= quality <= 100):
            raise RequestError(f"quality is {shown(repr_of(quality))}: use a number from 0 to 100")
        return cls(path, is_file, stamps, chosen, quality)

    def encoded(self, image: Image, facts: dict[str, Any]) -> bytes:
        """Encode an image with its marks and settings.

        Raises:
            RequestError: it is too small for its watermark.
            EngineError: it cannot be signed.
        """
        text = png_text(facts) if self.stamps.metadata and facts else {}

        def file_of(pixels: Image, xmp: str | None) -> bytes:
            return encode(
                pixels,
                self.file_format,
                text,
                quality=QUALITY if self.quality is None else self.quality,
                comment=text.get(A1111_CHUNK),
                description=text.get(CHUNK),
                xmp=xmp,
                png_level=PNG_LEVEL,
            )

        name = f"image {name_of(facts)}" if facts else "the image"
        return self.stamps.applied(image, self.file_format, started_from_image(facts), file_of, name)

    def save(self, image: Image, facts: dict[str, Any], name: str = "") -> Path:
        """Save an image, and return the path of its file.

        A file that was named is replaced; in a folder, files of earlier images are kept.

        Args:
            name: name in a folder, without suffix; by default the seed.

        Raises:
            RequestError: it is too small for its watermark.
            EngineError: it cannot be signed, or the file cannot be written.
        """
        name = name or ("" if self.is_file else name_of(facts))
        path = self.path if self.is_file else self.path / f"{name}{suffix_of(self.file_format)}"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            data = self.encoded(image, facts)
            if self.is_file:
                with atomic_write(path) as temporary:
                    temporary.write_bytes(data)
                return path

            def write(temporary: Path) -> None:
                temporary.write_bytes(data)

            return write_new(self._names(name), write)
        except OSError as error:
            raise EngineError(f"{path} cannot be written: {error.strerror or error}") from error

    def _names(self, name: str) -> Iterator[Path]:
        suffix = suffix_of(self.file_format)
        return chain((self.path / f"{name}{suffix}",), (self.path / f"{name}-{n}{suffix}" for n in count(1)))


def name_of(facts: dict[str, Any]) -> str:
    """Name a file by the seed, and by the seed of a variation."""
    settings = facts["request"]
    return (
        f"{facts['seed']}v{settings['variation_seed']}"
        if "variation_strength" in settings
        else f"{facts['seed']}"
    )
