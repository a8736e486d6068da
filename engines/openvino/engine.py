"""A part run by OpenVINO: compiled for the first size and for any, and its sessions of NumPy arrays."""

from __future__ import annotations

import functools
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from sd2rt.engines.errors import EngineError, engine_error
from sd2rt.engines.host_buffers import HostBuffer, WaitedSession, bound_array, session_buffers
from sd2rt.engines.interface import NO_CARRY, Closing, Session, Sessions
from sd2rt.engines.openvino.graph import CompiledGraph, OpenVinoGraph

if TYPE_CHECKING:
    import openvino

_LAUNCHES_KEPT = 200
"""Launches of other sizes in a row that the first size's compilation is kept for: several images."""


class OpenVinoEngine(Closing):
    """A part compiled by OpenVINO: for the first size that is asked for, and once more for all others.

    A compilation for one size is faster (its operators are fused further), takes weights of its own, and computes
    that size alone. So there are two at most. The first session's size has one; the other takes any size, and is
    made when a second size is asked for. Where the first size has not run for the last 200 launches, its
    compilation goes: from then on the other one serves it too.

    Args:
        graph: of the part; it is the engine's from now on, and goes with the second compilation.
    """

    def __init__(self, graph: OpenVinoGraph) -> None:
        self.part, self._label = graph.part, graph.label
        self._graph: OpenVinoGraph | None = graph
        self._lock = threading.Lock()
        self._closed = False
        self._first: tuple[Mapping[str, int], CompiledGraph] | None = None
        self._any: CompiledGraph | None = None
        self._since_first = 0
        self._sessions = Sessions[OpenVinoSession]()

    def session(
        self, dims: Mapping[str, int], carry: Mapping[str, str] = NO_CARRY, watch: str | None = None
    ) -> Session:
        """The session for these sizes, made on first use; the least recently used is dropped after 16.

        The first one of all compiles the part, and so does the first one of another size.

        Raises:
            EngineError: the part cannot be compiled, there is no memory for it or its buffers, or the engine is
                closed.
            BundleError: the weights that are put in the place of the bundle's own cannot be made again.
        """
        with self._lock:
            self._refuse_closed()
            session = self._sessions.get(functools.partial(OpenVinoSession, self), dims, carry, watch)
            self._compiled(session)
            return session

    def infer(self, session: OpenVinoSession) -> None:
        """Run once on a session's buffers.

        Raises:
            EngineError: OpenVINO failed, or the engine is closed.
        """
        with self._lock:
            self._refuse_closed()
            try:
                self._compiled(session).run(session, session.tensor, session.changed)
            except RuntimeError as error:
                raise engine_error(f"{session.label} failed", error) from error
            if self._first is not None and self._any is not None:
                self._since_first = 0 if self._first[0] == session.dims else self._since_first + 1
                if self._since_first == _LAUNCHES_KEPT:
                    self._first = None

    def _compiled(self, session: OpenVinoSession) -> CompiledGraph:
        """What computes a session's size, compiled where it is not yet."""
        if self._first is not None and self._first[0] == session.dims:
            return self._first[1]
        if self._any is not None:
            return self._any
        assert self._graph is not None
        try:
            if self._first is None:
                shapes = {tensor.name: session.buffers[tensor.name].shape for tensor in self.part.inputs}
                found = self._graph.compiled(shapes)
                if found is not None:
                    self._first = (session.dims, found)
                    return found
            found = self._graph.compiled(None)
        except RuntimeError as error:
            raise engine_error(f"{session.label} cannot be compiled", error) from error
        assert found is not None
        # Nothing is compiled after this one.
        self._any, self._graph = found, None
        return found

    def _refuse_closed(self) -> None:
        if self._closed:
            raise EngineError(f"{self._label} is closed: open it again")

    def close(self) -> None:
        """Free the engine and its sessions."""
        with self._lock:
            self._closed = True
            self._sessions.clear()
            self._graph = self._first = self._any = None


class OpenVinoSession(WaitedSession):
    """NumPy arrays that OpenVINO reads and writes in place; a carried output and its input change places."""

    def __init__(
        self, engine: OpenVinoEngine, dims: Mapping[str, int], carry: Mapping[str, str], watch: str | None
    ) -> None:
        import openvino

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
        """Inputs and outputs whose memory is another one at every launch."""

    def tensor(self, name: str) -> openvino.Tensor:
        """The memory of an input, or of an output, at the next launch."""
        return bound_array(self._tensors, self._carry, name, self._phase)

    def launch(self) -> None:
        """Run once; see :class:`sd2rt.engines.interface.Session`."""
        self._engine.infer(self)
        self._launched()
