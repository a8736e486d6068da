"""Pictures of every format and damage, and streams that do not end."""

from __future__ import annotations

import io
import random
import struct
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.faults.hostile_files.case import Case, Cases, ReaderName, written

_FORMATS: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("png", "PNG", {}),
    ("jpeg", "JPEG", {}),
    ("progressive jpeg", "JPEG", {"progressive": True}),
    ("webp", "WEBP", {}),
    ("lossless webp", "WEBP", {"lossless": True}),
    ("gif", "GIF", {}),
    ("bmp", "BMP", {}),
    ("tiff", "TIFF", {}),
    ("ico", "ICO", {}),
    ("jpeg 2000", "JPEG2000", {}),
    ("ppm", "PPM", {}),
    ("tga", "TGA", {}),
)
_READ = 5
"""Formats from the first that are read; the others are refused."""


def chunk(name: bytes, content: bytes = b"") -> bytes:
    """A chunk of a PNG."""
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def png(
    width: int, height: int, before: bytes = b"", after: bytes = b"", depth: int = 8, colour: int = 2
) -> bytes:
    """A PNG whose header claims a size; its data are those of 4x4 pixels in RGB."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    data = zlib.compress((b"\0" + b"\1\2\3" * 4) * 4)
    parts = (chunk(b"IHDR", header), before, chunk(b"IDAT", data), after, chunk(b"IEND"))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def encoded(kind: str, options: dict[str, Any], size: tuple[int, int] = (40, 24)) -> bytes:
    """A picture of smoothed noise."""
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).save(file, kind, **options)
    return file.getvalue()


def damaged(seed: int, count: int) -> Cases:
    """Random damage of pictures in every format."""
    source = random.Random(seed)
    contents = [encoded(kind, options) for _, kind, options in _FORMATS]
    damages: tuple[Callable[[bytes, random.Random], bytes], ...] = (
        _cut,
        _altered,
        _grown,
        _zeroed,
        _header,
        _doubled,
    )
    for number in range(count):
        index = number % len(_FORMATS) if number % 3 == 0 else number % _READ
        damage = damages[number // _READ % len(damages)]
        content = damage(contents[index], source)
        name = f"{_FORMATS[index][0]} {damage.__name__.removeprefix('_')} {number}"
        reader: ReaderName = "depth" if number % 11 == 0 else "image"
        yield Case("pictures", name, reader, written("a.png", content), may_be_read=True)


def _cut(content: bytes, source: random.Random) -> bytes:
    return content[: source.randrange(len(content))]


def _altered(content: bytes, source: random.Random) -> bytes:
    altered = bytearray(content)
    for _ in range(source.randint(1, 8)):
        altered[source.randrange(len(altered))] = source.randrange(256)
    return bytes(altered)


def _header(content: bytes, source: random.Random) -> bytes:
    altered = bytearray(content)
    for _ in range(source.randint(1, 4)):
        altered[source.randrange(min(len(altered), 64))] = source.choice((0, 1, 0x7F, 0x80, 0xFF))
    return bytes(altered)


def _grown(content: bytes, source: random.Random) -> bytes:
    place = source.randrange(len(content))
    return content[:place] + source.randbytes(source.randint(1, 5000)) + content[place:]


def _zeroed(content: bytes, source: random.Random) -> bytes:
    place = source.randrange(len(content))
    return content[:place] + bytes(len(content) - place)


def _doubled(content: bytes, source: random.Random) -> bytes:
    first, second = sorted((source.randrange(len(content)), source.randrange(len(content))))
    return content[:second] + content[first:]


def made() -> Cases:
    """Pictures that claim sizes, or have very many of something."""
    jpeg = encoded("JPEG", {"progressive": True})
    flat = io.BytesIO()
    Image.new("L", (8000, 8000)).save(flat, "JPEG", progressive=True)
    scan = flat.getvalue()
    last = scan[scan.rfind(b"\xff\xc4", 0, scan.rfind(b"\xff\xda")) : -2]
    frame = b"\xff\xd8\xff\xc0" + struct.pack(">HBHHB", 11, 8, 65500, 65500, 1) + b"\1\x11\0"
    cases: dict[str, bytes] = {
        **{
            f"png of {w}x{h}": png(w, h)
            for w, h in ((0, 0), (1 << 31, 1), (60_000, 60_000), (1 << 32 - 1, 9))
        },
        **{f"png claims {n}x{n}": png(n, n) for n in (5, 100, 8192)},
        **{
            f"png depth {d} colour {c}": png(4, 4, depth=d, colour=c)
            for d in (0, 3, 16, 255)
            for c in (0, 3, 6, 9)
        },
        **{
            f"png of {count} chunks {name!r}": png(4, 4, chunk(name) * count)
            for name in (b"tEXt", b"puNk", b"IDAT", b"zTXt", b"acTL")
            for count in (140_000, 1_000_000)
        },
        "png of a chunk of 2^31": png(4, 4, struct.pack(">I", 0x7FFFFFFF) + b"puNk"),
        "png of 500 MB of zeros": png(20_000, 3000, chunk(b"IDAT", zlib.compress(bytes(500 << 20)))),
        "png of many zlib streams": png(4, 4, chunk(b"IDAT", zlib.compress(b"")) * 1000),
        "png of an iccp bomb": png(4, 4, chunk(b"iCCP", b"k\0\0" + zlib.compress(bytes(300 << 20)))),
        "png of an exif bomb": png(4, 4, chunk(b"eXIf", b"II*\0\x08\0\0\0" + b"\xff" * 100_000)),
        "png of exif that loops": png(4, 4, chunk(b"eXIf", b"II*\0\x08\0\0\0\0\0\x08\0\0\0")),
        "apng of 2^31 frames": png(4, 4, chunk(b"acTL", struct.pack(">II", 0x7FFFFFFF, 0))),
        "jpeg of 60 scans": jpeg[:-2] + jpeg[jpeg.rfind(b"\xff\xda") : -2] * 60 + b"\xff\xd9",
        "jpeg of 101 scans": jpeg[:-2] + jpeg[jpeg.rfind(b"\xff\xda") : -2] * 101 + b"\xff\xd9",
        "jpeg of 10000 scans of 8000x8000": scan[:-2] + last * 10_000 + b"\xff\xd9",
        "jpeg of 65500x65500": frame,
        "jpeg of many markers": b"\xff\xd8" + b"\xff\xe0\0\2" * 2_000_000,
        "jpeg of fill bytes": b"\xff\xd8" + b"\xff" * (20 << 20),
        "gif of 65535x65535": b"GIF89a\xff\xff\xff\xff\0\0\0"
        + b"\x2c\0\0\0\0\xff\xff\xff\xff\0\2\2\x4c\1\0" * 2,
        "webp claims 16383x16383": b"RIFF\xff\xff\xff\x7fWEBPVP8X\n\0\0\0\0\0\0\0"
        + b"\xfe\x3f\0" * 2
        + bytes(100),
    }
    for name, content in cases.items():
        readers: tuple[ReaderName, ...] = ("image", "recipe")
        for reader in readers:
            yield Case(
                "pictures", f"{name}, as {reader}", reader, written("a.png", content), may_be_read=True
            )
    starts = {"jpeg of 65500x65500": frame, "nothing": b""}
    starts |= {name: encoded(kind, options) for name, kind, options in _FORMATS}
    for name, content in starts.items():
        for size in (100 << 20, 1 << 33):
            sparse = written("a.png", content, grown_to=size)
            yield Case("pictures", f"{name} and {size} bytes", "image", sparse, may_be_read=True)


def texts(seed: int, count: int) -> Cases:
    """PNGs whose texts are bombs, or hostile settings."""
    source = random.Random(seed)
    bomb = zlib.compress(bytes(200 << 20))
    deep = b"[" * 100_000 + b"]" * 100_000
    compressed = {
        "a bomb": bomb,
        "100 MB of spaces": zlib.compress(b" " * (100 << 20)),
        "deep": zlib.compress(deep),
        "not compressed": b"text",
        "nothing": b"",
    }
    chunks = {
        **{f"zTXt {name}": chunk(b"zTXt", b"sd2rt\0\0" + data) for name, data in compressed.items()},
        **{f"iTXt {name}": chunk(b"iTXt", b"sd2rt\0\1\0\0\0" + data) for name, data in compressed.items()},
        "100 texts of a megabyte": b"".join(
            chunk(b"zTXt", b"k%d\0\0" % number + zlib.compress(bytes((1 << 20) - 10)))
            for number in range(100)
        ),
        "a text without end": chunk(b"tEXt", b"sd2rt"),
        "a text in another encoding": chunk(b"iTXt", b"sd2rt\0\0\0\0\0\xff\xfe"),
    }
    for key in (b"sd2rt", b"parameters"):
        for name, value in _settings(source, count).items():
            chunks[f"{key.decode()} {name}"] = chunk(b"tEXt", key + b"\0" + value)
    for name, content in chunks.items():
        for place, stored in (
            ("before", png(4, 4, before=content)),
            ("after", png(4, 4, after=content)),
        ):
            yield Case("PNG texts", f"{name}, {place}", "recipe", written("a.png", stored), may_be_read=True)


def _settings(source: random.Random, count: int) -> dict[str, bytes]:
    values: dict[str, bytes] = {
        "nothing": b"",
        "deep list": b"[" * 100_000,
        "deep object": b'{"request":' * 50_000,
        "long number": b'{"request": {"seed": ' + b"9" * 100_000 + b"}}",
        "number beyond floats": b'{"request": {"guidance_scale": 1e999}}',
        "nan": b'{"request": {"guidance_scale": NaN}}',
        "many steps": b'{"request": {"num_inference_steps": 1000000000000}}',
        "many sigmas": b'{"request": {"sigmas": [' + b"1," * 200_000 + b"1]}}",
        "large size": b'{"request": {"width": 1000000000, "height": 1000000000}}',
        "path": b'{"request": {"image": "/etc/passwd", "mask_image": "/dev/zero"}}',
        "many notes": b'{"request": {' + b",".join(b'"k%d": 1' % i for i in range(50_000)) + b"}}",
        "quotes": b'a\nSteps: 1, Size: "' + b'\\"' * 200_000,
        "commas": b"a\nSteps: 20" + b", A: b" * 100_000,
        "colons": b"a\nSteps: 20, " + b":" * 400_000,
        "brackets": b"(" * 400_000,
        "negative": b"a" * 400_000 + b"\nNegative prompt: " + b"b" * 400_000,
        "sizes": b"a\nSteps: 99999999999999999999, Size: 9999999999x9999999999, CFG scale: 1e999, Seed: -1",
        "lines": b"\n" * 400_000,
    }
    alphabet = b'{}[]",:0123456789eE.-+ntruefalsNIy \\\n'
    for number in range(count):
        values[f"random {number}"] = bytes(source.choice(alphabet) for _ in range(source.randint(1, 200)))
    return values
