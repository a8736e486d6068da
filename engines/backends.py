"""Choose the backend that runs a bundle: ONNX Runtime or OpenVINO from its graphs, TensorRT from its engines."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from sd2rt.engines.bundle.engine_entry import BackendName, EngineBackend
from sd2rt.engines.bundle.model_kinds import PartName
from sd2rt.engines.bundle.reader import Bundle
from sd2rt.engines.bundle.schema import ComputePrecision
from sd2rt.engines.errors import RequestError
from sd2rt.engines.interface import Backend, Device
from sd2rt.engines.onnxruntime.backend import OnnxRuntimeBackend


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
    """The backend to run a bundle with on a device.

    ``auto`` takes engines where the bundle has those of all ``needed`` parts that fit the GPU and an installed
    version, TensorRT's before TensorRT for RTX's; else ONNX Runtime, and warns where there were engines. With a
    ``precision`` it takes OpenVINO.

    Args:
        cuda_graph: capture and replay CUDA graphs, an error where that fails; None for engines alone, which warn and
            go on without.
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
            cuda_graph=cuda_graph,
        )
        if found is not None:
            return found
    return OnnxRuntimeBackend(bundle, device, threads=threads, cuda_graph=bool(cuda_graph), profiles=profiles)
