from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sd2rt.engines.bundle import shared_files as objects
from sd2rt.engines.bundle.files import describe, sha256
from sd2rt.engines.bundle.manifest import read_manifest
from sd2rt.engines.bundle.model_kinds import PartName
from sd2rt.engines.bundle.open_files import Progress, digest
from sd2rt.engines.bundle.reader import open_bundle
from sd2rt.engines.bundle.schema import File
from sd2rt.engines.bundle.shared_files import prune, share, shared_bytes
from sd2rt.engines.bundle.writer import BundleWriter
from sd2rt.engines.cli import inspect as commands
from sd2rt.engines.errors import BundleError

from .. import paper_bundle
from ..paper_bundle import NEW, OLD, PARTS, make_bundle, open_key

pytestmark = pytest.mark.usefixtures("lazy_disk")

COMMON = hashlib.shake_256(b"common").digest(2000)
MODEL = "text_encoder/model.onnx"
"""Contents of the file that the bundles of :func:`build` share."""


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SD2RT_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(objects, "SHARED_FROM_BYTES", 1000)
    return tmp_path / "cache"


@pytest.fixture
def first(tmp_path: Path) -> Path:
    return build(tmp_path / "first", OLD)


def build(
    target: Path,
    key: str = NEW,
    *,
    common: bytes = COMMON,
    on_part: Callable[[], None] = lambda: None,
    **options: Any,
) -> Path:
    """Build a bundle whose text encoder, unlike its other parts, does not depend on the key."""

    def write(writer: BundleWriter, name: PartName) -> None:
        if name == "text_encoder":
            (writer.folder / name / "model.onnx").write_bytes(common)
        on_part()

    make_bundle(target, key, on_part=write, **options)
    return target


def stored(cache: Path) -> dict[str, Path]:
    try:
        return {path.name: path for path in (cache / "objects").iterdir()}
    except (FileNotFoundError, NotADirectoryError):
        return {}


def is_one(*paths: Path) -> bool:
    return len({path.stat().st_ino for path in paths}) == 1


def is_plain(bundle: Path, key: str = NEW) -> bool:
    """Return whether a bundle has exactly the listed files, none of them linked elsewhere."""
    assert open_key(bundle) == key
    listed = {file.path for file in read_manifest(bundle).files} | {"bundle.json"}
    files = {path for path in bundle.rglob("*") if path.is_file()}
    assert {path.relative_to(bundle).as_posix() for path in files} == listed
    return all(path.stat().st_nlink == 1 for path in files)


def sound(path: Path) -> bool:
    return path.is_file() and not path.is_symlink() and sha256(path) == path.name


def test_equal_files_are_one(first: Path, tmp_path: Path, cache: Path) -> None:
    second = build(tmp_path / "second")
    name = hashlib.sha256(COMMON).hexdigest()
    assert is_one(first / MODEL, second / MODEL, cache / "objects" / name)
    assert (first / MODEL).stat().st_nlink == 3
    assert (open_key(first), open_key(second)) == (OLD, NEW)


def test_other_files_are_not(first: Path, tmp_path: Path, cache: Path) -> None:
    second = build(tmp_path / "second")
    for name in ("denoiser", "decoder"):
        assert not is_one(first / name / "model.onnx", second / name / "model.onnx")
    # Equal, and small.
    assert (first / "denoiser/initializers.json").stat().st_nlink == 1
    assert len(stored(cache)) == 5
    assert all(sound(path) for path in stored(cache).values())


def test_files_beside_the_parts_are_shared(tmp_path: Path) -> None:
    bundles = [build(tmp_path / key[:4], key, table_rows=200) for key in (OLD, NEW)]
    assert is_one(*(bundle / "embeddings.npy" for bundle in bundles))


def test_small_files_are_not_worth_it(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setenv("SD2RT_CACHE_DIR", str(cache))
    assert is_plain(build(tmp_path / "first"))
    assert stored(cache) == {}
    for name in ("a", "b"):
        make_bundle(tmp_path / name, part_bytes=1_000_000)
    assert all(is_one(*(tmp_path / name / part / "model.onnx" for name in ("a", "b"))) for part in PARTS)


def test_bundle_that_is_made_again_is_shared_again(first: Path, tmp_path: Path) -> None:
    second = build(tmp_path / "second")
    build(second, replace=True)
    assert is_one(first / MODEL, second / MODEL)


def test_rerun_goes_on_from_what_was_shared(
    first: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    staged = stopped_after_sharing(tmp_path / "second", monkeypatch)
    assert is_one(first / MODEL, staged / MODEL)
    assert make_bundle(tmp_path / "second") == []
    assert is_one(first / MODEL, tmp_path / "second" / MODEL)


def test_rerun_writes_into_no_shared_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rerun writes the token table again, since it is not a part; other bundles keep the old one."""
    first = build(tmp_path / "first", OLD, table_rows=200)
    staged = stopped_after_sharing(tmp_path / "second", monkeypatch, table_rows=200)
    assert is_one(first / "embeddings.npy", staged / "embeddings.npy")
    before = (first / "embeddings.npy").stat().st_mtime_ns
    build(tmp_path / "second", table_rows=200)
    assert (first / "embeddings.npy").stat().st_mtime_ns == before
    assert is_one(first / "embeddings.npy", tmp_path / "second" / "embeddings.npy")


def stopped_after_sharing(target: Path, monkeypatch: pytest.MonkeyPatch, **options: Any) -> Path:
    write_text = Path.write_text

    def stop(self: Path, *args: Any, **words: Any) -> int:
        if self.name == "bundle.json":
            raise KeyboardInterrupt
        return write_text(self, *args, **words)

    monkeypatch.setattr(Path, "write_text", stop)
    with pytest.raises(KeyboardInterrupt):
        build(target, **options)
    monkeypatch.setattr(Path, "write_text", write_text)
    return target.parent / f".{target.name}.building"


def test_change_of_one_bundle_is_seen_in_the_other(first: Path, tmp_path: Path) -> None:
    """The cost of sharing: writing into a shared file changes every bundle, and opening each reports it."""
    second = build(tmp_path / "second")
    open_bundle(first)
    with (second / MODEL).open("r+b") as file:
        file.write(b"edited")
    for bundle in (first, second):
        with pytest.raises(BundleError, match=f"{bundle / MODEL} has sha256"):
            open_bundle(bundle)


def test_older_bundle_is_hashed_once_more(
    first: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_bundle(first)
    build(tmp_path / "second")
    hashed: list[str] = []

    def noted(file: File, descriptor: int, progress: Progress) -> str:
        hashed.append(file.path)
        return digest(file, descriptor, progress)

    monkeypatch.setattr("sd2rt.engines.bundle.open_files.digest", noted)
    open_bundle(first)
    open_bundle(first)
    assert hashed == [MODEL]


# Objects whose contents do not match their name.


@pytest.mark.parametrize("damage", ["changed", "cut"])
def test_damaged_object_is_replaced(first: Path, tmp_path: Path, cache: Path, damage: str) -> None:
    """The object is damaged in place, and so is the first bundle."""
    if damage == "changed":
        with (first / MODEL).open("r+b") as file:
            file.write(b"edited")
    else:
        os.truncate(first / MODEL, 1999)
    second = build(tmp_path / "second")
    assert open_key(second) == NEW
    with pytest.raises(BundleError, match="copy or build the bundle again"):
        open_key(first)
    assert all(sound(path) for path in stored(cache).values())
    # Later bundles share its replacement, including the first bundle once it is built again.
    build(first, OLD, replace=True)
    assert is_one(first / MODEL, second / MODEL)
    assert open_key(first) == OLD


@pytest.mark.parametrize("kind", ["link", "dangling", "pipe", "other bytes", "empty"])
def test_object_that_is_something_else(first: Path, tmp_path: Path, kind: str) -> None:
    file = describe(first, MODEL)
    path = objects._object_path(file)
    path.unlink()
    if kind in ("link", "dangling"):
        path.symlink_to(first / MODEL if kind == "link" else "nowhere")
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.write_bytes(b"" if kind == "empty" else COMMON[::-1])
    share(first, file)
    assert sound(path)
    assert is_one(first / MODEL, path)
    assert {path.name for path in (first / "text_encoder").iterdir()} == {"model.onnx", "initializers.json"}


def test_folder_in_an_objects_place(first: Path, tmp_path: Path, cache: Path) -> None:
    for path in stored(cache).values():
        path.unlink()
        path.mkdir()
    assert is_plain(first, OLD)
    second = build(tmp_path / "second")
    assert open_key(second) == NEW
    assert (second / MODEL).stat().st_nlink == 1


@pytest.mark.parametrize("what", ["mode", "owner"])
def test_object_of_other_permissions_is_let_be(
    first: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """A link has the owner and mode of the object: sharing must not make a bundle unreadable for its users."""
    if what == "mode":
        (first / MODEL).chmod(0o600)
    elif os.geteuid() == 0:
        os.chown(first / MODEL, 65534, 65534)
    else:
        pytest.skip("this user may not give files away")
    second = build(tmp_path / "second")
    assert (second / MODEL).stat().st_nlink == 1
    assert (first / MODEL).stat().st_nlink == 2


# Without links or a cache, each bundle has its own files.


@pytest.mark.parametrize("code", ["EXDEV", "EPERM", "EMLINK", "EACCES", "EROFS", "ENOTSUP", "ENOSPC", "EIO"])
@pytest.mark.parametrize("stored_before", [False, True])
def test_no_link_possible(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, stored_before: bool
) -> None:
    if stored_before:
        build(tmp_path / "first", OLD)

    def fail(*args: Any, **options: Any) -> None:
        raise OSError(getattr(errno, code), code)

    monkeypatch.setattr(os, "link", fail)
    assert is_plain(build(tmp_path / "second"))


@pytest.mark.parametrize("name", ["replace", "unlink", "open"])
def test_error_in_the_midst_of_it(
    first: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """The temporary link does not remain in the bundle."""
    module: Any = os if name == "open" else Path
    call = getattr(module, name)
    failed: list[Path] = []

    def fail(path: Any, *args: Any, **options: Any) -> Any:
        if str(path).endswith(".model.onnx.shared") and len(failed) < 2:
            failed.append(path)
            raise OSError(errno.EIO, "Input/output error")
        return call(path, *args, **options)

    monkeypatch.setattr(module, name, fail)
    second = build(tmp_path / "second")
    assert failed
    assert open_key(second) == NEW
    assert {path.name for path in (second / "text_encoder").iterdir()} == {"model.onnx", "initializers.json"}


def test_cache_that_cannot_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("SD2RT_CACHE_DIR", str(tmp_path / "file" / "cache"))
    assert is_plain(build(tmp_path / "first"))


@pytest.mark.parametrize("shut", ["cache", "cache/objects"])
def test_cache_that_cannot_be_written(tmp_path: Path, cache: Path, shut: str) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may write everywhere")
    (tmp_path / shut).mkdir(parents=True)
    (tmp_path / shut).chmod(0o555)
    try:
        assert is_plain(build(tmp_path / "first"))
    finally:
        (tmp_path / shut).chmod(0o755)


def test_user_without_a_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def nowhere() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("SD2RT_CACHE_DIR")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", nowhere)
    bundle = build(tmp_path / "first")
    assert is_plain(bundle)
    assert shared_bytes(bundle, read_manifest(bundle).files) == 0


@pytest.fixture
def other_disk(tmp_path: Path) -> Iterator[Path]:
    memory = Path("/dev/shm")
    if not memory.is_dir() or memory.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("no second file system here")
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        yield Path(folder)


def test_cache_on_another_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, other_disk: Path) -> None:
    monkeypatch.setenv("SD2RT_CACHE_DIR", str(other_disk / "cache"))
    assert is_plain(build(tmp_path / "first"))
    # A bundle on the cache's disk is shared; one on another disk finds an object that it cannot link to.
    near = [build(other_disk / key[:4], key) for key in (OLD, NEW)]
    assert is_one(*(bundle / MODEL for bundle in near))
    assert is_plain(build(tmp_path / "second"))


# Objects without other links.


def test_object_goes_after_its_last_bundle(first: Path, tmp_path: Path, cache: Path) -> None:
    common = hashlib.sha256(COMMON).hexdigest()
    second = build(tmp_path / "second")
    shutil.rmtree(first)
    make_bundle(tmp_path / "third", "3" * 64)
    assert common in stored(cache)
    shutil.rmtree(second)
    make_bundle(tmp_path / "fourth", "4" * 64)
    assert len(stored(cache)) == 6
    assert common not in stored(cache)


def test_replaced_bundle_leaves_nothing(first: Path, cache: Path) -> None:
    before = stored(cache)
    assert len(before) == 3
    build(first, NEW, replace=True)
    assert len(stored(cache)) == 3
    assert stored(cache).keys() & before.keys() == {hashlib.sha256(COMMON).hexdigest()}


def test_room_of_removed_bundles_is_counted(
    first: Path, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def usage(path: Path) -> Any:
        return shutil._ntuple_diskusage(10**6, 0, 10**6 - 300_000 * len(stored(cache)))

    monkeypatch.setattr(shutil, "disk_usage", usage)
    shutil.rmtree(first)
    assert open_key(build(tmp_path / "second", needed_bytes=900_000)) == NEW


def test_only_objects_are_removed(first: Path, cache: Path) -> None:
    shutil.rmtree(first)
    (cache / "objects" / "notes").write_bytes(b"mine")
    (cache / "objects" / ("0" * 64)).mkdir()
    prune()
    assert set(stored(cache)) == {"notes", "0" * 64}


def test_nothing_to_prune(cache: Path) -> None:
    prune()
    assert not cache.exists()


def test_object_that_cannot_be_removed(
    first: Path, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.rmtree(first)
    unlink = Path.unlink

    def fail(self: Path, missing_ok: bool = False) -> None:
        if self.parent.name == "objects":
            raise PermissionError(errno.EACCES, "Permission denied")
        unlink(self, missing_ok=missing_ok)

    monkeypatch.setattr(Path, "unlink", fail)
    second = build(tmp_path / "second")
    assert is_one(second / MODEL, stored(cache)[hashlib.sha256(COMMON).hexdigest()])


# Concurrent builds.


def test_builds_inside_each_other(tmp_path: Path, cache: Path) -> None:
    build(tmp_path / "first", OLD, on_part=lambda: inner(tmp_path))
    assert is_one(tmp_path / "first" / MODEL, tmp_path / "second" / MODEL)
    assert (open_key(tmp_path / "first"), open_key(tmp_path / "second")) == (OLD, NEW)
    assert len(stored(cache)) == 5


def inner(folder: Path) -> None:
    if not (folder / "second").exists():
        build(folder / "second")


def meanwhile(monkeypatch: pytest.MonkeyPatch, module: Any, name: str, path: Path, act: Any) -> None:
    """Call ``act``, as if from another process, just before the first call of the method for ``path``."""
    call = getattr(module, name)

    def called(*args: Any, **options: Any) -> Any:
        if path in args:
            monkeypatch.setattr(module, name, call)
            act()
        return call(*args, **options)

    monkeypatch.setattr(module, name, called)


def test_other_build_stores_the_same_first(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = cache / "objects" / hashlib.sha256(COMMON).hexdigest()
    meanwhile(monkeypatch, os, "link", path, lambda: build(tmp_path / "second"))
    build(tmp_path / "first", OLD)
    assert is_one(tmp_path / "first" / MODEL, tmp_path / "second" / MODEL, path)


def test_other_build_prunes_what_is_to_be_linked(
    first: Path, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = cache / "objects" / hashlib.sha256(COMMON).hexdigest()

    def remove() -> None:
        shutil.rmtree(first)
        prune()

    meanwhile(monkeypatch, os, "link", path, remove)
    second = build(tmp_path / "second")
    assert is_one(second / MODEL, path)
    assert open_key(second) == NEW


def test_other_build_links_what_is_pruned(
    first: Path, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = cache / "objects" / hashlib.sha256(COMMON).hexdigest()
    other_link = tmp_path / "other_link"
    shutil.rmtree(first)
    meanwhile(monkeypatch, Path, "unlink", path, lambda: os.link(path, other_link))
    prune()
    assert other_link.read_bytes() == COMMON
    assert not path.exists()


def test_other_build_replaces_the_damaged_object(
    first: Path, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = cache / "objects" / hashlib.sha256(COMMON).hexdigest()
    os.truncate(first / MODEL, 100)
    staged = tmp_path / ".third.building" / "text_encoder" / ".model.onnx.shared"
    meanwhile(monkeypatch, objects, "_is_intact", staged, lambda: build(tmp_path / "second"))
    third = build(tmp_path / "third")
    assert is_one(tmp_path / "second" / MODEL, third / MODEL, path)
    assert open_key(third) == NEW


_BUILDER = """
import os, sys, shutil
from pathlib import Path
os.fsync = lambda descriptor: None
import paper_bundle
from sd2rt.engines.bundle import shared_files as objects
objects.SHARED_FROM_BYTES = 1000
folder = Path(sys.argv[1])
for turn in range(30):
    if folder.exists():
        shutil.rmtree(folder)
    paper_bundle.make_bundle(folder, table_rows=200)
    assert paper_bundle.open_key(folder) == paper_bundle.NEW
"""


def test_builds_in_several_processes(tmp_path: Path, cache: Path) -> None:
    """Equal bundles are built and removed concurrently: each stays complete, whatever the others store or remove."""
    names = ("a", "b", "c")
    children = [
        subprocess.Popen(
            [sys.executable, "-c", _BUILDER, str(tmp_path / name)], cwd=Path(paper_bundle.__file__).parent
        )
        for name in names
    ]
    assert [child.wait() for child in children] == [0, 0, 0]
    for name in names:
        assert open_key(tmp_path / name) == NEW
    assert all(sound(path) for path in stored(cache).values())
    # At most four objects, each linked by a bundle.
    prune()
    assert 0 < len(stored(cache)) <= 4


# Builds that are killed.

_KILLED = """
import os, sys
from pathlib import Path
os.fsync = lambda descriptor: None
import paper_bundle
from sd2rt.engines.bundle import shared_files as objects
objects.SHARED_FROM_BYTES = 1000
folder, moment = Path(sys.argv[1]), 0
while True:
    here = folder / str(moment)
    os.environ["SD2RT_CACHE_DIR"] = str(here / "cache")
    paper_bundle.make_bundle(here / "other" / "bundle", paper_bundle.NEW, table_rows=200)
    paper_bundle.make_bundle(here / "shelf" / "bundle", paper_bundle.OLD, table_rows=200)
    child = os.fork()
    if child == 0:
        dying = paper_bundle.DyingAt(moment)
        dying.install()
        os.link = dying.before(os.link)
        paper_bundle.make_bundle(here / "shelf" / "bundle", paper_bundle.NEW, replace=True, table_rows=200)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if not os.WIFSIGNALED(status):
        break
    moment += 1
print(moment)
"""


def test_kill_harms_no_bundle_and_is_made_good(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The killed build replaces a bundle by one that shares its parts and its token table with a third."""
    child = subprocess.run(
        [sys.executable, "-c", _KILLED, str(tmp_path)],
        cwd=Path(paper_bundle.__file__).parent,
        stdout=subprocess.PIPE,
        check=True,
    )
    moments = int(child.stdout)
    assert moments > 50
    for moment in range(moments):
        here = tmp_path / str(moment)
        other, target = here / "other" / "bundle", here / "shelf" / "bundle"
        monkeypatch.setenv("SD2RT_CACHE_DIR", str(here / "cache"))
        assert open_key(other) == NEW
        assert open_key(target) in (OLD, NEW)
        assert all(sound(path) for path in stored(here / "cache").values())
        make_bundle(target, NEW, replace=True, table_rows=200)
        assert open_key(other) == open_key(target) == NEW
        assert {path.name for path in target.parent.iterdir()} == {"bundle"}
        paths = {path.relative_to(target).as_posix() for path in target.rglob("*") if path.is_file()}
        assert paths == {file.path for file in read_manifest(target).files} | {"bundle.json"}
        large = {file for file in read_manifest(target).files if file.size >= 1000}
        assert len(large) == 4
        assert all(is_one(other / file.path, target / file.path) for file in large)
        # The objects of the old bundle are gone.
        assert set(stored(here / "cache")) == {file.sha256 for file in large}


# The output of `sd2rt inspect`.


def said(bundle: Path, capsys: pytest.CaptureFixture[str]) -> tuple[str, int]:
    commands.inspect(str(bundle))
    [line] = [line for line in capsys.readouterr().out.splitlines() if line.startswith("stored")]
    commands.inspect(str(bundle), as_json=True)
    facts = json.loads(capsys.readouterr().out)
    assert facts["path"] == str(bundle)
    return " ".join(line.split()), facts["shared_bytes"]


def test_inspect_shows_the_saving(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = build(tmp_path / "first", OLD, common=COMMON * 100)
    count = len(read_manifest(first).files)
    assert said(first, capsys) == (
        f"stored 0.2 MB in {count} files, 0.0 MB of them shared with other bundles",
        0,
    )
    second = build(tmp_path / "second", common=COMMON * 100)
    for bundle in (first, second):
        assert said(bundle, capsys) == (
            f"stored 0.2 MB in {count} files, 0.2 MB of them shared with other bundles",
            200_000,
        )
    shutil.rmtree(first)
    assert said(second, capsys)[1] == 0


def test_saving_without_the_store(first: Path, tmp_path: Path, cache: Path) -> None:
    second = build(tmp_path / "second")
    shutil.rmtree(cache)
    assert shared_bytes(first, read_manifest(first).files) == 2000
    assert shared_bytes(second, read_manifest(second).files) == 2000


def test_saving_counts_other_bundles_only(tmp_path: Path) -> None:
    """Two parts of one bundle may be equal, which does not count as sharing with other bundles."""

    def twins(writer: BundleWriter, name: PartName) -> None:
        (writer.folder / name / "model.onnx").write_bytes(COMMON)

    make_bundle(tmp_path / "twins", on_part=twins)
    assert (tmp_path / "twins" / MODEL).stat().st_nlink == 4
    assert shared_bytes(tmp_path / "twins", read_manifest(tmp_path / "twins").files) == 0


def test_saving_of_files_that_are_missing(first: Path, tmp_path: Path) -> None:
    second = build(tmp_path / "second")
    shutil.rmtree(first / "text_encoder")
    for bundle in (first, second):
        assert shared_bytes(bundle, read_manifest(bundle).files) == 0
