from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from sd2rt.engines.bundle.file_lock import FileLock
from sd2rt.engines.bundle.model_kinds import PartName
from sd2rt.engines.bundle.reader import open_bundle
from sd2rt.engines.bundle.writer import BundleWriter
from sd2rt.engines.errors import BuildError, BundleError

from .. import paper_bundle
from ..paper_bundle import NEW, OLD, PARTS, make_bundle, open_key

pytestmark = pytest.mark.usefixtures("lazy_disk")


@pytest.fixture
def shelf(tmp_path: Path) -> Path:
    path = tmp_path / "shelf"
    path.mkdir()
    return path


@pytest.fixture
def target(shelf: Path) -> Path:
    return shelf / "bundle"


class StopError(Exception):
    """Raised to interrupt a build."""


def stop_at(stopped: PartName, error: BaseException) -> paper_bundle.OnPart:
    def stop(writer: BundleWriter, name: PartName) -> None:
        if name == stopped:
            raise error

    return stop


def interrupt(target: Path, stopped: PartName, key: str = NEW) -> None:
    """Build a bundle, interrupted in the middle of a part."""
    with pytest.raises(StopError):
        make_bundle(target, key, replace=True, on_part=stop_at(stopped, StopError()))


def contents(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def refusal(target: Path, **options: bool | int) -> str:
    with pytest.raises(BuildError) as caught:
        make_bundle(target, NEW, **options)  # type: ignore[arg-type]
    assert caught.value.exit_code == 4
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_bundle_is_all_that_is_left(target: Path) -> None:
    assert make_bundle(target) == list(PARTS)
    assert open_key(target) == NEW
    assert contents(target.parent) == {"bundle"}
    listed = {file.path for file in open_bundle(target).manifest.files}
    paths = {path.relative_to(target).as_posix() for path in target.rglob("*") if path.is_file()}
    assert paths == listed | {"bundle.json"}


def test_folders_above_are_made(tmp_path: Path) -> None:
    make_bundle(tmp_path / "a" / "b" / "bundle")
    assert open_key(tmp_path / "a" / "b" / "bundle") == NEW


def test_empty_folder_is_filled(target: Path) -> None:
    target.mkdir()
    make_bundle(target)
    assert open_key(target) == NEW
    assert contents(target.parent) == {"bundle"}


def test_everything_is_on_the_disk_before_it_is_in_place(
    target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: set[int] = set()
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.add(os.fstat(descriptor).st_ino))
    rename = Path.rename

    def checked(self: Path, new: Path) -> Path:
        assert {path.stat().st_ino for path in (self, *self.rglob("*"))} <= synced
        return rename(self, new)

    monkeypatch.setattr(Path, "rename", checked)
    make_bundle(target)
    assert target.parent.stat().st_ino in synced


def test_what_is_not_listed_is_not_kept(target: Path) -> None:
    def scribble(writer: BundleWriter, name: PartName) -> None:
        (writer.folder / "notes" / "deep").mkdir(parents=True, exist_ok=True)
        (writer.folder / name / "scratch.tmp").write_bytes(b"")
        (writer.folder / "notes" / "deep" / "todo").symlink_to("nowhere") if name == "decoder" else None

    make_bundle(target, on_part=scribble)
    assert contents(target) == {*PARTS, "bundle.json", "tokenizer.json", "embeddings.npy"}
    assert contents(target / "decoder") == {"model.onnx", "initializers.json"}


@pytest.mark.parametrize("error", [StopError(), KeyboardInterrupt()], ids=["error", "interrupt"])
def test_build_that_finished_nothing_leaves_nothing(target: Path, error: BaseException) -> None:
    with pytest.raises(type(error)):
        make_bundle(target, on_part=stop_at("text_encoder", error))
    assert contents(target.parent) == set()


def test_rerun_goes_on_from_whole_parts(target: Path) -> None:
    interrupt(target, "decoder")
    assert not target.exists()
    assert make_bundle(target) == ["decoder"]
    assert open_key(target) == NEW
    assert contents(target.parent) == {"bundle"}


def test_rerun_can_be_interrupted_again(target: Path) -> None:
    interrupt(target, "denoiser")
    interrupt(target, "decoder")
    assert make_bundle(target) == ["decoder"]


def test_rerun_of_another_key_starts_again(target: Path) -> None:
    interrupt(target, "decoder", OLD)
    assert make_bundle(target, NEW) == list(PARTS)
    assert open_key(target) == NEW


@pytest.mark.parametrize("damage", ["changed", "cut", "missing", "folder"])
def test_rerun_makes_a_damaged_part_again(target: Path, damage: str) -> None:
    interrupt(target, "decoder")
    model = target.parent / ".bundle.building" / "text_encoder" / "model.onnx"
    if damage == "changed":
        model.write_bytes(model.read_bytes()[::-1])
    elif damage == "cut":
        os.truncate(model, 10)
    else:
        model.unlink()
        if damage == "folder":
            model.mkdir()
    assert make_bundle(target) == ["text_encoder", "decoder"]
    assert open_key(target) == NEW


@pytest.mark.parametrize(
    "record",
    [
        "",
        "[]",
        "null",
        "{}",
        "\x00",
        "[" * 100_000,
        f'{{"key": "{NEW}"}}',
        f'{{"key": "{NEW}", "parts": [1]}}',
    ]
    + [
        f'{{"key": "{NEW}", "parts": {{"decoder": {part}}}}}'
        for part in ("1", "null", "{}", '{"onnx": "../x"}')
    ],
)
def test_record_of_garbage(target: Path, record: str) -> None:
    interrupt(target, "decoder")
    (target.parent / ".bundle.building" / "progress.json").write_text(record)
    assert make_bundle(target) == list(PARTS)
    assert open_key(target) == NEW


def test_refusal_keeps_what_an_interrupted_build_made(paper: Path) -> None:
    interrupt(paper, "decoder")
    assert "add --force" in refusal(paper)
    assert make_bundle(paper, NEW, replace=True) == ["decoder"]


def test_different_bundle_is_not_replaced(paper: Path) -> None:
    assert refusal(paper) == (
        f"{paper} is another bundle: add --force to replace it, or choose another folder with -o"
    )
    assert open_key(paper) == OLD
    assert contents(paper.parent) == {"bundle"}


def test_different_bundle_is_replaced_by_force(paper: Path) -> None:
    make_bundle(paper, NEW, replace=True)
    assert open_key(paper) == NEW
    assert contents(paper.parent) == {"bundle"}


@pytest.mark.parametrize("file", ["photo.png", ".git", "package.json", ".photo.png.0a1b2c.part"])
@pytest.mark.parametrize("beside_a_manifest", [False, True])
@pytest.mark.parametrize("replace", [False, True])
def test_users_files_are_never_replaced(
    paper: Path, file: str, beside_a_manifest: bool, replace: bool
) -> None:
    if not beside_a_manifest:
        shutil.rmtree(paper)
        paper.mkdir()
    (paper / file).write_bytes(b"mine")
    assert f"{paper} is not a bundle (it contains {file})" in refusal(paper, replace=replace)
    assert (paper / file).read_bytes() == b"mine"


def test_manifest_that_was_cut_short_is_no_users_file(paper: Path) -> None:
    (paper / ".bundle.json.0a1b2c.part").write_text("half")
    make_bundle(paper, NEW, replace=True)
    assert contents(paper) == {*PARTS, "bundle.json", "tokenizer.json", "embeddings.npy"}


def test_tokenizers_own_folder_is_never_replaced(target: Path) -> None:
    target.mkdir()
    (target / "tokenizer.json").write_text("{}")
    assert "is not a bundle (it contains tokenizer.json)" in refusal(target, replace=True)


def test_file_in_the_bundles_place(target: Path) -> None:
    target.write_bytes(b"mine")
    assert refusal(target, replace=True) == f"{target} is a file: use -o with a folder"
    assert target.read_bytes() == b"mine"


def test_file_above_the_bundle(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    assert "cannot be written: " in refusal(tmp_path / "file" / "bundle")


def test_name_that_is_too_long(shelf: Path) -> None:
    assert "cannot be written: File name too long" in refusal(shelf / ("x" * 250))
    assert contents(shelf) == set()


def test_link_to_a_bundle_stays(paper: Path, tmp_path: Path) -> None:
    link = tmp_path / "current"
    link.symlink_to(paper)
    make_bundle(link, NEW, replace=True)
    assert link.is_symlink()
    assert open_key(link) == open_key(paper) == NEW
    assert contents(tmp_path) == {"current", "shelf"}
    assert contents(paper.parent) == {"bundle"}


def test_link_to_what_is_not_there_yet(target: Path, tmp_path: Path) -> None:
    (tmp_path / "current").symlink_to(target)
    make_bundle(tmp_path / "current")
    assert open_key(target) == NEW


def test_too_little_space(target: Path) -> None:
    text = refusal(target, needed_bytes=10**18)
    assert text.startswith(f"{target} needs about 1000000000.0 GB, {target.parent} has ")
    assert contents(target.parent) == set()


def test_space_that_kept_parts_take_is_not_asked_for_again(
    target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupt(target, "decoder")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**6, 10**6, 200_000))
    assert f"needs about 0.3 MB, {target.parent} has 0.2 MB free" in refusal(target, needed_bytes=300_000)
    assert make_bundle(target, needed_bytes=201_000) == ["decoder"]


def test_two_builders(target: Path) -> None:
    def build_again(writer: BundleWriter, name: PartName) -> None:
        assert refusal(target) == f"another build of {target} is running: wait for it, or stop it"

    assert make_bundle(target, on_part=build_again) == list(PARTS)
    assert open_key(target) == NEW


def test_two_builders_in_two_processes(target: Path) -> None:
    def build_again(writer: BundleWriter, name: PartName) -> None:
        code = (
            "import sys; from pathlib import Path; import paper_bundle\n"
            "try: paper_bundle.make_bundle(Path(sys.argv[1]))\n"
            "except Exception as error: print(type(error).__name__, error)"
        )
        if name == "decoder":
            command = [sys.executable, "-c", code, str(target)]
            folder = Path(paper_bundle.__file__).parent
            child = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
            assert child.stdout.startswith(f"BuildError another build of {target} is running")

    make_bundle(target, on_part=build_again)
    assert contents(target.parent) == {"bundle"}


def test_lock_that_a_killed_build_left(target: Path) -> None:
    (target.parent / ".bundle.lock").write_bytes(b"")
    make_bundle(target)
    assert contents(target.parent) == {"bundle"}


def test_lock_that_is_a_link(target: Path, tmp_path: Path) -> None:
    (tmp_path / "precious").write_bytes(b"mine")
    (target.parent / ".bundle.lock").symlink_to(tmp_path / "precious")
    assert "cannot be written" in refusal(target)
    assert (tmp_path / "precious").read_bytes() == b"mine"


def test_lock_of_a_file_that_was_just_removed(tmp_path: Path) -> None:
    """Two builds may open the lock file before the first removes it: the second must not count as locked."""
    first, second = FileLock(tmp_path / "lock"), FileLock(tmp_path / "lock")
    assert first.acquire()
    assert not second.acquire()
    first.release()
    first.release()
    assert second.acquire()
    assert not first.acquire()
    second.release()
    assert contents(tmp_path) == set()


@pytest.mark.parametrize("failing", ["aside", "into place"])
@pytest.mark.parametrize("error", [OSError(errno.EIO, "Input/output error"), KeyboardInterrupt()])
def test_failed_swap_keeps_the_old_bundle(
    paper: Path, monkeypatch: pytest.MonkeyPatch, failing: str, error: BaseException
) -> None:
    rename = Path.rename

    def failing_rename(self: Path, new: Path) -> Path:
        if (failing == "aside") == (new.name == ".bundle.old") and new.name != "text":
            monkeypatch.setattr(Path, "rename", rename)
            raise error
        return rename(self, new)

    monkeypatch.setattr(Path, "rename", failing_rename)
    with pytest.raises(BuildError if isinstance(error, OSError) else KeyboardInterrupt):
        make_bundle(paper, NEW, replace=True)
    assert contents(paper.parent) == {"bundle", ".bundle.building"}
    assert open_key(paper) == OLD
    make_bundle(paper, NEW, replace=True)
    assert open_key(paper) == NEW
    assert contents(paper.parent) == {"bundle"}


def test_old_bundle_comes_back_before_the_next_build(paper: Path) -> None:
    paper.rename(paper.parent / ".bundle.old")
    assert "is another bundle" in refusal(paper)
    assert open_key(paper) == OLD


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_full_disk(target: Path, code: int) -> None:
    error = OSError(code, os.strerror(code))
    with pytest.raises(BuildError, match=f"the disk of {target.parent} is full: make room") as caught:
        make_bundle(target, on_part=stop_at("denoiser", error))
    assert caught.value.exit_code == 4
    assert not target.exists()
    assert make_bundle(target) == ["denoiser", "decoder"]


def test_other_errors_of_the_file_system(target: Path) -> None:
    error = OSError(errno.EIO, "Input/output error")
    with pytest.raises(BuildError, match=f"{target} cannot be written: Input/output error"):
        make_bundle(target, on_part=stop_at("text_encoder", error))
    assert contents(target.parent) == set()


_ON_A_SMALL_DISK = """
import json, subprocess, sys
from pathlib import Path
import paper_bundle
from sd2rt.engines.errors import BuildError

disk, options = Path(sys.argv[1]), json.loads(sys.argv[2])
try:
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "none", disk], check=True)
except Exception as error:
    sys.exit(f"no mount: {error}")
target = disk / "shelf" / "bundle"
paper_bundle.make_bundle(target, paper_bundle.OLD)
try:
    paper_bundle.make_bundle(target, paper_bundle.NEW, replace=True, **options)
    failure = None
except BuildError as error:
    failure = str(error)
between = paper_bundle.open_key(target), sorted(path.name for path in target.parent.iterdir())
subprocess.run(["mount", "-o", "remount,size=4m", disk], check=True)
built = paper_bundle.make_bundle(target, paper_bundle.NEW, replace=True, **options)
after = paper_bundle.open_key(target), sorted(path.name for path in target.parent.iterdir())
print(json.dumps([failure, between, built, after]))
"""


@pytest.mark.parametrize(
    ("options", "built"),
    [
        ({"part_bytes": 90_000}, ["decoder"]),
        ({"part_bytes": 1_000, "table_rows": 50_000}, []),
    ],
    ids=["in a part", "in the token table"],
)
def test_disk_that_is_really_full(tmp_path: Path, options: dict[str, int], built: list[str]) -> None:
    (tmp_path / "disk").mkdir()
    unshare = ["unshare", "--mount", "--map-root-user"]
    child = subprocess.run(
        [*unshare, sys.executable, "-c", _ON_A_SMALL_DISK, str(tmp_path / "disk"), json.dumps(options)],
        cwd=Path(paper_bundle.__file__).parent,
        env={**os.environ, "SD2RT_CACHE_DIR": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
        check=False,
    )
    if "no mount" in child.stderr or child.stderr.startswith("unshare"):
        pytest.skip("this user may not mount a file system of its own")
    assert child.returncode == 0, child.stderr
    shelf = tmp_path / "disk" / "shelf"
    assert json.loads(child.stdout) == [
        f"the disk of {shelf} is full: make room, or choose another disk with -o; finished parts are kept: "
        "the same command resumes from them",
        [OLD, [".bundle.building", "bundle"]],
        built,
        [NEW, ["bundle"]],
    ]


@pytest.fixture(scope="module", params=["none", "old"])
def graveyard(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Create a folder for every point at which a build can be killed, with the files left by the kill."""
    folder: Path = tmp_path_factory.mktemp(f"killed-{request.param}")
    subprocess.run([sys.executable, paper_bundle.__file__, folder, request.param], check=True)
    yield folder
    shutil.rmtree(folder)


def test_kill_leaves_the_old_bundle_or_none(graveyard: Path) -> None:
    first: str | None = None if graveyard.name.startswith("killed-none") else OLD
    moments = sorted(graveyard.iterdir(), key=lambda path: int(path.name))
    assert len(moments) > 30
    keys: list[str | None] = []
    for moment in moments:
        try:
            keys.append(open_key(moment / "bundle"))
        except BundleError:
            assert contents(moment) <= {".bundle.building", ".bundle.lock"}
            keys.append(None)
    # The old bundle up to some point, and the new one from there on.
    change = keys.index(NEW)
    assert keys == [first] * change + [NEW] * (len(keys) - change)
    assert 30 < change < len(keys)


def test_kill_is_made_good_by_the_same_command(graveyard: Path, tmp_path: Path) -> None:
    built = []
    for moment in sorted(graveyard.iterdir(), key=lambda path: int(path.name)):
        target = tmp_path / moment.name / "bundle"
        shutil.copytree(moment, target.parent)
        built.append(make_bundle(target, NEW, replace=True))
        assert open_key(target) == NEW
        assert contents(target.parent) == {"bundle"}
    # Finished parts are not built again; after the swap there is nothing to resume.
    counts = [len(parts) for parts in built]
    assert counts[0] == 3
    whole = counts.index(0)
    assert counts[:whole] == sorted(counts[:whole], reverse=True)
    assert {1, 2} <= set(counts[:whole])


def test_builder_that_is_killed_lets_go_of_the_lock(target: Path) -> None:
    code = "import sys, os, signal; from pathlib import Path; from sd2rt.engines.bundle.file_lock import FileLock\n"
    code += "assert FileLock(Path(sys.argv[1])).acquire(); os.kill(os.getpid(), signal.SIGKILL)"
    path = target.parent / ".bundle.lock"
    child = subprocess.run([sys.executable, "-c", code, path], check=False)
    assert child.returncode == -signal.SIGKILL
    assert path.exists()
    make_bundle(target)
    assert contents(target.parent) == {"bundle"}
