"""The contact sheet keeps images and their captions within their columns."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
from PIL import ImageFont
from PIL.ImageFont import FreeTypeFont

from benchmarks import render
from benchmarks.demo.layout import COLUMNS, GUTTER, SIDE, WIDTH, Cell, Section, lay_out, wrap


def _cell(level: int, caption: str = "a caption") -> Cell:
    # A colour: text is grey.
    return Cell(np.full((SIDE, SIDE, 3), (level, 0, 200), np.uint8), caption)


def test_pictures_stand_in_columns() -> None:
    cells = [_cell(100 + index) for index in range(COLUMNS)]
    page = np.asarray(lay_out("A title", "beside it", [Section("One", cells), Section("Two", cells[:1])]))
    assert page.shape[1] == WIDTH
    for index in range(COLUMNS):
        rows, columns = np.nonzero((page == (100 + index, 0, 200)).all(-1))
        # Without the frame of one pixel.
        assert np.ptp(columns) + 1 == SIDE - 2
        left = (WIDTH - COLUMNS * SIDE - (COLUMNS - 1) * GUTTER) // 2 + index * (SIDE + GUTTER)
        assert columns.min() == left + 1
        assert len(np.unique(rows)) == (SIDE - 2) * (2 if index == 0 else 1)
    assert (page[:, :5] == 255).all()
    assert (page[-10:] == 255).all()


def test_an_empty_place_stays_white() -> None:
    page = np.asarray(lay_out("", "", [Section("", [None, _cell(100)])]))
    _, columns = np.nonzero((page == (100, 0, 200)).all(-1))
    assert columns.min() > SIDE


def test_captions_are_wrapped_to_their_pictures() -> None:
    font = ImageFont.load_default(12)
    assert isinstance(font, FreeTypeFont)
    text = "a medium green triangle above a medium pink cross on a light gradient background"
    lines = wrap(text, font, SIDE)
    assert " ".join(lines) == text
    assert len(lines) > 2
    assert all(font.getlength(line) <= SIDE for line in lines)
    assert wrap("", font, SIDE) == []


def test_no_torch_is_imported() -> None:
    code = "import sys, benchmarks.demo.sheet; assert not {'torch', 'diffusers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=render.ROOT, check=True)
