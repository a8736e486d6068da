from __future__ import annotations

import os
from pathlib import Path

import pytest

from sd2rt.engines.errors import CheckpointError
from sd2rt.export.checkpoints.source import license_files

CARD = b"---\nlicense: openrail++\n---\n# Model\n"


def test_texts_of_licences_and_model_cards_are_found(tmp_path: Path) -> None:
    names = ["LICENSE", "LICENSE.md", "LICENSE-MODEL", "license.txt", "LICENCE", "COPYING", "NOTICE"]
    for name in names:
        (tmp_path / name).write_bytes(name.encode())
    (tmp_path / "README.md").write_bytes(CARD)
    (tmp_path / "licensed").mkdir()
    (tmp_path / "LICENSE.d").mkdir()
    (tmp_path / "licensing_server.py").write_bytes(b"x")
    (tmp_path / "model.safetensors").write_bytes(b"x")
    found = license_files(tmp_path)
    assert found == {**{name: name.encode() for name in names}, "README.md": CARD}


def test_a_readme_of_something_else_and_large_or_empty_files_are_left(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_bytes(b"# My models\n")
    (tmp_path / "LICENSE").write_bytes(b"x" * ((1 << 20) + 1))
    (tmp_path / "NOTICE").write_bytes(b"")
    assert license_files(tmp_path) == {}


def test_links_to_files_are_followed_and_pipes_are_not(tmp_path: Path) -> None:
    (tmp_path / "blob").write_bytes(b"text")
    (tmp_path / "LICENSE").symlink_to("blob")
    (tmp_path / "NOTICE").symlink_to("nowhere")
    os.mkfifo(tmp_path / "COPYING")
    assert license_files(tmp_path) == {"LICENSE": b"text"}


def test_a_text_that_cannot_be_read_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "LICENSE").write_bytes(b"text")

    def refuse(path: Path, limit: int) -> bytes:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("sd2rt.export.checkpoints.source.read_regular", refuse)
    with pytest.raises(CheckpointError, match="LICENSE cannot be read: Permission denied"):
        license_files(tmp_path)
