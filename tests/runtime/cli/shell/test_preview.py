"""Rough images on a terminal that knows kitty's graphics protocol."""

from __future__ import annotations

import io
import re
import sys
from base64 import b64decode
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sd2rt.runtime.cli.shell.preview import preview_of


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_kitty(monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (96, 64, 3), np.uint8)
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    show = preview_of("kitty")
    assert show is not None
    show("5", Image.fromarray(pixels))
    # At most ten a second.
    before = terminal.getvalue()
    show("5", Image.fromarray(pixels))
    assert terminal.getvalue() == before
    commands = re.findall(r"\x1b_G([^;]*);([^\x1b]*)\x1b\\", before)
    assert len(commands) > 1
    assert all(len(data) <= 4096 for _, data in commands)
    assert [keys.rpartition("m=")[2] for keys, _ in commands] == ["1"] * (len(commands) - 1) + ["0"]
    assert commands[0][0].startswith("a=T,f=100,")
    picture = Image.open(io.BytesIO(b64decode("".join(data for _, data in commands))))
    np.testing.assert_array_equal(np.asarray(picture), pixels)


def test_files(tmp_path: Path) -> None:
    show = preview_of(str(tmp_path / "new" / "folder"))
    assert show is not None
    for shade in (0, 255):
        show("7", Image.new("RGB", (8, 8), (shade,) * 3))
    assert [path.name for path in (tmp_path / "new" / "folder").iterdir()] == ["7.png"]
    assert Image.open(tmp_path / "new" / "folder" / "7.png").getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize("option", [None, "none"])
def test_none(option: str | None) -> None:
    assert preview_of(option) is None
