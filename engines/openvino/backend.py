"""The OpenVINO backend: runs a bundle's ONNX graphs on x86-64 CPUs, in float32 or bfloat16."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import TYPE_CHECKING

from sd2rt.engines.address_space import require_address_space
from sd2rt.engines.bundle.model_kinds import PartName
from sd2rt.engines.bundle.reader import Bundle
from sd2rt.engines.bundle.schema import ComputePrecision
from sd2rt.engines.errors import MissingDependencyError, RequestError
from sd2rt.engines.install_hint import install_hint
from sd2rt.engines.interface import Array, Engine
from sd2rt.engines.openvino.engine import OpenVinoEngine
from sd2rt.engines.openvino.graph import OpenVinoGraph
from sd2rt.engines.telemetry import import_without_telemetry

if TYPE_CHECKING:
    import openvino


@functools.cache
def shared_core() -> openvino.Core:
    """OpenVINO's core, one for the process, which is never freed.

    Its CPU plugin gives the thread that compiles first another stack for signal handlers, and frees it with the core.
    If another thread does that, the next signal in the first one is a segmentation fault (OpenVINO 2026.4): an
    interrupt, for instance, after a pipeline was closed.
    """
    core: openvino.Core = import_without_telemetry("openvino").Core()
    return core


class OpenVinoBackend:
    """Runs a bundle's portable graphs with OpenVINO on the CPU.

    Args:
        threads: number of threads; None for one per core.
        precision: ``bf16`` for matrix products in bfloat16; None for float32.

    Raises:
        MissingDependencyError: OpenVINO is not installed.
        RequestError: the CPU does not support the precision.
        EngineError: the address space is limited to less than OpenVINO needs.
    """

    name = "openvino"
    max_batch: int | None = None

    def __init__(self, bundle: Bundle, *, threads: int | None, precision: ComputePrecision | None) -> None:
        # Measured: a run of the demo takes 1093 MB of address space with 1 core and 1203 MB with 2, whatever the
        # number of threads. With less, native code aborts, or a compilation fails.
        require_address_space("OpenVINO", 1200, 65)
        try:
            import_without_telemetry("openvino")
        except ImportError:
            raise MissingDependencyError(f"OpenVINO is not installed: {install_hint('openvino')}") from None
        # fp16 weights are converted to float32 at compilation.
        self.precision: str = "fp32" if precision is None else precision
        self._bundle, self._threads, self._precision = bundle, threads, precision
        self._core = shared_core()
        capabilities = self._core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        if precision == "bf16" and "BF16" not in capabilities:
            raise RequestError(
                "this CPU has no bfloat16 instructions (avx512_bf16, amx_bf16): omit --precision"
            )

    def open(
        self, part: PartName, weights: Mapping[str, Array] | None = None, like: Engine | None = None
    ) -> Engine:
        """See :class:`sd2rt.engines.interface.Backend`."""
        entry = self._bundle.part(part)
        graph = OpenVinoGraph(
            self._core,
            entry,
            self._bundle.file(entry.onnx),
            bundle=self._bundle,
            threads=self._threads,
            precision=self._precision,
            weights=weights,
        )
        return OpenVinoEngine(graph)

    def close(self) -> None:
        return
