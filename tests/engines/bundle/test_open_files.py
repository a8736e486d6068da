from __future__ import annotations

import gc
import hashlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from sd2rt.engines.bundle.cache import cache_dir
from sd2rt.engines.bundle.manifest import Manifest, read_manifest
from sd2rt.engines.bundle.open_files import OpenFiles, Progress, digest
from sd2rt.engines.bundle.private_copy import private_folder, remove_abandoned
from sd2rt.engines.bundle.reader import Bundle, open_bundle
from sd2rt.engines.bundle.schema import File
from sd2rt.engines.errors import BundleError, EngineError

from ..paper_bundle import NEW, OLD, make_bundle

MODEL = "denoiser/model.onnx"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SD2RT_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def other(tmp_path: Path) -> Path:
    make_bundle(tmp_path / "other" / "bundle", NEW)
    return tmp_path / "other" / "bundle"


def built(paper: Path, other: Path) -> None:
    make_bundle(paper, NEW, replace=True)


def deleted(paper: Path, other: Path) -> None:
    shutil.rmtree(paper)


def moved(paper: Path, other: Path) -> None:
    paper.rename(paper.parent / "elsewhere")


def exchanged(paper: Path, other: Path) -> None:
    moved(paper, other)
    other.rename(paper)


def parent_exchanged(paper: Path, other: Path) -> None:
    paper.parent.rename(paper.parent.with_name("aside"))
    other.parent.rename(paper.parent)


def part_exchanged(paper: Path, other: Path) -> None:
    (paper / "denoiser").rename(paper / "aside")
    (other / "denoiser").rename(paper / "denoiser")


def file_exchanged(paper: Path, other: Path) -> None:
    (other / MODEL).replace(paper / MODEL)


def linked(paper: Path, other: Path) -> None:
    """By another build that shares the file: no change at all."""
    os.link(paper / MODEL, paper.parent / "link")


REPLACEMENTS = [built, deleted, moved, exchanged, parent_exchanged, part_exchanged, file_exchanged, linked]


def part_files(bundle: Bundle) -> tuple[File, ...]:
    return bundle.part("denoiser").files


def content(key: str) -> bytes:
    return hashlib.shake_256(f"{key}/denoiser".encode()).digest(1000)


def leftovers() -> list[Path]:
    folder = cache_dir() / "replaced"
    return list(folder.iterdir()) if folder.exists() else []


@pytest.mark.parametrize("replace", REPLACEMENTS)
@pytest.mark.parametrize("proc", [True, False], ids=["proc", "no proc"])
def test_verified_files_outlive_the_bundle(
    paper: Path,
    other: Path,
    replace: Callable[[Path, Path], None],
    proc: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if not proc:
        _without_proc(monkeypatch)
    bundle = open_bundle(paper)
    replace(paper, other)
    for _ in range(2):
        assert bundle.load(part_files(bundle), lambda folder: (folder / MODEL).read_bytes()) == content(OLD)
    assert leftovers() == []


@pytest.mark.parametrize("replace", REPLACEMENTS)
@pytest.mark.parametrize("proc", [True, False], ids=["proc", "no proc"])
def test_replaced_while_it_is_loaded(
    paper: Path,
    other: Path,
    replace: Callable[[Path, Path], None],
    proc: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whatever was read meanwhile is discarded, errors of missing files included."""
    if not proc:
        _without_proc(monkeypatch)
    bundle = open_bundle(paper)
    folders: list[Path] = []
    discarded: list[bytes] = []

    def opening(folder: Path) -> bytes:
        if not folders:
            replace(paper, other)
        folders.append(folder)
        try:
            return (folder / MODEL).read_bytes()
        except OSError:
            raise EngineError(f"{folder / MODEL} cannot be loaded") from None

    assert bundle.load(part_files(bundle), opening, discarded.append) == content(OLD)
    assert len(folders) <= 2
    assert content(OLD) in discarded or content(NEW) in discarded or not discarded
    assert leftovers() == []


def test_exchanged_there_and_back_while_it_is_loaded(paper: Path, other: Path) -> None:
    """Only change times show it."""
    bundle = open_bundle(paper)
    calls = []

    def opening(folder: Path) -> bytes:
        calls.append(folder)
        if len(calls) == 1:
            for name in ("denoiser", MODEL):
                (paper / name).rename(paper.parent / "aside")
                (other / name).rename(paper / name)
                read = (folder / MODEL).read_bytes()
                (paper / name).rename(other / name)
                (paper.parent / "aside").rename(paper / name)
            return read
        return (folder / MODEL).read_bytes()

    discarded: list[bytes] = []
    assert bundle.load(part_files(bundle), opening, discarded.append) == content(OLD)
    assert discarded == [content(NEW)]


@pytest.mark.parametrize("moment", ["before", "meanwhile"])
def test_written_in_place(paper: Path, moment: str) -> None:
    bundle = open_bundle(paper)

    def write() -> None:
        status = (paper / MODEL).stat()
        (paper / MODEL).write_bytes(content(NEW))
        os.utime(paper / MODEL, ns=(status.st_atime_ns, status.st_mtime_ns))

    def opening(folder: Path) -> bytes:
        if moment == "meanwhile":
            write()
        return (folder / MODEL).read_bytes()

    if moment == "before":
        write()
    with pytest.raises(BundleError) as caught:
        bundle.load(part_files(bundle), opening)
    assert str(caught.value) == (
        f"{paper / MODEL} was changed while it was used: copy or build the bundle again"
    )
    assert leftovers() == []


def test_errors_name_the_bundle(paper: Path) -> None:
    bundle = open_bundle(paper)

    def opening(folder: Path) -> None:
        raise EngineError(f"{folder / MODEL} is no model")

    for _ in range(2):
        with pytest.raises(EngineError) as caught:
            bundle.load(part_files(bundle), opening)
        assert str(caught.value) == f"{paper / MODEL} is no model"
        if paper.exists():
            shutil.rmtree(paper)


@pytest.mark.parametrize("key", [NEW, OLD])
def test_replaced_while_it_is_opened(paper: Path, monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    """Its files are deleted before they are opened: the new bundle is opened."""
    replaced: list[bool] = []

    def replacing(folder: Path, *, through: Path | None = None) -> Manifest:
        manifest = read_manifest(folder, through=through)
        if not replaced:
            replaced.append(True)
            make_bundle(paper, key, replace=True)
        return manifest

    monkeypatch.setattr("sd2rt.engines.bundle.reader.read_manifest", replacing)
    bundle = open_bundle(paper)
    assert bundle.manifest.build_key == key
    assert bundle.load(part_files(bundle), lambda folder: (folder / MODEL).read_bytes()) == content(key)


def test_linked_while_it_is_hashed(paper: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a build that shares the file: it is the same, and hashed again because its times have changed."""
    calls: list[str] = []

    def linking(file: File, descriptor: int, progress: Progress) -> str:
        calls.append(file.path)
        result = digest(file, descriptor, progress)
        if calls.count(MODEL) == 1:
            os.link(paper / MODEL, paper.parent / f"link{len(calls)}")
        return result

    monkeypatch.setattr("sd2rt.engines.bundle.open_files.digest", linking)
    open_bundle(paper)
    assert calls.count(MODEL) == 2


def test_no_room_for_the_copy(paper: Path, cache: Path) -> None:
    bundle = open_bundle(paper)
    shutil.rmtree(paper)
    shutil.rmtree(cache)
    cache.write_bytes(b"")
    with pytest.raises(
        BundleError, match=r"was replaced while it was used, and its old files cannot be copied"
    ):
        bundle.load(part_files(bundle), lambda folder: None)


def test_descriptors_are_closed(paper: Path) -> None:
    # Exceptions of other tests may hold bundles in cycles.
    gc.collect()
    before = len(os.listdir("/proc/self/fd"))
    bundle = open_bundle(paper)
    assert len(os.listdir("/proc/self/fd")) > before
    bundle.close()
    bundle.close()
    with pytest.raises(BundleError, match="is closed: open it again"):
        bundle.load(part_files(bundle), lambda folder: None)
    bundle = open_bundle(paper)
    (paper / MODEL).unlink()
    with pytest.raises(BundleError):
        open_bundle(paper)
    del bundle
    assert len(os.listdir("/proc/self/fd")) == before


def test_folders_of_dead_processes_are_removed(paper: Path, cache: Path) -> None:
    program = (
        "import signal\nfrom sd2rt.engines.bundle.private_copy import private_folder\n"
        "with private_folder() as folder:\n"
        "    (folder / 'part').mkdir()\n    print(folder, flush=True)\n    signal.pause()\n"
    )
    with subprocess.Popen([sys.executable, "-P", "-c", program], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        folder = Path(child.stdout.readline().strip())
        remove_abandoned()
        assert folder.is_dir(), "its process is alive"
        child.send_signal(signal.SIGKILL)
    assert folder.is_dir()
    with private_folder() as mine:
        remove_abandoned()
        assert leftovers() == [mine]
    assert leftovers() == []
    folder.mkdir()
    open_bundle(paper)
    assert leftovers() == []


def _without_proc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(OpenFiles, "_through", lambda self, descriptor, otherwise: otherwise)
