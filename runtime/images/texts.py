"""Texts in image files: chunks of a PNG, EXIF of other formats, XMP."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.Image import Image

EXIF_IFD, USER_COMMENT, DESCRIPTION = 0x8769, 0x9286, 0x010E
"""EXIF's tags of its own block, of the user's comment in it, and of the image's description."""
_TEXT_TAGS = (DESCRIPTION, 0x010F, 0x0110)
"""Description, and maker and model of the camera."""
_XMP_KEYWORD = "XML:com.adobe.xmp"
"""Of a PNG's text chunk."""
_TIFF_XMP = 700
"""Tag of a TIFF."""


def texts_of(image: Image) -> dict[str, str]:
    """Return all text chunks of a PNG by key, or :func:`exif_texts` of another format."""
    from PIL.PngImagePlugin import PngImageFile

    if isinstance(image, PngImageFile):
        return {key: str(value) for key, value in image.text.items()}
    return exif_texts(image)


def xmp_of(image: Image) -> str:
    """Return the XMP packet of an image file whose pixels are loaded; empty if there is none."""
    packet: object = image.info.get("xmp") or image.info.get(_XMP_KEYWORD) or image.getexif().get(_TIFF_XMP)
    return packet.decode(errors="replace") if isinstance(packet, bytes) else str(packet or "")


def exif_texts(image: Image) -> dict[str, str]:
    """Return the texts in an EXIF block, by the keys of :func:`~sd2rt.runtime.images.read.read_png_text`."""
    exif = image.getexif()
    text = {}
    # Fooocus writes the comment among the tags of the image.
    comment = exif.get_ifd(EXIF_IFD).get(USER_COMMENT) or exif.get(USER_COMMENT)
    if isinstance(comment, bytes) and comment.startswith(b"UNICODE\0"):
        body = comment[8:]
        # EXIF's byte order is that of the block; AUTOMATIC1111 and sd2rt write the high byte first.
        order = "utf-16-le" if body[1:2] == b"\0" else "utf-16-be"
        text["parameters"] = body.decode(order, errors="replace")
    elif isinstance(comment, bytes) and comment.startswith(b"ASCII\0\0\0"):
        text["parameters"] = comment[8:].decode("ascii", errors="replace")
    elif isinstance(comment, str):
        text["parameters"] = comment
    for tag in _TEXT_TAGS:
        value = exif.get(tag)
        if not isinstance(value, str):
            continue
        # ComfyUI writes its graphs to tags of the camera.
        name, separator, content = value.partition(":")
        if separator and name.lower() in ("prompt", "workflow"):
            text[name.lower()] = content
        elif tag == DESCRIPTION and value.startswith("{"):
            text["sd2rt"] = value
    return text
