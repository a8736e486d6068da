"""`sd2rt list`, `remove`, `cache` and `doctor`."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from sd2rt.engines.bundle.file_lock import FileLock
from sd2rt.engines.bundle.reader import open_bundle
from sd2rt.engines.demo.build import build_demo
from sd2rt.runtime.cli.main import main

Said = tuple[int, str, str]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SD2RT_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


def said(capsys: pytest.CaptureFixture[str], *words: str) -> Said:
    code = main(list(words))
    out, err = capsys.readouterr()
    return code, out, err


def read(capsys: pytest.CaptureFixture[str], *words: str) -> Any:
    code, out, err = said(capsys, *words, "--json")
    assert code == 0, err
    return json.loads(out)


def test_an_empty_cache(capsys: pytest.CaptureFixture[str], cache: Path) -> None:
    assert read(capsys, "list") == []
    assert "sd2rt build demo" in said(capsys, "list")[2]
    assert read(capsys, "cache") == {"path": str(cache), "places": []}
    assert set(read(capsys, "cache", "--prune")["removed"].values()) == {0}
    assert not cache.exists()


def test_list(capsys: pytest.CaptureFixture[str], cache: Path, tmp_path: Path) -> None:
    build_demo("demo", cache / "bundles" / "demo")
    build_demo("demo-v", tmp_path / "elsewhere", steps=3)
    (cache / "bundles" / "broken").mkdir()
    (cache / "bundles" / "broken" / "bundle.json").write_text("{}")
    rows = {row["name"]: row for row in read(capsys, "list")}
    assert rows.keys() == {"demo", "broken", str(tmp_path / "elsewhere")}
    assert (rows["demo"]["steps"], rows["demo"]["guidance"], rows["demo"]["source"]) == (25, 4.0, "demo")
    assert rows[str(tmp_path / "elsewhere")]["steps"] == 3
    assert "error" in rows["broken"]
    text = said(capsys, "list")[1]
    assert "damaged" in text
    assert "25 steps, guidance 4" in text


def test_remove(capsys: pytest.CaptureFixture[str], cache: Path) -> None:
    for name in ("demo", "demo-v"):
        build_demo(name, cache / "bundles" / name)
    opened = open_bundle("demo")
    assert said(capsys, "remove", "demo") == (0, f"{cache / 'bundles' / 'demo'}\n", "")
    assert os.listdir(cache / "bundles") == ["demo-v"]
    opened.close()
    assert said(capsys, "verify", "demo-v")[0] == 0
    assert said(capsys, "remove", "demo-v", "demo-v")[0] == 0
    assert os.listdir(cache / "objects") == []


@pytest.mark.parametrize(
    ("name", "code"), [("none", 3), ("../x", 2), ("/", 2), ("", 2), ("..", 2), ("a b", 3)]
)
def test_remove_only_bundles_of_the_cache(
    capsys: pytest.CaptureFixture[str], cache: Path, name: str, code: int
) -> None:
    build_demo("demo", cache / "bundles" / "demo")
    result = said(capsys, "remove", "demo", name)
    assert (result[0], result[1]) == (code, "")
    assert (cache / "bundles" / "demo").is_dir()


def test_remove_waits_for_no_build(capsys: pytest.CaptureFixture[str], cache: Path) -> None:
    build_demo("demo", cache / "bundles" / "demo")
    lock = FileLock(cache / "bundles" / ".demo.lock")
    assert lock.acquire()
    assert said(capsys, "remove", "demo")[0] == 4
    lock.release()
    assert (cache / "bundles" / "demo" / "bundle.json").is_file()


def test_own_and_shared_bytes(capsys: pytest.CaptureFixture[str], cache: Path) -> None:
    build_demo("demo", cache / "bundles" / "demo")
    places = {place["name"]: place for place in read(capsys, "cache")["places"]}
    assert places["bundles/demo"]["shared_bytes"] == 0
    alone = places["bundles/demo"]["own_bytes"]
    assert places["objects"]["own_bytes"] == 0
    build_demo("demo-v", cache / "bundles" / "demo-v")
    places = {place["name"]: place for place in read(capsys, "cache")["places"]}
    demo = places["bundles/demo"]
    assert demo["shared_bytes"] == places["bundles/demo-v"]["shared_bytes"] > 1_000_000
    assert demo["own_bytes"] + demo["shared_bytes"] == alone
    assert "each shared file counted once" in said(capsys, "cache")[1]


def test_prune(capsys: pytest.CaptureFixture[str], cache: Path, tmp_path: Path) -> None:
    bundles = cache / "bundles"
    build_demo("demo", bundles / "demo")
    build_demo("demo-v", tmp_path / "elsewhere")
    for path in (bundles / "demo", tmp_path / "elsewhere"):
        open_bundle(path).close()
    assert set(read(capsys, "cache", "--prune")["removed"].values()) == {0}
    shutil.rmtree(tmp_path / "elsewhere")
    (cache / "receipts" / "old.json").write_text("{}")
    for name in ("left", "running"):
        (bundles / f".{name}.building" / "denoiser").mkdir(parents=True)
    lock = FileLock(bundles / ".running.lock")
    assert lock.acquire()
    (cache / "graphs").mkdir(exist_ok=True)
    (cache / "graphs" / "damaged.zip").write_bytes(b"PK")
    removed = read(capsys, "cache", "--prune")["removed"]
    assert removed["unfinished"] == 1
    assert (removed["graphs"], removed["receipts"], removed["identities"]) == (1, 2, 1)
    assert removed["objects"] > 0
    assert (bundles / ".running.building").is_dir()
    lock.release()
    assert said(capsys, "verify", "demo")[0] == 0
    assert "removed 1 unfinished" in said(capsys, "cache", "--prune")[2]


def test_doctor(capsys: pytest.CaptureFixture[str], cache: Path) -> None:
    code, out, _ = said(capsys, "doctor", "--json")
    facts = json.loads(out)
    assert code == 0
    assert facts["choice"] == {
        "backend": "onnxruntime on cpu",
        "device": "cpu",
        "reason": "the default on CPUs",
        "problem": None,
    }
    assert facts["packages"]["numpy"]
    assert facts["cache"]["path"] == str(cache)
    assert "a run uses" in said(capsys, "doctor")[1]


@pytest.mark.parametrize(
    ("words", "backend"),
    [
        (("--precision", "bf16"), "openvino"),
        (("--precision", "bf16-decoder"), "onnxruntime on cpu"),
        (("--backend", "onnxruntime"), "onnxruntime on cpu"),
        (("--device", "cuda"), "onnxruntime on cuda"),
        (("--device", "cuda", "--backend", "tensorrt"), "tensorrt"),
        (("--backend", "tensorrt"), None),
        (("--device", "cuda", "--backend", "openvino"), None),
    ],
)
def test_doctor_chooses_as_a_run_does(
    capsys: pytest.CaptureFixture[str], words: tuple[str, ...], backend: str | None
) -> None:
    code, out, _ = said(capsys, "doctor", "--json", *words)
    choice = json.loads(out)["choice"]
    assert choice["backend"] == backend
    assert code == (6 if backend is None or choice["problem"] else 0)


@pytest.mark.parametrize(("words", "code"), [(("--device", "tpu"), 2), (("--backend", "onnx"), 2)])
def test_doctor_refuses(capsys: pytest.CaptureFixture[str], words: tuple[str, ...], code: int) -> None:
    assert said(capsys, "doctor", *words)[0] == code
