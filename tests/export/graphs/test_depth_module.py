from __future__ import annotations

import copy
import io
from collections import Counter
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch.export import Dim
from transformers import DPTConfig, DPTForDepthEstimation
from transformers.models.bit.modeling_bit import WeightStandardizedConv2d

from sd2rt.engines.errors import CheckpointError
from sd2rt.export.graphs.depth_module import DepthEstimator

SIZE = 384
CONFIG: dict[str, Any] = {
    "is_hybrid": True,
    "image_size": SIZE,
    "patch_size": 16,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_attention_heads": 4,
    "num_hidden_layers": 4,
    "backbone_out_indices": [0, 1, 2, 3],
    "backbone_featmap_shape": [1, 128, 24, 24],
    "neck_hidden_sizes": [32, 64, 24, 24],
    "fusion_hidden_size": 16,
    "reassemble_factors": [1, 1, 1, 0.5],
    "backbone_config": {
        "model_type": "bit",
        "depths": [1, 1, 1],
        "hidden_sizes": [32, 64, 128],
        "embedding_size": 8,
        "num_groups": 4,
        "embedding_dynamic_padding": True,
        "global_padding": "SAME",
        "layer_type": "bottleneck",
        "out_features": ["stage1", "stage2", "stage3"],
    },
}
UNREAD = ("dpt.layernorm.", "neck.fusion_stage.layers.0.residual_layer1.")


@pytest.fixture(scope="module")
def network() -> Any:
    """A network whose weights are neither centred nor of one scale, so that standardising matters."""
    generator = torch.Generator().manual_seed(0)
    network = DPTForDepthEstimation(DPTConfig(**CONFIG)).eval().requires_grad_(False)
    for key, parameter in network.named_parameters():
        parameter.normal_(0.02, 0.08, generator=generator)
        if "norm" in key and key.endswith("weight"):
            parameter += 1
    network.head.head[4].bias.fill_(1.0)
    return network


@pytest.fixture(scope="module")
def image() -> torch.Tensor:
    return torch.randn(3, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def depth(network: Any, image: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return network(image).predicted_depth  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def exported(network: Any) -> bytes:
    stream = io.BytesIO()
    program = torch.onnx.export(
        DepthEstimator(network).eval(),
        (torch.zeros(2, 3, SIZE, SIZE),),
        dynamo=True,
        opset_version=23,
        dynamic_shapes={"image": {0: Dim("B", max=63)}},
        input_names=["image"],
        output_names=["depth"],
        verbose=False,
    )
    assert program is not None
    onnx.save(program.model_proto, stream)
    return stream.getvalue()


def relative(ours: Any, expected: torch.Tensor) -> float:
    return float((torch.as_tensor(ours) - expected).abs().max() / expected.abs().max())


def test_it_computes_what_transformers_does(network: Any, image: torch.Tensor, depth: torch.Tensor) -> None:
    with torch.no_grad():
        ours = DepthEstimator(network)(image)
    assert ours.shape == depth.shape == (3, SIZE, SIZE)
    assert depth.std() > 0.1
    assert relative(ours, depth) <= 1e-6


def test_standardising_once_is_exact(network: Any, image: torch.Tensor) -> None:
    """In double precision, the only difference left is the output's rounding to float32."""
    double = copy.deepcopy(network).double()
    with torch.no_grad():
        expected = double(image[:1].double()).predicted_depth
        assert relative(DepthEstimator(double)(image[:1]), expected) <= 1e-7


def test_half_precision_inside_float32_outside(
    network: Any, image: torch.Tensor, depth: torch.Tensor
) -> None:
    half = DepthEstimator(copy.deepcopy(network).half())
    assert {tensor.dtype for tensor in half.state_dict().values()} == {torch.float16}
    with torch.no_grad():
        ours = half(image[:1])
    assert ours.dtype == torch.float32
    assert relative(ours, depth[:1]) <= 0.03


def test_the_model_that_was_given_stays_as_it_was(network: Any) -> None:
    before = {key: tensor.clone() for key, tensor in network.state_dict().items()}
    modules = {name: type(module) for name, module in network.named_modules()}
    DepthEstimator(network)
    assert {name: type(module) for name, module in network.named_modules()} == modules
    assert all(torch.equal(tensor, before[key]) for key, tensor in network.state_dict().items())


def test_weights_keep_names_shapes_and_memory(network: Any) -> None:
    original = network.state_dict()
    standardized = {
        f"{name}.weight"
        for name, module in network.named_modules()
        if isinstance(module, WeightStandardizedConv2d)
    }
    ours = DepthEstimator(network).state_dict()
    assert list(ours) == [key for key in original if not key.startswith(UNREAD)]
    for key, tensor in ours.items():
        assert tensor.shape == original[key].shape
        assert (tensor.data_ptr() == original[key].data_ptr()) == (key not in standardized), key
    assert len(standardized) == 13


def test_the_graph_computes_it_at_every_batch(
    exported: bytes, image: torch.Tensor, depth: torch.Tensor
) -> None:
    session = onnxruntime.InferenceSession(exported, providers=["CPUExecutionProvider"])
    assert session.get_inputs()[0].shape == ["B", 3, SIZE, SIZE]
    assert session.get_outputs()[0].shape == ["B", SIZE, SIZE]
    for batch in (1, 2, 3):
        (ours,) = session.run(None, {"image": image[:batch].numpy()})
        assert ours.dtype == np.float32
        assert relative(ours, depth[:batch]) <= 1e-4


def test_operators_of_the_graph(exported: bytes) -> None:
    """Operators are whole; none standardises weights or resamples position embeddings."""
    counts = Counter(node.op_type for node in onnx.load_from_string(exported).graph.node)
    assert counts["Attention"] == 4
    assert counts["LayerNormalization"] == 8
    assert counts["GroupNormalization"] == 13
    assert counts["Gelu"] == 6
    # Four in the fusion layers and one in the head; none for the position embeddings.
    assert counts["Resize"] == 5
    assert not {"BatchNormalization", "ReduceMean", "ReduceVariance", "Sqrt", "Erf", "Softmax"} & set(counts)


def test_every_weight_reaches_the_graph(network: Any, exported: bytes) -> None:
    graph = onnx.load_from_string(exported).graph
    held = {tensor.name for tensor in graph.initializer}
    # Linear layers' weights are transposed by then.
    expected = {key for key, tensor in DepthEstimator(network).state_dict().items() if tensor.ndim != 2}
    assert expected - held == set()


def test_another_dpt_is_refused() -> None:
    plain = {key: value for key, value in CONFIG.items() if not key.startswith("backbone")}
    with torch.device("meta"):
        other = DPTForDepthEstimation(DPTConfig(**{**plain, "is_hybrid": False}))
    with pytest.raises(CheckpointError, match="is_hybrid") as error:
        DepthEstimator(other)
    assert "\n" not in str(error.value)
