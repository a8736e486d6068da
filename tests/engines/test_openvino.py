from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import openvino
import pytest

from sd2rt.engines.bundle import Bundle, open_bundle
from sd2rt.engines.errors import EngineError, MissingDependencyError, RequestError
from sd2rt.engines.openvino_backend import OpenVinoBackend
from sd2rt.engines.ort import OnnxRuntimeEngine
from sd2rt.engines.session import Array, Device, Session
from sd2rt.engines.weights import Weights
from sd2rt.runtime import Pipeline

from .test_cpu_sessions import CARRY, DIMS, fill

needs_bf16 = pytest.mark.skipif(
    "BF16" not in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"),
    reason="this CPU has no bfloat16 instructions",
)


@pytest.fixture(scope="module")
def bundle(small_bundle: Path) -> Bundle:
    return open_bundle(small_bundle)


def state_after(session: Session, launches: int) -> Array:
    fill(session)
    for _ in range(launches):
        session.launch()
    return session.buffers["state"].read()


def of_onnx_runtime(
    bundle: Bundle, dims: Mapping[str, int], launches: int, weights: Mapping[str, Array] | None = None
) -> Array:
    part = bundle.part("denoiser")
    with OnnxRuntimeEngine(
        part, bundle.file(part.onnxruntime), Device("cpu"), threads=1, weights=weights
    ) as engine:
        return state_after(engine.session(dims, CARRY), launches)


def distance(found: Array, expected: Array) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def test_sizes_in_turn_from_one_engine(bundle: Bundle) -> None:
    """It is compiled for no size, and each session finds its own buffers bound."""
    with OpenVinoBackend(bundle, threads=1, precision=None).open("denoiser") as engine:
        for width in (8, 16, 8, 24):
            dims = {**DIMS, "w": width}
            found = state_after(engine.session(dims, CARRY), 3)
            assert distance(found, of_onnx_runtime(bundle, dims, 3)) < 1e-5


def test_other_weights(bundle: Bundle) -> None:
    """Transposed in the graph or not, they are those that ONNX Runtime has in their place."""
    part = bundle.part("denoiser")
    known = Weights.of(part, bundle.file(part.onnx))
    random = np.random.default_rng(0)
    names = [name for name in known if name.startswith("down_blocks.0") and name.endswith("weight")]
    assert {known[name].transposed for name in names} == {True, False}
    changed = {
        name: value + 0.2 * value.std() * random.standard_normal(value.shape).astype(np.float32)
        for name in names
        for value in (known.read(name),)
    }
    expected = of_onnx_runtime(bundle, DIMS, 2, changed)
    assert distance(of_onnx_runtime(bundle, DIMS, 2), expected) > 1e-3
    backend = OpenVinoBackend(bundle, threads=1, precision=None)
    with backend.open("denoiser", changed) as engine:
        assert distance(state_after(engine.session(DIMS, CARRY), 2), expected) < 1e-5
    with pytest.raises(EngineError, match="denoiser on cpu has no weights named nose"):
        backend.open("denoiser", {"nose": np.zeros(1, np.float32)})


@needs_bf16
def test_bfloat16_leaves_the_samplers_sums_alone(bundle: Bundle) -> None:
    """What the network's output has no part in is not rounded: a step that moves latents about gives the same
    ones."""
    with OpenVinoBackend(bundle, threads=1, precision="bf16").open("denoiser") as engine:
        session = engine.session(DIMS, CARRY)
        values = fill(session)
        turned = np.zeros((1, 5, 7), np.float32)
        turned[0, range(5), [1, 2, 3, 4, 0]] = 1
        turned[0, 4, 6] = 0.5
        session.buffers["update"].write(turned)
        session.launch()
        state, found = values["state"], session.buffers["state"].read()
        np.testing.assert_array_equal(found[:, :4], state[:, 1:])
        np.testing.assert_allclose(found[:, 4], state[:, 0] + 0.5 * values["noise"], rtol=1e-6, atol=1e-6)


@needs_bf16
def test_bfloat16_is_multiplied_in(bundle: Bundle) -> None:
    expected = of_onnx_runtime(bundle, DIMS, 1)
    with OpenVinoBackend(bundle, threads=1, precision="bf16").open("denoiser") as engine:
        assert 1e-4 < distance(state_after(engine.session(DIMS, CARRY), 1), expected) < 6e-2


def test_a_cpu_without_bfloat16(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    class OldCore:
        def get_property(self, device: str, name: str) -> list[str]:
            return ["FP32", "INT8"]

    monkeypatch.setattr(openvino, "Core", OldCore)
    with pytest.raises(RequestError, match=r"no bfloat16 instructions .*: leave --precision out"):
        OpenVinoBackend(bundle, threads=1, precision="bf16")


def test_closed(bundle: Bundle) -> None:
    with OpenVinoBackend(bundle, threads=1, precision=None).open("text_encoder") as engine:
        session = engine.session({"B": 1})
    for use in (session.launch, lambda: engine.session({"B": 1})):
        with pytest.raises(EngineError, match="text_encoder on cpu is closed: open it again"):
            use()


@pytest.mark.parametrize("damage", ["missing", "garbage", "empty"])
def test_a_model_that_cannot_be_loaded(bundle: Bundle, tmp_path: Path, damage: str) -> None:
    from sd2rt.engines.openvino_backend import OpenVinoEngine

    model = tmp_path / "model.onnx"
    if damage != "missing":
        model.write_bytes(b"garbage" * 100 if damage == "garbage" else b"")
    with pytest.raises(EngineError) as caught:
        OpenVinoEngine(openvino.Core(), bundle.part("decoder"), model, threads=1, precision=None)
    assert str(caught.value).startswith(f"{model} cannot be loaded by OpenVINO: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"backend": "openvino", "device": "cuda"}, "openvino is for CPUs: give --device cpu"),
        ({"precision": "bf16", "device": "cuda"}, "--precision bf16 is for CPUs"),
        ({"precision": "bf16", "backend": "onnxruntime"}, "--precision bf16 takes --backend openvino"),
    ],
)
def test_what_does_not_go_together(small_bundle: Path, options: dict[str, Any], said: str) -> None:
    with pytest.raises(RequestError, match=said):
        Pipeline.open(small_bundle, **options)


def test_not_installed(small_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'sd2rt\[openvino\]'"):
        Pipeline.open(small_bundle, backend="openvino")


def test_requests_that_share_a_batch(small_bundle: Path) -> None:
    """They come and go: batches of several sizes, of guided and unguided rows, from one compiled engine."""
    from sd2rt.runtime import Request

    told: list[dict[str, Any]] = [
        {"prompt": "snow", "seed": 1, "sampler": "euler", "num_inference_steps": 6},
        {"prompt": "rain", "seed": 2, "sampler": "dpmpp-2m", "num_inference_steps": 3, "guidance_scale": 4.0},
        {"prompt": "fog", "seed": 3, "sampler": "ddim", "num_inference_steps": 4, "guidance_scale": 1.0},
    ]
    requests = [Request(output_type="np", **options) for options in told]
    with Pipeline.open(small_bundle, backend="openvino", threads=1) as pipeline:
        assert pipeline.backend == "openvino"
        together = pipeline.generate(requests)
        with Pipeline.open(small_bundle, threads=1) as reference:
            for request, output in zip(requests, together, strict=True):
                alone = reference.generate([request])[0]
                assert np.abs(np.asarray(output.images) - np.asarray(alone.images)).max() <= 2 / 255
