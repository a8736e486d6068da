"""The first lines of docs/serving.md, run against a server as they are pasted."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from benchmarks.serving.server_process import Server

PAGE = Path(__file__).parents[4] / "docs" / "serving.md"
ADDRESS = "http://127.0.0.1:8000"


def blocks() -> list[tuple[str, str]]:
    """Language and text of the page's blocks."""
    return re.findall(r"^```(\w+)\n(.*?)^```$", PAGE.read_text(), flags=re.MULTILINE | re.DOTALL)


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_the_first_pictures(demo_server: Server, tmp_path: Path) -> None:
    (_, start), (_, curl), (_, client), (_, hf) = blocks()
    assert "sd2rt serve demo demo-inpaint demo-x4" in start
    assert len(client.strip().splitlines()) <= 5
    for command in (
        ["sh", "-ec", curl.replace(ADDRESS, demo_server.url)],
        [sys.executable, "-c", client.replace(ADDRESS, demo_server.url)],
        [sys.executable, "-c", hf.replace(ADDRESS, demo_server.url)],
    ):
        assert demo_server.url in command[-1]
        subprocess.run(command, cwd=tmp_path, check=True, timeout=120)
    for name in ("shapes.png", "triangle.png", "star.png", "square.png"):
        assert Image.open(tmp_path / name).size == (128, 128)
