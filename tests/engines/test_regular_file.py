import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from sd2rt.engines.regular_file import check_regular, open_regular, open_regular_or_pipe, read_regular

LIMIT = 1000


@pytest.fixture
def pipe(tmp_path: Path) -> Path:
    os.mkfifo(tmp_path / "pipe")
    return tmp_path / "pipe"


@pytest.mark.parametrize("size", [0, 1, LIMIT - 1, LIMIT])
def test_regular_files(size: int, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x" * size)
    (tmp_path / "link").symlink_to("file")
    for path in (tmp_path / "file", str(tmp_path / "link")):
        assert read_regular(path, LIMIT) == b"x" * size
        check_regular(path, LIMIT)
        with open_regular(path) as regular, open_regular_or_pipe(path) as either:
            assert regular.read() == either.read() == b"x" * size


def test_limit(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(LIMIT + 1))
    for call in (read_regular, open_regular, check_regular):
        with pytest.raises(OSError, match="larger than 1000 bytes") as caught:
            call(path, LIMIT)
        assert caught.value.strerror == "larger than 1000 bytes"
    os.truncate(path, 1 << 40)
    with pytest.raises(OSError, match="larger than"):
        read_regular(path, LIMIT)


@pytest.mark.skipif(sys.platform != "linux", reason="files of /proc")
def test_file_whose_size_is_unknown() -> None:
    assert Path("/proc/self/status").stat().st_size == 0
    assert read_regular("/proc/self/status", 1 << 20).startswith(b"Name:")
    with pytest.raises(OSError, match="larger than 10 bytes"):
        read_regular("/proc/self/status", 10)


@pytest.mark.parametrize(
    "call",
    [open_regular, check_regular, lambda path: read_regular(path, LIMIT)],
    ids=["open", "check", "read"],
)
def test_what_is_not_regular(call: Callable[[Path], object], pipe: Path) -> None:
    """A pipe without a writer, at which ``open()`` waits forever; devices, and links to them."""
    link = pipe.with_name("link")
    link.symlink_to("/dev/zero")
    for path in (pipe, Path("/dev/zero"), Path("/dev/null"), link):
        with pytest.raises(OSError, match="not a regular file") as caught:
            call(path)
        assert caught.value.strerror == "not a regular file"
    with pytest.raises(IsADirectoryError):
        call(pipe.parent)
    with pytest.raises(FileNotFoundError):
        call(pipe.with_name("none"))


def test_descriptors_are_closed(pipe: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for path in (pipe, pipe.parent, Path("/dev/zero")):
        with pytest.raises(OSError, match=r"not a regular file|Is a directory"):
            open_regular(path)
    with pytest.raises(OSError, match="neither"):
        open_regular_or_pipe("/dev/zero")
    open_regular_or_pipe(pipe).close()
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("size", [0, 10, 1 << 20])
def test_pipe_whose_writer_comes_later(size: int, pipe: Path) -> None:
    content = os.urandom(size)
    with open_regular_or_pipe(pipe) as file:
        writer = threading.Timer(0.1, pipe.write_bytes, [content])
        writer.start()
        assert file.read() == content
        writer.join()


def test_pipe_without_a_writer(pipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sd2rt.engines.regular_file._WRITER_SECONDS", 0.05)
    with open_regular_or_pipe(pipe) as file, pytest.raises(OSError, match="no process writes to this pipe"):
        file.read(1)


def test_device_is_no_pipe() -> None:
    with pytest.raises(OSError, match="neither a regular file nor a pipe"):
        open_regular_or_pipe("/dev/zero")
