"""The graph for the CUDA provider in a bundle: written, recorded, opened, and with replaced weights."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from sd2rt.engines.bundle.manifest import read_manifest
from sd2rt.engines.bundle.model_kinds import PartName
from sd2rt.engines.bundle.reader import open_bundle
from sd2rt.engines.bundle.schema import Part
from sd2rt.engines.interface import Device
from sd2rt.engines.onnxruntime.backend import OnnxRuntimeCudaBackend
from sd2rt.engines.onnxruntime.engine import OnnxRuntimeEngine
from sd2rt.engines.weights.graph_archive import CUDA_MODEL
from sd2rt.engines.weights.initializers import Weights
from sd2rt.export.graphs.cuda_forms.graph_file import write_forms, write_graph_for_cuda

from ....engines.onnxruntime.simulated_cuda import SimulatedCuda
from ....engines.step_inputs import step_inputs
from .graphs import PlainGraph

PRODUCTS = {"Attention", "Conv", "Einsum", "Gemm", "MatMul"}
DIMS = {"B": 1, "R": 2, "P": 1, "L": 77, "h": 8, "w": 8}


def test_half_bundles_have_it(small_half_bundle: Path) -> None:
    parts = read_manifest(small_half_bundle).parts
    with_graph = {name for name, part in parts.items() if part.onnxruntime_cuda is not None}
    assert with_graph == {"denoiser", "text_encoder", "encoder", "decoder"}
    part = parts["denoiser"]
    assert part.graph_for_cuda == f"denoiser/{CUDA_MODEL}"
    assert part.graph_for_cuda in {file.path for file in part.files}
    # It shares the weights: the folder has one data file.
    graph = small_half_bundle / part.graph_for_cuda
    assert [path.name for path in graph.parent.glob("*.data")] == ["model.onnx.data"]
    assert graph.stat().st_size < (small_half_bundle / part.onnx).stat().st_size


def test_other_bundles_run_the_portable_graph(small_bundle: Path, tmp_path: Path) -> None:
    text = (small_bundle / "bundle.json").read_text()
    assert "onnxruntime_cuda" not in text
    for part in read_manifest(small_bundle).parts.values():
        assert part.graph_for_cuda == part.onnx
        assert not write_graph_for_cuda("denoiser", tmp_path, part.precision)
        # Serialised as earlier versions did.
        assert "onnxruntime_cuda" not in part.model_dump()
        assert Part.model_validate_json(part.model_dump_json(), strict=True) == part
    assert not write_graph_for_cuda("depth_estimator", tmp_path, "fp16")


def test_a_manifest_lists_the_graph_that_it_names(small_half_bundle: Path) -> None:
    entry = json.loads((small_half_bundle / "bundle.json").read_text())["parts"]["denoiser"]
    Part.model_validate_json(json.dumps(entry), strict=True)
    for path, reason in (("denoiser/other.onnx", "not listed"), ("../model.onnx", "leaves the bundle")):
        with pytest.raises(ValueError, match=reason):
            Part.model_validate_json(json.dumps({**entry, "onnxruntime_cuda": path}), strict=True)
    other = entry["initializers"]
    with pytest.raises(ValueError, match=r"is not a \.onnx file"):
        Part.model_validate_json(json.dumps({**entry, "onnxruntime_cuda": other}), strict=True)


@pytest.mark.parametrize("part", ["denoiser", "text_encoder", "encoder", "decoder"])
def test_tf32_would_round_no_product_of_it(small_half_bundle: Path, part: PartName) -> None:
    entry = read_manifest(small_half_bundle).parts[part]
    assert entry.cuda_graph_takes_tf32
    graph = onnx.load(small_half_bundle / entry.graph_for_cuda, load_external_data=False)
    graph = onnx.shape_inference.infer_shapes(graph, strict_mode=True).graph
    types = {
        value.name: value.type.tensor_type.elem_type
        for value in (*graph.value_info, *graph.input, *graph.output)
    }
    products = [node for node in graph.node if node.op_type in PRODUCTS]
    assert products
    assert {types[node.output[0]] for node in products} == {onnx.TensorProto.FLOAT16}


def test_attention_in_float32_stays_exact(small_half_bundle: Path) -> None:
    part = read_manifest(small_half_bundle).parts["denoiser"].model_copy(update={"largest_scores": 1e5})
    assert part.attends_in_float32
    assert not part.cuda_graph_takes_tf32


@pytest.mark.parametrize(
    ("bundle", "graph"), [("small_half_bundle", CUDA_MODEL), ("small_bundle", "model.onnx")]
)
def test_the_cuda_provider_opens_it_where_it_is(
    bundle: str, graph: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    cuda = SimulatedCuda()
    cuda.install(monkeypatch)
    opened = open_bundle(request.getfixturevalue(bundle))
    backend = OnnxRuntimeCudaBackend(opened, Device("cuda"), threads=1, cuda_graph=False)
    for part in ("denoiser", "text_encoder"):
        backend.open(part).close()
    assert [path.name for path in cuda.paths] == [graph, graph]
    backend.open("tiled_decoder").close()
    assert cuda.paths[-1].name == "tiled.onnx"
    backend.close()
    allowed = str(int(graph == CUDA_MODEL))
    # Tiles have statistics in float32, by products.
    assert [options["use_tf32"] for options in cuda.options] == [allowed, allowed, "0"]


def lora(bundle: Path) -> dict[str, NDArray[Any]]:
    """Weights of a quarter of the layers of each kind that forms merge, changed by low-rank products."""
    opened = open_bundle(bundle)
    weights = Weights.in_bundle(opened, opened.part("denoiser"))
    random = np.random.default_rng(0)
    changed = {}
    for kind in (
        "attn1.to_q",
        "attn1.to_v",
        "attn2.to_k",
        "attn2.to_v",
        "time_emb_proj",
        "ff.net.0.proj",
        "conv1",
    ):
        names = sorted(name for name in weights if name.endswith(f"{kind}.weight"))
        assert len(names) > 1
        for name in names[::4]:
            value = weights.read(name)
            rows, columns = value.shape[0], value[0].size
            change = random.standard_normal((rows, 2)) @ random.standard_normal((2, columns))
            changed[name] = (value + 0.2 * change.reshape(value.shape)).astype(value.dtype)
    return changed


def step(part: Part, path: Path, weights: Mapping[str, NDArray[Any]] | None) -> NDArray[Any]:
    with OnnxRuntimeEngine(part, path, threads=1, weights=weights) as engine:
        session = engine.session(DIMS)
        for name, value in step_inputs(session).items():
            session.buffers[name].write(value.astype(session.buffers[name].dtype))
        session.launch()
        return session.buffers["state_out"].read()


FORMS_OF_STANDARD_OPERATORS = ("attention-3d", "qkv", "cross-kv", "time")


@pytest.mark.parametrize("name", ["small_bundle", "small_half_bundle"])
def test_loras_change_merged_weights_to_the_bit(
    name: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    bundle = Path(request.getfixturevalue(name))
    plain = PlainGraph(bundle, "denoiser", tmp_path / "denoiser")
    graph = plain.path.with_name(CUDA_MODEL)
    write_forms(plain.path, graph, FORMS_OF_STANDARD_OPERATORS)
    changed = lora(bundle)
    before, after = step(plain.part, graph, None), step(plain.part, graph, changed)
    assert np.abs(after - before).max() > 0.01 * np.abs(before).max()
    if plain.part.precision == "fp32":
        np.testing.assert_array_equal(before, step(plain.part, plain.path, None))
        np.testing.assert_array_equal(after, step(plain.part, plain.path, changed))
    # A bundle of the changed weights gives the same bits.
    write_weights(plain.path, changed)
    np.testing.assert_array_equal(after, step(plain.part, graph, None))


def write_weights(graph: Path, changed: Mapping[str, NDArray[Any]]) -> None:
    """Write weights into a part's data file."""
    weights = Weights(graph.with_name("initializers.json"))
    with graph.with_name(f"{graph.name}.data").open("r+b") as data:
        for name, value in changed.items():
            data.seek(weights[name].offset)
            data.write(weights.replacement(name, value)[1].tobytes())
