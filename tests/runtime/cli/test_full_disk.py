"""Commands whose files grow beyond the space that there is: one line, and nothing half written."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

FAST = ("--steps", "1", "--threads", "1", "--seed", "5")


def limited(folder: Path, *words: object) -> subprocess.CompletedProcess[str]:
    """Run a command that may write no file above 512 bytes: a full disk that needs no root to make."""
    return subprocess.run(
        ["sh", "-c", 'ulimit -f 1; exec "$@"', "sh", sys.executable, "-P", "-m", "sd2rt", *map(str, words)],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("existing", [False, True], ids=["new", "existing"])
@pytest.mark.parametrize("name", ["a.png", "a.svg"])
def test_plot(tmp_path: Path, name: str, existing: bool) -> None:
    if existing:
        (tmp_path / name).write_text("an earlier one")
    ended = limited(tmp_path, "samplers", "euler", "--plot", name)
    assert (ended.returncode, ended.stderr) == (5, f"sd2rt: {name} cannot be written: File too large\n")
    assert [path.name for path in tmp_path.iterdir()] == [name] * existing
    if existing:
        assert (tmp_path / name).read_text() == "an earlier one"


@pytest.mark.parametrize("output", ["images", "a.png"])
def test_image(tmp_path: Path, small_bundle: Path, output: str) -> None:
    ended = limited(tmp_path, "run", small_bundle, "a", *FAST, "--output", output)
    assert ended.returncode == 5
    assert ended.stderr.endswith("cannot be written: File too large\n")
    assert ended.stderr.count("\n") == 1
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
