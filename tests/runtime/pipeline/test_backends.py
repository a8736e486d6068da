"""Choice of backend: engines if they fit a (simulated) GPU, else ONNX Runtime with a warning."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sd2rt.engines.bundle.engine_entry import BuilderOptions
from sd2rt.engines.bundle.reader import open_bundle
from sd2rt.engines.errors import BundleError, MissingDependencyError, RequestError
from sd2rt.runtime import Pipeline

from ...engines.simulated_gpu import SimulatedGpu
from ...engines.simulated_tensorrt import make_tensorrt
from .conftest import compiled


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> SimulatedGpu:
    gpu = SimulatedGpu(pace="eager", seed=0)
    gpu.install(monkeypatch)
    monkeypatch.setitem(sys.modules, "tensorrt", make_tensorrt(gpu))
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    return gpu


Compile = Callable[..., Path]


@pytest.fixture
def bundle(gpu: SimulatedGpu, small_bundle: Path, tmp_path: Path) -> Compile:
    def make(**entry: Any) -> Path:
        return compiled(small_bundle, tmp_path / "shelf" / "bundle", sys.modules["tensorrt"], **entry)

    return make


def test_engines_are_taken_where_they_fit(bundle: Compile) -> None:
    with Pipeline.open(bundle(), device="cuda") as pipeline:
        assert pipeline.backend == "tensorrt"
        assert len(pipeline("a fox", num_inference_steps=2, output_type="np").images) == 1


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"compute_capabilities": ("8.9",)}, "built for sm_89, this GPU is sm_90"),
        (
            {"version": "11.3.0.1"},
            "built by tensorrt 11.3.0.1 and runs in that version only, this is 11.4.0.106",
        ),
    ],
)
def test_engines_that_do_not_fit(bundle: Compile, entry: dict[str, Any], message: str) -> None:
    with pytest.raises(BundleError, match=message) as caught:
        Pipeline.open(bundle(**entry), device="cuda", backend="tensorrt")
    assert "--engines-only --backend tensorrt" in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"refit": "identical"}, r"which only the full TensorRT can load: pip install '\.\[tensorrt\]'"),
        ({"refit": "individual"}, None),
        ({}, None),
    ],
)
def test_weightless_engines_in_the_lean_runtime(
    gpu: SimulatedGpu,
    small_bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: dict[str, Any],
    message: str | None,
) -> None:
    """The lean runtime has no parser to read a graph's weights."""
    lean = make_tensorrt(gpu, "tensorrt_lean")
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    monkeypatch.setitem(sys.modules, "tensorrt_lean", lean)
    entry = {
        "version_compatible": True,
        "options": BuilderOptions(backend="tensorrt", portable=True, **options),
    }
    path = compiled(small_bundle, tmp_path / "bundle", lean, **entry)
    if message is None:
        with Pipeline.open(path, device="cuda") as pipeline:
            assert pipeline.backend == "tensorrt"
        return
    with pytest.raises(BundleError, match=message):
        Pipeline.open(path, device="cuda", backend="tensorrt")
    assert not hasattr(lean, "OnnxParserRefitter")


@pytest.mark.parametrize(("capability", "mask", "taken"), [((9, 0), 0x7E, False), ((8, 9), 0x7E, True)])
def test_portable_engines_without_code_for_the_gpu(
    gpu: SimulatedGpu,
    small_bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capability: tuple[int, int],
    mask: int,
    taken: bool,
) -> None:
    """TensorRT for RTX does not list 9.0: an H100, though later than 8.0, runs none of its engines."""
    gpu.capability = capability
    rtx = make_tensorrt(gpu, "tensorrt_rtx", "1.7.1.116")
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", rtx)
    entry = {
        "backend": "tensorrt-rtx",
        "compute_capabilities": ("8.0", "8.6", "8.9", "12.0"),
        "hardware_compatible": True,
        "plan": {"mask": mask},
    }
    path = compiled(small_bundle, tmp_path / "bundle", rtx, **entry)
    if taken:
        with Pipeline.open(path, device="cuda") as pipeline:
            assert pipeline.backend == "tensorrt-rtx"
        return
    with pytest.raises(BundleError, match="it has no code for this GPU, which is sm_90"):
        Pipeline.open(path, device="cuda", backend="tensorrt-rtx")
    # Without a named backend, ONNX Runtime is tried next.
    with (
        pytest.warns(RuntimeWarning, match="using ONNX Runtime: .* has no code for this GPU"),
        pytest.raises(MissingDependencyError, match="no CUDA provider"),
    ):
        Pipeline.open(path, device="cuda")


def test_another_backend_is_said(bundle: Compile) -> None:
    """The installed ONNX Runtime has no CUDA provider, so opening stops there."""
    path = bundle(compute_capabilities=("8.9",))
    with (
        pytest.warns(RuntimeWarning, match="using ONNX Runtime: .* built for sm_89"),
        pytest.raises(MissingDependencyError, match="no CUDA provider"),
    ):
        Pipeline.open(path, device="cuda")


def test_a_backend_that_is_not_installed(bundle: Compile) -> None:
    with pytest.raises(MissingDependencyError, match=r"tensorrt_rtx cannot be loaded .*'\.\[rtx\]'"):
        Pipeline.open(bundle(), device="cuda", backend="tensorrt-rtx")


def test_a_bundle_without_engines(gpu: SimulatedGpu, small_bundle: Path) -> None:
    with pytest.raises(BundleError, match="it has no text_encoder engine: run 'sd2rt build"):
        Pipeline.open(small_bundle, device="cuda", backend="tensorrt")


def test_engines_on_the_cpu(small_bundle: Path) -> None:
    with pytest.raises(RequestError, match="tensorrt-rtx needs an NVIDIA GPU: use --device cuda"):
        Pipeline.open(small_bundle, backend="tensorrt-rtx")


def test_a_size_without_an_engine(bundle: Compile) -> None:
    with (
        Pipeline.open(bundle(), device="cuda") as pipeline,
        pytest.raises(BundleError, match=r"no denoiser engine for .*: run 'sd2rt build .* --size 1024x512'"),
    ):
        pipeline("a fox", width=1024, height=512, num_inference_steps=1)


def test_a_batch_beyond_the_profile(bundle: Compile) -> None:
    with (
        Pipeline.open(bundle(), device="cuda", max_batch=9) as pipeline,
        pytest.raises(BundleError, match=r"no denoiser engine for B 9.*--batch 9'"),
    ):
        pipeline("a fox", num_images_per_prompt=9, num_inference_steps=1)


def test_an_altered_engine(bundle: Compile) -> None:
    path = bundle()
    entry = next(entry for entry in open_bundle(path).manifest.engines if entry.part == "text_encoder")
    content = bytearray((path / entry.file.path).read_bytes())
    content[0] ^= 1
    (path / entry.file.path).write_bytes(content)
    with (
        Pipeline.open(path, device="cuda") as pipeline,
        pytest.raises(BundleError, match=r"has sha256 .* its manifest says"),
    ):
        pipeline("a fox", num_inference_steps=1)


def test_no_gpu(small_bundle: Path, bundle: Compile, monkeypatch: pytest.MonkeyPatch) -> None:
    path = bundle()
    monkeypatch.undo()
    with pytest.raises(MissingDependencyError) as caught:
        Pipeline.open(path, device="cuda", backend="tensorrt")
    assert "\n" not in str(caught.value)
