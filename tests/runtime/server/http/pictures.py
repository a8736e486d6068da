"""Pictures that tests of several clients send and compare."""

from __future__ import annotations

import base64
import io

from PIL import Image, ImageChops, ImageDraw


def drawing(width: int = 128, height: int = 128) -> Image.Image:
    """A picture with a circle and a square."""
    image = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(image)
    draw.ellipse((10, 10, width // 2, height // 2), fill=(220, 30, 30))
    draw.rectangle((width // 2, height // 2, width - 8, height - 8), fill=(30, 60, 200))
    return image


def box_mask(width: int, height: int, box: tuple[int, int, int, int]) -> Image.Image:
    """A black mask with a white box."""
    mask = Image.new("L", (width, height))
    mask.paste(255, box)
    return mask


def png(image: Image.Image) -> bytes:
    """The bytes of a PNG."""
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def base64_png(image: Image.Image) -> str:
    """A PNG in base64."""
    return base64.b64encode(png(image)).decode()


def opened(text: str) -> Image.Image:
    """Decode an image in base64."""
    return Image.open(io.BytesIO(base64.b64decode(text)))


def equal(first: Image.Image, second: Image.Image) -> bool:
    """Return whether two pictures have the same pixels."""
    return first.size == second.size and ImageChops.difference(first, second).getbbox() is None
