"""Run one part of a bundle with ONNX Runtime on the CPU."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from sd2rt.engines.bundle.schema import Part
from sd2rt.engines.errors import EngineError, engine_error
from sd2rt.engines.host_buffers import HostBuffer, WaitedSession, bound_array, session_buffers
from sd2rt.engines.interface import NO_CARRY, Array, Closing, Device, Session, Sessions
from sd2rt.engines.onnxruntime.opening import (
    CPU_PROVIDER,
    import_onnxruntime,
    open_session,
    session_options,
)
from sd2rt.engines.onnxruntime.session_config import set_run_config
from sd2rt.engines.telemetry import import_without_telemetry

if TYPE_CHECKING:
    import onnxruntime


class OnnxRuntimeEngine(Closing):
    """A part loaded as one ONNX Runtime session, which runs any size of the part's symbols on the CPU.

    Args:
        part: the part's manifest entry.
        path: the ONNX file.
        threads: threads per operator, None for one per core.
        weights: replacements for the bundle's weights, by PyTorch name and in PyTorch's orientation. ONNX Runtime
            copies them while it opens the model.
        prepared: the file was prepared (:mod:`sd2rt.engines.onnxruntime.prepared`); only without ``weights``.
        profile: path prefix of an operator profile to record, to which ONNX Runtime adds a time stamp. Recording
            slows the operators down.

    Raises:
        MissingDependencyError: ONNX Runtime is not installed.
        EngineError: the model cannot be loaded, or does not have these weights.
        BundleError: the part's map of its weights, needed to replace some, cannot be read.
    """

    def __init__(
        self,
        part: Part,
        path: Path,
        *,
        threads: int | None = None,
        weights: Mapping[str, Array] | None = None,
        prepared: bool = False,
        profile: Path | None = None,
    ) -> None:
        ort = import_onnxruntime(Device("cpu"))
        options = session_options(threads)
        if prepared:
            # It was optimised before it was saved.
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        self._profiled = profile is not None
        if profile is not None:
            options.enable_profiling = True
            options.profile_file_prefix = str(profile)
        self.part = part
        self._label = f"{Path(part.onnx).parent.name} on cpu"
        self._session: onnxruntime.InferenceSession | None = open_session(
            part,
            path,
            self._label,
            options,
            [CPU_PROVIDER],
            weights=weights,
            threads=threads,
            translate=lambda error: engine_error(f"{path} cannot be loaded on cpu", error),
        )
        self._sessions = Sessions[OnnxRuntimeSession]()

    def session(
        self, dims: Mapping[str, int], carry: Mapping[str, str] = NO_CARRY, watch: str | None = None
    ) -> Session:
        """Return the session for these sizes, created on first use; 16 are kept, by least recent use.

        Raises:
            EngineError: there is no memory for its buffers, or the model's tensors differ from the manifest's.
        """
        if self._session is None:
            raise EngineError(f"{self._label} is closed: open it again")
        create = functools.partial(OnnxRuntimeSession, self._session, self.part)
        return self._sessions.get(create, dims, carry, watch)

    def takes(self, dims: Mapping[str, int]) -> bool:
        """Return whether the engine runs these sizes: any."""
        return True

    def keep_sessions(self) -> None:
        """See :class:`sd2rt.engines.interface.Engine`."""
        self._sessions.keep()

    def end_profile(self) -> Path | None:
        """Stop recording and write the profile, in Chrome's trace format; None if nothing was recorded."""
        if self._session is None or not self._profiled:
            return None
        self._profiled = False
        return Path(self._session.end_profiling())

    def close(self) -> None:
        """Free the engine and its sessions; a session that is still referenced keeps the engine alive."""
        self._sessions.clear()
        self._session = None


class OnnxRuntimeSession(WaitedSession):
    """Buffers on the host bound to an ONNX Runtime session.

    A carried output and its input are two arrays that swap at every launch. Each of the two phases has its own
    binding, so nothing is copied.
    """

    def __init__(
        self,
        session: onnxruntime.InferenceSession,
        part: Part,
        dims: Mapping[str, int],
        carry: Mapping[str, str],
        watch: str | None,
    ) -> None:
        ort = import_without_telemetry("onnxruntime")

        self._session = session
        self._label = f"{Path(part.onnx).parent.name} at {dict(dims)} on cpu"
        self._bindings = []
        try:
            buffers = session_buffers(part, dims, carry, OrtHostBuffer)
            values = {name: buffer.values for name, buffer in buffers.items()}
            for phase in range(2 if carry else 1):
                binding = ort.IOBinding(session)
                for tensor in part.inputs:
                    value = bound_array(values, carry, tensor.name, phase)
                    binding.bind_ortvalue_input(tensor.name, value)
                for tensor in part.outputs:
                    value = bound_array(values, carry, tensor.name, phase)
                    binding.bind_ortvalue_output(tensor.name, value)
                self._bindings.append(binding)
        except Exception as error:
            raise engine_error(f"{self._label} cannot be prepared", error) from error
        super().__init__(buffers, carry, watch)
        self._options = ort.RunOptions()
        # Each launch looks this entry up, and a missing entry costs 60 us; -1 means no graph.
        set_run_config(self._options, "gpu_graph_id", "-1")
        if not carry:
            # Sessions without a carry run once per image, so they return the arena's memory afterwards.
            set_run_config(self._options, "memory.enable_memory_arena_shrinkage", "cpu:0")

    def launch(self) -> None:
        """Run once; see :class:`sd2rt.engines.interface.Session`."""
        try:
            self._session.run_with_iobinding(self._bindings[self._phase], self._options)
        except Exception as error:
            raise engine_error(f"{self._label} failed", error) from error
        self._launched()


class OrtHostBuffer(HostBuffer):
    """Host arrays wrapped as OrtValues."""

    def __init__(self, shape: tuple[int, ...], dtype: str, copies: int) -> None:
        ort = import_without_telemetry("onnxruntime")

        super().__init__(shape, dtype, copies)
        self.values = [ort.OrtValue.ortvalue_from_numpy(array) for array in self.arrays]
