"""Operators of a CUDA session that would run on the CPU are an error, or a warning if that is allowed."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest

from sd2rt.engines.bundle.reader import open_bundle
from sd2rt.engines.errors import EngineError
from sd2rt.engines.interface import Device
from sd2rt.engines.onnxruntime.cpu_fallback import SHAPE_ARITHMETIC, WITHOUT_CUDA_KERNEL
from sd2rt.engines.onnxruntime.engine import OnnxRuntimeEngine
from sd2rt.runtime import Pipeline

from .simulated_cuda import SimulatedCuda


@pytest.fixture
def bundle(small_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SD2RT_CACHE_DIR", str(small_bundle / "no-cache"))
    return small_bundle


def open_decoder(bundle: Path, *, allow_cpu_fallback: bool = False) -> OnnxRuntimeEngine:
    opened = open_bundle(bundle)
    part = opened.part("decoder")
    return OnnxRuntimeEngine(
        part, opened.file(part.onnx), Device("cuda"), threads=1, allow_cpu_fallback=allow_cpu_fallback
    )


@pytest.mark.parametrize(
    ("operators", "listed"),
    [(("Conv",), "28 Conv"), (("Concat", "Conv", "Attention", "Mul"), "1 Attention, 28 Conv")],
)
def test_compute_on_the_cpu_is_an_error(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, operators: tuple[str, ...], listed: str
) -> None:
    SimulatedCuda(cpu_operators=operators).install(monkeypatch)
    with pytest.raises(
        EngineError, match=rf"^decoder on cuda:0: .* on the CPU \({listed}\): .*allow_cpu_fallback"
    ) as caught:
        open_decoder(bundle)
    assert caught.value.exit_code == 5
    assert "\n" not in str(caught.value)


def test_it_may_be_allowed(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    SimulatedCuda(cpu_operators=("Conv",)).install(monkeypatch)
    with pytest.warns(RuntimeWarning, match=r"operators on the CPU \(28 Conv\)") as caught:
        engine = open_decoder(bundle, allow_cpu_fallback=True)
    with engine:
        session = engine.session({"B": 1, "h": 8, "w": 8})
        session.launch()
        assert np.isfinite(session.buffers["image"].read()).all()
    assert len(caught) == 1


def test_shape_arithmetic_is_not_reported(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    SimulatedCuda(cpu_operators=tuple(SHAPE_ARITHMETIC | WITHOUT_CUDA_KERNEL)).install(monkeypatch)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        open_decoder(bundle).close()


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
