"""Limits of image files beside their pixels: bytes, chunks of a PNG and scans of a JPEG.

A decoder's time and memory grow with these too, and a small picture may claim millions of them.
"""

from __future__ import annotations

import re
import struct
from typing import BinaryIO

_BYTES_PER_PIXEL = 9
"""An uncompressed pixel of four 16-bit channels, and the filter byte of a row of one pixel."""
_METADATA_BYTES = 16 << 20
_JPEG_EXTRA_BYTES = 64 << 20
"""Phones append a second picture or a film to a JPEG."""

_MAX_CHUNKS = 1 << 17
"""Twice as many as the largest image has with libpng's chunks of 8 KiB."""
_MAX_SCANS = 100
"""Encoders write about ten; each takes the time of decoding all pixels again."""

_MAX_SEGMENTS = 10_000
_MAX_GAP_BYTES = 1 << 16
"""Segments of a JPEG before its first scan, and bytes that belong to none: Pillow skips these one by one."""

_JPEG_SIZE_MARKERS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
# In compressed data FF is followed by 00, by a restart marker or by more fill bytes.
_MARKER_IN_SCAN = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")


def read_file(start: bytes, rest: BinaryIO, kind: str | None, pixels: int | None, max_pixels: int) -> bytes:
    """Read the rest of an image file; returns the whole file.

    Args:
        start: the beginning, which was read before.
        kind: Pillow's name of the format.
        pixels: number of pixels that the header declares; None if ``start`` does not contain it.
        max_pixels: limit of that number.

    Raises:
        ValueError: the file goes on beyond any file of that many pixels, or has too many chunks or scans.
    """
    if kind == "JPEG":
        start += rest.read(_METADATA_BYTES)
        pixels, limit = _jpeg_pixels(start), _JPEG_EXTRA_BYTES
    else:
        limit = _METADATA_BYTES
    limit += _BYTES_PER_PIXEL * min(0 if pixels is None else pixels, max_pixels)
    # One concatenation, as files can have hundreds of megabytes.
    content = start + rest.read(max(limit + 1 - len(start), 0))
    if len(content) > limit:
        raise ValueError(f"it has more than {limit} bytes")
    if kind == "PNG" and _has_many_chunks(content):
        raise ValueError(f"it has more than {_MAX_CHUNKS} chunks")
    if kind == "JPEG":
        _check_jpeg(content)
    return content


def _has_many_chunks(png: bytes) -> bool:
    position, count = 8, 0
    while position + 8 <= len(png) and count <= _MAX_CHUNKS:
        (length,) = struct.unpack_from(">I", png, position)
        position += 12 + length
        count += 1
    return count > _MAX_CHUNKS


def _jpeg_pixels(jpeg: bytes) -> int | None:
    """Number of pixels in the frame header; None if there is none before the first scan."""
    position = 2
    while (segment := _segment(jpeg, position)) is not None and segment[0] != 0xDA:
        marker, position, end = segment
        if marker in _JPEG_SIZE_MARKERS and position + 7 <= len(jpeg):
            height, width = struct.unpack_from(">HH", jpeg, position + 3)
            return int(height * width)
        position = end
    return None


def _check_jpeg(jpeg: bytes) -> None:
    """Check the segments before the first scan, which Pillow reads in Python, and count the scans.

    The first picture ends at the EOI marker after its scans.
    """
    position, segments, scans = 2, 0, 0
    while True:
        found = _MARKER_IN_SCAN.search(jpeg, position)
        gap = (len(jpeg) if found is None else found.start()) - position
        if scans == 0 and (gap > _MAX_GAP_BYTES or segments > _MAX_SEGMENTS):
            raise ValueError("it has too many segments, or bytes between them")
        segment = None if found is None else _segment(jpeg, found.start())
        if segment is None or (segment[0] == 0xD9 and scans):
            return
        segments, position = segments + 1, segment[2]
        if segment[0] == 0xDA:
            scans += 1
            if scans > _MAX_SCANS:
                raise ValueError(f"it has more than {_MAX_SCANS} scans")


def _segment(jpeg: bytes, position: int) -> tuple[int, int, int] | None:
    """Marker of the next segment, with the positions of its length and of its end; None at the file's end.

    As in libjpeg, bytes before a marker are skipped.
    """
    found = _MARKER_IN_SCAN.search(jpeg, position)
    if found is None:
        return None
    marker, position = jpeg[found.start() + 1], found.end()
    if marker in (0x01, 0xD8, 0xD9):
        return marker, position, position
    if position + 2 > len(jpeg):
        return None
    (length,) = struct.unpack_from(">H", jpeg, position)
    return marker, position, position + max(length, 2)
