"""The ONNX Runtime backend: runs the ONNX graphs that every bundle contains."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from sd2rt.engines.bundle.model_kinds import PartName
from sd2rt.engines.bundle.reader import Bundle
from sd2rt.engines.interface import Array, Device, Engine
from sd2rt.engines.onnxruntime.engine import OnnxRuntimeEngine
from sd2rt.engines.onnxruntime.prepared import find_prepared


class OnnxRuntimeBackend:
    """Opens a bundle's ONNX graphs with ONNX Runtime, on a CPU or on an NVIDIA GPU."""

    name = "onnxruntime"

    def __init__(
        self,
        bundle: Bundle,
        device: Device,
        *,
        threads: int | None,
        cuda_graph: bool,
        allow_cpu_fallback: bool = False,
        profiles: Path | None = None,
    ) -> None:
        self.precision: str = bundle.manifest.precision
        self._bundle, self._device = bundle, device
        self._threads, self._cuda_graph = threads, cuda_graph
        self._allow_cpu_fallback = allow_cpu_fallback
        self._profiles = profiles if device.kind == "cpu" else None

    @property
    def max_batch(self) -> int | None:
        return None

    def open(
        self, part: PartName, weights: Mapping[str, Array] | None = None, like: Engine | None = None
    ) -> Engine:
        entry = self._bundle.part(part)
        may_use_prepared = self._device.kind == "cpu" and weights is None
        # InstanceNormalization, which the CPU's graph has for GroupNormalization, has no CUDA kernel in this opset.
        graph = entry.onnxruntime if self._device.kind == "cpu" else entry.onnx
        return OnnxRuntimeEngine(
            entry,
            self._bundle.file(graph),
            self._device,
            threads=self._threads,
            cuda_graph=self._cuda_graph,
            allow_cpu_fallback=self._allow_cpu_fallback,
            weights=weights,
            prepared=find_prepared(entry) if may_use_prepared else None,
            profile=None if self._profiles is None else self._profiles / part,
        )

    def close(self) -> None:
        return
