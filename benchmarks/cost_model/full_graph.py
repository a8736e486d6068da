"""Export the full-size graph of a part as a bundle has it, with values that stand for weights.

:mod:`benchmarks.cost_model.weightless` exports in seconds, but what an exporter makes is optimised before a bundle
has it. Here the product's own export runs: a minute and a half for a denoiser, 4 GB of memory and 2 GB of disk.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import nn

from benchmarks.cost_model.weightless import MODULES, dimensions
from sd2rt.engines.bundle.model_kinds import PartName
from sd2rt.engines.bundle.part_interface import interface
from sd2rt.engines.bundle.schema import Part, shape_of
from sd2rt.export.checkpoints.networks import skeleton
from sd2rt.export.checkpoints.pipeline_configs import PipelineConfigs
from sd2rt.export.graphs.onnx_part import export_part

_VALUES = 1 << 20
"""Different values of the weights, which repeat."""


def export_full_graph(configs: PipelineConfigs, name: PartName, folder: Path) -> Part:
    """Write ``folder/<name>/model.onnx`` in fp16, and return its manifest entry.

    Raises:
        BuildError: see :func:`~sd2rt.export.graphs.onnx_part.export_part`.
    """
    network, make = MODULES[name]
    module: nn.Module = make(
        skeleton(network, configs.part(network)).requires_grad_(False).to(torch.float16)
    ).eval()
    values = np.random.default_rng(0).standard_normal(_VALUES, np.float32).astype(np.float16) / 50
    for child in module.modules():
        for key, parameter in list(child.named_parameters(recurse=False)):
            filled = torch.from_numpy(np.resize(values, tuple(parameter.shape)))
            setattr(child, key, nn.Parameter(filled, requires_grad=False))
    return export_part(name, module, interface(name, dimensions(configs), "float16"), folder, "fp16")


def input_shapes(model: onnx.ModelProto, part: Part, dims: Mapping[str, int]) -> dict[str, tuple[int, ...]]:
    """Shape of each input of a part's graph, or of a form of it."""
    tensors: dict[str, Any] = {tensor.name: tensor for tensor in part.inputs}
    return {value.name: shape_of(tensors[value.name], dims) for value in model.graph.input}


def step_dims(side: int, batch: int) -> dict[str, int]:
    """Sizes of the denoiser's symbols for guided images of one prompt.

    Args:
        side: of the images, in pixels.
    """
    return {"B": batch, "R": 2 * batch, "P": 1, "L": 77, "h": side // 8, "w": side // 8}
