"""Read untrusted image files: accept few formats, check the size before decoding, apply EXIF orientation."""

from __future__ import annotations

import io
import math
import os
import struct
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, BinaryIO, TypeAlias

from numpy.typing import NDArray

from sd2rt.engines.errors import RequestError
from sd2rt.engines.regular_file import open_regular_or_pipe
from sd2rt.runtime.images.limits import read_file
from sd2rt.runtime.images.texts import exif_texts, texts_of, xmp_of

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageFile import ImageFile


class TooManyPixelsError(RequestError):
    """An image has more pixels than are allowed. Its pixels were not decoded."""


ImageSource: TypeAlias = "str | os.PathLike[str] | Image | NDArray[Any]"
"""A path, ``-`` for standard input, a PIL image, or anything that NumPy can convert to an array."""

MAX_PIXELS = 1 << 26
"""Default limit of an image's pixels: 8192x8192, four times the largest image that a request can produce."""

_SUPPORTED = "a PNG, JPEG, WebP, AVIF, BMP or TIFF file"

_HEADER_BYTES = 512
"""Enough to identify a file's format and to read the size of a PNG, WebP or BMP."""

_BMP_HEADERS = (12, 40, 52, 56, 64, 108, 124)
"""Lengths of the header that follows a BMP's first 14 bytes."""

_TILE_WIDTH, _TILE_LENGTH = 322, 323
"""Tags of a TIFF."""

_MAX_GIF_BYTES = 16 << 20
"""Enough to reach a second frame; a longer GIF is refused all the same."""

_UNSUPPORTED: dict[str, tuple[bytes, ...]] = {
    "a HEIC": tuple(b"ftyp" + brand for brand in (b"heic", b"heix", b"hevc", b"mif1", b"msf1")),
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


def read_image(source: ImageSource, role: str, max_pixels: int) -> tuple[str, Image]:
    """Read an image, upright and in its original mode. Returns its name for messages, and the image.

    The source is a path, ``-`` for standard input, or a PIL image, of which the current frame is copied. Files
    must be PNG, JPEG, WebP, AVIF, BMP or TIFF. As in diffusers, EXIF orientation is applied and colour profiles are
    ignored.

    Args:
        role: name of the image in messages if it has no path, for example "the mask".

    Raises:
        RequestError: the image cannot be read, has another format, several frames or pages, or damage, has no pixels,
            or has more than ``max_pixels``. The size of a file is checked before its pixels are decoded.
    """
    from PIL import Image

    if isinstance(source, Image.Image):
        check_size(role, source.size, max_pixels)
        return role, _upright(source, role)
    if not isinstance(source, str | os.PathLike):
        raise RequestError(
            f"{role} is of type {type(source).__name__}: use a path, - for standard input, a PIL image or an array"
        )
    with _stream(os.fsdecode(source)) as (name, stream):
        image = _identified(stream, name, max_pixels)
    return name, _upright(image, name)


def decode_image(data: bytes, role: str, max_pixels: int) -> Image:
    """Decode an image file that is in memory, upright and in its original mode.

    Only the bytes are decoded: a path or an address in them is not an image. Limits are those of :func:`read_image`.

    Raises:
        TooManyPixelsError: it has more than ``max_pixels``.
        RequestError: it has another format, is animated or damaged, or has no pixels.
    """
    return _upright(_identified(io.BytesIO(data), role, max_pixels), role)


def read_png_text(path: str) -> tuple[str, dict[str, str]]:
    """Read the text chunks of a PNG, or the texts in the EXIF block of a JPEG or WebP.

    Returns the file's name for messages, and the texts by key. The user comment of an EXIF block has the key
    ``parameters``, ComfyUI's graphs in it have the keys ``prompt`` and ``workflow``, and its image description the
    key ``sd2rt`` if it is a JSON object.

    Raises:
        RequestError: the file cannot be read, is not an image of these formats, is animated or damaged, or has more
            than ``MAX_PIXELS``.
    """
    with _stream(path) as (name, stream):
        image = _identified(stream, name, MAX_PIXELS)
    with _decoding(name, image.format):
        return name, texts_of(image)


def decode_with_texts(data: bytes, role: str, max_pixels: int) -> tuple[Image, dict[str, str], str]:
    """Decode an image file that is in memory like :func:`decode_image`, with its texts and its XMP packet, if any.

    Raises:
        RequestError: as :func:`decode_image`.
    """
    image = _identified(io.BytesIO(data), role, max_pixels)
    upright = _upright(image, role)
    with _decoding(role, image.format):
        return upright, texts_of(image), xmp_of(image)


def read_text(data: bytes, role: str, max_pixels: int) -> dict[str, str]:
    """Read the texts before the pixels of an image file that is in memory, without decoding its pixels.

    A PNG's text chunks by key; of a JPEG or WebP those of :func:`read_png_text`.

    Raises:
        TooManyPixelsError: it has more than ``max_pixels``.
        RequestError: it has another format, or is animated or damaged.
    """
    image = _identified(io.BytesIO(data), role, max_pixels)
    with _decoding(role, image.format):
        if image.format == "PNG":
            return {str(key): str(value) for key, value in image.info.items() if isinstance(value, str)}
        return exif_texts(image)


def check_size(name: str, size: tuple[int, int], max_pixels: int) -> None:
    """Check the size of an image, given as width and height.

    Raises:
        TooManyPixelsError: it has more than ``max_pixels``.
        RequestError: it has no pixels.
    """
    width, height = size
    if width < 1 or height < 1:
        raise RequestError(f"{name} is {width}x{height} pixels: both sides must be at least 1")
    if width * height > max_pixels:
        raise TooManyPixelsError(
            f"{name} is {width}x{height} pixels, more than the limit of {max_pixels}: use a smaller one"
        )


@contextmanager
def _stream(path: str) -> Iterator[tuple[str, BinaryIO]]:
    """Open a path or standard input. Yields its name for messages, and the stream."""
    name = path if path and path.isprintable() else repr(path)
    try:
        if path == "-":
            name = "standard input"
            if sys.stdin is None:
                raise ValueError("it is closed")
            yield name, sys.stdin.buffer
        else:
            with open_regular_or_pipe(path) as stream:
                yield name, stream
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else _reason(error)
        raise RequestError(f"{name} cannot be read ({reason}): use {_SUPPORTED}") from None


def _identified(stream: BinaryIO, name: str, max_pixels: int) -> ImageFile:
    """Identify a file and check its size, without decoding its pixels."""
    start = stream.read(_HEADER_BYTES)
    reader = _reader(start)
    if reader is None:
        raise RequestError(f"{name} is {_unsupported_kind(start, stream)}: use {_SUPPORTED}")
    size = _declared_size(start)
    if size is not None:
        check_size(name, size, max_pixels)
    # Read into memory: a pipe cannot be rewound, and standard input may not start at offset 0.
    try:
        # A TIFF may state its size anywhere.
        pixels = max_pixels if reader.format == "TIFF" else None if size is None else math.prod(size)
        whole = io.BytesIO(read_file(start, stream, reader.format, pixels, max_pixels))
    except ValueError as error:
        raise RequestError(f"{name} is a damaged {reader.format} ({error}): use an intact one") from None
    # Not Image.open: it reports phone JPEGs with a second image as animated, and has its own pixel limit.
    with _decoding(name, reader.format):
        image = reader(whole)
    check_size(name, image.size, max_pixels)
    # Not n_frames, for which a TIFF's pages are all read.
    if getattr(image, "is_animated", False):
        if image.format == "TIFF":
            raise RequestError(f"{name} is a TIFF of several pages: save one of them")
        raise RequestError(f"{name} is an animated {reader.format}: use a still image")
    if image.format == "TIFF":
        _check_tiles(image, name, max_pixels)
    return image


def _check_tiles(tiff: ImageFile, name: str, max_pixels: int) -> None:
    """Check the size of a TIFF's tiles: one is decoded as a whole, and may be larger than the image."""
    with _decoding(name, "TIFF"):
        tags = tiff.tag_v2  # type: ignore[attr-defined]
        width, length = int(tags.get(_TILE_WIDTH, 0)), int(tags.get(_TILE_LENGTH, 0))
        if width * length > max_pixels:
            raise ValueError(f"its tiles have {width}x{length} pixels")


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
    if start[4:8] == b"ftyp" and _brands(start) & {b"avif", b"avis"}:
        from PIL.AvifImagePlugin import AvifImageFile

        return AvifImageFile
    if start.startswith(b"BM") and int.from_bytes(start[14:18], "little") in _BMP_HEADERS:
        from PIL.BmpImagePlugin import BmpImageFile

        return BmpImageFile
    if start.startswith((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")):
        from PIL.TiffImagePlugin import TiffImageFile

        return TiffImageFile
    return None


def _brands(start: bytes) -> set[bytes]:
    """Formats that an ISO media file names: its own, a version, and those that it is compatible with."""
    end = min(int.from_bytes(start[:4], "big"), len(start))
    return {start[position : position + 4] for position in range(8, end, 4)}


def _declared_size(start: bytes) -> tuple[int, int] | None:
    """Read width and height from the header of a PNG, WebP or BMP, as Pillow would read further (all of a WebP)."""
    if len(start) < 30:
        return None
    if start.startswith(b"BM"):
        if start[14] == 12:
            width, height = struct.unpack_from("<HH", start, 18)
            return width, height
        width, height = struct.unpack_from("<Ii", start, 18)
        # A negative height means that the top row comes first.
        return width, abs(height)
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


def _unsupported_kind(start: bytes, rest: BinaryIO) -> str:
    """Describe a file of another format, for the error message."""
    if not start:
        return "empty"
    if start.startswith((b"GIF87a", b"GIF89a")):
        return "an animated GIF" if _is_animated(io.BytesIO(start + rest.read(_MAX_GIF_BYTES))) else "a GIF"
    if start[4:8] == b"ftyp":
        start = start[4:]
    text = start.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if text.startswith(b"<?xml") and b"<svg" in text:
        text = b"<svg"
    for kind, signatures in _UNSUPPORTED.items():
        if start.startswith(signatures) or text.startswith(signatures):
            return kind
    return "not an image"


def _is_animated(gif: BinaryIO) -> bool:
    from PIL.GifImagePlugin import GifImageFile

    try:
        with warnings.catch_warnings(action="ignore"):
            return GifImageFile(gif).is_animated
    except Exception:
        # A damaged GIF is refused as a GIF anyway.
        return False


def _upright(image: Image, name: str) -> Image:
    from PIL import ExifTags
    from PIL.Image import Transpose

    with _decoding(name, image.format):
        image.load()
    # Not ImageOps.exif_transpose: it rewrites the EXIF data, which fails for some cameras' files.
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception as error:
        raise RequestError(
            f"{name} has unreadable EXIF data ({_reason(error)}): save it again without EXIF data"
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
    # Keep the transparent colour only; a remaining orientation tag would be applied a second time.
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
        # Pillow applies its own limit to WebP, even if ``max_pixels`` is larger.
        raise RequestError(f"{name} has more pixels than Pillow can decode: use a smaller one") from None
    except Exception as error:
        # Pillow does not document which exceptions its decoders raise on damaged data.
        raise RequestError(
            f"{name} is a damaged {kind or 'image'} ({_reason(error)}): use an intact one"
        ) from None


def _reason(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
