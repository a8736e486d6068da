"""Requests that schemathesis makes from the API's document: every answer is as documented, and none is a 5xx."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from benchmarks.serving.server_process import Server

EXAMPLES = 50
HOOKS = """
import base64
import io

import schemathesis
from hypothesis import strategies as st
from PIL import Image


def picture(format):
    file = io.BytesIO()
    Image.new("RGB", (64, 64), (200, 30, 30)).save(file, format)
    return file.getvalue()


schemathesis.openapi.format("base64-image", st.just(base64.b64encode(picture("png")).decode()))
for format in ("png", "jpeg", "webp"):
    schemathesis.openapi.media_type(f"image/{format}", st.just(picture(format)))
"""


def test_all_checks(demo_folders: dict[str, Path], tmp_path: Path) -> None:
    """With small limits, so that examples at the limits are quick."""
    (tmp_path / "hooks.py").write_text(HOOKS)
    with Server(
        demo_folders["demo"], "--max-steps", "2", "--max-side", "64", "--max-images", "1", "--api-key", "k"
    ) as server:
        done = subprocess.run(
            [
                *(sys.executable, "-m", "schemathesis.cli", "run", f"{server.url}/openapi.json"),
                *("--header", "Authorization: Bearer k", "--checks", "all"),
                *("--max-examples", str(EXAMPLES), "--seed", "1"),
                *("--no-color", "--suppress-health-check", "all"),
            ],
            cwd=tmp_path,
            env={**os.environ, "SCHEMATHESIS_HOOKS": "hooks", "PYTHONPATH": str(tmp_path)},
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
        assert "No issues found" in done.stdout
        statuses = {line["status"] for line in server.lines if line.get("message") == "request"}
        assert {200, 202, 204, 400, 401, 404, 405} <= statuses
        assert max(statuses) < 500
