"""Export one network to one ONNX file, with a map from its weights to the file's initialisers."""

from __future__ import annotations

import logging
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from torch import nn
from torch.export import Dim

from sd2rt.engines.bundle.files import describe
from sd2rt.engines.bundle.model_kinds import PartName
from sd2rt.engines.bundle.part_interface import Interface
from sd2rt.engines.bundle.schema import Part, Precision, Tensor, shape_of
from sd2rt.engines.errors import BuildError
from sd2rt.engines.weights.graph_archive import CUDA_MODEL, INITIALIZERS, MODEL, ORT_MODEL
from sd2rt.engines.weights.initializers import Weight, WeightMap
from sd2rt.export.graphs.attention_scores import compute_in_float32
from sd2rt.export.graphs.cuda_forms.graph_file import write_graph_for_cuda
from sd2rt.export.graphs.group_norm import lower_for_onnxruntime

OPSET = 23
"""The first opset that has Attention; GroupNormalization (21), LayerNormalization (17) and Gelu (20) are older."""

WHOLE_OPERATORS = {
    "Attention": {"Attention", "CLIPAttention", "DPTSelfAttention"},
    "GroupNormalization": {"GroupNorm", "BitGroupNormActivation"},
    "LayerNormalization": {"LayerNorm"},
    "Gelu": {"GEGLU", "GELUActivation", "GELU"},
}
"""Operators that have to reach the graph whole, and the module classes that export as one each. Backends have kernels
for them, but would have to recognise a decomposed one from its pieces."""

_LARGE = 1024
"""Constants larger than this, in bytes, are stored outside the graph file, as weights are."""

_EXAMPLE = {"B": 2, "R": 3, "P": 6, "L": 77, "h": 16, "w": 24}
# Distinct sizes, so that torch.export does not merge two symbols. With 64 rows or more, diffusers' UNet takes another
# branch (a copy, with the same arithmetic), which torch.export would have to trace too.
_DIMENSIONS = {
    "B": Dim("B", max=63),
    "R": Dim("R", max=63),
    "P": Dim("P", max=63),
    "L": Dim("L", max=77 * 16),
    "h": Dim("h", max=512),
    "w": Dim("w", max=512),
}


def export_part(
    name: PartName,
    module: nn.Module,
    interface: Interface,
    bundle: Path,
    precision: Precision = "fp32",
    progress: Callable[[float], None] = lambda fraction: None,
    *,
    float32_scores: bool = False,
) -> Part:
    """Write ``bundle/<name>/model.onnx`` with its weights beside it.

    Args:
        precision: the precision of the module's weights.
        float32_scores: compute attention in float32, in a float16 network.
        progress: called with the fraction of the work that is done, from 0 to 1.

    Raises:
        BuildError: the exporter failed, ran out of memory, dropped a weight, or decomposed an operator.
    """
    try:
        return _export(name, module, interface, bundle, precision, progress, float32_scores)
    except (RuntimeError, MemoryError) as error:
        # PyTorch raises a plain RuntimeError when memory runs out.
        reason = " ".join(str(error).split())[:200] or "out of memory"
        raise BuildError(f"{name} could not be exported: {reason}") from error


def _export(
    name: PartName,
    module: nn.Module,
    interface: Interface,
    bundle: Path,
    precision: Precision,
    progress: Callable[[float], None],
    float32_scores: bool,
) -> Part:
    folder = bundle / name
    folder.mkdir(parents=True, exist_ok=True)
    model = _trace(name, module, interface)
    progress(0.7)
    transposed = _name_weights(model, _prefix(name))
    with _distinct_values(model, set(weights_of(name, module)), transposed):
        _optimize(model)
    _strip(model)
    _check_operators(name, model, module)
    if float32_scores:
        compute_in_float32(model)
    weights = _weights(name, model, transposed, list(weights_of(name, module)))
    progress(0.8)
    weight_map = _save(
        model, weights, transposed, folder / MODEL, lambda fraction: progress(0.8 + 0.2 * fraction)
    )
    lower_for_onnxruntime(folder / MODEL, folder / ORT_MODEL)
    write_graph_for_cuda(name, folder, precision)
    (folder / INITIALIZERS).write_text(weight_map.to_json())
    return described_part(name, module, interface, bundle, precision)


def weights_of(name: PartName, module: nn.Module) -> dict[str, torch.Tensor]:
    """A part's weights, by their names in its weight map."""
    return {key.removeprefix(_prefix(name)): tensor for key, tensor in module.state_dict().items()}


def _prefix(name: PartName) -> str:
    return "unet." if name == "denoiser" else ""


def described_part(
    name: PartName, module: nn.Module, interface: Interface, bundle: Path, precision: Precision
) -> Part:
    """The manifest entry of a part whose files have been written."""
    folder = bundle / name
    paths = sorted(path for path in folder.iterdir() if path.is_file())
    return Part(
        precision=precision,
        onnx=f"{name}/{MODEL}",
        onnxruntime=f"{name}/{ORT_MODEL if (folder / ORT_MODEL).exists() else MODEL}",
        files=tuple(describe(bundle, path.relative_to(bundle).as_posix()) for path in paths),
        opset=OPSET,
        inputs=interface.inputs,
        outputs=interface.outputs,
        initializers=f"{name}/{INITIALIZERS}",
        parameters=sum(parameter.numel() for parameter in module.parameters()),
        onnxruntime_cuda=f"{name}/{CUDA_MODEL}" if (folder / CUDA_MODEL).exists() else None,
    )


def _trace(name: str, module: nn.Module, interface: Interface) -> ir.Model:
    args = tuple(_example(tensor) for tensor in interface.inputs)
    dynamic = {
        tensor.name: {i: _dynamic(s) for i, s in enumerate(tensor.shape) if isinstance(s, str)}
        for tensor in interface.inputs
    }
    try:
        with torch.no_grad(), _quiet():
            program = torch.onnx.export(
                module,
                args,
                dynamo=True,
                opset_version=OPSET,
                dynamic_shapes=dynamic,
                input_names=[tensor.name for tensor in interface.inputs],
                output_names=[tensor.name for tensor in interface.outputs],
                # Weights are named before optimising, which loses track of transposed ones.
                optimize=False,
                verbose=False,
            )
    except torch.onnx.errors.OnnxExporterError as error:
        raise BuildError(f"{name}: torch.onnx could not export it: {str(error).splitlines()[0]}") from error
    assert program is not None
    return program.model


def _dynamic(dimension: str) -> Any:
    """torch.export's dimension for a symbolic one such as ``B`` or ``8*h``."""
    factor, _, symbol = dimension.rpartition("*")
    return int(factor) * _DIMENSIONS[symbol] if factor else _DIMENSIONS[symbol]


def _example(tensor: Tensor) -> torch.Tensor:
    return torch.zeros(shape_of(tensor, _EXAMPLE), dtype=getattr(torch, tensor.dtype))


def _name_weights(model: ir.Model, prefix: str) -> dict[str, str]:
    """Name initialisers as in the network's state dict. Those that optimising will transpose are named
    ``<weight>.transposed``, and are returned with the names of their weights."""
    transposed: dict[str, str] = {}
    graph = model.graph
    for value in list(graph.initializers.values()):
        plain = (value.name or "").removeprefix(prefix)
        for node in value.consumers():
            if node.op_type == "Transpose" and len(value.shape or ()) == 2:
                node.outputs[0].name = f"{plain}.transposed"
                transposed[f"{plain}.transposed"] = plain
        if value.name != plain:
            del graph.initializers[value.name or ""]
            value.name = plain
            graph.initializers[plain] = value
    return transposed


@contextmanager
def _distinct_values(model: ir.Model, weights: Set[str], transposed: Mapping[str, str]) -> Iterator[None]:
    """Give weights other values meanwhile: optimising merges initialisers of equal values, and drops neutral ones.

    New networks have many such weights, whose graph has to be that of trained ones.
    """
    values = np.random.default_rng(0)
    kept: dict[str, NDArray[Any]] = {}
    for name, value in model.graph.initializers.items():
        if name in weights and value.const_value is not None:
            kept[name] = array = value.const_value.numpy()
            if array.size <= _LARGE or array.min() == array.max():
                drawn = values.uniform(1, 2, array.shape).astype(array.dtype)
                value.const_value = ir.tensor(drawn, name=name)
    yield
    for name, value in model.graph.initializers.items():
        if name in kept:
            value.const_value = ir.tensor(kept[name], name=name)
        elif (weight := transposed.get(name)) in kept:
            value.const_value = ir.tensor(np.ascontiguousarray(kept[weight].T), name=name)


def _optimize(model: ir.Model) -> None:
    from onnxscript import optimizer, rewriter

    with _quiet():
        # The limits let transposes of weights of any size be folded; no other constant is that large.
        optimizer.optimize_ir(model, input_size_limit=1 << 40, output_size_limit=1 << 40)
        rewriter.onnx_fusions.fuse(model)


def _strip(model: ir.Model) -> None:
    """Drop the exporter's metadata: stack traces with local paths, a third of the file's size."""
    model.metadata_props.clear()
    model.doc_string = None
    graph = model.graph
    graph.metadata_props.clear()
    graph.doc_string = None
    for node in graph:
        node.metadata_props.clear()
        node.doc_string = None
        for value in node.outputs:
            value.metadata_props.clear()
    for value in (*graph.inputs, *graph.outputs, *graph.initializers.values()):
        value.metadata_props.clear()
        value.doc_string = None


def _check_operators(part: str, model: ir.Model, module: nn.Module) -> None:
    classes = Counter(type(child).__name__ for child in module.modules())
    counts = Counter(node.op_type for node in model.graph)
    for operator, makers in WHOLE_OPERATORS.items():
        expected = sum(classes[maker] for maker in makers)
        if counts[operator] != expected:
            raise BuildError(
                f"{part}: {counts[operator]} {operator} operators were exported, but the network has {expected}: "
                "this version of PyTorch decomposes them; install the versions in constraints.txt"
            )


def _weights(
    part: str, model: ir.Model, transposed: Mapping[str, str], names: Sequence[str]
) -> dict[str, ir.Value]:
    """The initialiser of every weight. A weight must have exactly one: when it is replaced, a second one would keep
    the old value."""
    candidates: dict[str, list[ir.Value]] = {name: [] for name in names}
    for name, value in model.graph.initializers.items():
        weight = transposed.get(name, name)
        if weight in candidates:
            candidates[weight].append(value)
    missing = [name for name, values in candidates.items() if not values]
    if missing:
        raise BuildError(f"{part}: the exported graph lacks {len(missing)} weights, first {missing[0]}")
    repeated = [name for name, values in candidates.items() if len(values) > 1]
    if repeated:
        raise BuildError(f"{part}: the exported graph has {len(repeated)} weights twice, first {repeated[0]}")
    return {name: values[0] for name, values in candidates.items()}


def _save(
    model: ir.Model,
    weights: Mapping[str, ir.Value],
    transposed: Mapping[str, str],
    path: Path,
    progress: Callable[[float], None],
) -> WeightMap:
    """Write the graph, and a data file with all weights, followed by other large constants.

    Small weights go there too: ONNX Runtime cannot replace one that is stored in the graph itself.
    """

    def on_saved(tensor: object, info: ir.external_data.CallbackInfo) -> None:
        progress((info.index + 1) / info.total)

    named = {value.name for value in weights.values()}
    constants = (value for name, value in model.graph.initializers.items() if name not in named)
    values = [
        *weights.values(),
        *(v for v in constants if v.const_value is not None and v.const_value.nbytes > _LARGE),
    ]
    tensors = [value.const_value for value in values if value.const_value is not None]
    data = f"{path.name}.data"
    external = ir.external_data.convert_tensors_to_external(tensors, path.parent, data, callback=on_saved)
    for value, tensor in zip(values, external, strict=True):
        value.const_value = tensor
    ir.save(model, path)
    entries = {
        name: _entry(tensor, tensor.name in transposed)
        for name, tensor in zip(weights, external[: len(weights)], strict=True)
    }
    return WeightMap(file=data, weights=entries)


def _entry(tensor: ir.ExternalTensor, transposed: bool) -> Weight:
    stored = tuple(int(side) for side in tensor.shape)
    return Weight.model_validate(
        {
            "initializer": tensor.name,
            "transposed": transposed,
            "dtype": tensor.dtype.numpy().name,
            "shape": stored[::-1] if transposed else stored,
            "offset": tensor.offset,
            "length": tensor.length,
        }
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporter's warnings about torchvision, pytrees and renamed axes: users cannot act on them."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir", "torch.export")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
