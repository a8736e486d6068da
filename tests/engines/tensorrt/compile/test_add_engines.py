"""Engines added to bundles, by real builds of TensorRT for RTX: it needs no GPU for them."""

from __future__ import annotations

import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from sd2rt.engines.bundle.engine_entry import BuilderOptions, EngineEntry
from sd2rt.engines.bundle.file_lock import FileLock
from sd2rt.engines.bundle.manifest import Manifest, read_manifest
from sd2rt.engines.bundle.model_kinds import PartName
from sd2rt.engines.bundle.reader import open_bundle
from sd2rt.engines.cuda.gpu_info import GpuFacts
from sd2rt.engines.errors import BuildError, BundleError, MissingDependencyError, RequestError
from sd2rt.engines.tensorrt.compile.add_engines import build_engines
from sd2rt.engines.tensorrt.compile.profiles import Shapes
from sd2rt.runtime.cli.main import main

pytest.importorskip("tensorrt_rtx")

ADA = BuilderOptions(backend="tensorrt-rtx", compute_capabilities=("8.9",))
SIZE = Shapes(((128, 128),))
TEXT: tuple[PartName, ...] = ("text_encoder",)


def copy(bundle: Path, folder: Path) -> Path:
    """A bundle that may be changed; its large files are links, which nothing here writes into."""
    target = folder / "shelf" / "bundle"
    shutil.copytree(bundle, target, copy_function=os.link)
    return target


@pytest.fixture
def bundle(demo_half_bundle: Path, tmp_path: Path) -> Path:
    return copy(demo_half_bundle, tmp_path)


def report_of(bundle: Path, manifest: Manifest, part: PartName) -> dict[str, Any]:
    entry = next(entry for entry in manifest.engines if entry.part == part)
    found: dict[str, Any] = json.loads((bundle / entry.report.path).read_text())
    return found


@pytest.fixture(scope="module")
def built(demo_half_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The fp16 bundle with engines of all its parts, at a size of one tile and at one of several. Read only."""
    target = copy(demo_half_bundle, tmp_path_factory.mktemp("built"))
    build_engines(target, Shapes(((128, 128),), ((1, 1), (2, 4))), ADA)
    build_engines(target, Shapes(((1088, 64),)), ADA, parts=("tiled_decoder", "tiled_encoder"))
    return target


def test_every_part_in_half_precision(built: Path) -> None:
    manifest = read_manifest(built)
    assert {entry.part for entry in manifest.engines} == set(manifest.parts)
    for entry in manifest.engines:
        assert entry.file.path.startswith(f"{entry.part}/tensorrt-rtx-sm89-{entry.label}-")
        assert (entry.compute_capabilities, entry.gpu, entry.precision) == (("8.9",), None, "fp16")
    # Files of the bundle and of the engines, and nothing else.
    listed = {file.path for file in (*manifest.files, *manifest.engine_files)} | {"bundle.json"}
    assert {path.relative_to(built).as_posix() for path in built.rglob("*") if path.is_file()} == listed


@pytest.mark.parametrize("part", ["text_encoder", "denoiser"])
def test_attention_is_fused(built: Path, part: PartName) -> None:
    manifest = read_manifest(built)
    told = report_of(built, manifest, part)
    operators = sum(node == "Attention" for node in _operators(built / manifest.parts[part].onnx))
    profiles = len(next(entry for entry in manifest.engines if entry.part == part).profiles)
    assert operators > 0
    assert told["built"]["attentions"] == operators
    assert told["built"]["fused"] == operators * profiles
    kernels = [layer for layer in told["layers"] if "mha" in layer["name"]]
    assert len(kernels) == operators * profiles


def chosen_by_doctor(
    bundle: Path, capability: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> dict[str, Any]:
    """The choice that `sd2rt doctor` tells on a machine with a GPU of this capability."""
    gpu = GpuFacts("a GPU", capability, "CUDA 13.0")
    monkeypatch.setattr("sd2rt.engines.cli.doctor.gpu_at_hand", lambda index=0: gpu if index == 0 else None)
    main(["doctor", str(bundle), "--device", "cuda", "--json"])
    choice: dict[str, Any] = json.loads(capsys.readouterr().out)["choice"]
    return choice


def test_doctor_chooses_engines_of_all_parts(
    built: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert chosen_by_doctor(built, "8.9", monkeypatch, capsys)["backend"] == "tensorrt-rtx"
    other = chosen_by_doctor(built, "9.0", monkeypatch, capsys)
    assert other["backend"] == "onnxruntime on cuda"
    assert "lacks tensorrt-rtx" in other["reason"]
    assert "sm_90" in other["reason"]


def test_doctor_needs_engines_of_all_parts(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = chosen_by_doctor(bundle, "8.9", monkeypatch, capsys)
    assert before["reason"] == "the default on GPUs for a bundle without engines"
    build_engines(bundle, SIZE, ADA, parts=TEXT)
    after = chosen_by_doctor(bundle, "8.9", monkeypatch, capsys)
    assert after["backend"] == "onnxruntime on cuda"
    assert "it has no denoiser engine" in after["reason"]


def _operators(path: Path) -> list[str]:
    import onnx

    return [node.op_type for node in onnx.load(path, load_external_data=False).graph.node]


def test_engines_change_nothing_of_what_a_bundle_is(built: Path, demo_half_bundle: Path) -> None:
    assert read_manifest(built).identity == read_manifest(demo_half_bundle).identity
    assert open_bundle(built).manifest.engines


def test_what_is_there_is_kept(built: Path, tmp_path: Path) -> None:
    bundle = copy(built, tmp_path)
    before = read_manifest(bundle)
    again = build_engines(bundle, Shapes(((128, 128),), ((1, 1), (2, 4))), ADA)
    assert not again.made
    assert len(again.kept) == 4
    assert read_manifest(bundle) == before


def test_an_altered_engine_is_built_again(built: Path, tmp_path: Path) -> None:
    bundle = copy(built, tmp_path)
    entry = next(entry for entry in read_manifest(bundle).engines if entry.part == "text_encoder")
    content = bytearray((bundle / entry.file.path).read_bytes())
    content[len(content) // 2] ^= 1
    (bundle / entry.file.path).unlink()
    (bundle / entry.file.path).write_bytes(content)
    again = build_engines(bundle, SIZE, ADA, parts=TEXT)
    assert [made.part for made in again.made] == ["text_encoder"]
    made = again.made[0]
    assert (bundle / made.file.path).stat().st_size == made.file.size
    assert sum(one.part == "text_encoder" for one in read_manifest(bundle).engines) == 1


def test_other_gpus_have_engines_beside(bundle: Path) -> None:
    build_engines(bundle, SIZE, ADA, parts=TEXT)
    two = BuilderOptions(backend="tensorrt-rtx", compute_capabilities=("8.6", "12.0"))
    build_engines(bundle, SIZE, two, parts=TEXT)
    build_engines(bundle, SIZE, BuilderOptions(backend="tensorrt-rtx", portable=True), parts=TEXT)
    found = [(e.compute_capabilities, e.hardware_compatible) for e in read_manifest(bundle).engines]
    assert found == [(("8.9",), False), (("8.6", "12.0"), False), (("8.0", "8.6", "8.9", "12.0"), True)]


def test_again_replaces(bundle: Path) -> None:
    (first,) = build_engines(bundle, SIZE, ADA, parts=TEXT).made
    (second,) = build_engines(bundle, SIZE, ADA, parts=TEXT, again=True).made
    assert read_manifest(bundle).engines == (second,)
    engines = list((bundle / "text_encoder").glob("*.engine"))
    assert engines == [bundle / second.file.path]
    assert first.key == second.key


@pytest.mark.parametrize("kind", ["", "v_", "turbo_", "inpainting_", "depth_", "upscaler_"])
def test_every_part_of_every_variant(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    bundle = copy(request.getfixturevalue(f"small_{kind}bundle"), tmp_path)
    manifest = build_engines(bundle, SIZE, ADA).manifest
    tiled = [name for name in manifest.parts if name.startswith("tiled")]
    if kind in ("", "upscaler_"):
        # All others have the first one's autoencoder.
        manifest = build_engines(bundle, Shapes(((1088, 64),)), ADA, parts=tiled).manifest
        tiled = []
    assert {entry.part for entry in manifest.engines} == set(manifest.parts) - set(tiled)
    for entry in manifest.engines:
        tensors = {tensor["name"]: tensor for tensor in report_of(bundle, manifest, entry.part)["tensors"]}
        part = manifest.parts[entry.part]
        assert set(tensors) == {tensor.name for tensor in (*part.inputs, *part.outputs)}
        for tensor in (*part.inputs, *part.outputs):
            assert tensors[tensor.name]["dtype"] == tensor.dtype


def test_everything_fixed(bundle: Path) -> None:
    """One image, guided: nothing is left open, and the backend knows every shape."""
    shapes = Shapes(((128, 128),), rows="guided")
    manifest = build_engines(bundle, shapes, ADA, parts=("denoiser",)).manifest
    told = report_of(bundle, manifest, "denoiser")
    shapes_found = {tensor["name"]: tensor["shape"] for tensor in told["tensors"]}
    assert shapes_found["text"] == [2, 77, 96]
    assert not any(-1 in shape for shape in shapes_found.values())
    assert manifest.engines[0].label == "128x128-b1-guided"


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        (
            BuilderOptions(backend="tensorrt-rtx"),
            MissingDependencyError,
            "no GPU found to build for: add --sm 89",
        ),
        (
            BuilderOptions(backend="tensorrt-rtx", compute_capabilities=("9.0",)),
            RequestError,
            "--sm 90: tensorrt-rtx builds for 75, 80, 86, 89, 120, 121",
        ),
        (
            BuilderOptions(backend="tensorrt-rtx", compute_capabilities=("8.9",), portable=True),
            RequestError,
            "use one of them",
        ),
        (
            BuilderOptions(backend="tensorrt-rtx", compute_capabilities=("8.9",), workspace_bytes=1),
            BuildError,
            "no kernels that fit a workspace of 1 bytes",
        ),
    ],
)
def test_options_that_cannot_be(
    bundle: Path, options: BuilderOptions, error: type[Exception], said: str
) -> None:
    before = sorted(bundle.rglob("*"))
    with pytest.raises(error, match=said):
        build_engines(bundle, SIZE, options, parts=TEXT)
    assert sorted(bundle.rglob("*")) == before


def test_tensorrt_is_not_installed(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(MissingDependencyError, match=r"pip install '\.\[tensorrt\]'"):
        build_engines(bundle, SIZE, BuilderOptions(backend="tensorrt"))


def test_a_part_that_is_not_there(bundle: Path) -> None:
    with pytest.raises(RequestError, match=r"--part depth_estimator: .* has decoder, denoiser"):
        build_engines(bundle, SIZE, ADA, parts=("depth_estimator",))


def test_an_altered_graph_is_not_built(bundle: Path) -> None:
    path = bundle / "text_encoder/model.onnx"
    content = bytearray(path.read_bytes())
    content[100] ^= 1
    path.unlink()
    path.write_bytes(content)
    with pytest.raises(BundleError, match="its manifest says"):
        build_engines(bundle, SIZE, ADA)


def test_what_a_killed_build_left_goes(bundle: Path) -> None:
    folder = bundle / "text_encoder"
    for name in (
        "tensorrt-rtx-b1-7.building",
        "tensorrt-rtx-b1-7.building.json",
        "tensorrt-rtx-sm89-b1-0.engine",
    ):
        (folder / name).write_bytes(b"half")
    top = {path.name for path in bundle.iterdir()}
    (bundle / ".bundle.json.0a1b2c.part").write_text("half")
    made = build_engines(bundle, SIZE, ADA, parts=TEXT).made[0]
    engines = {path.name for path in folder.iterdir() if path.name.startswith("tensorrt")}
    assert engines == {Path(made.file.path).name, Path(made.report.path).name}
    assert {path.name for path in bundle.iterdir()} == top


def test_a_part_behind_a_link(bundle: Path, tmp_path: Path) -> None:
    (bundle / "text_encoder").rename(tmp_path / "elsewhere")
    (bundle / "text_encoder").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(BundleError, match="is a symbolic link"):
        build_engines(bundle, SIZE, ADA, parts=TEXT)


def test_no_such_part_at_these_sizes(bundle: Path) -> None:
    with pytest.raises(RequestError, match="images of 128x128 do not use this part"):
        build_engines(bundle, SIZE, ADA, parts=("tiled_decoder",))


def test_another_build_is_running(bundle: Path) -> None:
    lock = FileLock(bundle.parent / f".{bundle.name}.lock")
    assert lock.acquire()
    try:
        with pytest.raises(BuildError, match=r"another build of .* is running"):
            build_engines(bundle, SIZE, ADA)
    finally:
        lock.release()


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("kill -9 $$", "the compiler was killed, most likely because memory ran out"),
        ("echo 'CHECK failed' >&2; kill -6 $$", "the compiler was ended by signal SIGABRT: CHECK failed"),
        ("exit 3", "the compiler ended with exit code 3"),
    ],
)
def test_a_compiler_that_dies(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, said: str
) -> None:
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\n{script}\n")
    python.chmod(python.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setattr(sys, "executable", str(python))
    with pytest.raises(BuildError, match=said):
        build_engines(bundle, SIZE, ADA, parts=TEXT)
    assert not list(bundle.rglob("*.building*"))
    assert not read_manifest(bundle).engines


def test_interrupted(bundle: Path) -> None:
    """The compiler goes with the build, the engines before it stay, and the same command goes on."""
    words = [
        "build",
        str(bundle),
        "--engines-only",
        "--backend",
        "tensorrt-rtx",
        "--sm",
        "89",
        "--size",
        "64",
    ]
    words += ["--json", "--part", "text_encoder", "--part", "denoiser"]
    code = "import sys; from sd2rt.launch import script; script()"
    process = subprocess.Popen([sys.executable, "-c", code, *words], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        if json.loads(line).get("part", "").startswith("denoiser"):
            break
    # The line is printed before the compiler's process is made.
    deadline = time.monotonic() + 60
    children: list[str] = []
    while not children and time.monotonic() < deadline:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    process.send_signal(signal.SIGINT)
    process.stdout.close()
    assert process.wait(10) == 130
    assert len(children) == 1
    deadline = time.monotonic() + 10
    while Path(f"/proc/{children[0]}").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not Path(f"/proc/{children[0]}").exists()
    assert [entry.part for entry in read_manifest(bundle).engines] == ["text_encoder"]
    again = build_engines(bundle, Shapes(((128, 128),), ((1, 1), (2, 4))), ADA, parts=TEXT)
    assert (len(again.made), len(again.kept)) == (0, 1)
    assert not list(bundle.rglob("*.building*"))


def test_a_shared_engine_is_those_of_its_sizes(bundle: Path) -> None:
    """The same layers for each size, and every attention is one kernel."""
    sizes = ((64, 64), (128, 64))
    parts: tuple[PartName, ...] = ("denoiser",)
    alone = build_engines(bundle, Shapes(sizes), ADA, parts=parts)
    made = build_engines(bundle, Shapes(sizes, shared=True), ADA, parts=parts)
    (shared,) = made.made
    assert [profile.name for profile in shared.profiles] == ["64x64, batch 1", "128x64, batch 1"]

    def layers(entries: tuple[EngineEntry, ...]) -> Counter[tuple[str, ...]]:
        reports = [json.loads((bundle / entry.report.path).read_text()) for entry in entries]
        return Counter((layer["kind"], *layer["onnx"]) for each in reports for layer in each["layers"])

    assert layers((shared,)) == layers(alone.made)
    assert shared.file.size < 0.95 * sum(entry.file.size for entry in alone.made)
    told = json.loads((bundle / shared.report.path).read_text())["built"]
    assert told["fused"] == 2 * told["attentions"] > 0
