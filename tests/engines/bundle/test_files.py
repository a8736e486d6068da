from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from sd2rt.engines.bundle.files import atomic_folder, atomic_write, describe, sha256, temporary_of

pytestmark = pytest.mark.usefixtures("lazy_disk")


class StopError(Exception):
    pass


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "facts.json"


def test_hash_and_entry(tmp_path: Path) -> None:
    content = bytes(range(256)) * 10_000
    (tmp_path / "part").mkdir()
    (tmp_path / "part" / "model.onnx").write_bytes(content)
    read: list[int] = []
    expected = hashlib.sha256(content).hexdigest()
    assert sha256(tmp_path / "part" / "model.onnx", read.append) == expected
    assert sum(read) == len(content)
    assert len(read) == 3
    entry = describe(tmp_path, "part/model.onnx")
    assert (entry.path, entry.size, entry.sha256) == ("part/model.onnx", len(content), expected)


@pytest.mark.parametrize("old", [None, "old"])
def test_file_is_replaced_when_it_is_whole(path: Path, old: str | None) -> None:
    if old is not None:
        path.write_text(old)
    with atomic_write(path) as temporary:
        assert temporary.parent == path.parent
        temporary.write_text("half")
        assert not path.exists() if old is None else path.read_text() == old
        with temporary.open("a") as stream:
            stream.write(" and half")
    assert path.read_text() == "half and half"
    assert names(path.parent) == [path.name]


@pytest.mark.parametrize("written", [False, True])
@pytest.mark.parametrize("error", [StopError(), KeyboardInterrupt()], ids=["error", "interrupt"])
def test_error_leaves_the_old_file_alone(path: Path, error: BaseException, written: bool) -> None:
    path.write_text("old")

    def write() -> None:
        with atomic_write(path) as temporary:
            if written:
                temporary.write_text("new")
            raise error

    with pytest.raises(type(error)):
        write()
    assert path.read_text() == "old"
    assert names(path.parent) == [path.name]


def test_file_that_was_not_written_is_an_error(path: Path) -> None:
    path.write_text("old")
    with pytest.raises(FileNotFoundError), atomic_write(path):
        pass
    assert path.read_text() == "old"


def test_name_that_cannot_be_taken_leaves_nothing(path: Path) -> None:
    path.mkdir()
    with pytest.raises(OSError, match="facts"), atomic_write(path) as temporary:
        temporary.write_text("new")
    assert names(path.parent) == [path.name]


def test_two_writers_of_one_file(path: Path) -> None:
    with atomic_write(path) as first, atomic_write(path) as second:
        first.write_text("first")
        second.write_text("second")
    assert path.read_text() == "first"
    assert names(path.parent) == [path.name]


def test_temporary_name_tells_the_file(path: Path) -> None:
    with atomic_write(path) as temporary:
        assert temporary_of(temporary.name) == path.name
        temporary.touch()
    assert temporary_of(path.name) is None
    assert temporary_of(".facts.json.part") is None


@pytest.mark.parametrize("keep", [False, True])
def test_mode(path: Path, keep: bool) -> None:
    path.touch(0o600)
    fresh = path.with_name("fresh")
    fresh.touch()
    with atomic_write(path, keep_mode=keep) as temporary:
        temporary.touch()
    assert path.stat().st_mode & 0o777 == (0o600 if keep else fresh.stat().st_mode & 0o777)


@pytest.mark.parametrize("durable", [False, True])
def test_durable_file_is_on_the_disk_before_it_has_its_name(
    path: Path, monkeypatch: pytest.MonkeyPatch, durable: bool
) -> None:
    synced: list[tuple[int, bool]] = []
    monkeypatch.setattr(
        os, "fsync", lambda descriptor: synced.append((os.fstat(descriptor).st_ino, path.exists()))
    )
    with atomic_write(path, durable=durable) as temporary:
        temporary.write_text("new")
    assert synced == ([(path.stat().st_ino, False)] if durable else [])


def test_folder_is_replaced_when_it_is_whole(path: Path) -> None:
    path.mkdir()
    (path / "old").touch()
    with atomic_folder(path) as unfinished:
        assert temporary_of(unfinished.name) == path.name
        assert unfinished.stat().st_mode & 0o777 == 0o700
        (unfinished / "new").touch()
        assert names(path) == ["old"]
    assert names(path) == ["new"]
    assert names(path.parent) == [path.name]


@pytest.mark.parametrize("error", [StopError(), KeyboardInterrupt()], ids=["error", "interrupt"])
def test_error_leaves_the_old_folder_alone(path: Path, error: BaseException) -> None:
    path.mkdir()
    (path / "old").touch()

    def write() -> None:
        with atomic_folder(path) as unfinished:
            (unfinished / "new").touch()
            raise error

    with pytest.raises(type(error)):
        write()
    assert names(path) == ["old"]
    assert names(path.parent) == [path.name]


def test_folder_of_another_process_stays(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rename = Path.rename

    def late(self: Path, target: Path) -> Path:
        target.mkdir()
        (target / "other").touch()
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", late)
    with atomic_folder(path) as unfinished:
        (unfinished / "new").touch()
    assert names(path) == ["other"]
    assert names(path.parent) == [path.name]


def test_folder_that_cannot_be_taken_is_an_error(path: Path) -> None:
    path.touch()
    with pytest.raises(NotADirectoryError), atomic_folder(path) as unfinished:
        (unfinished / "new").touch()
    assert names(path.parent) == [path.name]
