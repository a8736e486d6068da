"""Work folders are removed when the benchmark ends, and refused if the disk is too small."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.recording.work_folder import work_folder


@pytest.mark.parametrize("keep", [False, True])
def test_a_folder_is_removed_unless_it_is_to_be_kept(tmp_path: Path, keep: bool) -> None:
    with work_folder("trial", tmp_path / "new", 0, keep=keep) as folder:
        assert folder.parent == tmp_path / "new"
        (folder / "bundle").write_text("large")
    assert (folder / "bundle").exists() == keep


def test_too_little_disk_ends_the_command(tmp_path: Path) -> None:
    with (
        pytest.raises(
            SystemExit, match=r"needs 1000000000 GB of disk, .* are free: choose another --workdir"
        ),
        work_folder("trial", tmp_path, 10**18),
    ):
        pass
    assert not list(tmp_path.iterdir())
