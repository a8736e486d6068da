"""Engine of a part in OpenVINO, compiled for its first size and for any size, and its sessions."""

from __future__ import annotations

import functools
import logging
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from sd2rt.engines.errors import EngineError, engine_error
from sd2rt.engines.host_buffers import HostBuffer, WaitedSession, bound_array, session_buffers
from sd2rt.engines.interface import NO_CARRY, Closing, Session, Sessions
from sd2rt.engines.openvino.graph import CompiledGraph, OpenVinoGraph
from sd2rt.engines.telemetry import import_without_telemetry

if TYPE_CHECKING:
    import openvino

_LOG = logging.getLogger(__name__)

_MAX_IDLE_LAUNCHES = 200
"""Consecutive launches of other sizes, about several images, after which the first size's compilation is dropped."""


class OpenVinoEngine(Closing):
    """A part compiled by OpenVINO, at most twice: for the first requested size, and for all other sizes.

    A compilation for one size is faster (more operators are fused), but has its own copy of the weights and runs only
    that size. The size of the first session therefore gets its own compilation, and the first session of another size
    triggers a second one for any size. After 200 launches in a row of other sizes the first compilation is dropped,
    and the second runs its size too.

    Args:
        graph: the part's graph. The engine takes ownership, and drops it after the second compilation.
    """

    def __init__(self, graph: OpenVinoGraph) -> None:
        self.part, self._label = graph.part, graph.label
        self._graph: OpenVinoGraph | None = graph
        self._lock = threading.Lock()
        self._closed = False
        self._fixed: tuple[Mapping[str, int], CompiledGraph] | None = None
        self._dynamic: CompiledGraph | None = None
        self._idle_launches = 0
        self._sessions = Sessions[OpenVinoSession]()

    def session(
        self, dims: Mapping[str, int], carry: Mapping[str, str] = NO_CARRY, watch: str | None = None
    ) -> Session:
        """Return the session for these sizes, created on first use; an LRU cache holds 16.

        The first session compiles the part, as does the first one of another size.

        Raises:
            EngineError: the part cannot be compiled, memory ran out, or the engine is closed.
            BundleError: the replaced weights cannot be computed again for the second compilation.
        """
        with self._lock:
            self._refuse_closed()
            session = self._sessions.get(functools.partial(OpenVinoSession, self), dims, carry, watch)
            self._compiled(session)
            return session

    def takes(self, dims: Mapping[str, int]) -> bool:
        """Return whether the engine runs these sizes: any."""
        return True

    def keep_sessions(self) -> None:
        """See :class:`sd2rt.engines.interface.Engine`."""
        with self._lock:
            self._sessions.keep()

    def infer(self, session: OpenVinoSession) -> None:
        """Run the engine once on a session's buffers.

        Raises:
            EngineError: OpenVINO failed, or the engine is closed.
        """
        with self._lock:
            self._refuse_closed()
            try:
                self._compiled(session).run(session, session.tensor, session.changed)
            except RuntimeError as error:
                raise engine_error(f"{session.label} failed", error) from error
            if self._fixed is not None and self._dynamic is not None:
                self._idle_launches = 0 if self._fixed[0] == session.dims else self._idle_launches + 1
                if self._idle_launches == _MAX_IDLE_LAUNCHES:
                    self._fixed = None

    def _compiled(self, session: OpenVinoSession) -> CompiledGraph:
        """Return the compilation that runs a session's size; compiles if necessary."""
        if self._fixed is not None and self._fixed[0] == session.dims:
            return self._fixed[1]
        if self._dynamic is not None:
            return self._dynamic
        assert self._graph is not None
        start = time.monotonic()
        try:
            if self._fixed is None:
                shapes = {tensor.name: session.buffers[tensor.name].shape for tensor in self.part.inputs}
                compiled = self._graph.compiled(shapes)
                if compiled is not None:
                    self._fixed = (session.dims, compiled)
                    _LOG.info("compiled %s in %.2f s", session.label, time.monotonic() - start)
                    return compiled
            compiled = self._graph.compiled(None)
        except RuntimeError as error:
            raise engine_error(f"{session.label} cannot be compiled", error) from error
        assert compiled is not None
        # This compilation runs every size, so the graph is no longer needed.
        self._dynamic, self._graph = compiled, None
        _LOG.info("compiled %s for any size in %.2f s", self._label, time.monotonic() - start)
        return compiled

    def _refuse_closed(self) -> None:
        if self._closed:
            raise EngineError(f"{self._label} is closed: open it again")

    def close(self) -> None:
        """Free the engine and its sessions."""
        with self._lock:
            self._closed = True
            self._sessions.clear()
            self._graph = self._fixed = self._dynamic = None


class OpenVinoSession(WaitedSession):
    """Session whose NumPy arrays OpenVINO reads and writes in place; carried outputs and inputs swap arrays."""

    def __init__(
        self, engine: OpenVinoEngine, dims: Mapping[str, int], carry: Mapping[str, str], watch: str | None
    ) -> None:
        openvino = import_without_telemetry("openvino")
        part = engine.part
        self.label = f"{Path(part.onnx).parent.name} at {dict(dims)} on cpu"
        self.dims = dict(dims)
        self._engine, self._carry = engine, dict(carry)
        try:
            buffers = session_buffers(part, dims, carry, HostBuffer)
        except (ValueError, MemoryError) as error:
            raise engine_error(f"{self.label} cannot be prepared", error) from error
        self._tensors = {
            name: [openvino.Tensor(array, shared_memory=True) for array in buffer.arrays]
            for name, buffer in buffers.items()
        }
        super().__init__(buffers, carry, watch)
        self.changed = (set(carry.values()), set(carry))
        """Names of inputs and of outputs whose array changes with every launch."""

    def tensor(self, name: str) -> openvino.Tensor:
        """Return the tensor to bind to an input or output for the next launch."""
        return bound_array(self._tensors, self._carry, name, self._phase)

    def launch(self) -> None:
        """Run once; see :class:`sd2rt.engines.interface.Session`."""
        self._engine.infer(self)
        self._launched()
