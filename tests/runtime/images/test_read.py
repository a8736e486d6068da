from __future__ import annotations

import io
import os
import struct
import subprocess
import sys
import threading
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from sd2rt.engines.errors import RequestError
from sd2rt.runtime.images.read import MAX_PIXELS, read_image

SUPPORTED = "use a PNG, JPEG, WebP, AVIF, BMP or TIFF file"


def picture(width: int = 40, height: int = 24) -> Image.Image:
    values = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(values)


def encoded(kind: str, image: Image.Image | None = None, **options: Any) -> bytes:
    stream = io.BytesIO()
    (image or picture()).save(stream, kind, **options)
    return stream.getvalue()


def png_start(width: int, height: int) -> bytes:
    """A PNG up to its pixels."""
    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))


def webp_start(width: int, height: int) -> bytes:
    canvas = bytes(4) + (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    return b"RIFF" + struct.pack("<I", 22) + b"WEBPVP8X" + struct.pack("<I", 10) + canvas


def jpeg_start(width: int, height: int) -> bytes:
    """A whole JPEG with a wrong size in its header."""
    whole = encoded("JPEG")
    at = whole.index(b"\xff\xc0") + 5
    return whole[:at] + struct.pack(">HH", height, width) + whole[at + 4 :]


def refusal(source: Any, max_pixels: int = MAX_PIXELS) -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(RequestError) as caught:
            read_image(source, "the image", max_pixels)
    assert caught.value.exit_code == 2
    message = str(caught.value)
    assert "\n" not in message
    return message


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def give(monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))


def bmp_start(width: int, height: int) -> bytes:
    header = struct.pack("<IiiHHIIIIII", 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", 54, 0, 0, 54) + header


def tiff(tags: dict[int, int], data: bytes = b"") -> bytes:
    """An uncompressed TIFF of one gray strip or tile, with one LONG for each tag."""
    offset = 8 + 2 + 12 * len(tags) + 4
    entries = b"".join(
        struct.pack("<HHII", tag, 4, 1, value + offset if tag in (273, 324) else value)
        for tag, value in sorted(tags.items())
    )
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4) + data


def tiff_start(width: int, height: int) -> bytes:
    return tiff(
        {256: width, 257: height, 258: 8, 259: 1, 262: 1, 273: 0, 277: 1, 278: height, 279: 8}, bytes(8)
    )


TAKEN: list[tuple[str, dict[str, Any]]] = [
    ("PNG", {}),
    ("JPEG", {}),
    ("WEBP", {"lossless": True}),
    ("AVIF", {}),
    ("BMP", {}),
    ("TIFF", {}),
    ("TIFF", {"compression": "tiff_lzw"}),
    ("TIFF", {"compression": "jpeg"}),
    ("TIFF", {"big_tiff": True}),
]


@pytest.mark.parametrize(("kind", "options"), TAKEN)
def test_taken_formats(kind: str, options: dict[str, Any], tmp_path: Path) -> None:
    content = encoded(kind, **options)
    # The name says nothing of the format.
    path = write(tmp_path / "picture.gif", content)
    expected = np.asarray(Image.open(io.BytesIO(content)))
    for source in (path, str(path)):
        name, image = read_image(source, "the image", MAX_PIXELS)
        assert name == str(path)
        np.testing.assert_array_equal(np.asarray(image), expected)


def test_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    content = encoded("PNG")
    for source in ("-", Path("-")):
        give(monkeypatch, content)
        name, image = read_image(source, "the image", MAX_PIXELS)
        assert name == "standard input"
        np.testing.assert_array_equal(np.asarray(image), np.asarray(picture()))


def test_standard_input_from_where_it_stands(tmp_path: Path) -> None:
    """A file that is already partly read: its position is not 0, although it could be rewound."""
    path = write(tmp_path / "two", b"a line\n" + encoded("PNG"))
    code = "from sd2rt.runtime.images.read import read_image; print(read_image('-', 'it', 1 << 20)[1].size)"
    with path.open("rb", buffering=0) as stream:
        stream.seek(7)
        done = subprocess.run(
            [sys.executable, "-c", code], stdin=stream, capture_output=True, text=True, check=True
        )
    assert done.stdout == "(40, 24)\n"


def test_a_path_that_is_a_pipe(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    writer = threading.Thread(target=path.write_bytes, args=(encoded("PNG"),))
    writer.start()
    _, image = read_image(path, "the image", MAX_PIXELS)
    writer.join()
    np.testing.assert_array_equal(np.asarray(image), np.asarray(picture()))


def test_pil_image_is_left_as_it_was() -> None:
    given = picture()
    given.info["transparency"] = (1, 2, 3)
    given.info["comment"] = "mine"
    _, image = read_image(given, "the image", MAX_PIXELS)
    image.putpixel((0, 0), (9, 9, 9))
    np.testing.assert_array_equal(np.asarray(given), np.asarray(picture()))
    assert given.info == {"transparency": (1, 2, 3), "comment": "mine"}
    assert image.info == {"transparency": (1, 2, 3)}


@pytest.mark.parametrize(
    ("start", "expected"),
    [
        # Rows from the bottom to the top, each padded to 4 bytes: blue, green, red.
        (
            bmp_start(2, 2) + b"\1\2\3\4\5\6\0\0" + b"\7\x08\x09\x0a\x0b\x0c\0\0",
            [[9, 8, 7], [12, 11, 10], [3, 2, 1], [6, 5, 4]],
        ),
        # A negative height: from the top.
        (
            bmp_start(2, -2) + b"\1\2\3\4\5\6\0\0" + b"\7\x08\x09\x0a\x0b\x0c\0\0",
            [[3, 2, 1], [6, 5, 4], [9, 8, 7], [12, 11, 10]],
        ),
        (tiff_start(4, 2)[:-8] + bytes(range(8)), [0, 1, 2, 3, 4, 5, 6, 7]),
    ],
    ids=["bmp", "bmp from the top", "tiff"],
)
def test_pixels_that_were_written_by_hand(start: bytes, expected: Any, tmp_path: Path) -> None:
    _, image = read_image(write(tmp_path / "picture", start), "the image", MAX_PIXELS)
    assert np.asarray(image).reshape(len(expected), -1).squeeze().tolist() == expected


def test_avif_under_a_brand_of_containers(tmp_path: Path) -> None:
    content = encoded("AVIF")
    assert content[8:12] == b"avif"
    path = write(tmp_path / "picture", content[:8] + b"mif1" + content[12:])
    assert read_image(path, "the image", MAX_PIXELS)[1].size == (40, 24)


def test_tiff_of_several_pages(tmp_path: Path) -> None:
    path = write(tmp_path / "pages", encoded("TIFF", save_all=True, append_images=[picture()]))
    assert refusal(path) == f"{path} is a TIFF of several pages: save one of them"
    # A page that is followed by itself is one.
    content = tiff_start(4, 2)
    loop = content[:-12] + struct.pack("<I", 8) + content[-8:]
    assert read_image(write(path, loop), "the image", MAX_PIXELS)[1].size == (4, 2)


def test_tiff_whose_tile_is_larger_than_its_image(tmp_path: Path) -> None:
    """A tile is decoded as a whole."""
    tags = {256: 4, 257: 2, 258: 8, 259: 1, 262: 1, 277: 1, 322: 1 << 15, 323: 1 << 15, 324: 0, 325: 1 << 30}
    path = write(tmp_path / "tile", tiff(tags, bytes(8)))
    problem = "is a damaged TIFF (its tiles have 32768x32768 pixels): use an intact one"
    assert refusal(path) == f"{path} {problem}"


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "AVIF", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation(kind: str, orientation: int, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = encoded(kind, exif=exif)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(content))))
    assert expected.shape == ((24, 40, 3) if orientation < 5 else (40, 24, 3))
    _, image = read_image(write(tmp_path / "picture", content), "the image", MAX_PIXELS)
    np.testing.assert_array_equal(np.asarray(image), expected)
    # An image that was opened elsewhere, and one that is read a second time.
    _, opened = read_image(Image.open(io.BytesIO(content)), "the image", MAX_PIXELS)
    _, again = read_image(opened, "the image", MAX_PIXELS)
    np.testing.assert_array_equal(np.asarray(opened), expected)
    np.testing.assert_array_equal(np.asarray(again), expected)


def test_orientation_beside_a_tag_that_cannot_be_written_again() -> None:
    given = picture()
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x0100] = 40
    content = exif.tobytes()
    # The width becomes a text: Pillow reads it, and cannot write it.
    content = content.replace(struct.pack(">HHI", 0x0100, 4, 1), struct.pack(">HHI", 0x0100, 2, 1))
    given.info["exif"] = content
    with pytest.raises(struct.error):
        ImageOps.exif_transpose(given)
    _, image = read_image(given, "the image", MAX_PIXELS)
    assert image.size == (24, 40)


def test_exif_that_is_none() -> None:
    given = picture()
    given.info["exif"] = b"no TIFF, or one?"
    assert refusal(given).startswith("the image has unreadable EXIF data (not a TIFF file")


def test_phones_jpeg_of_two_pictures(tmp_path: Path) -> None:
    """A depth or gain map as a second picture does not make an animation."""
    content = encoded("MPO", save_all=True, append_images=[picture(20, 12)])
    assert Image.open(io.BytesIO(content)).n_frames == 2  # type: ignore[attr-defined]
    _, image = read_image(write(tmp_path / "phone.jpg", content), "the image", MAX_PIXELS)
    assert image.size == (40, 24)


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "AVIF"])
def test_animations(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime", "blue")]
    content = encoded(kind, frames[0], save_all=True, append_images=frames[1:])
    remedy = SUPPORTED if kind == "GIF" else "use a still image"
    path = write(tmp_path / "moves", content)
    assert refusal(path) == f"{path} is an animated {kind}: {remedy}"
    give(monkeypatch, content)
    assert refusal("-") == f"standard input is an animated {kind}: {remedy}"


def test_frame_of_an_animation_that_was_chosen() -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime")]
    opened = Image.open(io.BytesIO(encoded("PNG", frames[0], save_all=True, append_images=frames[1:])))
    opened.seek(1)
    _, image = read_image(opened, "the image", MAX_PIXELS)
    assert image.convert("RGB").getpixel((0, 0)) == (0, 255, 0)


def test_still_gif(tmp_path: Path) -> None:
    path = write(tmp_path / "still.gif", encoded("GIF"))
    assert refusal(path) == f"{path} is a GIF: {SUPPORTED}"


def test_damaged_gif_is_a_gif(tmp_path: Path) -> None:
    path = write(tmp_path / "cut.gif", encoded("GIF")[:15])
    assert refusal(path) == f"{path} is a GIF: {SUPPORTED}"


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (encoded("JPEG2000"), "a JPEG 2000"),
        (encoded("JPEG2000", no_jp2=True), "a JPEG 2000"),
        (encoded("ICO"), "an ICO"),
        (encoded("PPM"), "a PNM"),
        (encoded("PDF"), "a PDF"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "a HEIC"),
        (b"\0\0\0\x0cJXL \r\n\x87\n", "a JPEG XL"),
        (b"\xff\x0a\xfa\x1f", "a JPEG XL"),
        (b'<svg xmlns="http://www.w3.org/2000/svg"/>', "an SVG"),
        (b'\xef\xbb\xbf<?xml version="1.0"?>\n<svg/>', "an SVG"),
        (b"8BPS\0\x01", "a PSD"),
        (b"\x76\x2f\x31\x01\x02", "an OpenEXR"),
        (b"#?RADIANCE\n", "a Radiance HDR"),
        (b"qoif\0\0", "a QOI"),
        (b"\x93NUMPY\x01\0", "a NumPy file"),
        (b"<!DOCTYPE html><html>", "a web page"),
        (b"", "empty"),
        (b"a text", "not an image"),
        (b"<?xml version='1.0'?><feed/>", "not an image"),
        (b"RIFF\x24\0\0\0WAVEfmt ", "not an image"),
        (bytes(1000), "not an image"),
        (b"\x89PN", "not an image"),
        (b"\xff", "not an image"),
    ],
)
def test_other_files(content: bytes, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "picture.png", content)
    assert refusal(path) == f"{path} is {kind}: {SUPPORTED}"
    give(monkeypatch, content)
    assert refusal("-") == f"standard input is {kind}: {SUPPORTED}"


def test_files_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "none.png"
    assert refusal(path) == f"{path} cannot be read (No such file or directory): {SUPPORTED}"
    assert refusal(tmp_path) == f"{tmp_path} cannot be read (Is a directory): {SUPPORTED}"
    assert refusal("") == f"'' cannot be read (No such file or directory): {SUPPORTED}"
    assert refusal("a\nb") == f"'a\\nb' cannot be read (No such file or directory): {SUPPORTED}"
    assert refusal("a\0b") == f"'a\\x00b' cannot be read (embedded null byte): {SUPPORTED}"
    monkeypatch.setattr(sys, "stdin", None)
    assert refusal("-") == f"standard input cannot be read (it is closed): {SUPPORTED}"
    closed = io.TextIOWrapper(io.BytesIO())
    closed.close()
    monkeypatch.setattr(sys, "stdin", closed)
    assert refusal("-") == f"standard input cannot be read (I/O operation on closed file.): {SUPPORTED}"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_file_without_permission(tmp_path: Path) -> None:
    path = write(tmp_path / "mine.png", encoded("PNG"))
    path.chmod(0)
    assert refusal(path) == f"{path} cannot be read (Permission denied): {SUPPORTED}"


def test_permission_denied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As above, for root, who ignores permissions."""

    def denied(path: str, flags: int) -> Any:
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr("os.open", denied)
    assert refusal("a.png") == f"a.png cannot be read (Permission denied): {SUPPORTED}"


@pytest.mark.parametrize("source", [7, [picture()], b"a.png", 1.5, {}])
def test_what_is_no_source(source: Any) -> None:
    assert refusal(source) == (
        f"the image is of type {type(source).__name__}: use a path, - for standard input, a PIL image or an array"
    )


@pytest.mark.parametrize(
    ("start", "width", "height"),
    [
        (png_start, 30_000, 30_000),
        (png_start, 0xFFFFFFFF, 0xFFFFFFFF),
        (webp_start, 16_383, 16_383),
        (jpeg_start, 65_500, 65_500),
        (bmp_start, 65_500, 65_500),
        (tiff_start, 65_500, 65_500),
    ],
)
def test_huge_images_are_refused_by_their_header(start: Any, width: int, height: int, tmp_path: Path) -> None:
    path = write(tmp_path / "bomb", start(width, height))
    assert refusal(path) == (
        f"{path} is {width}x{height} pixels, more than the limit of 67108864: use a smaller one"
    )


def test_rest_of_a_huge_image_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    class Endless(io.RawIOBase):
        taken = 0

        def readable(self) -> bool:
            return True

        def readinto(self, buffer: Any) -> int:
            begun = (png_start(30_000, 30_000) + bytes(len(buffer)))[: len(buffer)]
            assert self.taken < 1 << 16, "it reads on"
            buffer[:] = begun if self.taken == 0 else bytes(len(buffer))
            self.taken += len(buffer)
            return len(buffer)

    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BufferedReader(Endless())))
    assert refusal("-").startswith("standard input is 30000x30000 pixels, more than")


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "AVIF", "BMP", "TIFF"])
@pytest.mark.parametrize("lossless", [False, True])
def test_limit_is_the_callers(kind: str, lossless: bool, tmp_path: Path) -> None:
    path = write(tmp_path / "picture", encoded(kind, lossless=lossless))
    _, image = read_image(path, "the image", 40 * 24)
    assert image.size == (40, 24)
    problem = "40x24 pixels, more than the limit of 959: use a smaller one"
    assert refusal(path, 40 * 24 - 1) == f"{path} is {problem}"
    assert refusal(picture(), 40 * 24 - 1) == f"the image is {problem}"


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_pillows_limit_is_not_the_callers(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "picture", encoded(kind))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_image(path, "the image", MAX_PIXELS)[1].size == (40, 24)


def test_pillows_limit_for_webp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "picture", encoded("WEBP"))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    assert refusal(path) == f"{path} has more pixels than Pillow can decode: use a smaller one"


@pytest.mark.parametrize(("width", "height"), [(0, 5), (5, 0), (0, 0)])
def test_no_pixels(width: int, height: int, tmp_path: Path) -> None:
    path = write(tmp_path / "none.png", png_start(width, height))
    problem = f"is {width}x{height} pixels: both sides must be at least 1"
    assert refusal(path) == f"{path} {problem}"
    assert refusal(Image.new("RGB", (width, height))) == f"the image {problem}"


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "AVIF", "BMP", "TIFF"])
@pytest.mark.parametrize("share", [0.02, 0.1, 0.3, 0.5, 0.8, 0.95])
def test_truncated(kind: str, share: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = encoded(kind)
    content = content[: max(int(len(content) * share), 20)]
    path = write(tmp_path / "cut", content)
    message = refusal(path)
    assert message.startswith(f"{path} is a damaged {kind} (")
    assert message.endswith("): use an intact one")
    give(monkeypatch, content)
    assert refusal("-").startswith(f"standard input is a damaged {kind} (")


def test_truncated_progressive_jpeg(tmp_path: Path) -> None:
    content = encoded("JPEG", progressive=True)
    path = write(tmp_path / "cut", content[: len(content) // 2])
    assert refusal(path).startswith(f"{path} is a damaged JPEG (")


def test_pil_image_of_a_truncated_file() -> None:
    opened = Image.open(io.BytesIO(encoded("PNG")[:500]))
    assert refusal(opened).startswith("the image is a damaged PNG (")


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "AVIF", "BMP", "TIFF"])
def test_altered_bytes_are_read_or_refused(kind: str, tmp_path: Path) -> None:
    """Whatever a decoder raises, only a RequestError comes out."""
    rng = np.random.default_rng(1)
    exif = Image.Exif()
    exif[0x0112] = 6
    whole = np.frombuffer(encoded(kind, exif=exif), np.uint8)
    refusals = []
    for _ in range(150):
        altered = whole.copy()
        places = rng.integers(8, min(len(whole), 400), 3)
        altered[places] = rng.integers(0, 256, 3)
        path = write(tmp_path / "altered", altered.tobytes())
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                _, image = read_image(path, "the image", 1 << 16)
        except RequestError as error:
            refusals.append(str(error))
        else:
            assert image.width * image.height <= 1 << 16
    assert refusals
    assert not any("\n" in refusal for refusal in refusals)


def test_importing_loads_no_pillow() -> None:
    code = "import sys, sd2rt.runtime.images.init_image, sd2rt.runtime.images.paste; sys.exit('PIL' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
