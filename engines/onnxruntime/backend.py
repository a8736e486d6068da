"""The ONNX Runtime backend: runs the ONNX graphs that every bundle contains."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from sd2rt.engines.bundle.model_kinds import PartName
from sd2rt.engines.bundle.reader import Bundle
from sd2rt.engines.interface import Array, Device, Engine
from sd2rt.engines.onnxruntime.engine import OnnxRuntimeEngine
from sd2rt.engines.onnxruntime.fixed_sizes import named_sizes
from sd2rt.engines.onnxruntime.opening import require_cpu_address_space
from sd2rt.engines.onnxruntime.prepared import find_prepared


class OnnxRuntimeBackend:
    """Opens a bundle's ONNX graphs with ONNX Runtime on the CPU.

    Raises:
        EngineError: the address space is limited to less than ONNX Runtime needs.
    """

    name = "onnxruntime"

    def __init__(self, bundle: Bundle, *, threads: int | None, profiles: Path | None = None) -> None:
        require_cpu_address_space(threads)
        self.precision: str = bundle.manifest.precision
        self._bundle, self._threads, self._profiles = bundle, threads, profiles

    @property
    def max_batch(self) -> int | None:
        return None

    def open(
        self, part: PartName, weights: Mapping[str, Array] | None = None, like: Engine | None = None
    ) -> Engine:
        entry = self._bundle.part(part)
        prepared = find_prepared(entry) if weights is None else None

        def opening(graph: Path) -> OnnxRuntimeEngine:
            return OnnxRuntimeEngine(
                entry,
                graph,
                threads=self._threads,
                weights=weights,
                prepared=prepared is not None,
                profile=None if self._profiles is None else self._profiles / part,
            )

        if prepared is not None:
            return prepared.load(opening, lambda engine: engine.close())
        return self._bundle.load(
            entry.files, lambda folder: opening(folder / entry.onnxruntime), lambda engine: engine.close()
        )

    def close(self) -> None:
        return


class OnnxRuntimeCudaBackend:
    """Opens a bundle's ONNX graphs with ONNX Runtime on an NVIDIA GPU.

    Args:
        fixed_sizes: open the denoiser twice more, for one image of the bundle's default size with guidance and
            without. Each takes the memory of its weights again.

    Raises:
        MissingDependencyError: ONNX Runtime, its CUDA provider, cuda-python, the driver or the GPU is missing.
    """

    name = "onnxruntime"

    def __init__(
        self,
        bundle: Bundle,
        device: Device,
        *,
        threads: int | None,
        cuda_graph: bool,
        allow_cpu_fallback: bool = False,
        fixed_sizes: bool = False,
    ) -> None:
        from sd2rt.engines.cuda.device import CudaDevice
        from sd2rt.engines.onnxruntime.opening import import_onnxruntime

        self.precision: str = bundle.manifest.precision
        self._bundle, self._threads = bundle, threads
        self._cuda_graph, self._allow_cpu_fallback = cuda_graph, allow_cpu_fallback
        self._fixed_sizes = fixed_sizes
        # A missing CUDA provider is the more helpful error.
        import_onnxruntime(device)
        self._device = CudaDevice(device.index)

    @property
    def max_batch(self) -> int | None:
        return None

    def open(
        self, part: PartName, weights: Mapping[str, Array] | None = None, like: Engine | None = None
    ) -> Engine:
        from sd2rt.engines.onnxruntime.cuda_engine import OnnxRuntimeCudaEngine

        entry = self._bundle.part(part)

        def opening(folder: Path) -> OnnxRuntimeCudaEngine:
            # Not the CPU's graph: InstanceNormalization, which it has for GroupNormalization, has no CUDA kernel in
            # this opset.
            return OnnxRuntimeCudaEngine(
                entry,
                folder / entry.graph_for_cuda,
                self._device,
                threads=self._threads,
                # The other parts run once per image, where a graph gains nothing, and capturing one runs them
                # thrice.
                cuda_graph=self._cuda_graph and part == "denoiser",
                allow_cpu_fallback=self._allow_cpu_fallback,
                weights=weights,
                # The other parts would gain as little.
                fixed=named_sizes(self._bundle.manifest, part)
                if self._fixed_sizes and part == "denoiser"
                else (),
            )

        return self._bundle.load(entry.files, opening, lambda engine: engine.close())

    def close(self) -> None:
        self._device.close()
