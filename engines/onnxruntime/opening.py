"""Open ONNX Runtime sessions: import, options common to all devices, and replaced weights."""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sd2rt.engines.address_space import require_address_space
from sd2rt.engines.bundle.schema import Part
from sd2rt.engines.errors import MissingDependencyError, Sd2rtError
from sd2rt.engines.install_hint import install_hint
from sd2rt.engines.interface import Array, Device
from sd2rt.engines.onnxruntime.cuda_libraries import load_cuda_libraries
from sd2rt.engines.onnxruntime.session_config import SessionKey, set_session_config
from sd2rt.engines.telemetry import import_without_telemetry
from sd2rt.engines.weights.initializers import replaced_initializers

if TYPE_CHECKING:
    import onnxruntime

CPU_PROVIDER = "CPUExecutionProvider"
_FATAL = 4
_BETWEEN_SAMPLES = 0.002


def require_cpu_address_space(threads: int | None) -> None:
    """Check that the address space holds ONNX Runtime and its threads; raises EngineError if it does not."""
    # Measured: a run of the demo takes 737 MB with 2 threads, 1221 with 4, 1488 with 8 and 1689 with 16. With less,
    # native code aborts in some runs: in the tokenizer, in BLAS, or when a thread starts.
    require_address_space("ONNX Runtime", 740, 65, threads or 0)


def import_onnxruntime(device: Device) -> Any:
    """Import ONNX Runtime, and for a GPU load its CUDA libraries.

    Raises:
        MissingDependencyError: ONNX Runtime or, for a GPU, its CUDA provider is not installed.
    """
    extra = "cpu" if device.kind == "cpu" else "cuda"
    try:
        ort = import_without_telemetry("onnxruntime")
    except ImportError:
        raise MissingDependencyError(f"ONNX Runtime is not installed: {install_hint(extra)}") from None
    if device.kind == "cuda" and "CUDAExecutionProvider" not in ort.get_available_providers():
        raise MissingDependencyError(
            f"{device} was requested, but this ONNX Runtime ({ort.__version__}) has no CUDA provider: "
            f"in a fresh environment, {install_hint('cuda')} (onnxruntime and onnxruntime-gpu overwrite each other)"
        )
    if device.kind == "cuda":
        load_cuda_libraries(ort)
    return ort


def session_options(threads: int | None) -> onnxruntime.SessionOptions:
    """Session options common to all devices; ``threads`` None is one per core."""
    ort = import_without_telemetry("onnxruntime")

    options = ort.SessionOptions()
    # Errors arrive as exceptions, and the warnings do not concern the user.
    options.log_severity_level = _FATAL
    options.intra_op_num_threads = 0 if threads is None else threads
    # No parallel branches are worth a second thread pool.
    options.inter_op_num_threads = 1
    for key, value in waiting().items():
        set_session_config(options, key, value)
    # Planning memory reuse takes a third of the opening time, and at SD2's size the allocator alone needs less
    # memory than the plan.
    options.enable_mem_reuse = False
    if _share_arena():
        set_session_config(options, "session.use_env_allocators", "1")
        set_session_config(options, "session.use_device_allocator_for_initializers", "1")
    return options


def waiting() -> dict[SessionKey, str]:
    """Choose how threads wait for the next operator: busily for a short time, or asleep if others take all cores.

    Measured with the demo on 2 cores (benchmarks/spinning.py): the time of a step is 0.80 of that with sleeping
    threads if the machine is idle, about the same beside one busy process, and 1.3 if others keep all cores busy.
    ONNX Runtime's default, which spins for longer, takes up to 1.7.
    """
    # Threads of other processes come and go: those that really take the cores are there in both samples.
    others = running_elsewhere()
    if others >= (cores := len(os.sched_getaffinity(0))):
        time.sleep(_BETWEEN_SAMPLES)
        others = min(others, running_elsewhere())
    if others >= cores:
        return {"session.intra_op.allow_spinning": "0"}
    return {"session.intra_op.spin_duration_us": "50", "session.intra_op.spin_backoff_max": "64"}


def running_elsewhere() -> int:
    """Count threads of other processes that run or could run now; 0 if the system does not tell.

    The average load would count earlier runs of this program too.
    """
    try:
        running = int(Path("/proc/loadavg").read_text().split()[3].partition("/")[0])
        own = sum(
            status.read_text().rpartition(")")[2].split()[0] == "R"
            for status in Path("/proc/self/task").glob("*/stat")
        )
    except (OSError, ValueError, IndexError):
        return 0
    return max(running - own, 0)


@functools.cache
def _share_arena() -> bool:
    """Register one CPU arena for all sessions of the process; false if that fails.

    The decoder then reuses the denoiser's memory: at Stable Diffusion's size each needs over a gigabyte, and they
    never run at once.
    """
    ort = import_without_telemetry("onnxruntime")

    memory = ort.OrtMemoryInfo("Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT)
    # Grow by powers of two: regions of the exact size are hard to reuse and end up a tenth larger in total.
    config = ort.OrtArenaCfg({"arena_extend_strategy": 0})
    try:
        ort.create_and_register_allocator(memory, config)
    except Exception:
        # Other code of this process has registered an allocator.
        return False
    return True


def open_session(
    part: Part,
    path: Path,
    label: str,
    options: onnxruntime.SessionOptions,
    providers: list[Any],
    *,
    weights: Mapping[str, Array] | None,
    threads: int | None,
    translate: Callable[[Exception], Sd2rtError],
) -> onnxruntime.InferenceSession:
    """Open a session of a part's graph.

    Args:
        label: the part and device in messages.
        weights: replacements for the bundle's weights, by PyTorch name and in PyTorch's orientation.
        translate: converts an error of ONNX Runtime.

    Raises:
        Sd2rtError: what ``translate`` returned.
        EngineError: the part does not have one of the weights.
        BundleError: the part's map of its weights cannot be read.
    """
    ort = import_without_telemetry("onnxruntime")

    # ONNX Runtime reads these arrays until the session is open.
    held = _replace_weights(options, label, part, path, weights, threads) if weights else []
    try:
        # The built-in fallback would load everything on the CPU and print that to standard output.
        return ort.InferenceSession(path, options, providers=providers, enable_fallback=0)
    except Exception as error:
        raise translate(error) from error
    finally:
        del held


def _replace_weights(
    options: Any, label: str, part: Part, path: Path, values: Mapping[str, Array], threads: int | None
) -> list[Any]:
    """Replace weights of the session that ``options`` will open; the result must live until it is open.

    External initialisers are replaced before the graph is optimised. ``add_initializer`` replaces them afterwards,
    and would leave constants that were folded from the old weights.
    """
    ort = import_without_telemetry("onnxruntime")

    initializers = {
        name: ort.OrtValue.ortvalue_from_numpy(array)
        for name, array in replaced_initializers(label, part, path, values, threads)
    }
    options.add_external_initializers(list(initializers), list(initializers.values()))
    return list(initializers.values())
