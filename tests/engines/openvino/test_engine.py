"""OpenVINO engines: their compilations, agreement with ONNX Runtime, and float32 values under bfloat16."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import openvino
import pytest

from sd2rt.engines.bundle.reader import Bundle, open_bundle
from sd2rt.engines.errors import BundleError, EngineError
from sd2rt.engines.interface import Array, Session
from sd2rt.engines.onnxruntime.engine import OnnxRuntimeEngine
from sd2rt.engines.openvino.backend import OpenVinoBackend
from sd2rt.engines.openvino.graph import CompiledGraph, OpenVinoGraph
from sd2rt.engines.weights.initializers import Weights

from ..step_inputs import CARRY
from ..test_cpu_sessions import DIMS, fill

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
    with OnnxRuntimeEngine(part, bundle.file(part.onnxruntime), threads=1, weights=weights) as engine:
        return state_after(engine.session(dims, CARRY), launches)


def distance(result: Array, expected: Array) -> float:
    return float(np.linalg.norm(result - expected) / np.linalg.norm(expected))


LARGE = {**DIMS, "h": 24, "w": 24}
"""Sizes at which no attention has as many queries as heads."""
Compilations = list[tuple[str, weakref.ref[CompiledGraph]]]


@pytest.fixture
def compilations(monkeypatch: pytest.MonkeyPatch) -> Compilations:
    """Record compilations, with a weak reference to each: ``one size`` or ``any``."""
    record: Compilations = []
    compiled = OpenVinoGraph.compiled

    def noted(graph: OpenVinoGraph, shapes: Mapping[str, tuple[int, ...]] | None) -> CompiledGraph | None:
        compilation = compiled(graph, shapes)
        if compilation is not None:
            record.append(("any" if shapes is None else "one size", weakref.ref(compilation)))
        return compilation

    monkeypatch.setattr(OpenVinoGraph, "compiled", noted)
    return record


def kinds(compilations: Compilations) -> list[str]:
    return [kind for kind, _ in compilations]


def test_two_compilations_at_most(bundle: Bundle, compilations: Compilations) -> None:
    """There is one compilation for the first size, and one for all others."""
    with OpenVinoBackend(bundle, threads=1, precision=None).open("denoiser") as engine:
        assert kinds(compilations) == []
        first = engine.session(DIMS, CARRY)
        engine.session(dict(reversed(DIMS.items())))
        assert kinds(compilations) == ["one size"]
        others = [engine.session({**DIMS, **other}, CARRY) for other in ({"w": 16}, {"h": 16}, {"L": 154})]
        assert kinds(compilations) == ["one size", "any"]
        for session in (*others, first):
            fill(session)
            session.launch()
        assert kinds(compilations) == ["one size", "any"]
        assert all(reference() is not None for _, reference in compilations)
    assert all(reference() is None for _, reference in compilations)


def test_a_first_size_that_is_not_used_any_more(
    bundle: Bundle, compilations: Compilations, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its compilation is dropped after enough launches of other sizes, and the one for any size replaces it."""
    monkeypatch.setattr("sd2rt.engines.openvino.engine._MAX_IDLE_LAUNCHES", 3)
    with OpenVinoBackend(bundle, threads=1, precision=None).open("denoiser") as engine:
        first, second, third = (engine.session({**DIMS, "w": width}, CARRY) for width in (8, 16, 24))
        expected = state_after(first, 1)
        for session in (second, third, first, second, third):
            state_after(session, 1)
        assert compilations[0][1]() is not None
        state_after(second, 1)
        assert compilations[0][1]() is None
        assert distance(state_after(first, 1), expected) < 1e-5
        assert engine.session(DIMS, CARRY) is first
        assert kinds(compilations) == ["one size", "any"]


def test_a_size_that_cannot_be_compiled(bundle: Bundle, compilations: Compilations) -> None:
    """A UNet cannot run an empty image; later sizes are not affected."""
    with OpenVinoBackend(bundle, threads=1, precision=None).open("denoiser") as engine:
        for _ in range(2):
            with pytest.raises(
                EngineError, match=r"denoiser at \{.*'h': 0, .* on cpu cannot be compiled: "
            ) as caught:
                engine.session({**DIMS, "h": 0}, CARRY)
            assert "\n" not in str(caught.value)
        assert kinds(compilations) == []
        assert distance(state_after(engine.session(DIMS, CARRY), 1), of_onnx_runtime(bundle, DIMS, 1)) < 1e-5
        odd = engine.session({**DIMS, "h": 0}, CARRY)
        with pytest.raises(EngineError, match=r"denoiser at \{.*'h': 0, .* on cpu failed: "):
            odd.launch()
        assert kinds(compilations) == ["one size", "any"]


def test_threads_that_ask_at_once(bundle: Bundle, compilations: Compilations) -> None:
    with (
        OpenVinoBackend(bundle, threads=1, precision=None).open("text_encoder") as engine,
        ThreadPoolExecutor(4) as pool,
    ):
        sessions = list(pool.map(lambda size: engine.session({"B": size}), [1, 2] * 4))
        assert len({id(session) for session in sessions}) == 2
        assert kinds(compilations) == ["one size", "any"]


def test_sizes_in_turn_from_one_engine(bundle: Bundle) -> None:
    """Each session runs on its own buffers."""
    with OpenVinoBackend(bundle, threads=1, precision=None).open("denoiser") as engine:
        for width in (8, 16, 8, 24):
            dims = {**DIMS, "w": width}
            result = state_after(engine.session(dims, CARRY), 3)
            assert distance(result, of_onnx_runtime(bundle, dims, 3)) < 1e-5


def test_other_weights(bundle: Bundle) -> None:
    """Replaced weights, transposed in the graph or not, give the same results as in ONNX Runtime."""
    part = bundle.part("denoiser")
    weights = Weights.of(part, bundle.file(part.onnx))
    random = np.random.default_rng(0)
    names = [name for name in weights if name.startswith("down_blocks.0") and name.endswith("weight")]
    assert {weights[name].transposed for name in names} == {True, False}
    changed = {
        name: value + 0.2 * value.std() * random.standard_normal(value.shape).astype(np.float32)
        for name in names
        for value in (weights.read(name),)
    }
    expected = of_onnx_runtime(bundle, DIMS, 2, changed)
    assert distance(of_onnx_runtime(bundle, DIMS, 2), expected) > 1e-3
    backend = OpenVinoBackend(bundle, threads=1, precision=None)
    with backend.open("denoiser", changed) as engine:
        assert distance(state_after(engine.session(DIMS, CARRY), 2), expected) < 1e-5
        # The second compilation has the new weights too.
        wide = {**DIMS, "w": 16}
        result = state_after(engine.session(wide, CARRY), 2)
        assert distance(result, of_onnx_runtime(bundle, wide, 2, changed)) < 1e-5
    with pytest.raises(EngineError, match="denoiser on cpu has no weights named nose"):
        backend.open("denoiser", {"nose": np.zeros(1, np.float32)})
    missing = part.model_copy(update={"initializers": "denoiser/lost.json"})
    with pytest.raises(BundleError, match=r"lost\.json cannot be read"):
        OpenVinoGraph(
            openvino.Core(), missing, bundle.file(part.onnx), threads=1, precision=None, weights=changed
        )


@needs_bf16
@pytest.mark.parametrize("compiled_for", ["one size", "any"])
def test_bfloat16_leaves_the_samplers_sums_alone(
    bundle: Bundle, compilations: Compilations, compiled_for: str
) -> None:
    """Sums without the network's output are not rounded: a step that only moves latents returns the same
    values."""
    with OpenVinoBackend(bundle, threads=1, precision="bf16").open("denoiser") as engine:
        if compiled_for == "any":
            engine.session({**LARGE, "w": 32}, CARRY)
        session = engine.session(LARGE, CARRY)
        assert kinds(compilations)[-1] == compiled_for
        values = fill(session)
        turned = np.zeros((1, 5, 7), np.float32)
        turned[0, range(5), [1, 2, 3, 4, 0]] = 1
        turned[0, 4, 6] = 0.5
        session.buffers["update"].write(turned)
        session.launch()
        state, result = values["state"], session.buffers["state"].read()
        np.testing.assert_array_equal(result[:, :4], state[:, 1:])
        np.testing.assert_allclose(result[:, 4], state[:, 0] + 0.5 * values["noise"], rtol=1e-6, atol=1e-6)


@needs_bf16
def test_bfloat16_is_multiplied_in(bundle: Bundle) -> None:
    with OpenVinoBackend(bundle, threads=1, precision="bf16").open("denoiser") as engine:
        for dims in (LARGE, {**LARGE, "w": 32}):
            result = state_after(engine.session(dims, CARRY), 1)
            assert 1e-4 < distance(result, of_onnx_runtime(bundle, dims, 1)) < 2e-2


@needs_bf16
def test_bfloat16_with_as_many_queries_as_heads(bundle: Bundle, compilations: Compilations) -> None:
    """A compilation for this size alone would be wrong: the inner levels have four heads and four positions."""
    with OpenVinoBackend(bundle, threads=1, precision="bf16").open("denoiser") as engine:
        result = state_after(engine.session(DIMS, CARRY), 1)
        assert kinds(compilations) == ["any"]
        assert distance(result, of_onnx_runtime(bundle, DIMS, 1)) < 2e-2


@needs_bf16
@pytest.mark.parametrize("compiled_for", ["one size", "any"])
def test_bfloat16_keeps_timesteps(bundle: Bundle, compilations: Compilations, compiled_for: str) -> None:
    """Timestep 981 and its phases do not fit in eight bits, yet the output is as exact as for timestep 0."""

    def output(session: Session, timestep: float) -> Array:
        fill(session)
        update = np.zeros((1, 5, 7), np.float32)
        update[0, 0, 5] = 1
        session.buffers["update"].write(update)
        session.buffers["guidance"].write(np.array([[1, 0]], np.float32))
        session.buffers["timestep"].write(np.array([timestep], np.float32))
        session.launch()
        return session.buffers["state"].read()[:, 0]

    part = bundle.part("denoiser")
    with (
        OnnxRuntimeEngine(part, bundle.file(part.onnxruntime), threads=1) as reference,
        OpenVinoBackend(bundle, threads=1, precision="bf16").open("denoiser") as engine,
    ):
        if compiled_for == "any":
            engine.session({**LARGE, "w": 32}, CARRY)
        exact, rounded = reference.session(LARGE, CARRY), engine.session(LARGE, CARRY)
        assert kinds(compilations)[-1] == compiled_for
        error = {step: distance(output(rounded, step), output(exact, step)) for step in (0, 981)}
        assert error[981] < 1.5 * error[0]


def test_closed(bundle: Bundle) -> None:
    with OpenVinoBackend(bundle, threads=1, precision=None).open("text_encoder") as engine:
        session = engine.session({"B": 1})
    for use in (session.launch, lambda: engine.session({"B": 1})):
        with pytest.raises(EngineError, match="text_encoder on cpu is closed: open it again"):
            use()


@pytest.mark.parametrize("damage", ["missing", "garbage", "empty"])
def test_a_model_that_cannot_be_loaded(bundle: Bundle, tmp_path: Path, damage: str) -> None:
    model = tmp_path / "model.onnx"
    if damage != "missing":
        model.write_bytes(b"garbage" * 100 if damage == "garbage" else b"")
    with pytest.raises(EngineError) as caught:
        OpenVinoGraph(openvino.Core(), bundle.part("decoder"), model, threads=1, precision=None)
    assert str(caught.value).startswith(f"{model} cannot be loaded by OpenVINO: ")
    assert "\n" not in str(caught.value)
