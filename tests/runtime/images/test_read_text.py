"""Texts in image files, read without decoding the pixels."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from sd2rt.engines.errors import RequestError
from sd2rt.runtime.images.encode import encode
from sd2rt.runtime.images.read import MAX_PIXELS, TooManyPixelsError, read_text

COMMENT = "a cat, 猫\nSteps: 3, Sampler: Euler, Size: 64x64"


def picture() -> Image.Image:
    return Image.new("RGB", (64, 64), (200, 30, 30))


def bare(kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    picture().save(file, kind, **options)
    return file.getvalue()


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp"])
def test_what_is_written_is_read(kind: Any) -> None:
    data = encode(picture(), kind, {"parameters": COMMENT, "more": "x"}, comment=COMMENT)
    expected = {"parameters": COMMENT, **({"more": "x"} if kind == "png" else {})}
    assert read_text(data, "the image", MAX_PIXELS) == expected


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_no_texts(kind: str) -> None:
    assert read_text(bare(kind), "the image", MAX_PIXELS) == {}


def test_other_comments_are_no_texts() -> None:
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0x9286] = b"JIS\0\0\0\0\0hello"
    assert read_text(bare("JPEG", exif=exif), "the image", MAX_PIXELS) == {}


def test_pixels_are_not_decoded() -> None:
    info = PngInfo()
    info.add_text("parameters", COMMENT.encode("ascii", "replace").decode())
    data = bare("PNG", pnginfo=info)
    damaged = data[: data.index(b"IDAT") + 8] + b"\0" * 20
    assert read_text(damaged, "the image", MAX_PIXELS)["parameters"].startswith("a cat")


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (lambda: b"", RequestError),
        (lambda: b"GIF89a" + bytes(30), RequestError),
        (lambda: b"/etc/passwd", RequestError),
        (lambda: bare("PNG")[:20], RequestError),
        (lambda: bare("WEBP")[:20], RequestError),
    ],
)
def test_files_that_are_refused(make: Callable[[], bytes], error: type[Exception]) -> None:
    with pytest.raises(error):
        read_text(make(), "the image", MAX_PIXELS)


def test_too_many_pixels() -> None:
    with pytest.raises(TooManyPixelsError):
        read_text(bare("PNG"), "the image", 64 * 64 - 1)
