"""Other weights in a bundle's graphs, by the map of its weights, against PyTorch with the same other weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from sd2rt.engines.bundle.model_kinds import KINDS
from sd2rt.engines.bundle.shapes import shape_of
from sd2rt.engines.interface import Device, Session
from sd2rt.engines.onnxruntime.engine import OnnxRuntimeEngine
from sd2rt.engines.weights.initializers import Weights
from sd2rt.export.build import part_module
from sd2rt.export.parity import PART_BOUNDS

CPU = Device("cpu")
SIZES = {"B": 1, "R": 2, "P": 1, "L": 77, "M": 3, "h": 8, "w": 16}


def feed(part: Any) -> dict[str, Any]:
    """Something of the right shape for each input; indices that are all there."""
    rng = np.random.default_rng(3)
    made = {}
    for tensor in part.inputs:
        shape = shape_of(tensor, SIZES)
        noise = rng.standard_normal(shape).astype(np.float32)
        made[tensor.name] = (
            np.zeros(shape, np.int64) if tensor.dtype == "int64" else noise.astype(tensor.dtype)
        )
    if "stats" in made:
        # Variances and shares are not negative.
        made = {
            name: np.abs(array) if name in ("stats", "weights") else array for name, array in made.items()
        }
        made["given"] = np.array([0.5], np.float32)
    if "timestep" in made:
        made["timestep"] = np.array([500.0], np.float32)
        made["cond"] = np.array([[1]])
    return made


def answer(session: Session, part: Any, given: dict[str, Any]) -> dict[str, Any]:
    for name, array in given.items():
        session.buffers[name].write(array)
    session.launch()
    return {tensor.name: session.buffers[tensor.name].read() for tensor in part.outputs}


def other_weights(weights: Weights) -> dict[str, Any]:
    """Others of the same spread, so that no value of the network leaves the range that it was made for."""
    rng = np.random.default_rng(7)
    made = {}
    for name in weights:
        own = weights.read(name)
        noise = rng.standard_normal(own.shape).astype(np.float32)
        made[name] = (own.mean() + own.std() * noise).astype(own.dtype) if own.size > 1 else own
    return made


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
    given = feed(part)
    module = part_module(pair.checkpoint, name, "fp32")
    prefix = "unet." if name == "denoiser" else ""
    module.load_state_dict({prefix + key: torch.from_numpy(value).float() for key, value in other.items()})
    with torch.no_grad():
        expected = module(
            *(
                torch.from_numpy(array.astype(np.float32) if array.dtype == np.float16 else array)
                for array in given.values()
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
        with OnnxRuntimeEngine(entry, path, CPU) as engine:
            own = answer(engine.session(SIZES), part, given)
        with OnnxRuntimeEngine(entry, path, CPU, weights=other) as engine:
            found = answer(engine.session(SIZES), part, given)
        for output, tensor in expected.items():
            array = tensor.numpy().astype(np.float64)
            error = float(np.abs(found[output] - array).max() / np.abs(array).max())
            table.add(
                "Replaced weights",
                f"{variant}, {name}, {Path(graph).name}, {output}",
                f"{error:.1e} of max",
                f"{PART_BOUNDS[part.precision]:g}",
            )
            assert error <= PART_BOUNDS[part.precision], (graph, output)
        first = part.outputs[0].name
        assert np.abs(found[first].astype(float) - own[first]).max() > 1e-2 * np.abs(own[first]).max()


def test_weights_are_the_checkpoints(base: Any) -> None:
    """Every weight of the network is read from the file, by its PyTorch name, to the bit."""
    bundle = base.pipeline.bundle
    networks = {"text_encoder": base.checkpoint.text_encoder(), "denoiser": base.checkpoint.unet()}
    for name, network in networks.items():
        part = bundle.manifest.parts[name]
        weights = Weights.of(part, bundle.file(part.onnx))
        state = {
            key.removeprefix("text_model."): value.numpy() for key, value in network.state_dict().items()
        }
        # The table is looked up on the host.
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
            held = onnx.load(bundle.file(graph), load_external_data=False).graph.initializer
            places = {
                tensor.name: {field.key: field.value for field in tensor.external_data}
                | {"dims": tensor.dims}
                for tensor in held
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
    given = feed(part)

    def made(weights: Any) -> Any:
        with OnnxRuntimeEngine(part, path, CPU, weights=weights) as engine:
            return answer(engine.session(SIZES), part, given)["state_out"]

    first, changed, again = made(None), made(other), made(None)
    assert np.abs(changed - first).max() > 1e-2
    np.testing.assert_array_equal(first, again)
    # The bundle's own, by way of the map.
    own = Weights.of(part, path)
    np.testing.assert_array_equal(made({name: own.read(name) for name in own}), first)
