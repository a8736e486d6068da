"""Sessions of fixed sizes: nothing is left open, in any part, and results are those of any size."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import numpy as np
import onnx
import onnxruntime
import pytest

from sd2rt.engines.bundle.model_kinds import KINDS, PartName
from sd2rt.engines.bundle.reader import open_bundle
from sd2rt.engines.bundle.schema import symbols_of
from sd2rt.engines.cuda.session import CudaSession
from sd2rt.engines.onnxruntime.cuda_engine import OnnxRuntimeExecutable
from sd2rt.engines.onnxruntime.engine import OnnxRuntimeEngine
from sd2rt.engines.onnxruntime.fixed_sizes import named_sizes, open_dimensions

from ..simulated_gpu import SimulatedGpu
from ..step_inputs import run_steps
from .cuda_engines import open_on_cuda
from .simulated_cuda import SimulatedCuda

BUNDLES: dict[str, str] = {
    **{kind: "small_bundle" if kind == "base" else f"small_{kind}_bundle" for kind in KINDS},
    "base-fp16": "small_half_bundle",
}
SIZES = {"B": 1, "R": 2, "P": 1, "L": 77, "h": 8, "w": 16, "M": 3}


def open_session(path: Path, target: Path, sizes: dict[str, int]) -> onnxruntime.InferenceSession:
    """A session on the CPU, whose graph is saved with the shapes that ONNX Runtime inferred."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(target)
    for name, size in sizes.items():
        options.add_free_dimension_override_by_name(name, size)
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"], enable_fallback=0)


def open_sides(path: Path) -> set[str]:
    """Symbols in the shapes of a saved graph: of inputs, outputs, and the values between."""
    graph = onnx.load(path, load_external_data=False).graph
    values = (*graph.input, *graph.output, *graph.value_info)
    assert len(values) > len(graph.input) + len(graph.output)
    return {side.dim_param for value in values for side in value.type.tensor_type.shape.dim if side.dim_param}


@pytest.mark.parametrize("kind", BUNDLES)
def test_no_symbol_is_left(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    bundle = open_bundle(Path(request.getfixturevalue(BUNDLES[kind])))
    names = [name for name in get_args(PartName) if name in bundle.manifest.parts]
    for name in names:
        part = bundle.part(name)
        sizes = {symbol: SIZES[symbol] for symbol in symbols_of(part)}
        for graph in {part.onnx, part.graph_for_cuda}:
            any_size = open_session(bundle.file(graph), tmp_path / "any.onnx", {})
            dimensions = open_dimensions(any_size, part, sizes)
            assert bool(open_sides(tmp_path / "any.onnx")) is bool(dimensions), name
            fixed = open_session(bundle.file(graph), tmp_path / "fixed.onnx", dimensions)
            assert all(isinstance(side, int) for value in fixed.get_inputs() for side in value.shape)
            assert all(isinstance(side, int) for value in fixed.get_outputs() for side in value.shape)
            assert open_sides(tmp_path / "fixed.onnx") == set(), name


def test_a_dimension_has_one_size(small_bundle: Path, tmp_path: Path) -> None:
    bundle = open_bundle(small_bundle)
    part = bundle.part("decoder")
    session = open_session(bundle.file(part.onnx), tmp_path / "any.onnx", {})
    with pytest.raises(ValueError, match="sizes for"):
        open_dimensions(session, part, {"B": 1, "h": 8})
    first = part.inputs[0]
    twisted = part.model_copy(
        update={"inputs": (first.model_copy(update={"shape": (*first.shape[:2], "h", "B")}),)}
    )
    # The graph's w would be the batch, which is not its size elsewhere.
    assert open_dimensions(session, twisted, {"B": 1, "h": 8}) == {"B": 1, "h": 8, "w": 1}
    with pytest.raises(ValueError, match="B would be 1 and 8"):
        open_dimensions(
            session, twisted.model_copy(update={"inputs": (first.model_copy(update={"shape": ("B", 4, "B", "h")}),)}),
            {"B": 1, "h": 8},
        )  # fmt: skip


def test_named_sizes_are_guided_and_unguided(small_bundle: Path) -> None:
    manifest = open_bundle(small_bundle).manifest
    assert named_sizes(manifest, "denoiser") == [
        {"B": 1, "R": 2, "P": 1, "L": 77, "h": 8, "w": 8},
        {"B": 1, "R": 1, "P": 1, "L": 77, "h": 8, "w": 8},
    ]
    assert named_sizes(manifest, "decoder") == [{"B": 1, "h": 8, "w": 8}]


@pytest.mark.parametrize("cuda_graph", [False, True])
def test_calls_of_these_sizes_run_in_their_session(
    small_bundle: Path, monkeypatch: pytest.MonkeyPatch, cuda_graph: bool
) -> None:
    bundle = open_bundle(small_bundle)
    part = bundle.part("denoiser")
    sizes = named_sizes(bundle.manifest, "denoiser")
    cuda = SimulatedCuda(SimulatedGpu(pace="random"))
    cuda.install(monkeypatch)
    with (
        OnnxRuntimeEngine(part, bundle.file(part.onnx), threads=1) as cpu,
        open_on_cuda(small_bundle, "denoiser", fixed=sizes, cuda_graph=cuda_graph) as engine,
    ):
        assert len(cuda.paths) == 1 + len(sizes)
        for dims, launched in ((sizes[0], True), ({**sizes[0], "B": 2, "R": 4}, False)):
            session = engine.session(dims)
            assert isinstance(session, CudaSession)
            executable = session._executable
            assert isinstance(executable, OnnxRuntimeExecutable)
            assert (executable._session in engine._fixed.values()) is launched
            np.testing.assert_array_equal(run_steps(engine, dims, 3)[0], run_steps(cpu, dims, 3)[0])
    assert engine._fixed == {}
