from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from sd2rt.engines.bundle.cache import cache_dir
from sd2rt.engines.bundle.manifest import read_manifest
from sd2rt.engines.bundle.open_files import digest
from sd2rt.engines.bundle.reader import open_bundle, verify_no_others
from sd2rt.engines.bundle.schema import File
from sd2rt.engines.errors import BundleError

from ..paper_bundle import OLD

MODEL = "denoiser/model.onnx"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SD2RT_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Record the names of files that are read to the end."""
    names: list[str] = []

    def noted(file: File, descriptor: int, progress: Callable[[File, int], None]) -> str:
        names.append(file.path)
        return digest(file, descriptor, progress)

    monkeypatch.setattr("sd2rt.engines.bundle.open_files.digest", noted)
    return names


def refusal(bundle: Path) -> str:
    with pytest.raises(BundleError) as caught:
        open_bundle(bundle)
    text = str(caught.value)
    assert "\n" not in text
    return text


def snapshot(folder: Path) -> dict[str, tuple[int, int, int, int]]:
    paths = [folder, *folder.rglob("*")]
    status = {path: path.lstat() for path in paths}
    return {str(p): (s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns) for p, s in status.items()}


def change_unseen(path: Path) -> None:
    """Overwrite a file with as many other bytes, and restore its modification time."""
    before = path.stat()
    data = bytearray(path.read_bytes())
    data[0] ^= 1
    while path.stat().st_ctime_ns == before.st_ctime_ns:
        # File system timestamps may be coarse.
        with path.open("r+b") as file:
            file.write(data)
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    after = path.stat()
    assert (after.st_size, after.st_mtime_ns, after.st_ino) == (
        before.st_size,
        before.st_mtime_ns,
        before.st_ino,
    )


def test_opening_reads_the_manifest_and_every_file(paper: Path, hashed: list[str]) -> None:
    bundle = open_bundle(paper)
    assert bundle.path == paper
    assert bundle.manifest == read_manifest(paper)
    assert bundle.file(MODEL) == paper / MODEL
    assert len(hashed) == len(bundle.manifest.files) == 8


def test_opening_leaves_the_bundle_unchanged(paper: Path) -> None:
    before = snapshot(paper.parent)
    open_bundle(paper)
    open_bundle(paper)
    assert snapshot(paper.parent) == before


def test_progress_hears_every_byte(paper: Path) -> None:
    for _ in range(2):
        read: Counter[str] = Counter()

        def hear(file: File, count: int, read: Counter[str] = read) -> None:
            read[file.path] += count

        manifest = open_bundle(paper, progress=hear).manifest
        assert read == {file.path: file.size for file in manifest.files}


def test_open_by_name(paper: Path, cache: Path) -> None:
    (cache / "bundles").mkdir(parents=True)
    shutil.copytree(paper, cache / "bundles" / "paper")
    assert open_bundle("paper").path == cache / "bundles" / "paper"


def test_open_through_a_link_to_the_folder(paper: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(paper)
    assert open_bundle(tmp_path / "link").path == paper


def test_loop_of_links(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    assert "cannot be read" in refusal(tmp_path / "loop")


def test_wrong_hash(paper: Path) -> None:
    path = paper / MODEL
    data = bytearray(path.read_bytes())
    data[500] ^= 1
    path.write_bytes(data)
    listed = next(file for file in read_manifest(paper).files if file.path == MODEL)
    text = refusal(paper)
    assert text.startswith(f"{path} has sha256 ")
    assert listed.sha256[:12] in text
    assert text.endswith("copy or build the bundle again")


def test_wrong_size(paper: Path) -> None:
    os.truncate(paper / MODEL, 999)
    assert refusal(paper) == (
        f"{paper / MODEL} has 999 bytes, its manifest says 1000: copy or build the bundle again"
    )


@pytest.mark.parametrize("path", [MODEL, "tokenizer.json", "embeddings.npy"])
def test_missing_file(paper: Path, path: str) -> None:
    (paper / path).unlink()
    assert refusal(paper) == f"{paper / path} is missing: copy or build the bundle again"


def test_missing_part(paper: Path) -> None:
    shutil.rmtree(paper / "denoiser")
    assert f"{paper / 'denoiser'} is missing" in refusal(paper)


def test_file_that_is_a_link(paper: Path) -> None:
    (paper / MODEL).rename(paper.parent / "model.onnx")
    (paper / MODEL).symlink_to(paper.parent / "model.onnx")
    assert f"{paper / MODEL} is a symbolic link" in refusal(paper)


def test_part_that_is_a_link(paper: Path) -> None:
    (paper / "denoiser").rename(paper.parent / "denoiser")
    (paper / "denoiser").symlink_to(paper.parent / "denoiser")
    assert f"{paper / 'denoiser'} is a symbolic link" in refusal(paper)


def test_link_after_a_receipt(paper: Path) -> None:
    open_bundle(paper)
    test_file_that_is_a_link(paper)


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo], ids=["folder", "pipe"])
def test_file_that_is_none(paper: Path, make: Callable[[Path], None]) -> None:
    (paper / MODEL).unlink()
    make(paper / MODEL)
    assert f"{paper / MODEL} is not a regular file" in refusal(paper)


def test_file_in_a_parts_place(paper: Path) -> None:
    shutil.rmtree(paper / "denoiser")
    (paper / "denoiser").write_bytes(b"")
    assert "cannot be read: Not a directory" in refusal(paper)


def test_file_that_cannot_be_read(paper: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(file: File, descriptor: int, progress: object) -> str:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("sd2rt.engines.bundle.open_files.digest", broken)
    assert "cannot be read (Input/output error)" in refusal(paper)


def test_receipt_is_used_while_nothing_changes(paper: Path, hashed: list[str]) -> None:
    open_bundle(paper)
    hashed.clear()
    open_bundle(paper)
    assert hashed == []


def test_no_receipt_is_trusted_where_it_was_not_asked_for(paper: Path, hashed: list[str]) -> None:
    open_bundle(paper)
    hashed.clear()
    open_bundle(paper, trust_receipts=False)
    assert len(hashed) == 8


def test_change_that_keeps_size_and_time_is_found(paper: Path) -> None:
    open_bundle(paper)
    change_unseen(paper / MODEL)
    assert f"{paper / MODEL} has sha256" in refusal(paper)


def test_only_what_changed_is_read_again(paper: Path, hashed: list[str]) -> None:
    open_bundle(paper)
    hashed.clear()
    os.utime(paper / MODEL, ns=(0, 0))
    open_bundle(paper)
    assert hashed == [MODEL]


def test_file_that_was_replaced_is_read_again(paper: Path, hashed: list[str]) -> None:
    open_bundle(paper)
    hashed.clear()
    shutil.copy2(paper / MODEL, paper.parent / "copy")
    (paper.parent / "copy").replace(paper / MODEL)
    open_bundle(paper)
    assert hashed == [MODEL]


def test_receipt_is_for_a_hash(paper: Path, hashed: list[str]) -> None:
    """A receipt for one manifest does not vouch for another."""
    open_bundle(paper)
    data = json.loads((paper / "bundle.json").read_text())
    data["tokenizer"]["file"]["sha256"] = "0" * 64
    del data["checksum"]
    (paper / "bundle.json").write_text(json.dumps(data))
    assert f"{paper / 'tokenizer.json'} has sha256" in refusal(paper)


def test_what_failed_leaves_no_receipt(paper: Path) -> None:
    change_unseen(paper / MODEL)
    for _ in range(2):
        assert "has sha256" in refusal(paper)


def test_receipts_of_two_bundles_are_apart(paper: Path, tmp_path: Path) -> None:
    open_bundle(paper)
    shutil.copytree(paper, tmp_path / "second")
    change_unseen(tmp_path / "second" / MODEL)
    assert "has sha256" in refusal(tmp_path / "second")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"null",
        b"\xff",
        b"[" * 100_000,
        b'{"denoiser/model.onnx": 7}',
        b'{"denoiser/model.onnx": [1, 2]}',
    ],
    ids=["empty", "list", "null", "binary", "deep", "number", "short"],
)
def test_receipts_of_garbage(paper: Path, hashed: list[str], content: bytes) -> None:
    open_bundle(paper)
    [receipts] = (cache_dir() / "receipts").iterdir()
    receipts.write_bytes(content)
    hashed.clear()
    open_bundle(paper)
    assert len(hashed) == 8
    hashed.clear()
    open_bundle(paper)
    assert hashed == []


def test_receipts_that_are_a_folder(paper: Path, hashed: list[str]) -> None:
    open_bundle(paper)
    [receipts] = (cache_dir() / "receipts").iterdir()
    receipts.unlink()
    receipts.mkdir()
    open_bundle(paper)
    assert len(hashed) == 16


def test_cache_that_cannot_be_written(
    paper: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hashed: list[str]
) -> None:
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("SD2RT_CACHE_DIR", str(tmp_path / "file" / "cache"))
    open_bundle(paper)
    open_bundle(paper)
    assert len(hashed) == 16


def test_user_without_a_home(paper: Path, monkeypatch: pytest.MonkeyPatch, hashed: list[str]) -> None:
    def nowhere() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("SD2RT_CACHE_DIR")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", nowhere)
    open_bundle(paper)
    open_bundle(paper)
    assert len(hashed) == 16
    with pytest.raises(BundleError, match="no home directory for bundles: set SD2RT_CACHE_DIR"):
        open_bundle("paper")


def test_bundle_that_stepped_aside_comes_back(paper: Path) -> None:
    """A build killed between its two renames leaves the old bundle under another name."""
    paper.rename(paper.parent / ".bundle.old")
    assert open_bundle(paper).manifest.build_key == OLD
    assert [path.name for path in paper.parent.iterdir()] == ["bundle"]


def test_nothing_comes_back_during_a_build(paper: Path) -> None:
    from sd2rt.engines.bundle.file_lock import FileLock

    paper.rename(paper.parent / ".bundle.old")
    lock = FileLock(paper.parent / ".bundle.lock")
    assert lock.acquire()
    try:
        assert f"{paper} does not exist" in refusal(paper)
    finally:
        lock.release()
    assert open_bundle(paper).manifest.build_key == OLD


@pytest.mark.parametrize("added", ["note.txt", "denoiser/model2.onnx", "denoiser/deep/x", ".hidden"])
def test_files_beside_those_of_the_manifest(paper: Path, added: str) -> None:
    bundle = open_bundle(paper)
    verify_no_others(bundle)
    (paper / ".bundle.json.0a1b2c.part").write_text("half")
    (paper / "denoiser" / "tensorrt-64x64-1.unfinished").write_text("half")
    verify_no_others(bundle)
    (paper / added).parent.mkdir(exist_ok=True)
    (paper / added).write_text("")
    with pytest.raises(BundleError) as caught:
        verify_no_others(bundle)
    assert str(caught.value) == f"{paper / added} is not listed in the bundle's manifest: remove it"
