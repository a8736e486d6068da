"""Pictures from outside: which files are taken, what is checked before they are decoded, which side is up."""

from __future__ import annotations

import io
import os
import struct
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, BinaryIO, TypeAlias

from numpy.typing import NDArray

from sd2rt.engines.errors import RequestError

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageFile import ImageFile

ImageSource: TypeAlias = "str | os.PathLike[str] | Image | NDArray[Any]"
"""A path, ``-`` for standard input, a PIL image, or what NumPy takes for an array."""

MAX_PIXELS = 1 << 26
"""Pixels of a picture unless told otherwise: 8192x8192, four times the largest that a request can ask for."""

_TAKEN = "a PNG, JPEG or WebP file"

_START = 512
"""Bytes that tell a file's format, and a PNG's or WebP's size."""

_OTHERS: dict[str, tuple[bytes, ...]] = {
    "a BMP": (b"BM",),
    "a TIFF": (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"),
    "a HEIC": tuple(b"ftyp" + brand for brand in (b"heic", b"heix", b"hevc", b"mif1", b"msf1")),
    "an AVIF": (b"ftypavif", b"ftypavis"),
    "a JPEG XL": (b"\xff\x0a", b"\0\0\0\x0cJXL "),
    "a JPEG 2000": (b"\0\0\0\x0cjP  ", b"\xff\x4f\xff\x51"),
    "an SVG": (b"<svg",),
    "a PDF": (b"%PDF-",),
    "a PSD": (b"8BPS",),
    "an ICO": (b"\0\0\x01\0",),
    "an OpenEXR": (b"\x76\x2f\x31\x01",),
    "a Radiance HDR": (b"#?RADIANCE", b"#?RGBE"),
    "a QOI": (b"qoif",),
    "a PNM": tuple(b"P%d" % kind + space for kind in range(1, 8) for space in (b"\n", b" ", b"\r")),
    "a NumPy file": (b"\x93NUMPY",),
    "a web page": (b"<!doctype html", b"<html"),
}


def read_image(source: ImageSource, what: str, max_pixels: int) -> tuple[str, Image]:
    """A picture, decoded and upright in its own mode, and its name in messages.

    A path, ``-`` for standard input, or a PIL image (the frame that it stands at), which is called ``what``
    and is left as it was. Files are PNG, JPEG or WebP. EXIF orientation is applied, colour profiles are not,
    as in diffusers.

    Raises:
        RequestError: it cannot be read, is of another format, is animated, is damaged, has no pixels, or has
            more than ``max_pixels``; a file's size is checked before its pixels are decoded.
    """
    from PIL import Image

    if isinstance(source, Image.Image):
        check_size(what, source.size, max_pixels)
        return what, _upright(source, what)
    if not isinstance(source, str | os.PathLike):
        raise RequestError(
            f"{what} is of type {type(source).__name__}: give a path, - for standard input, a PIL image or an array"
        )
    with _stream(os.fsdecode(source)) as (name, stream):
        image = _identified(stream, name, max_pixels)
    return name, _upright(image, name)


def read_text(path: str) -> tuple[str, dict[str, str]]:
    """A PNG's name in messages, and the text in it by its keys.

    Raises:
        RequestError: it cannot be read, is no PNG, is animated or damaged, or is larger than ``MAX_PIXELS``.
    """
    from PIL.PngImagePlugin import PngImageFile

    with _stream(path) as (name, stream):
        image = _identified(stream, name, MAX_PIXELS)
    if not isinstance(image, PngImageFile):
        raise RequestError(f"{name} is a {image.format}: give a PNG, which tells how it was made")
    with _decoding(name, image.format):
        return name, {key: str(value) for key, value in image.text.items()}


def check_size(name: str, size: tuple[int, int], max_pixels: int) -> None:
    """Refuse a width and height without pixels, or with more than ``max_pixels``.

    Raises:
        RequestError: with the size, and the limit.
    """
    width, height = size
    if width < 1 or height < 1:
        raise RequestError(f"{name} is {width}x{height} pixels: give one that has some")
    if width * height > max_pixels:
        raise RequestError(
            f"{name} is {width}x{height} pixels, more than {max_pixels} in all: give a smaller one"
        )


@contextmanager
def _stream(path: str) -> Iterator[tuple[str, BinaryIO]]:
    """The bytes of a path, and what messages call it."""
    name = path if path and path.isprintable() else repr(path)
    try:
        if path == "-":
            name = "standard input"
            if sys.stdin is None:
                raise ValueError("it is closed")
            yield name, sys.stdin.buffer
        else:
            with open(path, "rb") as stream:
                yield name, stream
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else _reason(error)
        raise RequestError(f"{name} cannot be read ({reason}): give {_TAKEN}") from None


def _identified(stream: BinaryIO, name: str, max_pixels: int) -> ImageFile:
    """The file's picture, before its pixels are decoded."""
    start = stream.read(_START)
    reader = _reader(start)
    if reader is None:
        raise RequestError(f"{name} is {_other(start, stream)}: give {_TAKEN}")
    size = _declared_size(start)
    if size is not None:
        check_size(name, size, max_pixels)
    # In memory: what comes through a pipe cannot be rewound, and standard input need not be at its beginning.
    whole = io.BytesIO(start + stream.read())
    # Not Image.open: it takes phones' JPEGs of two pictures for animations, and has its own limit of pixels.
    with _decoding(name, reader.format):
        image = reader(whole)
    check_size(name, image.size, max_pixels)
    if getattr(image, "n_frames", 1) > 1:
        raise RequestError(f"{name} is an animated {reader.format}: give a still picture")
    return image


def _reader(start: bytes) -> type[ImageFile] | None:
    if start.startswith(b"\x89PNG\r\n\x1a\n"):
        from PIL.PngImagePlugin import PngImageFile

        return PngImageFile
    if start.startswith(b"\xff\xd8\xff"):
        from PIL.JpegImagePlugin import JpegImageFile

        return JpegImageFile
    if start[:4] == b"RIFF" and start[8:12] == b"WEBP":
        from PIL.WebPImagePlugin import WebPImageFile

        return WebPImageFile
    return None


def _declared_size(start: bytes) -> tuple[int, int] | None:
    """Width and height of a PNG or WebP, for which Pillow reads more than the header: all of a WebP."""
    if len(start) < 30:
        return None
    if start[12:16] == b"IHDR":
        width, height = struct.unpack_from(">II", start, 16)
        return width, height
    if start[12:16] == b"VP8X":
        return 1 + int.from_bytes(start[24:27], "little"), 1 + int.from_bytes(start[27:30], "little")
    if start[12:16] == b"VP8L":
        (bits,) = struct.unpack_from("<I", start, 21)
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    if start[12:16] == b"VP8 ":
        width, height = struct.unpack_from("<HH", start, 26)
        return width & 0x3FFF, height & 0x3FFF
    return None


def _other(start: bytes, rest: BinaryIO) -> str:
    """What a file is that is not taken."""
    if not start:
        return "empty"
    if start.startswith((b"GIF87a", b"GIF89a")):
        return "an animated GIF" if _moves(io.BytesIO(start + rest.read())) else "a GIF"
    if start[4:8] == b"ftyp":
        start = start[4:]
    text = start.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if text.startswith(b"<?xml") and b"<svg" in text:
        text = b"<svg"
    for kind, signatures in _OTHERS.items():
        if start.startswith(signatures) or text.startswith(signatures):
            return kind
    return "no image"


def _moves(gif: BinaryIO) -> bool:
    from PIL.GifImagePlugin import GifImageFile

    try:
        with warnings.catch_warnings(action="ignore"):
            return GifImageFile(gif).is_animated
    except Exception:
        # Damaged: that it is a GIF is reason enough.
        return False


def _upright(image: Image, name: str) -> Image:
    from PIL import ExifTags
    from PIL.Image import Transpose

    with _decoding(name, image.format):
        image.load()
    # Not ImageOps.exif_transpose: it writes the EXIF data again, and fails where a camera wrote it oddly.
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception as error:
        raise RequestError(
            f"{name} has EXIF data that cannot be read ({_reason(error)}): save it again without"
        ) from None
    turn = {
        2: Transpose.FLIP_LEFT_RIGHT,
        3: Transpose.ROTATE_180,
        4: Transpose.FLIP_TOP_BOTTOM,
        5: Transpose.TRANSPOSE,
        6: Transpose.ROTATE_270,
        7: Transpose.TRANSVERSE,
        8: Transpose.ROTATE_90,
    }.get(orientation)
    upright = image.copy() if turn is None else image.transpose(turn)
    # What stays says which colour is transparent; an orientation that stayed would be applied again.
    upright.info = {key: value for key, value in image.info.items() if key == "transparency"}
    return upright


@contextmanager
def _decoding(name: str, kind: str | None) -> Iterator[None]:
    from PIL import Image

    try:
        yield
    except MemoryError:
        raise
    except Image.DecompressionBombError:
        # Pillow's own limit holds for WebP, where ``max_pixels`` is larger.
        raise RequestError(f"{name} has more pixels than Pillow decodes: give a smaller one") from None
    except Exception as error:
        # Whatever a decoder raises on bytes that are not what they should be: Pillow documents no list.
        raise RequestError(
            f"{name} is a damaged {kind or 'image'} ({_reason(error)}): give a whole one"
        ) from None


def _reason(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
