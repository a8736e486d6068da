"""Run one part of a bundle with ONNX Runtime's CUDA provider, on the stream and memory of a CudaDevice."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sd2rt.engines.bundle.schema import Part, shape_of
from sd2rt.engines.cuda.device import EXCLUSIVE, CudaDevice, undisturbed
from sd2rt.engines.cuda.session import CudaSession
from sd2rt.engines.errors import EngineError
from sd2rt.engines.interface import NO_CARRY, Array, Closing, Device, Session, Sessions
from sd2rt.engines.onnxruntime.cpu_fallback import check_cpu_fallback
from sd2rt.engines.onnxruntime.cuda_errors import cuda_error, is_capture_error, no_cuda, reason_of
from sd2rt.engines.onnxruntime.fixed_sizes import open_dimensions
from sd2rt.engines.onnxruntime.opening import (
    CPU_PROVIDER,
    import_onnxruntime,
    open_session,
    session_options,
)
from sd2rt.engines.onnxruntime.session_config import fix_dimensions, set_run_config, set_session_config
from sd2rt.engines.telemetry import import_without_telemetry

if TYPE_CHECKING:
    import onnxruntime

CUDA_PROVIDER = "CUDAExecutionProvider"
_NO_GRAPH = -1
# Each captured graph needs an id of its own.
_GRAPH_IDS = itertools.count(1)


class OnnxRuntimeCudaEngine(Closing):
    """A part loaded as one ONNX Runtime session, which runs any size of the part's symbols on a GPU.

    Args:
        part: the part's manifest entry.
        path: the ONNX file.
        device: the device to run on; shared, must outlive the engine.
        threads: threads per operator that runs on the CPU, None for one per core.
        cuda_graph: capture the graph of each session's launch, which ONNX Runtime does itself, and replay it.
        allow_cpu_fallback: warn about operators that would run on the CPU instead of raising an error.
        weights: replacements for the bundle's weights, by PyTorch name and in PyTorch's orientation. ONNX Runtime
            copies them while it opens the model.
        fixed: sizes that get an ONNX Runtime session of their own, with weights of its own; any others share one.

    Raises:
        MissingDependencyError: ONNX Runtime or its CUDA provider is missing or does not start.
        EngineError: the model cannot be loaded on the GPU, would run on the CPU in part, or does not have these
            weights.
        BundleError: the part's map of its weights, needed to replace some, cannot be read.
    """

    def __init__(
        self,
        part: Part,
        path: Path,
        device: CudaDevice,
        *,
        threads: int | None = None,
        cuda_graph: bool = False,
        allow_cpu_fallback: bool = False,
        weights: Mapping[str, Array] | None = None,
        fixed: Sequence[Mapping[str, int]] = (),
    ) -> None:
        self.part, self.device = part, device
        self._cuda_graph = cuda_graph
        self._label = f"{Path(part.onnx).parent.name} on {device}"

        def opened(dimensions: Mapping[str, int]) -> onnxruntime.InferenceSession:
            return self._open(path, threads, weights, dimensions, allow_cpu_fallback=allow_cpu_fallback)

        session = opened({})
        self._session: onnxruntime.InferenceSession | None = session
        self._fixed = {
            frozenset(sizes.items()): opened(open_dimensions(session, part, sizes)) for sizes in fixed
        }
        self._sessions = Sessions(CudaSession.close)

    def _open(
        self,
        path: Path,
        threads: int | None,
        weights: Mapping[str, Array] | None,
        dimensions: Mapping[str, int],
        *,
        allow_cpu_fallback: bool,
    ) -> onnxruntime.InferenceSession:
        """Open the graph with these sizes of its open dimensions; others stay open."""
        part, device = self.part, self.device
        provider_device = Device(str(device))
        import_onnxruntime(provider_device)
        options = session_options(threads)
        set_session_config(options, "session.record_ep_graph_assignment_info", "1")
        fix_dimensions(options, dimensions)
        cuda = {
            "device_id": str(device.index),
            "user_compute_stream": str(device.stream),
            # A capture of our own around a run would end the process: ONNX Runtime frees page-locked memory in a run
            # unless it captures the run itself.
            "enable_cuda_graph": str(int(self._cuda_graph)),
            # TF32 would round factors of float32 products to ten bits of mantissa. Where it is not allowed, ONNX
            # Runtime 1.31 drops all of cuDNN's plans with tensor cores, those of float16 convolutions too.
            "use_tf32": str(int(part.cuda_graph_takes_tf32)),
            "cudnn_conv_algo_search": "EXHAUSTIVE",
        }
        device.enter(f"{path} cannot be loaded on {device}")
        # Opening synchronises the device.
        with EXCLUSIVE:
            session = open_session(
                part,
                path,
                self._label,
                options,
                [(CUDA_PROVIDER, cuda), CPU_PROVIDER],
                weights=weights,
                threads=threads,
                translate=lambda error: cuda_error(
                    f"{path} cannot be loaded on {device}", provider_device, error
                ),
            )
        if CUDA_PROVIDER not in session.get_providers():
            raise no_cuda(provider_device, "its CUDA provider did not start")
        check_cpu_fallback(session, self._label, allow_cpu_fallback=allow_cpu_fallback)
        return session

    def session(
        self, dims: Mapping[str, int], carry: Mapping[str, str] = NO_CARRY, watch: str | None = None
    ) -> Session:
        """Return the session for these sizes, created on first use; 16 are kept, by least recent use.

        Raises:
            EngineError: the GPU has too little memory for its buffers, the model's tensors differ from the
                manifest's, or the engine is closed.
        """
        if self._session is None:
            raise EngineError(f"{self._label} is closed: open it again")
        return self._sessions.get(self._create_session, dims, carry, watch)

    def takes(self, dims: Mapping[str, int]) -> bool:
        """Return whether the engine runs these sizes: any."""
        return True

    def keep_sessions(self) -> None:
        """See :class:`sd2rt.engines.interface.Engine`."""
        self._sessions.keep()

    def _create_session(
        self, dims: Mapping[str, int], carry: Mapping[str, str], watch: str | None
    ) -> CudaSession:
        label = f"{Path(self.part.onnx).parent.name} at {dict(dims)} on {self.device}"
        try:
            executable = OnnxRuntimeExecutable(
                self._fixed.get(frozenset(dims.items()), self._session),
                self.part,
                dims,
                self.device,
                cuda_graph=self._cuda_graph,
            )
        except ValueError as error:
            raise EngineError(f"{label} cannot be prepared: {error}") from error
        return CudaSession(
            self.device,
            executable,
            self.part,
            dims,
            carry,
            watch,
            cuda_graph=False,
            label=label,
        )

    def close(self) -> None:
        """Free the engine and all its sessions."""
        self._sessions.clear()
        self._session = None
        self._fixed.clear()


class OnnxRuntimeExecutable:
    """A session at fixed shapes, bound to device addresses; see :class:`sd2rt.engines.cuda.session.Executable`.

    ONNX Runtime enqueues on the stream that its session was opened with, and does not wait for it. The first launch
    of each thread allocates activations and chooses the convolutions' algorithms. With ``cuda_graph`` it also
    captures the thread's graph, which the thread's later launches replay.

    Raises:
        ValueError: a symbol of the part's shapes has no size in ``dims``.
    """

    workspace_bytes = 0
    """ONNX Runtime allocates activations itself."""

    def __init__(
        self, session: Any, part: Part, dims: Mapping[str, int], device: CudaDevice, *, cuda_graph: bool
    ) -> None:
        self._session, self._part, self._device, self._cuda_graph = session, part, device, cuda_graph
        self._shapes = {tensor.name: shape_of(tensor, dims) for tensor in (*part.inputs, *part.outputs)}
        self._binding: Any = None
        # ONNX Runtime's state of a thread ends with it, while a thread's number may be another's later.
        self._warm = threading.local()
        self._options = self._run_options()

    def _run_options(self) -> onnxruntime.RunOptions:
        ort = import_without_telemetry("onnxruntime")

        options = ort.RunOptions()
        set_run_config(options, "disable_synchronize_execution_providers", "1")
        # Each launch looks this entry up, and a missing entry costs 60 us.
        set_run_config(options, "gpu_graph_id", str(next(_GRAPH_IDS) if self._cuda_graph else _NO_GRAPH))
        return options

    def bind(self, addresses: Mapping[str, int]) -> None:
        ort = import_without_telemetry("onnxruntime")

        self._binding = ort.IOBinding(self._session)
        for tensors, bind in (
            (self._part.inputs, self._binding.bind_input),
            (self._part.outputs, self._binding.bind_output),
        ):
            for tensor in tensors:
                dtype, shape = np.dtype(tensor.dtype).type, self._shapes[tensor.name]
                bind(tensor.name, "cuda", self._device.index, dtype, shape, addresses[tensor.name])

    def use_workspace(self, address: int, nbytes: int) -> None:
        raise NotImplementedError

    def enqueue(self, stream: int) -> None:
        if hasattr(self._warm, "launched"):
            self._run()
            return
        # The capture breaks if another thread loads or allocates meanwhile, and the first launch does both.
        with undisturbed():
            self._run()
        self._warm.launched = True

    def _run(self) -> None:
        try:
            self._session.run_with_iobinding(self._binding, self._options)
        except Exception as error:
            reason = reason_of(error)
            if self._cuda_graph:
                # ONNX Runtime leaves the stream in a broken capture, and does not retry it under the same id.
                if self._device.end_capture() or is_capture_error(error):
                    reason = f"CUDA graph capture failed ({reason}): leave cuda_graph out"
                self._options = self._run_options()
                self._warm = threading.local()
            raise RuntimeError(reason) from error

    def capturable(self, stream: int) -> bool:
        # ONNX Runtime captures graphs itself.
        return False

    def close(self) -> None:
        self._session = self._binding = None
