import io
import struct
import zlib
from pathlib import Path

import pytest
from PIL import Image

from sd2rt.engines.errors import RequestError
from sd2rt.runtime.images.limits import read_file
from sd2rt.runtime.images.read import MAX_PIXELS, read_image, read_png_text


class Endless(io.BytesIO):
    """A start, and then zeros without end; refuses to be read beyond 256 MB."""

    taken = 0

    def read(self, size: int | None = -1, /) -> bytes:
        assert size is not None
        assert size >= 0, "it is read as if it ended"
        self.taken += size
        assert self.taken < 256 << 20
        return super().read(size).ljust(size, b"\0")


def encoded(kind: str, size: tuple[int, int] = (40, 24), **options: object) -> bytes:
    file = io.BytesIO()
    Image.effect_noise(size, 30).convert("RGB").save(file, kind, **options)
    return file.getvalue()


def chunk(name: bytes, content: bytes = b"") -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def refusal(path: Path) -> str:
    messages = set()
    for read in (lambda: read_image(path, "the image", MAX_PIXELS), lambda: read_png_text(str(path))):
        with pytest.raises(RequestError) as caught:
            read()
        messages.add(str(caught.value))
    (message,) = messages
    return message


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_streams_without_end(kind: str) -> None:
    content = encoded(kind)
    with pytest.raises(ValueError, match=r"it has more than [0-9]+ bytes"):
        read_file(content[:100], Endless(content[100:]), kind, None if kind == "JPEG" else 960, MAX_PIXELS)


def test_jpeg_that_claims_more_pixels_than_allowed() -> None:
    """The pixels that a header declares do not raise the limit above that of the allowed ones."""
    frame = b"\xff\xd8\xff\xc0" + struct.pack(">HBHHB", 11, 8, 65500, 65500, 1) + b"\1\x11\0"
    with pytest.raises(ValueError, match="more than 76546048 bytes"):
        read_file(frame, Endless(), "JPEG", None, 1 << 20)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_whole_files(kind: str) -> None:
    content = encoded(kind)
    assert read_file(content[:100], io.BytesIO(content[100:]), kind, 960, MAX_PIXELS) == content
    assert read_file(content, io.BytesIO(), kind, 960, MAX_PIXELS) == content


@pytest.mark.parametrize("depth", [8, 16])
def test_uncompressed_png_of_one_column(depth: int) -> None:
    """The largest files for their pixels are within the limit, whatever the shape."""
    for size in ((1, 5000), (5000, 1), (70, 70)):
        content = encoded("PNG", size, compress_level=0)
        assert len(read_file(b"", io.BytesIO(content), "PNG", size[0] * size[1], MAX_PIXELS)) == len(content)


@pytest.mark.parametrize("name", [b"tEXt", b"puNk", b"IDAT"])
def test_png_of_many_chunks(name: bytes, tmp_path: Path) -> None:
    content = encoded("PNG")
    path = tmp_path / "many.png"
    path.write_bytes(content[:33] + chunk(name) * 140_000 + content[33:])
    assert refusal(path) == f"{path} is a damaged PNG (it has more than 131072 chunks): use an intact one"
    path.write_bytes(content[:33] + chunk(name) * 1000 + content[33:])
    assert read_image(path, "the image", MAX_PIXELS)[1].size == (40, 24)


def test_jpeg_of_many_scans(tmp_path: Path) -> None:
    content = encoded("JPEG", progressive=True)
    last = content.rfind(b"\xff\xda")
    path = tmp_path / "many.jpg"
    for count in (50, 200):
        path.write_bytes(content[:-2] + content[last:-2] * count + b"\xff\xd9")
        if count == 50:
            assert read_image(path, "the image", MAX_PIXELS)[1].size == (40, 24)
    assert refusal(path) == f"{path} is a damaged JPEG (it has more than 100 scans): use an intact one"


def test_scans_outside_the_first_picture_are_not_counted() -> None:
    """Thumbnails, and what phones append, contain the same bytes."""
    content = encoded("JPEG")
    thumbnail = b"\xff\xe1" + struct.pack(">H", 2 + 600) + b"\xff\xda\0" * 200
    content = content[:2] + thumbnail + content[2:] + b"\xff\xda\0\2" * 200
    assert read_file(b"", io.BytesIO(content), "JPEG", None, MAX_PIXELS) == content


@pytest.mark.parametrize(
    "filling", [b"\xff", b"\0", b"\xff\0", b"\xff\xd0", b"\xff\xd9", b"\xff\x01", b"\xff\xe0\0\2"]
)
def test_jpeg_of_many_segments_or_bytes_between_them(filling: bytes, tmp_path: Path) -> None:
    """Pillow takes a microsecond for each."""
    path = tmp_path / "many.jpg"
    content = encoded("JPEG")
    path.write_bytes(content[:20] + filling * 200_000 + content[20:])
    assert "it has too many segments, or bytes between them" in refusal(path)
