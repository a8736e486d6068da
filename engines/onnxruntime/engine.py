"""The ONNX Runtime backend: a bundle's ONNX as it is, on the CPU or on an NVIDIA GPU."""

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
from sd2rt.engines.onnxruntime.cuda_errors import cuda_error, no_cuda
from sd2rt.engines.onnxruntime.cuda_libraries import load_cuda_libraries
from sd2rt.engines.weights.initializers import replaced_initializers

if TYPE_CHECKING:
    import onnxruntime

_FATAL = 4
# A captured graph is named by a number that no other one of its engine may have.
_GRAPH_IDS = itertools.count(1)


class OnnxRuntimeEngine(Closing):
    """A part as an ONNX Runtime session; any size of the part's symbols runs from the one file.

    Args:
        part: the manifest's entry.
        path: the ONNX file.
        device: where to run; a GPU wants the ``cuda`` extra.
        threads: threads within an operator, None for one per core.
        cuda_graph: on a GPU, capture each session's launch as a CUDA graph and replay it; ONNX Runtime
            refuses a model of which it would run a compute node on the CPU.
        weights: by PyTorch name, in PyTorch's orientation: what to put in the place of the bundle's own. ONNX
            Runtime copies them while it opens, and they need not be kept.
        prepared: on the CPU, and without other weights, the same graph as
            :func:`sd2rt.engines.onnxruntime.prepared.find_prepared` found it.
        profile: record every operator, which slows them down; where the file goes, less what ONNX Runtime adds to
            its name.

    Raises:
        MissingDependencyError: ONNX Runtime or its CUDA provider is not installed, or there is no such GPU.
        EngineError: the model cannot be loaded on the device, or has no such weights.
        BundleError: there are weights to replace, and the part's map of them cannot be read.
    """

    def __init__(
        self,
        part: Part,
        path: Path,
        device: Device,
        *,
        threads: int | None = None,
        cuda_graph: bool = False,
        weights: Mapping[str, Array] | None = None,
        prepared: Path | None = None,
        profile: Path | None = None,
    ) -> None:
        ort = import_onnxruntime(device)
        options = cpu_options(threads)
        if prepared is not None:
            path = prepared
            # All that there is to do was done before it was saved.
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
        self._label = f"{Path(part.onnx).parent.name} on {device}"
        # Held while the session opens, and no longer.
        replaced = _replace(options, self._label, part, path, weights, threads) if weights else []
        self._session: onnxruntime.InferenceSession | None
        try:
            # Without its fallback, which would load everything on the CPU and say so on standard output.
            self._session = ort.InferenceSession(path, options, providers=providers, enable_fallback=0)
        except Exception as error:
            raise _translated(f"{path} cannot be loaded on {device}", device, error) from error
        del replaced
        if device.kind == "cuda" and "CUDAExecutionProvider" not in self._session.get_providers():
            raise no_cuda(device, "its CUDA provider did not start")
        self.part = part
        self.device = device
        self._sessions = Sessions[OnnxRuntimeSession]()

    def session(
        self, dims: Mapping[str, int], carry: Mapping[str, str] = NO_CARRY, watch: str | None = None
    ) -> Session:
        """The session for these sizes, made on first use; the least recently used is dropped after 16.

        Raises:
            EngineError: there is no memory for its buffers, or the model has no such tensors.
        """
        if self._session is None:
            raise EngineError(f"{self._label} is closed: open it again")
        make = functools.partial(OnnxRuntimeSession, self._session, self.part, self.device)
        return self._sessions.get(make, dims, carry, watch)

    def end_profile(self) -> Path | None:
        """Write what was recorded, and record no more: the file, in Chrome's trace format; None where nothing was."""
        if self._session is None or not self._profiled:
            return None
        self._profiled = False
        return Path(self._session.end_profiling())

    def close(self) -> None:
        """Free the engine and its sessions; a session that is still held keeps the engine alive."""
        self._sessions.clear()
        self._session = None


def cpu_options(threads: int | None) -> onnxruntime.SessionOptions:
    """How every session is opened; None threads are one per core."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    # What it would print about an error is in the exception; its warnings are not the user's.
    options.log_severity_level = _FATAL
    options.intra_op_num_threads = 0 if threads is None else threads
    # One graph at a time and no parallel branches worth a second pool.
    options.inter_op_num_threads = 1
    # Threads that spin between two operators win nothing here, and lose much beside other processes.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # Planning which tensors could share memory takes a third of the time to open; at SD2's size the
    # allocator's own reuse makes do with less than the plan.
    options.enable_mem_reuse = False
    if _share_memory():
        options.add_session_config_entry("session.use_env_allocators", "1")
        options.add_session_config_entry("session.use_device_allocator_for_initializers", "1")
    return options


@functools.cache
def _share_memory() -> bool:
    """Have all sessions of the process take what they compute in from one arena; false where there is none.

    A decoder then works in the memory that the denoiser worked in: at Stable Diffusion's size each takes a gigabyte
    and more, and they never run at once.
    """
    import onnxruntime as ort

    place = ort.OrtMemoryInfo("Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT)
    # By powers of two: regions of just what was asked for fit nothing else later, and end up a tenth larger.
    config = ort.OrtArenaCfg({"arena_extend_strategy": 0})
    try:
        ort.create_and_register_allocator(place, config)
    except Exception:
        # Somebody else's, in the same process, will do.
        return False
    return True


class OnnxRuntimeSession(WaitedSession):
    """Buffers bound to an ONNX Runtime session.

    A carried output and its input are two arrays that change places at every launch: there are two bindings,
    and no copy. On CUDA each of them is a captured graph of its own.
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
            raise _translated(f"{self._label} cannot be prepared", device, error) from error
        super().__init__(buffers, carry, watch)
        self._device = device
        # What is not a step comes once an image: the arena's memory is given back after it.
        self._shrinks = device.kind == "cpu" and not carry
        self._options = [self._run_options() for _ in self._bindings]

    def _run_options(self) -> onnxruntime.RunOptions:
        import onnxruntime as ort

        options = ort.RunOptions()
        # Each launch looks this entry up, and one that is not there costs it 60 us; -1 is no graph.
        number = next(_GRAPH_IDS) if self._device.kind == "cuda" else -1
        options.add_run_config_entry("gpu_graph_id", str(number))
        if self._shrinks:
            options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
        return options

    def launch(self) -> None:
        """Run once; see :class:`sd2rt.engines.interface.Session`."""
        try:
            self._session.run_with_iobinding(self._bindings[self._phase], self._options[self._phase])
        except Exception as error:
            if self._device.kind == "cuda":
                # A capture that was broken is not taken up again: the next launch begins one of another number.
                self._options[self._phase] = self._run_options()
            raise _translated(f"{self._label} failed", self._device, error) from error
        self._launched()


class OrtHostBuffer(HostBuffer):
    """Arrays on the host, as ONNX Runtime binds them."""

    def __init__(self, shape: tuple[int, ...], dtype: str, copies: int) -> None:
        import onnxruntime as ort

        super().__init__(shape, dtype, copies)
        self.values = [ort.OrtValue.ortvalue_from_numpy(array) for array in self.arrays]


class DeviceBuffer(ArrayBuffer):
    """Memory on a GPU, and an array beside it on the host."""

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
            # There is no update of a part: what the rest holds by now is fetched first.
            pushed = self._host[rows].copy()
            self.pull()[rows] = pushed
        self.values[self.phase].update_inplace(self._host)

    def pull(self) -> Array:
        np.copyto(self._host, self.values[self.phase].numpy())
        return self._host

    def take(self, source: Buffer, rows: Sequence[tuple[int, int]]) -> None:
        """By way of the host: ONNX Runtime copies no parts of tensors."""
        if rows:
            taken, to = map(list, zip(*rows, strict=True))
            entries = source.read()[taken]
            self.pull()[to] = entries
            self.push()


def import_onnxruntime(device: Device) -> Any:
    """The module. Raises MissingDependencyError where it, or its CUDA provider for a GPU, is not installed."""
    extra = "cpu" if device.kind == "cpu" else "cuda"
    try:
        import onnxruntime as ort
    except ImportError:
        raise MissingDependencyError(f"ONNX Runtime is not installed: pip install 'sd2rt[{extra}]'") from None
    if device.kind == "cuda" and "CUDAExecutionProvider" not in ort.get_available_providers():
        raise MissingDependencyError(
            f"{device} was asked for, and this ONNX Runtime ({ort.__version__}) has no CUDA provider: "
            "in a fresh environment, pip install 'sd2rt[cuda]' (onnxruntime and onnxruntime-gpu overwrite each other)"
        )
    if device.kind == "cuda":
        load_cuda_libraries(ort)
    return ort


def _translated(what: str, device: Device, error: Exception) -> Sd2rtError:
    return engine_error(what, error) if device.kind == "cpu" else cuda_error(what, device, error)


def _replace(
    options: Any, label: str, part: Part, path: Path, values: Mapping[str, Array], threads: int | None
) -> list[Any]:
    """Have a session that is opened with ``options`` take these weights; returns what must live until it is open.

    External initialisers are replaced before the graph is optimised, and so in all that is folded from them. The
    other way, ``add_initializer``, comes after that: it leaves what was folded from the old ones as it was.
    """
    import onnxruntime as ort

    replaced = {
        name: ort.OrtValue.ortvalue_from_numpy(stored)
        for name, stored in replaced_initializers(label, part, path, values, threads)
    }
    options.add_external_initializers(list(replaced), list(replaced.values()))
    return list(replaced.values())
