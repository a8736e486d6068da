"""Lay out captioned images in rows, in titled sections, on one white page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont
from PIL.ImageFont import FreeTypeFont

from benchmarks.demo.painter import Picture

WIDTH, COLUMNS, SIDE, GUTTER = 1100, 8, 128, 2
"""In pixels, except COLUMNS; images keep their size."""
_MARGIN = (WIDTH - COLUMNS * SIDE - (COLUMNS - 1) * GUTTER) // 2
_CAPTION_GAP, _LINE = 5, 15
_ROW_GAP, _SECTION_GAP = 12, 22
_INK, _QUIET, _RULE = (25, 25, 25), (110, 110, 110), (215, 215, 215)


@dataclass(frozen=True, slots=True)
class Cell:
    """An image [128, 128, 3] and its caption."""

    picture: Picture
    caption: str


@dataclass(frozen=True, slots=True)
class Section:
    """A title and cells in rows of eight; None leaves a gap."""

    title: str
    cells: Sequence[Cell | None]


def lay_out(title: str, subtitle: str, sections: Sequence[Section]) -> Image.Image:
    """Render a page 1100 pixels wide and as high as its content."""
    # The first drawing, on a dummy image, only measures the height.
    height = _Page(Image.new("RGB", (1, 1))).draw(title, subtitle, sections)
    page = Image.new("RGB", (WIDTH, height), "white")
    _Page(page).draw(title, subtitle, sections)
    return page


class _Page:
    def __init__(self, image: Image.Image) -> None:
        self._image = image
        self._canvas = ImageDraw.Draw(image)

    def draw(self, title: str, subtitle: str, sections: Sequence[Section]) -> int:
        """Draw everything and return the height used."""
        large, small = _font(28), _font(14)
        self._canvas.text((_MARGIN, _MARGIN - 8), title, _INK, font=large)
        right = WIDTH - _MARGIN - small.getlength(subtitle)
        self._canvas.text((right, _MARGIN + 8), subtitle, _QUIET, font=small)
        y = _MARGIN + 40
        for section in sections:
            y = self._section(section, y) + _SECTION_GAP
        return y - _SECTION_GAP + _MARGIN

    def _section(self, section: Section, y: int) -> int:
        self._canvas.line((_MARGIN, y, WIDTH - _MARGIN, y), _RULE)
        self._canvas.text((_MARGIN, y + 8), section.title, _INK, font=_font(18))
        y += 38
        for start in range(0, len(section.cells), COLUMNS):
            y = self._row(section.cells[start : start + COLUMNS], y) + _ROW_GAP
        return y - _ROW_GAP

    def _row(self, cells: Sequence[Cell | None], y: int) -> int:
        font, lines = _font(12), 1
        for number, cell in enumerate(cells):
            if cell is None:
                continue
            x = _MARGIN + number * (SIDE + GUTTER)
            self._image.paste(Image.fromarray(cell.picture), (x, y))
            # Without a frame, a white background would have no edge on the white page.
            self._canvas.rectangle((x, y, x + SIDE - 1, y + SIDE - 1), outline=_RULE)
            words = wrap(cell.caption, font, SIDE - 6)
            lines = max(lines, len(words))
            for line, text in enumerate(words):
                top = y + SIDE + _CAPTION_GAP + line * _LINE
                self._canvas.text((x + 1, top), text, _QUIET, font=font)
        return y + SIDE + _CAPTION_GAP + lines * _LINE


def wrap(text: str, font: FreeTypeFont, width: float) -> list[str]:
    """Wrap a text into lines of at most ``width`` pixels; a wider word gets its own line."""
    lines: list[str] = []
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and font.getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines


def _font(size: int) -> FreeTypeFont:
    font = ImageFont.load_default(size)
    if not isinstance(font, FreeTypeFont):
        raise RuntimeError(
            "this Pillow lacks FreeType, which scalable fonts need: install the published wheel"
        )
    return font
