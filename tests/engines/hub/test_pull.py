from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sd2rt.engines.bundle.checksum import CHECKSUM, checksum
from sd2rt.engines.bundle.manifest import MANIFEST, read_manifest
from sd2rt.engines.bundle.reader import open_bundle
from sd2rt.engines.demo.build import build_demo

from ..paper_bundle import OLD, make_bundle
from .hub_server import TOKEN, LocalHub, Repo
from .machine import Machine, contents

NAME = "user/paper"
WEIGHTS = "denoiser/model.onnx"


@pytest.fixture
def published(hub: LocalHub, paper: Path) -> dict[str, bytes]:
    """The bundle's files, in a repository that has others too."""
    files = contents(paper)
    hub.repos[NAME] = Repo()
    hub.repos[NAME].commit({**files, "README.md": b"---\n---\n", "notes.txt": b"n"})
    return files


def test_a_bundle_arrives_whole_and_is_found_by_its_names(
    machine: Machine, published: dict[str, bytes], hub: LocalHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = machine.run("pull", NAME)
    assert ended.returncode == 0, ended.stderr
    folder = machine.cache / "bundles" / "paper"
    assert ended.stdout == f"{folder}\n"
    assert "9.0 MB" in ended.stderr
    assert f"MB: {WEIGHTS}" in ended.stderr
    arrived = contents(folder)
    assert {path: content for path, content in arrived.items() if path != MANIFEST} == {
        path: content for path, content in published.items() if path != MANIFEST
    }
    monkeypatch.setenv("SD2RT_CACHE_DIR", str(machine.cache))
    identity = read_manifest(folder).identity
    for name in ("paper", NAME, f"{NAME}@{hub.repos[NAME].branches['main']}"):
        assert open_bundle(name, trust_receipts=False).path == folder
        inspected = json.loads(machine.run("inspect", name, "--json").stdout)
        assert (inspected["path"], inspected["identity"]) == (str(folder), identity)
    assert json.loads((machine.cache / "identities" / f"{identity}.json").read_text())["path"] == str(folder)
    assert "notes.txt" not in " ".join(hub.asked)
    assert not [line for line in hub.asked if "telemetry" in line or "agent" in line]
    assert machine.leftovers() == sorted(f"paper/{path}" for path in published)


def test_a_pulled_demo_draws_without_a_network(
    machine: Machine, hub: LocalHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SD2RT_CACHE_DIR", str(tmp_path / "builder"))
    build_demo("demo", tmp_path / "demo")
    hub.repos["user/demo-copy"] = Repo()
    hub.repos["user/demo-copy"].commit(contents(tmp_path / "demo"))
    assert machine.run("pull", "user/demo-copy").returncode == 0
    words = ("run", "user/demo-copy", "a red circle", "--steps", "2", "-o", tmp_path / "red.png")
    drawn = machine.run(*words, HF_HUB_OFFLINE="1", HF_ENDPOINT="http://127.0.0.1:9")
    assert drawn.returncode == 0, drawn.stderr
    assert (tmp_path / "red.png").stat().st_size > 0


def test_a_second_pull_keeps_the_bundle(machine: Machine, published: dict[str, bytes], hub: LocalHub) -> None:
    machine.run("pull", NAME)
    hub.sent = 0
    again = machine.run("pull", NAME)
    assert (again.returncode, again.stdout) == (0, f"{machine.cache}/bundles/paper (already there)\n")
    assert hub.sent == len(published[MANIFEST])


def test_revisions_are_branches_tags_or_commits(machine: Machine, hub: LocalHub, paper: Path) -> None:
    hub.repos[NAME] = Repo()
    first = hub.repos[NAME].commit(contents(paper))
    make_bundle(paper, OLD, replace=True)
    hub.repos[NAME].commit(contents(paper), "old/branch")
    for revision, key in ((first, first), ("old/branch", OLD)):
        ended = machine.run("pull", f"{NAME}@{revision}", "-o", machine.home / revision)
        assert ended.returncode == 0, ended.stderr
        manifest = read_manifest(machine.home / revision)
        assert (manifest.build_key == OLD) == (key == OLD)
        assert json.loads(machine.run("inspect", f"{NAME}@{revision}", "--json").stdout)["path"] == str(
            machine.home / revision
        )


def test_a_killed_pull_goes_on_where_it_was(
    machine: Machine, published: dict[str, bytes], hub: LocalHub
) -> None:
    kept = _killed_in_the_weights(machine, hub).stat().st_size
    assert not (machine.cache / "bundles" / "paper").exists()
    done = [line for line in hub.asked if line.startswith("GET /cdn/")]
    hub.asked.clear()
    ended = machine.run("pull", NAME)
    assert ended.returncode == 0, ended.stderr
    again = [line for line in hub.asked if line.startswith("GET /cdn/")]
    finished = [line for line in done if not line.endswith((WEIGHTS, MANIFEST))]
    assert finished
    assert not set(finished) & set(again)
    (resumed,) = (line for line in again if WEIGHTS in line)
    assert resumed.endswith(f"bytes={kept}-")
    open_bundle(machine.cache / "bundles" / "paper", trust_receipts=False)
    assert machine.leftovers() == sorted(f"paper/{path}" for path in published)


def _killed_in_the_weights(machine: Machine, hub: LocalHub) -> Path:
    """Kill a pull while the weights arrive, and return the file with what came of them."""
    reached, go_on = threading.Event(), threading.Event()
    hub.stop_after[WEIGHTS] = (2_000_000, reached, go_on)
    child = machine.start("pull", NAME)
    assert reached.wait(60)
    partial = _partial_of(machine)
    while not (partial and partial[0].stat().st_size):
        assert child.poll() is None
        partial = _partial_of(machine)
    child.kill()
    child.communicate()
    go_on.set()
    (kept,) = _partial_of(machine)
    return kept


def _partial_of(machine: Machine) -> list[Path]:
    return list((machine.cache / "bundles" / ".paper.building" / ".arriving").glob("*"))


def test_a_server_without_ranges_starts_a_file_again(
    machine: Machine, published: dict[str, bytes], hub: LocalHub
) -> None:
    hub.ranges = False
    hub.cut_after[WEIGHTS] = 1_500_000
    ended = machine.run("pull", NAME)
    assert ended.returncode == 0, ended.stderr
    assert contents(machine.cache / "bundles" / "paper")[WEIGHTS] == published[WEIGHTS]


def test_a_connection_that_breaks_is_opened_again(
    machine: Machine, published: dict[str, bytes], hub: LocalHub
) -> None:
    hub.cut_after[WEIGHTS] = 1_500_000
    ended = machine.run("pull", NAME)
    assert ended.returncode == 0, ended.stderr
    assert any(WEIGHTS in line and "bytes=" in line for line in hub.asked)


def test_damage_in_an_unfinished_file_is_repaired(
    machine: Machine, published: dict[str, bytes], hub: LocalHub
) -> None:
    reached, go_on = threading.Event(), threading.Event()
    hub.stop_after[WEIGHTS] = (2_000_000, reached, go_on)
    child = machine.start("pull", NAME)
    assert reached.wait(60)
    while not _partial_of(machine) or not _partial_of(machine)[0].stat().st_size:
        assert child.poll() is None
    child.kill()
    child.communicate()
    go_on.set()
    (partial,) = _partial_of(machine)
    partial.write_bytes(b"x" * partial.stat().st_size)
    whole = machine.cache / "bundles" / ".paper.building" / "decoder" / "model.onnx"
    whole.write_bytes(b"x" * whole.stat().st_size)
    assert machine.run("pull", NAME).returncode == 0
    open_bundle(machine.cache / "bundles" / "paper", trust_receipts=False)


@pytest.mark.parametrize(
    ("path", "change"),
    [
        (WEIGHTS, lambda content: content[:-1] + bytes([content[-1] ^ 1])),
        (WEIGHTS, lambda content: content[:-1]),
        (WEIGHTS, lambda content: content + b"more"),
        (WEIGHTS, lambda content: b""),
        ("tokenizer.json", lambda content: content.replace(b"key", b"kez")),
        ("embeddings.npy", lambda content: content[:-4] + b"\1\1\1\1"),
        (MANIFEST, lambda content: content.replace(b'"paper"', b'"other"', 1)),
        (MANIFEST, lambda content: content[: len(content) // 2]),
    ],
)
def test_damaged_bytes_are_refused_and_nothing_is_left(
    machine: Machine,
    published: dict[str, bytes],
    hub: LocalHub,
    path: str,
    change: Callable[[bytes], bytes],
) -> None:
    hub.damage = lambda asked, content: change(content) if asked == path else content
    line = machine.refused(3, "pull", NAME)
    assert path in line
    assert machine.leftovers() == []
    hub.damage = lambda asked, content: content
    assert machine.run("pull", NAME).returncode == 0


def _altered(published: dict[str, bytes], change: Callable[[dict[str, Any]], object]) -> bytes:
    """The manifest after a change of its entries, with a checksum that fits."""
    data = json.loads(published[MANIFEST])
    change(data)
    del data[CHECKSUM]
    return json.dumps({**data, CHECKSUM: checksum(data)}).encode()


@pytest.mark.parametrize(
    "place",
    [
        "../outside",
        "/tmp/outside",
        "denoiser/../../outside",
        "C:outside",
        "..\\outside",
        "progress.json",
        "other/model.onnx",
        ".arriving/x",
        "denoiser/model.onnx/x",
        "decoder",
        "license/" + "n" * 300,
        "denoiser/" + "d/" * 600 + "x",
    ],
)
def test_a_manifest_that_leads_elsewhere_is_refused(
    machine: Machine, published: dict[str, bytes], hub: LocalHub, place: str
) -> None:
    text = _altered(published, lambda data: data["tokenizer"]["file"].update(path=place))
    hub.repos[NAME].commit({**published, MANIFEST: text, place: published["tokenizer.json"]})
    machine.refused(3, "pull", NAME)
    assert machine.leftovers() == []
    assert not list(machine.home.rglob("*outside*"))


def _too_large(data: dict[str, Any]) -> None:
    data["tokenizer"]["file"]["size"] = 1 << 52


def _too_many(data: dict[str, Any]) -> None:
    file = data["tokenizer"]["file"]
    data["license_files"] = [{**file, "path": f"license/{number}"} for number in range(10_001)]


@pytest.mark.parametrize("change", [_too_large, _too_many])
def test_a_manifest_that_would_fill_the_disk_is_refused(
    machine: Machine, published: dict[str, bytes], hub: LocalHub, change: Callable[[dict[str, Any]], None]
) -> None:
    hub.repos[NAME].commit({**published, MANIFEST: _altered(published, change)})
    assert "which no bundle has" in machine.refused(3, "pull", NAME)
    assert machine.leftovers() == []


def test_a_manifest_without_end_is_refused(
    machine: Machine, published: dict[str, bytes], hub: LocalHub
) -> None:
    hub.repos[NAME].commit({**published, MANIFEST: b" " * ((64 << 20) + 1)})
    assert "has more than" in machine.refused(3, "pull", NAME)
    assert machine.leftovers() == []


def test_a_file_is_not_written_through_a_link(
    machine: Machine, published: dict[str, bytes], hub: LocalHub
) -> None:
    """Links in the folder of an interrupted pull, which another program has put there."""
    partial = _killed_in_the_weights(machine, hub)
    victim = machine.home / "victim"
    victim.write_bytes(b"mine")
    partial.unlink()
    partial.symlink_to(victim)
    building = machine.cache / "bundles" / ".paper.building"
    outside = machine.home / "outside"
    outside.mkdir()
    (building / "text_encoder").symlink_to(outside)
    (building / "tokenizer.json").unlink()
    (building / "tokenizer.json").symlink_to(victim)
    machine.run("pull", NAME)
    assert victim.read_bytes() == b"mine"
    assert list(outside.iterdir()) == []
    assert machine.run("pull", NAME).returncode == 0
    assert not any(path.is_symlink() for path in (machine.cache / "bundles" / "paper").rglob("*"))


def test_words_of_the_hub_cannot_control_the_terminal(
    machine: Machine, published: dict[str, bytes], hub: LocalHub
) -> None:
    hub.failing = ("GET",)
    hub.status, hub.message = 500, "one\x1b[2Jtwo\nthree\x07" + "x" * 5000
    line = machine.refused(3, "pull", NAME)
    assert line.isprintable()
    assert "one" in line
    assert len(line) < 500


def test_a_pull_loads_neither_torch_nor_onnx(machine: Machine, published: dict[str, bytes]) -> None:
    ended = machine.run("pull", NAME, PYTHONPROFILEIMPORTTIME="1")
    assert ended.returncode == 0, ended.stderr
    lines = (line for line in ended.stderr.splitlines() if line.startswith("import time:"))
    loaded = {line.rpartition("|")[2].strip() for line in lines}
    assert "sd2rt.engines.hub.pull" in loaded
    assert not loaded & {"torch", "onnx", "onnxruntime", "diffusers", "transformers", "sd2rt.export"}


@pytest.mark.parametrize("words", [("pull", NAME), ("push", "paper", NAME)])
def test_without_the_extra_the_error_names_it(machine: Machine, words: tuple[str, ...]) -> None:
    (machine.home / "site").mkdir()
    (machine.home / "site" / "sitecustomize.py").write_text(
        "import sys\nsys.modules['huggingface_hub'] = None\n"
    )
    line = machine.refused(6, *words, PYTHONPATH=str(machine.home / "site"))
    assert "huggingface_hub, which is not installed" in line
    assert "hub" in line


def test_each_refusal_has_its_own_line(machine: Machine, published: dict[str, bytes], hub: LocalHub) -> None:
    hub.repos["user/gated"] = Repo(gated=True)
    hub.repos["user/checkpoint"] = Repo()
    hub.repos["user/checkpoint"].commit({"unet/config.json": b"{}"})
    hub.repos["user/private"] = Repo(private=True)
    lines = {
        "gated": machine.refused(3, "pull", "user/gated"),
        "missing": machine.refused(3, "pull", "user/missing"),
        "of a team": machine.refused(3, "pull", "team/missing"),
        "owner": machine.refused(3, "pull", "nobody/paper"),
        "private": machine.refused(3, "pull", "user/private"),
        "revision": machine.refused(3, "pull", f"{NAME}@missing"),
        "checkpoint": machine.refused(3, "pull", "user/checkpoint"),
        "token": machine.refused(3, "pull", NAME, HF_TOKEN="hf_wrong"),
        "offline": machine.refused(3, "pull", NAME, HF_HUB_OFFLINE="1"),
        "unreachable": machine.refused(3, "pull", NAME, HF_ENDPOINT="http://127.0.0.1:9"),
        "id": machine.refused(2, "pull", "user/paper/more"),
        "extra": machine.refused(2, "pull", "-o", machine.home, "--", "paper@v1"),
    }
    words = {
        "gated": "is gated on the Hub",
        "missing": "user/missing is not on the Hub, or is private",
        "of a team": "team/missing is not on the Hub, or is private",
        "owner": "the Hub has no user or organization nobody",
        "private": "user/private is not on the Hub, or is private",
        "revision": "has no revision missing",
        "checkpoint": "it is no bundle: if it is a checkpoint, build one with 'sd2rt build user/checkpoint'",
        "token": "refuses this user's token",
        "offline": "HF_HUB_OFFLINE forbids",
        "unreachable": "cannot be reached at http://127.0.0.1:9",
        "id": "write user/name",
        "extra": "write user/name",
    }
    for name, line in lines.items():
        assert words[name] in line, line
        assert sum(word in line for word in set(words.values())) == 1
    assert machine.leftovers() == []


@pytest.mark.parametrize(("status", "words"), [(500, "the Hub failed (500"), (429, "limits the rate")])
def test_failures_of_the_hub(
    machine: Machine, published: dict[str, bytes], hub: LocalHub, status: int, words: str
) -> None:
    hub.status = status
    assert words in machine.refused(3, "pull", NAME)


def test_a_private_repository_is_read_with_a_token_which_no_other_host_gets(
    machine: Machine, published: dict[str, bytes], hub: LocalHub
) -> None:
    hub.repos[NAME].private = True
    assert machine.run("pull", NAME, HF_TOKEN=TOKEN).returncode == 0
    assert hub.leaked == []


def test_offline_a_pulled_bundle_is_used(machine: Machine, published: dict[str, bytes]) -> None:
    machine.run("pull", NAME)
    ended = machine.run("pull", NAME, HF_HUB_OFFLINE="1")
    assert (ended.returncode, ended.stdout) == (0, f"{machine.cache}/bundles/paper (already there)\n")
    machine.refused(3, "pull", NAME, "-o", machine.home / "elsewhere", HF_HUB_OFFLINE="1")


def test_files_that_other_bundles_share_are_not_fetched(
    machine: Machine, published: dict[str, bytes], hub: LocalHub
) -> None:
    machine.run("pull", NAME)
    hub.sent = 0
    ended = machine.run("pull", NAME, "-o", machine.cache / "second")
    assert ended.returncode == 0, ended.stderr
    assert hub.sent < 10_000 + len(published[MANIFEST])
    paths = (machine.cache / "second" / WEIGHTS, machine.cache / "bundles" / "paper" / WEIGHTS)
    assert os.path.samestat(*(path.stat() for path in paths))
    (machine.cache / "second" / WEIGHTS).write_bytes(b"x" * 3_000_000)
    # A damaged object of the store is not taken.
    ended = machine.run("pull", NAME, "-o", machine.cache / "third")
    assert ended.returncode == 0, ended.stderr
    assert (machine.cache / "third" / WEIGHTS).read_bytes() == published[WEIGHTS]


def test_another_bundle_is_replaced_only_by_force(
    machine: Machine, published: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SD2RT_CACHE_DIR", str(machine.cache))
    folder = machine.cache / "bundles" / "paper"
    make_bundle(folder, OLD)
    assert "--force" in machine.refused(4, "pull", NAME)
    assert read_manifest(folder).build_key == OLD
    assert machine.run("pull", NAME, "--force").returncode == 0
    assert read_manifest(folder).build_key != OLD


def test_a_bundle_that_took_the_place_of_a_pulled_one_is_not_found_by_its_id(
    machine: Machine, published: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.run("pull", NAME)
    monkeypatch.setenv("SD2RT_CACHE_DIR", str(machine.cache))
    make_bundle(machine.cache / "bundles" / "paper", OLD, replace=True)
    assert "sd2rt pull user/paper" in machine.refused(3, "inspect", NAME)


def test_a_full_disk_stops_before_and_amid(
    machine: Machine, published: dict[str, bytes], tmp_path: Path
) -> None:
    preload = _full_after(tmp_path, 4_000_000)
    line = machine.refused(4, "pull", NAME, PYTHONPATH=str(preload))
    assert "disk" in line
    assert not (machine.cache / "bundles" / "paper").exists()
    there = [path for path in machine.leftovers() if path.endswith("model.onnx")]
    assert there
    assert machine.run("pull", NAME).returncode == 0


def _full_after(folder: Path, limit: int) -> Path:
    """A folder for PYTHONPATH in which files are written to a disk that is full after ``limit`` bytes."""
    (folder / "site").mkdir()
    (folder / "site" / "sitecustomize.py").write_text(
        "import builtins, errno, io\n"
        "written = 0\n"
        "opened = io.open\n"
        "class Full(io.FileIO):\n"
        "    def write(self, data):\n"
        "        global written\n"
        "        written += len(data)\n"
        f"        if written > {limit}:\n"
        "            raise OSError(errno.ENOSPC, 'No space left on device')\n"
        "        return super().write(data)\n"
        "def opening(file, mode='r', *rest, **named):\n"
        "    return Full(file, 'ab') if mode == 'ab' else opened(file, mode, *rest, **named)\n"
        "io.open = builtins.open = opening\n"
    )
    return folder / "site"
