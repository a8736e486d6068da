"""Export the full-size ONNX graph of a part without weights, in seconds and less than a gigabyte of memory.

The networks are on PyTorch's meta device, so tensors have no values. Fixed sizes make tracing fast: the UNet takes a
quarter of the time it takes with symbolic sizes. The graph is the exporter's unoptimised output; its products are the
same as in a bundle's graph.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Mapping
from typing import Any

import onnx_ir as ir
import torch
from torch import nn

from benchmarks.cost_model.shapes import Graph
from sd2rt.engines.bundle.model_kinds import PartName
from sd2rt.engines.bundle.part_interface import Dimensions, interface
from sd2rt.engines.bundle.schema import shape_of
from sd2rt.export.checkpoints.networks import skeleton
from sd2rt.export.checkpoints.pipeline_configs import NetworkName, PipelineConfigs
from sd2rt.export.graphs.depth_module import DepthEstimator
from sd2rt.export.graphs.onnx_part import OPSET
from sd2rt.export.graphs.part_modules import Decoder, Denoiser, Encoder, TextEncoder

MODULES: dict[PartName, tuple[NetworkName, Any]] = {
    "text_encoder": ("text_encoder", TextEncoder),
    "denoiser": ("unet", Denoiser),
    "decoder": ("vae", Decoder),
    "encoder": ("vae", Encoder),
    "depth_estimator": ("depth_estimator", DepthEstimator),
}


def weightless_graph(configs: str, part: PartName, dims: Mapping[str, int]) -> Graph:
    """Export the graph of ``part`` at these sizes.

    Args:
        configs: a folder of export/configs.
        dims: the size of each symbol of the part's inputs.
    """
    return graph_of(PipelineConfigs.packaged(configs), part, dims)


def graph_of(configs: PipelineConfigs, part: PartName, dims: Mapping[str, int]) -> Graph:
    """Like :func:`weightless_graph`, for any configuration."""
    network, make = MODULES[part]
    config = configs.part(network)
    module: nn.Module = make(skeleton(network, config).requires_grad_(False)).eval()
    tensors = interface(part, dimensions(configs), "float32").inputs
    shapes = {tensor.name: shape_of(tensor, dims) for tensor in tensors}
    args = tuple(
        torch.zeros(shapes[tensor.name], dtype=getattr(torch, tensor.dtype), device="meta")
        for tensor in tensors
    )
    # The exporter's warnings and progress output do not matter here.
    with torch.no_grad(), warnings.catch_warnings(), contextlib.redirect_stdout(None):
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            module, args, dynamo=True, opset_version=OPSET, input_names=list(shapes), optimize=False, verbose=False
        )  # fmt: skip
    assert program is not None
    return Graph(_without_values(program.model), shapes)


def _without_values(model: ir.Model) -> Any:
    """Return the graph with its weights in a file that does not exist: only their shapes are needed."""
    for name, value in model.graph.initializers.items():
        tensor = value.const_value
        raw = getattr(tensor, "raw", None)
        if tensor is not None and isinstance(raw, torch.Tensor) and raw.device.type == "meta":
            value.const_value = ir.ExternalTensor(
                "none.data", 0, tensor.nbytes, tensor.dtype, name=name, shape=tensor.shape, base_dir=""
            )
    return ir.to_proto(model)


def dimensions(configs: PipelineConfigs) -> Dimensions:
    """The dimensions that :func:`interface` needs from a configuration."""
    channels = configs.vae["latent_channels"]
    extra_channels = configs.unet["in_channels"] - channels
    depth = configs.depth_estimator
    side = 0 if depth is None else depth["image_size"]
    return Dimensions(
        text_width=configs.text_encoder["hidden_size"],
        channels=channels,
        factor=2 ** (len(configs.vae["block_out_channels"]) - 1),
        extra=extra_channels,
        class_label=configs.unet.get("num_class_embeds") is not None,
        depth_size=(side, side),
    )
