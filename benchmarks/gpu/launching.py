"""Repeated launches of a denoiser engine alone, without the loop around it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Self

from numpy.typing import NDArray

from benchmarks.gpu.device import Stopwatch
from benchmarks.gpu.part_inputs import dims_of, part_inputs
from sd2rt.engines.bundle.engine_entry import EngineBackend, EngineEntry
from sd2rt.engines.bundle.reader import Bundle
from sd2rt.engines.cuda.device import CudaDevice
from sd2rt.engines.tensorrt.engine import TensorRtEngine
from sd2rt.engines.tensorrt.packages import load_module, mismatch_of
from sd2rt.runtime.denoising.batch import CARRY
from sd2rt.runtime.denoising.finite_checks import WATCHED

LAUNCHES = 20


class Launched:
    """Context manager: a denoiser engine on its own device, with inputs for guided images written.

    Raises:
        BundleError: the engine does not take these shapes.
    """

    def __init__(self, bundle: Bundle, entry: EngineEntry, side: int, batch: int, graph: bool = True) -> None:
        manifest = bundle.manifest
        self._device = CudaDevice(0)
        self._engine = TensorRtEngine(
            manifest.parts["denoiser"],
            entry,
            bundle.path,
            self._device,
            load_module(entry.backend),
            cuda_graph=graph,
        )
        dims = dims_of(manifest, "denoiser", side, batch)
        self._session = self._engine.session(dims, CARRY, WATCHED)
        for name, array in part_inputs(manifest, "denoiser", dims, still=True).items():
            self._session.buffers[name].write(array)
        for _ in range(3):
            self._session.launch()
        self._wait()

    def _wait(self) -> None:
        self._session.watched(wait=True)
        self._device.synchronize()

    def outputs(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Outputs of one launch on these inputs; the session's own inputs are restored afterwards."""
        buffers = self._session.buffers
        saved = {name: buffers[name].read().copy() for name in inputs}
        for name, array in inputs.items():
            buffers[name].write(array)
        self._session.launch()
        self._wait()
        # A carried output lies where its input was.
        names = {tensor.name: CARRY.get(tensor.name, tensor.name) for tensor in self._engine.part.outputs}
        outputs = {name: buffers[source].read().copy() for name, source in names.items() if source in buffers}
        for name, array in saved.items():
            buffers[name].write(array)
        return outputs

    def wall_ms(self) -> float:
        """Wall time of a launch: mean over several, synchronised at the end."""
        self._wait()
        began = time.perf_counter()
        for _ in range(LAUNCHES):
            self._session.launch()
        self._wait()
        return (time.perf_counter() - began) / LAUNCHES * 1e3

    def device_ms(self) -> float:
        """Device time of a launch: mean over several, by events around all of them."""
        self._wait()
        watch = Stopwatch(self._device.stream)
        watch.start("denoiser")
        for _ in range(LAUNCHES):
            self._session.launch()
        watch.stop()
        self._wait()
        return watch.milliseconds()[0][1] / LAUNCHES

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._engine.close()
        self._device.close()


def denoisers(bundle: Bundle, backend: EngineBackend, takes: Callable[[Any], bool]) -> list[EngineEntry]:
    """Denoiser engines of the bundle that fit this GPU and have a profile for which ``takes`` is true."""
    with CudaDevice(0) as device:
        capability = device.compute_capability
    version = str(load_module(backend).__version__)
    return [
        entry
        for entry in bundle.manifest.engines
        if entry.part == "denoiser"
        and entry.backend == backend
        and mismatch_of(entry, version, capability) is None
        and any(takes(profile) for profile in entry.profiles)
    ]
