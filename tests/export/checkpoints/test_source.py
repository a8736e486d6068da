from __future__ import annotations

import os
from pathlib import Path

import pytest

from sd2rt.engines.errors import CheckpointError
from sd2rt.export.checkpoints.source import license_files, stated_license

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


@pytest.mark.parametrize(
    ("card", "stated"),
    [
        ("license: openrail++", "CreativeML Open RAIL++-M"),
        ("license: OpenRAIL++\r", "CreativeML Open RAIL++-M"),
        ("tags: [a]\nlicense: [apache-2.0]", "Apache-2.0"),
        ("license: cc-by-nc-4.0", "cc-by-nc-4.0"),
        ("license: other\nlicense_name: stabilityai-ai-community", "Stability AI Community License"),
        ("license: other\nlicense_name: My Terms", "My Terms"),
        ("license: other", None),
        ("license: [mit, apache-2.0]", None),
        ("license: 3", None),
        ('license: "a\\eb"', None),
        ("license: " + "x" * 101, None),
        ("license: [", None),
        ("- license", None),
        ("tags: []", None),
        ("license: !!python/object/apply:os.getcwd []", None),
        ("a: &a [x]\nlicense: *b", None),
        ("x: " + "[" * 20_000, None),
    ],
)
def test_the_licence_that_a_card_states(card: str, stated: str | None) -> None:
    assert stated_license({"README.md": f"---\n{card}\n---\n# Model\nlicense: mit\n".encode()}) == stated


@pytest.mark.parametrize(
    ("text", "stated"),
    [
        ("CreativeML Open RAIL++-M License\ndated November 24, 2022\n", "CreativeML Open RAIL++-M"),
        ("STABILITY AI COMMUNITY LICENSE AGREEMENT\n", "Stability AI Community License"),
        ("                Apache License\n          Version 2.0, January 2004\n", "Apache-2.0"),
        ("MIT License\n\nCopyright", "MIT"),
        ("All rights reserved", None),
        ("x" * 1000 + "MIT License", None),
        ("MIT License, but parts are under the Apache License\nVersion 2.0", None),
    ],
)
def test_the_licence_that_a_text_is_of(text: str, stated: str | None) -> None:
    assert stated_license({"LICENSE": text.encode()}) == stated
    card = b"---\nlicense: cc0-1.0\n---\n"
    assert stated_license({"LICENSE": text.encode(), "README.md": card}) == "cc0-1.0"


def test_no_files_state_no_licence() -> None:
    assert stated_license({}) is None
