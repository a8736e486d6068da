"""Run one part of a bundle with ONNX Runtime, on the CPU or on an NVIDIA GPU."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sd2rt.engines.bundle.schema import Part
from sd2rt.engines.errors import EngineError, MissingDependencyError, Sd2rtError, engine_error
from sd2rt.engines.host_buffers import ArrayBuffer, HostBuffer, WaitedSession, bound_array, session_buffers
from sd2rt.engines.interface import NO_CARRY, Array, Buffer, Closing, Device, Session, Sessions
from sd2rt.engines.onnxruntime.cpu_fallback import check_cpu_fallback
from sd2rt.engines.onnxruntime.cuda_errors import cuda_error, no_cuda
from sd2rt.engines.onnxruntime.cuda_libraries import load_cuda_libraries
from sd2rt.engines.onnxruntime.session_config import set_run_config, set_session_config
from sd2rt.engines.weights.initializers import replaced_initializers

if TYPE_CHECKING:
    import onnxruntime

_FATAL = 4
# Each captured graph of an engine needs an id of its own.
_GRAPH_IDS = itertools.count(1)


class OnnxRuntimeEngine(Closing):
    """A part loaded as one ONNX Runtime session, which runs any size of the part's symbols.

    Args:
        part: the part's manifest entry.
        path: the ONNX file.
        device: where to run; a GPU needs the ``cuda`` extra.
        threads: threads per operator, None for one per core.
        cuda_graph: on a GPU, capture each session's launch as a CUDA graph and replay it. ONNX Runtime refuses to
            capture a model with compute nodes on the CPU.
        allow_cpu_fallback: on a GPU, warn about operators that ONNX Runtime runs on the CPU instead of raising an
            error.
        weights: replacements for the bundle's weights, by PyTorch name and in PyTorch's orientation. ONNX Runtime
            copies them while it opens the model.
        prepared: the prepared graph from :func:`sd2rt.engines.onnxruntime.prepared.find_prepared`; only for the CPU
            and without ``weights``.
        profile: path prefix of an operator profile to record, to which ONNX Runtime adds a time stamp. Recording
            slows the operators down.

    Raises:
        MissingDependencyError: ONNX Runtime, its CUDA provider or the GPU is missing.
        EngineError: the model cannot be loaded on the device, would run on the CPU instead of the GPU, or does not
            have these weights.
        BundleError: the part's map of its weights, needed to replace some, cannot be read.
    """

    def __init__(
        self,
        part: Part,
        path: Path,
        device: Device,
        *,
        threads: int | None = None,
        cuda_graph: bool = False,
        allow_cpu_fallback: bool = False,
        weights: Mapping[str, Array] | None = None,
        prepared: Path | None = None,
        profile: Path | None = None,
    ) -> None:
        ort = import_onnxruntime(device)
        options = cpu_options(threads)
        if prepared is not None:
            path = prepared
            # It was optimised before it was saved.
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        self._profiled = profile is not None
        if profile is not None:
            options.enable_profiling = True
            options.profile_file_prefix = str(profile)
        providers: list[Any] = ["CPUExecutionProvider"]
        if device.kind == "cuda":
            cuda = {
                "device_id": str(device.index),
                # TF32 would cost the float32 islands seven bits of their mantissa.
                "use_tf32": "0",
                "enable_cuda_graph": str(int(cuda_graph)),
                "cudnn_conv_algo_search": "EXHAUSTIVE",
            }
            providers.insert(0, ("CUDAExecutionProvider", cuda))
            set_session_config(options, "session.record_ep_graph_assignment_info", "1")
        self._label = f"{Path(part.onnx).parent.name} on {device}"
        # ONNX Runtime reads these arrays until the session is open.
        held = _replace_weights(options, self._label, part, path, weights, threads) if weights else []
        self._session: onnxruntime.InferenceSession | None
        try:
            # The built-in fallback would load everything on the CPU and print that to standard output.
            self._session = ort.InferenceSession(path, options, providers=providers, enable_fallback=0)
        except Exception as error:
            raise _translate(f"{path} cannot be loaded on {device}", device, error) from error
        del held
        if device.kind == "cuda" and "CUDAExecutionProvider" not in self._session.get_providers():
            raise no_cuda(device, "its CUDA provider did not start")
        if device.kind == "cuda":
            check_cpu_fallback(self._session, self._label, allow_cpu_fallback=allow_cpu_fallback)
        self.part = part
        self.device = device
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
        create = functools.partial(OnnxRuntimeSession, self._session, self.part, self.device)
        return self._sessions.get(create, dims, carry, watch)

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


def cpu_options(threads: int | None) -> onnxruntime.SessionOptions:
    """Session options common to all devices; ``threads`` None is one per core."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    # Errors arrive as exceptions, and the warnings do not concern the user.
    options.log_severity_level = _FATAL
    options.intra_op_num_threads = 0 if threads is None else threads
    # No parallel branches are worth a second thread pool.
    options.inter_op_num_threads = 1
    # Spinning between operators gains nothing here and takes time from other processes.
    set_session_config(options, "session.intra_op.allow_spinning", "0")
    # Planning memory reuse takes a third of the opening time, and at SD2's size the allocator alone needs less
    # memory than the plan.
    options.enable_mem_reuse = False
    if _share_arena():
        set_session_config(options, "session.use_env_allocators", "1")
        set_session_config(options, "session.use_device_allocator_for_initializers", "1")
    return options


@functools.cache
def _share_arena() -> bool:
    """Register one CPU arena for all sessions of the process; false if that fails.

    The decoder then reuses the denoiser's memory: at Stable Diffusion's size each needs over a gigabyte, and they
    never run at once.
    """
    import onnxruntime as ort

    memory = ort.OrtMemoryInfo("Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT)
    # Grow by powers of two: regions of the exact size are hard to reuse and end up a tenth larger in total.
    config = ort.OrtArenaCfg({"arena_extend_strategy": 0})
    try:
        ort.create_and_register_allocator(memory, config)
    except Exception:
        # Other code of this process has registered an allocator.
        return False
    return True


class OnnxRuntimeSession(WaitedSession):
    """Buffers bound to an ONNX Runtime session.

    A carried output and its input are two arrays that swap at every launch. Each of the two phases has its own
    binding, so nothing is copied; on CUDA each phase is captured as its own graph.
    """

    def __init__(
        self,
        session: onnxruntime.InferenceSession,
        part: Part,
        device: Device,
        dims: Mapping[str, int],
        carry: Mapping[str, str],
        watch: str | None,
    ) -> None:
        import onnxruntime as ort

        self._session = session
        self._label = f"{Path(part.onnx).parent.name} at {dict(dims)} on {device}"
        buffers: dict[str, OrtHostBuffer | DeviceBuffer]
        kind = OrtHostBuffer if device.kind == "cpu" else functools.partial(DeviceBuffer, device)
        self._bindings = []
        try:
            buffers = session_buffers(part, dims, carry, kind)
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
            raise _translate(f"{self._label} cannot be prepared", device, error) from error
        super().__init__(buffers, carry, watch)
        self._device = device
        # Sessions without a carry run once per image, so they return the arena's memory afterwards.
        self._shrink_arena = device.kind == "cpu" and not carry
        self._options = [self._run_options() for _ in self._bindings]

    def _run_options(self) -> onnxruntime.RunOptions:
        import onnxruntime as ort

        options = ort.RunOptions()
        # Each launch looks this entry up, and a missing entry costs 60 us; -1 means no graph.
        graph_id = next(_GRAPH_IDS) if self._device.kind == "cuda" else -1
        set_run_config(options, "gpu_graph_id", str(graph_id))
        if self._shrink_arena:
            set_run_config(options, "memory.enable_memory_arena_shrinkage", "cpu:0")
        return options

    def launch(self) -> None:
        """Run once; see :class:`sd2rt.engines.interface.Session`."""
        try:
            self._session.run_with_iobinding(self._bindings[self._phase], self._options[self._phase])
        except Exception as error:
            if self._device.kind == "cuda":
                # ONNX Runtime does not retry a broken capture under the same id.
                self._options[self._phase] = self._run_options()
            raise _translate(f"{self._label} failed", self._device, error) from error
        self._launched()


class OrtHostBuffer(HostBuffer):
    """Host arrays wrapped as OrtValues."""

    def __init__(self, shape: tuple[int, ...], dtype: str, copies: int) -> None:
        import onnxruntime as ort

        super().__init__(shape, dtype, copies)
        self.values = [ort.OrtValue.ortvalue_from_numpy(array) for array in self.arrays]


class DeviceBuffer(ArrayBuffer):
    """OrtValues on a GPU with a host array for transfers."""

    def __init__(self, device: Device, shape: tuple[int, ...], dtype: str, copies: int) -> None:
        import onnxruntime as ort

        super().__init__(shape, dtype)
        self._host = np.zeros(shape, dtype)
        self.values = [
            ort.OrtValue.ortvalue_from_numpy(self._host, device.kind, device.index) for _ in range(copies)
        ]

    @property
    def host(self) -> Array:
        return self._host

    def push(self, rows: slice | None = None) -> None:
        if rows is not None:
            # ONNX Runtime updates whole tensors only: fetch the other rows first.
            rows_to_push = self._host[rows].copy()
            self.pull()[rows] = rows_to_push
        self.values[self.phase].update_inplace(self._host)

    def pull(self) -> Array:
        np.copyto(self._host, self.values[self.phase].numpy())
        return self._host

    def take(self, source: Buffer, rows: Sequence[tuple[int, int]]) -> None:
        """Copy rows through the host: ONNX Runtime copies whole tensors only."""
        if rows:
            from_rows, to_rows = map(list, zip(*rows, strict=True))
            entries = source.read()[from_rows]
            self.pull()[to_rows] = entries
            self.push()


def import_onnxruntime(device: Device) -> Any:
    """Import ONNX Runtime, and for a GPU load its CUDA libraries.

    Raises:
        MissingDependencyError: ONNX Runtime or, for a GPU, its CUDA provider is not installed.
    """
    extra = "cpu" if device.kind == "cpu" else "cuda"
    try:
        import onnxruntime as ort
    except ImportError:
        raise MissingDependencyError(f"ONNX Runtime is not installed: pip install 'sd2rt[{extra}]'") from None
    if device.kind == "cuda" and "CUDAExecutionProvider" not in ort.get_available_providers():
        raise MissingDependencyError(
            f"{device} was requested, but this ONNX Runtime ({ort.__version__}) has no CUDA provider: "
            "in a fresh environment, pip install 'sd2rt[cuda]' (onnxruntime and onnxruntime-gpu overwrite each other)"
        )
    if device.kind == "cuda":
        load_cuda_libraries(ort)
    return ort


def _translate(what: str, device: Device, error: Exception) -> Sd2rtError:
    return engine_error(what, error) if device.kind == "cpu" else cuda_error(what, device, error)


def _replace_weights(
    options: Any, label: str, part: Part, path: Path, values: Mapping[str, Array], threads: int | None
) -> list[Any]:
    """Replace weights of the session that ``options`` will open; the result must live until it is open.

    External initialisers are replaced before the graph is optimised. ``add_initializer`` replaces them afterwards,
    and would leave constants that were folded from the old weights.
    """
    import onnxruntime as ort

    initializers = {
        name: ort.OrtValue.ortvalue_from_numpy(array)
        for name, array in replaced_initializers(label, part, path, values, threads)
    }
    options.add_external_initializers(list(initializers), list(initializers.values()))
    return list(initializers.values())
