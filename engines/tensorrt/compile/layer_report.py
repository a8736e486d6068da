"""Read a built engine's layers and tensors from the backend's log or from the engine."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sd2rt.engines.bundle.model_kinds import PartName
from sd2rt.engines.errors import BuildError
from sd2rt.engines.tensorrt.packages import dtype_name
from sd2rt.engines.tensorrt.profile_shapes import ShapeRange
from sd2rt.engines.tensorrt.trt_log import TrtLog

_LAYER = re.compile(
    r"Name: (?P<name>.*?), LayerType: (?P<kind>\w*), .*?TacticName: (?P<tactic>[^,]*), .*?Metadata: (?P<onnx>.*)",
    re.S,
)
_TENSOR = re.compile(
    r"Name: (?P<name>[^,]+), IOMode: (?P<mode>\w+), DataType: (?P<dtype>\w+), Dimensions: \[(?P<shape>[-\d,]*)\]"
)
_RANGE = re.compile(r"MinShape: \[([\d,]*)\], OptShape: \[([\d,]*)\], MaxShape: \[([\d,]*)\]")
_FUSED = re.compile(r"mha", re.IGNORECASE)
"""Matches the names of dedicated attention kernels: ``_gemm_mha_v2``, ``fmha``, ``_mha_v4``."""
_DTYPES = {"Float": "float32", "Half": "float16", "Int64": "int64", "UInt8": "uint8", "Bool": "bool"}


@dataclass(frozen=True, slots=True)
class Layer:
    """An engine layer, which runs one or a few kernels, and the ONNX nodes it implements."""

    name: str
    kind: str
    tactic: str
    onnx: tuple[str, ...]

    @property
    def fused_attention(self) -> bool:
        """True for a dedicated attention kernel, which computes scores, softmax and weighted sum."""
        return bool(_FUSED.search(self.name) or _FUSED.search(self.tactic))


@dataclass(frozen=True, slots=True)
class BuiltTensor:
    """An input or output of an engine. Dynamic dimensions are -1, and ``ranges`` has one entry per profile."""

    name: str
    is_input: bool
    dtype: str
    shape: tuple[int, ...]
    ranges: tuple[ShapeRange, ...] = ()


@dataclass(frozen=True, slots=True)
class LayerReport:
    """The layers and tensors of a built engine."""

    layers: tuple[Layer, ...]
    tensors: tuple[BuiltTensor, ...]

    @property
    def fused_attention(self) -> int:
        """Number of dedicated attention kernels."""
        return sum(layer.fused_attention for layer in self.layers)

    def as_dict(self) -> dict[str, Any]:
        """Convert to a dictionary for JSON."""
        return asdict(self)


def _onnx_nodes(metadata: str) -> tuple[str, ...]:
    """The ONNX nodes named in a layer's metadata, without duplicates."""
    return tuple(dict.fromkeys(re.findall(r"\[ONNX Layer: ([^\]]*)\]", metadata)))


def parse_log(messages: Sequence[str]) -> LayerReport | None:
    """Parse the report that TensorRT for RTX logs at the end of a build; None if there is none."""
    reports = [message for message in messages if message.startswith("Layers:")]
    if not reports:
        return None
    # The builder may log reports of parts of the engine before the complete one.
    layer_lines, _, tensor_lines = reports[-1].partition("\nI/O Tensors:")
    layers = []
    for text in re.split(r"\n(?=Name: )", layer_lines):
        if match := _LAYER.search(text):
            nodes = _onnx_nodes(match["onnx"])
            layers.append(Layer(match["name"].strip(), match["kind"], match["tactic"].strip(), nodes))
    return LayerReport(
        tuple(layers), tuple(_tensor(line) for line in tensor_lines.splitlines() if _TENSOR.search(line))
    )


def _tensor(line: str) -> BuiltTensor:
    match = _TENSOR.search(line)
    assert match is not None
    ranges = tuple(tuple(_numbers(text) for text in shapes) for shapes in _RANGE.findall(line))
    return BuiltTensor(
        match["name"].strip(),
        match["mode"] == "Input",
        _DTYPES.get(match["dtype"], match["dtype"]),
        _numbers(match["shape"]),
        ranges,  # type: ignore[arg-type]
    )


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(item) for item in text.split(",") if item)


def inspect_engine(trt: Any, log: TrtLog, plan: Any, part: PartName) -> LayerReport:
    """Read the report from the engine itself, for a backend that does not log it; needs a GPU.

    Args:
        trt: the backend's module.
        log: the builder's log.
        plan: the serialized engine.
        part: the part's name, for the error message.

    Raises:
        BuildError: the engine cannot be deserialised.
    """
    # An engine does not keep its runtime alive.
    runtime = trt.Runtime(log)
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        raise BuildError(f"{part}: the built engine cannot be read back: {log.take_error()}")
    text = engine.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.JSON)
    try:
        description = json.loads(text)
    except ValueError:
        description = {"Layers": text.splitlines()}
    layers = []
    for item in description.get("Layers", ()):
        entry = item if isinstance(item, dict) else {"Name": str(item)}
        layers.append(
            Layer(
                str(entry.get("Name", "")),
                str(entry.get("LayerType", "")),
                str(entry.get("TacticName", "")),
                _onnx_nodes(str(entry.get("Metadata", ""))),
            )
        )
    tensors = []
    for index in range(engine.num_io_tensors):
        name = engine.get_tensor_name(index)
        is_input = engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT
        shape = tuple(engine.get_tensor_shape(name))
        ranges: tuple[Any, ...] = ()
        if is_input and -1 in shape:
            ranges = tuple(
                tuple(tuple(sizes) for sizes in engine.get_tensor_profile_shape(name, profile))
                for profile in range(engine.num_optimization_profiles)
            )
        tensors.append(BuiltTensor(name, is_input, dtype_name(engine.get_tensor_dtype(name)), shape, ranges))
    return LayerReport(tuple(layers), tuple(tensors))
