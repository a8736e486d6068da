"""What runs a bundle's parts: ONNX Runtime from its graphs, or TensorRT from what was compiled of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, Protocol, get_args

from sd2rt.engines.bundle.manifest import EngineBackend
from sd2rt.engines.bundle.model_kinds import PartName
from sd2rt.engines.bundle.reader import Bundle
from sd2rt.engines.errors import RequestError
from sd2rt.engines.interface import Array, ComputePrecision, Device, Engine
from sd2rt.engines.onnxruntime.engine import OnnxRuntimeEngine
from sd2rt.engines.onnxruntime.prepared import find_prepared

BackendName = Literal["auto", "onnxruntime", "openvino", "tensorrt", "tensorrt-rtx"]


class Backend(Protocol):
    """Opens the parts of one bundle on one device."""

    name: str
    precision: str
    """What its engines multiply in: ``fp32``, ``fp16`` or ``bf16``."""

    @property
    def max_batch(self) -> int | None:
        """Images of a denoiser call, at most; None where there is no such bound."""

    def open(
        self, part: PartName, weights: Mapping[str, Array] | None = None, like: Engine | None = None
    ) -> Engine:
        """The engine of a part, with these weights by PyTorch name in the place of the bundle's own.

        Args:
            like: the one whose place it takes, where there is one: what that has loaded is loaded at once.

        Raises:
            BundleError: the bundle has no such part, or nothing of it that fits.
            BuildError: an engine with these weights cannot be compiled.
            EngineError: it cannot be loaded on the device.
        """

    def close(self) -> None:
        """Free what the engines share; they are closed by then."""


class OnnxRuntimeBackend:
    """ONNX Runtime, from the graphs that every bundle has."""

    name = "onnxruntime"

    def __init__(
        self,
        bundle: Bundle,
        device: Device,
        *,
        threads: int | None,
        cuda_graph: bool,
        profiles: Path | None = None,
    ) -> None:
        self.precision: str = bundle.manifest.precision
        self._bundle, self._device = bundle, device
        self._threads, self._cuda_graph = threads, cuda_graph
        self._profiles = profiles if device.kind == "cpu" else None

    @property
    def max_batch(self) -> int | None:
        return None

    def open(
        self, part: PartName, weights: Mapping[str, Array] | None = None, like: Engine | None = None
    ) -> Engine:
        entry = self._bundle.part(part)
        plain = self._device.kind == "cpu" and weights is None
        return OnnxRuntimeEngine(
            entry,
            self._bundle.file(entry.onnxruntime),
            self._device,
            threads=self._threads,
            cuda_graph=self._cuda_graph,
            weights=weights,
            prepared=find_prepared(entry) if plain else None,
            profile=None if self._profiles is None else self._profiles / part,
        )

    def close(self) -> None:
        return


def open_backend(
    bundle: Bundle,
    device: Device,
    name: BackendName = "auto",
    *,
    needed: Sequence[PartName],
    threads: int | None = None,
    cuda_graph: bool | None = None,
    precision: ComputePrecision | None = None,
    profiles: Path | None = None,
) -> Backend:
    """What to run a bundle with on a device.

    ``auto`` takes engines where the bundle has those of all ``needed`` parts that fit the GPU and an installed
    version, TensorRT's before TensorRT for RTX's; else ONNX Runtime, and warns where there were engines. With a
    ``precision`` it takes OpenVINO.

    Args:
        cuda_graph: capture and replay CUDA graphs; None for engines alone.
        precision: what to multiply in, where that is not the bundle's own precision.
        profiles: a folder, for what ONNX Runtime on the CPU records of its operators; other backends record nothing.

    Raises:
        RequestError: the backend does not run on the device.
        BundleError: a backend was named, and no engine of the bundle fits.
        MissingDependencyError: it is not installed, or there is no such GPU.
    """
    if name == "openvino" or (name == "auto" and precision is not None):
        if device.kind != "cpu":
            what = "openvino" if name == "openvino" else f"--precision {precision}"
            raise RequestError(f"{what} is for CPUs: give --device cpu, or leave it out")
        from sd2rt.engines.openvino.backend import OpenVinoBackend

        return OpenVinoBackend(bundle, threads=threads, precision=precision)
    if precision is not None:
        raise RequestError(
            f"--precision {precision} takes --backend openvino: {name} runs what is in the bundle"
        )
    compiled = get_args(EngineBackend)
    if device.kind == "cpu" and name in compiled:
        raise RequestError(f"{name} runs on an NVIDIA GPU: give --device cuda, or leave --backend out")
    if device.kind == "cuda" and (name in compiled or (name == "auto" and bundle.manifest.engines)):
        # Not before it is needed: it is as much to import as all the rest.
        from sd2rt.engines.tensorrt.backend import open_tensorrt

        wanted = tuple(item for item in compiled if name in ("auto", item))
        found = open_tensorrt(
            bundle,
            device,
            wanted,
            needed=needed,
            # A backend that was named is not replaced by another one.
            required=name != "auto",
            cuda_graph=True if cuda_graph is None else cuda_graph,
        )
        if found is not None:
            return found
    return OnnxRuntimeBackend(bundle, device, threads=threads, cuda_graph=bool(cuda_graph), profiles=profiles)
