"""Operators of a CUDA session that would run on the CPU are an error, or a warning if that is allowed."""

from __future__ import annotations

import warnings
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

from sd2rt.engines.errors import EngineError
from sd2rt.engines.onnxruntime.cpu_fallback import SHAPE_ARITHMETIC, WITHOUT_CUDA_KERNEL
from sd2rt.runtime import Pipeline

from .cuda_engines import open_on_cuda
from .simulated_cuda import SimulatedCuda


@pytest.fixture
def bundle(small_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SD2RT_CACHE_DIR", str(tmp_path / "cache"))
    return small_bundle


@pytest.mark.parametrize(
    ("operators", "listed"),
    [(("Conv",), "28 Conv"), (("Concat", "Conv", "Attention", "Mul"), "1 Attention, 28 Conv")],
)
def test_compute_on_the_cpu_is_an_error(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, operators: tuple[str, ...], listed: str
) -> None:
    SimulatedCuda(cpu_operators=operators).install(monkeypatch)
    with (
        pytest.raises(
            EngineError, match=rf"^decoder on cuda:0: .* on the CPU \({listed}\): .*allow_cpu_fallback"
        ) as caught,
        open_on_cuda(bundle, "decoder"),
    ):
        pass
    assert caught.value.exit_code == 5
    assert "\n" not in str(caught.value)


def test_it_may_be_allowed(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    SimulatedCuda(cpu_operators=("Conv",)).install(monkeypatch)
    stack = ExitStack()
    with pytest.warns(RuntimeWarning, match=r"operators on the CPU \(28 Conv\)") as caught:
        engine = stack.enter_context(open_on_cuda(bundle, "decoder", allow_cpu_fallback=True))
    with stack:
        session = engine.session({"B": 1, "h": 8, "w": 8})
        session.launch()
        assert np.isfinite(session.buffers["image"].read()).all()
    assert len(caught) == 1


def test_shape_arithmetic_is_not_reported(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    SimulatedCuda(cpu_operators=tuple(SHAPE_ARITHMETIC | WITHOUT_CUDA_KERNEL)).install(monkeypatch)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with open_on_cuda(bundle, "decoder"):
            pass


def test_compute_on_the_cpu_is_never_captured(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX Runtime refuses to; shape arithmetic gives the same shapes at every launch."""
    SimulatedCuda(cpu_operators=tuple(WITHOUT_CUDA_KERNEL | {"Conv"})).install(monkeypatch)
    with (
        pytest.raises(
            EngineError, match=r"CUDA graph capture failed \(This session cannot .*leave cuda_graph out$"
        ),
        open_on_cuda(bundle, "decoder", cuda_graph=True, allow_cpu_fallback=True),
    ):
        pass
    SimulatedCuda(cpu_operators=tuple(SHAPE_ARITHMETIC)).install(monkeypatch)
    with open_on_cuda(bundle, "decoder", cuda_graph=True):
        pass


def test_pipelines_pass_it_on(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = SimulatedCuda(cpu_operators=("LayerNormalization",))
    cuda.install(monkeypatch)
    with pytest.raises(EngineError, match="LayerNormalization"):
        Pipeline.open(bundle, device="cuda", threads=1)
    with pytest.warns(RuntimeWarning, match="LayerNormalization"):
        pipeline = Pipeline.open(bundle, device="cuda", threads=1, allow_cpu_fallback=True)
    with pipeline:
        image = np.asarray(pipeline("a fox", seed=1, num_inference_steps=2, output_type="np").images)
    assert np.isfinite(image).all()
    # The graph for CPUs has operators without a CUDA kernel.
    assert {path.name for path in cuda.paths} == {"model.onnx"}
