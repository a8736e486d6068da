"""Choose the backend that runs a bundle: ONNX Runtime or OpenVINO from its graphs, TensorRT from its engines."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import get_args

from sd2rt.engines.bundle.engine_entry import BackendName, EngineBackend
from sd2rt.engines.bundle.model_kinds import UNTILED, PartName
from sd2rt.engines.bundle.reader import Bundle
from sd2rt.engines.bundle.schema import ComputePrecision
from sd2rt.engines.errors import RequestError
from sd2rt.engines.interface import Array, Backend, Device, Engine
from sd2rt.engines.onnxruntime.backend import OnnxRuntimeBackend, OnnxRuntimeCudaBackend

_LOG = logging.getLogger(__name__)


def backends_to_try(
    device: Device, name: BackendName, precision: ComputePrecision | None, *, has_engines: bool
) -> tuple[BackendName, ...]:
    """List the backends that may run a bundle, the preferred one first; there is no fallback from one that is named.

    Raises:
        RequestError: the backend does not support the device or the precision.
    """
    if name == "openvino" or (name == "auto" and precision == "bf16"):
        if device.kind != "cpu":
            option = "openvino" if name == "openvino" else f"--precision {precision}"
            raise RequestError(f"{option} runs on CPUs only: use --device cpu, or omit --device")
        return ("openvino",)
    if precision == "bf16-decoder" and device.kind != "cpu":
        raise RequestError(
            f"--precision {precision} runs on CPUs only: use --device cpu, or omit --precision"
        )
    if precision == "bf16":
        raise RequestError(
            f"--precision {precision} needs --backend openvino: {name} runs in the bundle's precision"
        )
    compiled = get_args(EngineBackend)
    if name in compiled:
        if device.kind == "cpu":
            raise RequestError(f"{name} needs an NVIDIA GPU: use --device cuda, or omit --backend")
        return (name,)
    preferred = compiled if name == "auto" and device.kind == "cuda" and has_engines else ()
    return (*preferred, "onnxruntime")


def open_backend(
    bundle: Bundle,
    device: Device,
    name: BackendName = "auto",
    *,
    needed: Sequence[PartName],
    threads: int | None = None,
    cuda_graph: bool | None = None,
    allow_cpu_fallback: bool = False,
    fixed_sizes: bool = False,
    precision: ComputePrecision | None = None,
    profiles: Path | None = None,
) -> Backend:
    """Open the backend that runs a bundle on a device.

    ``auto`` uses compiled engines if the bundle has, for every part in ``needed``, one that fits the GPU and the
    installed TensorRT version; TensorRT is preferred to TensorRT for RTX. Otherwise it uses ONNX Runtime, with a
    warning if the bundle has engines that do not fit. If the ``precision`` is ``bf16``, it uses OpenVINO.

    Args:
        cuda_graph: capture and replay CUDA graphs; True raises an error if that fails. None captures them for
            compiled engines only, with a warning if that fails.
        allow_cpu_fallback: with ONNX Runtime on a GPU, warn about operators that run on the CPU instead of raising an
            error.
        fixed_sizes: with ONNX Runtime on a GPU, open the denoiser again for each of two sizes: one image of the
            bundle's default size, with guidance and without.
        precision: compute precision of matrix products, if not the bundle's own: ``bf16``, or ``bf16-decoder`` to
            decode latents with OpenVINO in bfloat16 and compute everything else as without.
        profiles: folder for ONNX Runtime's operator profiles on the CPU; other backends record none.

    Raises:
        RequestError: the backend does not support the device or the precision.
        BundleError: a TensorRT backend was named, and no engine of the bundle fits.
        MissingDependencyError: the backend is not installed, or the GPU does not exist.
    """
    names = backends_to_try(device, name, precision, has_engines=bool(bundle.manifest.engines))
    if precision == "bf16-decoder":
        from sd2rt.engines.openvino.backend import OpenVinoBackend

        decoding = OpenVinoBackend(bundle, threads=threads, precision="bf16")
        others = open_backend(bundle, device, name, needed=needed, threads=threads, profiles=profiles)
        return MixedBackend(others, decoding)
    if "openvino" in names:
        from sd2rt.engines.openvino.backend import OpenVinoBackend

        return OpenVinoBackend(bundle, threads=threads, precision=precision)
    compiled = tuple(each for each in get_args(EngineBackend) if each in names)
    if compiled:
        # Imported only when needed: its import takes as long as all others together.
        from sd2rt.engines.tensorrt.backend import open_tensorrt

        backend = open_tensorrt(
            bundle,
            device,
            compiled,
            needed=needed,
            required="onnxruntime" not in names,
            cuda_graph=cuda_graph,
        )
        if backend is not None:
            return backend
    if device.kind == "cpu":
        return OnnxRuntimeBackend(bundle, threads=threads, profiles=profiles)
    return OnnxRuntimeCudaBackend(
        bundle,
        device,
        threads=threads,
        cuda_graph=bool(cuda_graph),
        allow_cpu_fallback=allow_cpu_fallback,
        fixed_sizes=fixed_sizes,
    )


class MixedBackend:
    """Opens the decoder with one backend, and all other parts with another; see :class:`Backend`."""

    def __init__(self, others: Backend, decoding: Backend) -> None:
        self._others, self._decoding = others, decoding
        self.name = others.name
        self.precision = f"{others.precision}, decoder in {decoding.precision}"

    @property
    def max_batch(self) -> int | None:
        return self._others.max_batch

    def open(
        self, part: PartName, weights: Mapping[str, Array] | None = None, like: Engine | None = None
    ) -> Engine:
        """See :class:`sd2rt.engines.interface.Backend`."""
        backend = self._decoding if UNTILED.get(part, part) == "decoder" else self._others
        return backend.open(part, weights, like)

    def close(self) -> None:
        self._decoding.close()
        self._others.close()


def open_part(
    backend: Backend,
    device: Device,
    part: PartName,
    weights: Mapping[str, Array] | None = None,
    like: Engine | None = None,
) -> Engine:
    """Open a part with a backend on its device, and log the seconds; see :meth:`Backend.open`."""
    start = time.monotonic()
    engine = backend.open(part, weights, like)
    changed = "" if weights is None else ", with other weights"
    seconds = time.monotonic() - start
    _LOG.info("opened %s with %s on %s in %.2f s%s", part, backend.name, device, seconds, changed)
    return engine
