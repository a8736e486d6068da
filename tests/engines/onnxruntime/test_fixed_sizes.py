"""Sessions of fixed sizes: nothing is left open, in any part, and results are those of any size."""

from __future__ import annotations

import shutil
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
    model = onnx.load(path, load_external_data=False)
    # ONNX Runtime keeps recorded symbols of sizes that it computed after it had inferred the shapes: have it infer
    # them again.
    for value in model.graph.value_info:
        value.type.tensor_type.ClearField("shape")
    onnx.save(model, path)
    again = path.with_name("again.onnx")
    open_session(path, again, {})
    graph = onnx.load(again, load_external_data=False).graph
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
        folder = tmp_path / name
        # Graphs are saved beside the weights that they name.
        shutil.copytree(bundle.file(part.onnx).parent, folder)
        for graph in {Path(part.onnx).name, Path(part.graph_for_cuda).name}:
            any_size = open_session(folder / graph, folder / "any.onnx", {})
            dimensions = open_dimensions(any_size, part, sizes)
            assert bool(open_sides(folder / "any.onnx")) is bool(dimensions), name
            fixed = open_session(folder / graph, folder / "fixed.onnx", dimensions)
            assert all(isinstance(side, int) for value in fixed.get_inputs() for side in value.shape)
            assert all(isinstance(side, int) for value in fixed.get_outputs() for side in value.shape)
            assert open_sides(folder / "fixed.onnx") == set(), name


def test_a_dimension_has_one_size(small_bundle: Path, tmp_path: Path) -> None:
    bundle = open_bundle(small_bundle)
    part = bundle.part("denoiser")
    session = open_session(bundle.file(part.onnx), tmp_path / "any.onnx", {})
    assert open_dimensions(session, part, SIZES) == {name: SIZES[name] for name in "BRPLhw"}
    with pytest.raises(ValueError, match=r"sizes for \['B', 'R'\] only"):
        open_dimensions(session, part, {"B": 1, "R": 2})
    inputs = (
        tensor.model_copy(update={"shape": ("R", *tensor.shape[1:])}) if tensor.name == "noise" else tensor
        for tensor in part.inputs
    )
    twisted = part.model_copy(update={"inputs": tuple(inputs)})
    with pytest.raises(ValueError, match="noise: B would be 1 and 2"):
        open_dimensions(session, twisted, SIZES)


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
    larger = {**sizes[0], "B": 2, "R": 4}
    with OnnxRuntimeEngine(part, bundle.file(part.onnx), threads=1) as cpu:
        expected = [run_steps(cpu, dims, 3)[0] for dims in (sizes[0], larger)]
    cuda = SimulatedCuda(SimulatedGpu(pace="random"))
    cuda.install(monkeypatch)
    with open_on_cuda(small_bundle, "denoiser", fixed=sizes, cuda_graph=cuda_graph) as engine:
        assert len(cuda.paths) == 1 + len(sizes)
        for dims, own, state in zip((sizes[0], larger), (True, False), expected, strict=True):
            session = engine.session(dims)
            assert isinstance(session, CudaSession)
            executable = session._executable
            assert isinstance(executable, OnnxRuntimeExecutable)
            assert (executable._session in engine._fixed.values()) is own
            np.testing.assert_array_equal(run_steps(engine, dims, 3)[0], state)
    assert engine._fixed == {}
