from __future__ import annotations

import errno
import hashlib
import itertools
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from sd2rt.engines.bundle.files import (
    atomic_folder,
    atomic_write,
    describe,
    is_disk_full,
    sha256,
    write_new,
)
from sd2rt.engines.bundle.temporary import temporary_of

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


def test_folder_replaces_the_old_one_at_once(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that is killed while the old folder is removed leaves the whole new one."""
    path.mkdir()
    (path / "old").touch()
    states = []
    remove = shutil.rmtree

    def watched(folder: Path, **options: Any) -> None:
        states.append(names(path))
        remove(folder, **options)

    monkeypatch.setattr(shutil, "rmtree", watched)
    with atomic_folder(path) as unfinished:
        (unfinished / "new").touch()
    assert states
    assert all(state == ["new"] for state in states)


def numbered(folder: Path) -> Iterator[Path]:
    return (folder / f"{number}.png" for number in itertools.count())


@pytest.fixture(params=["links", "no links"])
def links(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system with hard links, and one without: vfat answers so."""
    if request.param == "no links":

        def refuse(*_: object, **__: object) -> None:
            raise PermissionError(errno.EPERM, "Operation not permitted")

        monkeypatch.setattr(os, "link", refuse)


@pytest.mark.usefixtures("links")
def test_new_files_take_free_names(tmp_path: Path) -> None:
    (tmp_path / "1.png").write_text("mine")
    (tmp_path / "2.png").symlink_to("nowhere")
    taken = [write_new(numbered(tmp_path), lambda path: void(path.write_text("new"))) for _ in range(3)]
    assert [path.name for path in taken] == ["0.png", "3.png", "4.png"]
    assert [path.read_text() for path in taken] == ["new"] * 3
    assert (tmp_path / "1.png").read_text() == "mine"
    assert names(tmp_path) == ["0.png", "1.png", "2.png", "3.png", "4.png"]


@pytest.mark.usefixtures("links")
def test_threads_take_different_names(tmp_path: Path) -> None:
    def write(number: int) -> Path:
        return write_new(numbered(tmp_path), lambda path: void(path.write_text(f"{number}")))

    with ThreadPoolExecutor(8) as pool:
        taken = list(pool.map(write, range(64)))
    assert len(set(taken)) == 64
    assert [path.read_text() for path in taken] == [f"{number}" for number in range(64)]
    assert len(names(tmp_path)) == 64


@pytest.mark.usefixtures("links")
def test_no_free_name(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("mine")
    with pytest.raises(FileExistsError):
        write_new([tmp_path / "a"], lambda path: void(path.write_text("new")))
    assert (tmp_path / "a").read_text() == "mine"
    assert names(tmp_path) == ["a"]


@pytest.mark.usefixtures("links")
@pytest.mark.parametrize("error", [StopError(), KeyboardInterrupt()], ids=["error", "interrupt"])
def test_new_file_that_fails_leaves_nothing(tmp_path: Path, error: BaseException) -> None:
    def fail(path: Path) -> None:
        path.write_text("half")
        assert not (tmp_path / "0.png").exists()
        raise error

    with pytest.raises(type(error)):
        write_new(numbered(tmp_path), fail)
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        # NumPy's, from np.save and ndarray.tofile.
        OSError("Not enough free space to write 123 bytes after offset 128"),
        OSError("1000 requested and 64 written"),
    ],
    ids=str,
)
def test_full_disk(error: OSError) -> None:
    assert is_disk_full(error)


@pytest.mark.parametrize("error", [OSError(errno.EIO, "requested and"), OSError("other"), OSError()], ids=str)
def test_other_error(error: OSError) -> None:
    assert not is_disk_full(error)


def void(_: object) -> None:
    return
