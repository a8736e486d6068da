"""Replace weights in a bundle's graphs by its weight map, and compare with PyTorch with the same weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from sd2rt.engines.bundle.model_kinds import KINDS
from sd2rt.engines.bundle.schema import shape_of
from sd2rt.engines.interface import Session
from sd2rt.engines.onnxruntime.engine import OnnxRuntimeEngine
from sd2rt.engines.weights.initializers import Weights
from sd2rt.export.build import part_module
from sd2rt.export.parity import PART_BOUNDS

SIZES = {"B": 1, "R": 2, "P": 1, "L": 77, "M": 3, "h": 8, "w": 16}


def feed(part: Any) -> dict[str, Any]:
    """Random values of each input's shape; valid indices."""
    rng = np.random.default_rng(3)
    inputs = {}
    for tensor in part.inputs:
        shape = shape_of(tensor, SIZES)
        noise = rng.standard_normal(shape).astype(np.float32)
        inputs[tensor.name] = (
            np.zeros(shape, np.int64) if tensor.dtype == "int64" else noise.astype(tensor.dtype)
        )
    if "stats" in inputs:
        # Variances and shares are not negative.
        inputs = {
            name: np.abs(array) if name in ("stats", "weights") else array for name, array in inputs.items()
        }
        inputs["given"] = np.array([0.5], np.float32)
    if "timestep" in inputs:
        inputs["timestep"] = np.array([500.0], np.float32)
        inputs["cond"] = np.array([[1]])
    return inputs


def outputs_of(session: Session, part: Any, inputs: dict[str, Any]) -> dict[str, Any]:
    for name, array in inputs.items():
        session.buffers[name].write(array)
    session.launch()
    return {tensor.name: session.buffers[tensor.name].read() for tensor in part.outputs}


def other_weights(weights: Weights) -> dict[str, Any]:
    """Random weights with the mean and deviation of the original ones, so that activations stay in range."""
    rng = np.random.default_rng(7)
    changed = {}
    for name in weights:
        original = weights.read(name)
        noise = rng.standard_normal(original.shape).astype(np.float32)
        changed[name] = (
            (original.mean() + original.std() * noise).astype(original.dtype)
            if original.size > 1
            else original
        )
    return changed


@pytest.mark.parametrize(
    ("variant", "name"),
    [("base", part) for part in KINDS["base"].parts]
    + [("half", part) for part in ("text_encoder", "denoiser", "decoder")]
    + [("depth", "denoiser"), ("depth", "depth_estimator")],
)
def test_all_weights_replaced(request: Any, table: Any, variant: str, name: Any) -> None:
    pair = request.getfixturevalue(variant)
    bundle = pair.pipeline.bundle
    part = bundle.manifest.parts[name]
    weights = Weights.of(part, bundle.file(part.onnx))
    other = other_weights(weights)
    inputs = feed(part)
    module = part_module(pair.checkpoint, name, "fp32")
    prefix = "unet." if name == "denoiser" else ""
    module.load_state_dict({prefix + key: torch.from_numpy(value).float() for key, value in other.items()})
    with torch.no_grad():
        expected = module(
            *(
                torch.from_numpy(array.astype(np.float32) if array.dtype == np.float16 else array)
                for array in inputs.values()
            )
        )
    expected = dict(
        zip(
            (tensor.name for tensor in part.outputs),
            expected if isinstance(expected, tuple) else (expected,),
            strict=True,
        )
    )
    for graph in dict.fromkeys((part.onnxruntime, part.onnx)):
        entry, path = part.model_copy(update={"onnxruntime": graph}), bundle.file(graph)
        with OnnxRuntimeEngine(entry, path) as engine:
            original = outputs_of(engine.session(SIZES), part, inputs)
        with OnnxRuntimeEngine(entry, path, weights=other) as engine:
            ours = outputs_of(engine.session(SIZES), part, inputs)
        for output, tensor in expected.items():
            array = tensor.numpy().astype(np.float64)
            error = float(np.abs(ours[output] - array).max() / np.abs(array).max())
            table.add(
                "Replaced weights",
                f"{variant}, {name}, {Path(graph).name}, {output}",
                f"{error:.1e} of max",
                f"{PART_BOUNDS[part.precision]:g}",
            )
            assert error <= PART_BOUNDS[part.precision], (graph, output)
        first = part.outputs[0].name
        assert (
            np.abs(ours[first].astype(float) - original[first]).max() > 1e-2 * np.abs(original[first]).max()
        )


def test_weights_are_the_checkpoints(base: Any) -> None:
    """Every weight can be read from the file by its PyTorch name, bit for bit."""
    bundle = base.pipeline.bundle
    networks = {"text_encoder": base.checkpoint.text_encoder(), "denoiser": base.checkpoint.unet()}
    for name, network in networks.items():
        part = bundle.manifest.parts[name]
        weights = Weights.of(part, bundle.file(part.onnx))
        state = {
            key.removeprefix("text_model."): value.numpy() for key, value in network.state_dict().items()
        }
        # The token table is not in the graph: the host looks up embeddings.
        state.pop("embeddings.token_embedding.weight", None)
        state = {key.replace("embeddings.position", "position"): value for key, value in state.items()}
        assert set(state) == set(weights)
        for key, value in state.items():
            np.testing.assert_array_equal(weights.read(key), value, err_msg=key)


def test_graphs_of_a_part_share_names_and_bytes(depth: Any) -> None:
    bundle = depth.pipeline.bundle
    for part in bundle.manifest.parts.values():
        weights = Weights.of(part, bundle.file(part.onnx))
        expected = {
            weight.initializer: (weight.stored_shape, str(weight.offset), str(weight.length))
            for weight in weights.values()
        }
        for graph in {part.onnx, part.onnxruntime}:
            initializers = onnx.load(bundle.file(graph), load_external_data=False).graph.initializer
            places = {
                tensor.name: {field.key: field.value for field in tensor.external_data}
                | {"dims": tensor.dims}
                for tensor in initializers
            }
            for name, (shape, offset, length) in expected.items():
                place = places[name]
                assert place["location"] == "model.onnx.data", (graph, name)
                assert (tuple(place["dims"]), place["offset"], place["length"]) == (shape, offset, length)


def test_back_and_forth_is_equal_to_the_bit(base: Any) -> None:
    bundle = base.pipeline.bundle
    part = bundle.manifest.parts["denoiser"]
    path = bundle.file(part.onnxruntime)
    other = other_weights(Weights.of(part, path))
    inputs = feed(part)

    def output_with(weights: Any) -> Any:
        with OnnxRuntimeEngine(part, path, weights=weights) as engine:
            return outputs_of(engine.session(SIZES), part, inputs)["state_out"]

    first, changed, again = output_with(None), output_with(other), output_with(None)
    assert np.abs(changed - first).max() > 1e-2
    np.testing.assert_array_equal(first, again)
    # The bundle's original weights, read by the map.
    original = Weights.of(part, path)
    np.testing.assert_array_equal(output_with({name: original.read(name) for name in original}), first)
