"""Demo bundles made from packaged files: those of export, byte for byte, and as safe."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest

from sd2rt.engines.bundle.file_lock import FileLock
from sd2rt.engines.bundle.manifest import MANIFEST, read_manifest
from sd2rt.engines.bundle.schema import Precision
from sd2rt.engines.demo import build
from sd2rt.engines.demo.build import build_demo
from sd2rt.engines.demo.files import DEMO_NAMES, PACKAGED
from sd2rt.engines.demo.template import read_template
from sd2rt.engines.errors import BuildError, CheckpointError, RequestError
from sd2rt.engines.weights.graph_archive import GraphArchive

STALE = "the packaged graphs or templates are stale: run 'python -m benchmarks.demo.graphs'"
WITHOUT_EXPORT = """
import sys
for package in ("torch", "diffusers", "transformers", "onnx", "onnxscript", "onnx_ir", "safetensors",
                "huggingface_hub"):
    sys.modules[package] = None
from sd2rt.runtime.cli.main import main
sys.exit(main(sys.argv[1:]))
"""
"""The command in a process that cannot import what only the extra `export` installs."""


def files_of(bundle: Path) -> dict[str, bytes]:
    return {
        path.relative_to(bundle).as_posix(): path.read_bytes() for path in bundle.rglob("*") if path.is_file()
    }


@pytest.mark.parametrize("precision", get_args(Precision))
@pytest.mark.parametrize("name", DEMO_NAMES)
def test_a_demo_is_the_exported_one(
    name: str, precision: Precision, trained_bundle: Callable[[str, Precision], Path], tmp_path: Path
) -> None:
    exported = trained_bundle(name, precision)
    # The name of the folder is in the manifest.
    target = tmp_path / exported.name
    result = build_demo(name, target, precision=precision)
    assert result.fresh
    lean, expected = files_of(target), files_of(exported)
    if (preview := read_manifest(exported).preview) != result.manifest.preview:
        # Fitted on another CPU, whose convolutions round otherwise: the last decimal may differ.
        assert preview is not None
        assert result.manifest.preview is not None
        np.testing.assert_allclose(result.manifest.preview.matrix, preview.matrix, atol=2e-4, err_msg=STALE)
        np.testing.assert_allclose(result.manifest.preview.error, preview.error, atol=2e-4, err_msg=STALE)
        lean[MANIFEST] = result.manifest.model_copy(update={"preview": preview}).to_json().encode()
    assert lean.keys() == expected.keys()
    for path in expected:
        assert lean[path] == expected[path], f"{path}: {STALE}"
    assert [path.name for path in tmp_path.iterdir()] == [exported.name]
    again = build_demo(name, target, precision=precision)
    assert (again.fresh, again.manifest) == (False, result.manifest)


def test_sizes_are_in_the_key_as_in_an_export(tmp_path: Path) -> None:
    from sd2rt.export.build import build as export
    from sd2rt.export.checkpoints.checkpoint import open_checkpoint

    sizes = [(256, 128), (128, 128)]
    exported = export(open_checkpoint("demo"), tmp_path / "exported" / "demo", sizes=sizes).manifest
    lean = build_demo("demo", tmp_path / "demo", sizes=sizes).manifest
    assert (lean.build_key, lean.identity) == (exported.build_key, exported.identity)
    assert exported.native_sizes == tuple(sizes)
    with pytest.raises(RequestError, match=r"^height "):
        build_demo("demo", tmp_path / "demo", sizes=[(128, 1)])


def test_export_keeps_a_demo_that_was_made_without_it(tmp_path: Path) -> None:
    from sd2rt.export.build import build as export
    from sd2rt.export.checkpoints.checkpoint import open_checkpoint

    build_demo("demo", tmp_path / "demo")
    assert not export(open_checkpoint("demo"), tmp_path / "demo").fresh


def run_without_export(cache: Path, *words: object) -> subprocess.CompletedProcess[str]:
    cache.mkdir(exist_ok=True)
    return subprocess.run(
        [sys.executable, "-P", "-c", WITHOUT_EXPORT, *map(str, words)],
        cwd=cache,
        env={**os.environ, "SD2RT_CACHE_DIR": str(cache)},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


def test_first_picture_without_export(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    ran = run_without_export(cache, "run", "a red circle", "--steps", 2, "--seed", 1)
    assert (ran.returncode, ran.stdout, ran.stderr) == (
        0,
        "1.png\n",
        "sd2rt: building the demo bundle, once\n",
    )
    assert (cache / "1.png").read_bytes()[:4] == b"\x89PNG"
    verified = run_without_export(cache, "verify", "demo")
    assert verified.returncode == 0, verified.stderr


@pytest.mark.parametrize("precision", get_args(Precision))
def test_every_demo_is_built_without_export(precision: Precision, tmp_path: Path) -> None:
    built = run_without_export(tmp_path, "build", *DEMO_NAMES, "--precision", precision, "--json")
    assert built.returncode == 0, built.stderr
    events = [json.loads(line) for line in built.stdout.splitlines()]
    assert [event["path"] for event in events if event["event"] == "done"] == [
        str(tmp_path / "bundles" / name) for name in DEMO_NAMES
    ]
    for name in DEMO_NAMES:
        manifest = read_manifest(tmp_path / "bundles" / name)
        assert (manifest.variant, manifest.precision) == (DEMO_NAMES[name], precision)


def test_a_checkpoint_is_not_built_without_export(small_checkpoint: Path, tmp_path: Path) -> None:
    for words in ((small_checkpoint,), ("demo", small_checkpoint), ("demo", "--lora", "style.safetensors")):
        built = run_without_export(tmp_path, "build", *words)
        assert built.returncode == 6
        assert built.stderr == (
            "sd2rt: torch is not installed, but building needs it: pip install '.[export,cpu]' in sd2rt's checkout\n"
        )
    assert not (tmp_path / "bundles").exists()


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the packaged files, for tests that damage it."""
    copy = shutil.copytree(
        PACKAGED, tmp_path / "package", ignore=shutil.ignore_patterns("*.py", "__pycache__")
    )
    monkeypatch.setattr(build, "PACKAGED", copy)
    return copy


@pytest.mark.parametrize("kind", ["weights", "graphs", "tokenizer"])
def test_a_damaged_package(package: Path, kind: str, tmp_path: Path) -> None:
    target = tmp_path / "bundles" / "demo"
    used = read_template("demo", "fp32").packaged
    path = package / next(name for name in used if name.startswith(kind))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"^the demo is damaged, {path} .*: reinstall sd2rt"):
        build_demo("demo", target)
    path.unlink()
    with pytest.raises(
        CheckpointError, match=rf"^the demo is incomplete, {path} is missing: reinstall sd2rt"
    ):
        build_demo("demo", target)
    assert not target.exists()


def test_templates_of_a_damaged_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sd2rt.engines.demo.files.MANIFESTS", tmp_path)
    with pytest.raises(
        CheckpointError, match=r"^the demo is incomplete, .*demo-v-fp16.json is missing: reins"
    ):
        build_demo("demo-v", tmp_path / "demo", precision="fp16")
    (tmp_path / "demo-v-fp16.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"^the demo is damaged, .*demo-v-fp16.json is not a template"):
        build_demo("demo-v", tmp_path / "demo", precision="fp16")


def test_an_interrupted_build_is_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "demo"
    expected = files_of(build_demo("demo", tmp_path / "whole" / "demo").path)

    def interrupted(part: str, fraction: float) -> None:
        if (part, fraction) == ("decoder", 0.0):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_demo("demo", target, progress=interrupted)
    assert not target.exists()
    filled: list[str] = []
    write = GraphArchive.write

    def recorded(self: GraphArchive, folder: Path, weights: Any) -> None:
        filled.append(folder.name)
        write(self, folder, weights)

    monkeypatch.setattr(GraphArchive, "write", recorded)
    build_demo("demo", target)
    # The tiled graphs are in the folders of their halves.
    assert filled == ["decoder", "encoder", "decoder", "encoder"]
    assert files_of(target) == expected
    assert {path.name for path in tmp_path.iterdir()} == {"whole", "demo"}


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(GraphArchive, "write", full)
        with pytest.raises(BuildError, match=r"^the disk of .* is full: make room"):
            build_demo("demo", tmp_path / "demo")
    assert list(tmp_path.iterdir()) == []
    build_demo("demo", tmp_path / "demo")


def test_concurrent_builds(tmp_path: Path) -> None:
    lock = FileLock(tmp_path / ".demo.lock")
    assert lock.acquire()
    with pytest.raises(BuildError, match=r"^another build of .* is running: wait for it"):
        build_demo("demo", tmp_path / "demo")
    lock.release()
    build_demo("demo", tmp_path / "demo")


def test_another_bundle_is_replaced_only_when_asked(tmp_path: Path) -> None:
    build_demo("demo", tmp_path / "demo")
    with pytest.raises(BuildError, match="is another bundle: add --force"):
        build_demo("demo-v", tmp_path / "demo")
    assert build_demo("demo-v", tmp_path / "demo", replace=True).manifest.variant == "v"
    assert build_demo("demo-v", tmp_path / "demo", again=True).fresh
    # A damaged bundle with the same key is built again without asking.
    # Other bundles hold links to its files.
    (tmp_path / "demo" / "tokenizer.json").unlink()
    (tmp_path / "demo" / "tokenizer.json").write_text("{}")
    assert build_demo("demo-v", tmp_path / "demo").fresh
