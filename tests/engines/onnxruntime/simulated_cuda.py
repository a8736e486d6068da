"""A simulated onnxruntime-gpu: the installed ONNX Runtime, which pretends to have the CUDA provider.

Sessions of the CUDA provider compute on the CPU, when the simulated GPU reaches their launch in its stream, on memory
at the addresses that were bound. Like the real package it prints libraries that it cannot load to standard output and
rejects unknown provider options. Opening synchronises the device, and a session's first launch allocates; both break
captures. Without ``disable_synchronize_execution_providers`` a launch waits for the device.

With ``enable_cuda_graph`` the first launch of a thread under a graph id runs twice, is captured and replays its
graph, and later launches replay it. An error leaves the stream in its capture. A capture by the caller around a
launch ends the process.
"""

from __future__ import annotations

import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnxruntime
import pytest

from sd2rt.engines.onnxruntime.cpu_fallback import SHAPE_ARITHMETIC

from ..simulated_gpu import Operation, SimulatedGpu


class SimulatedCuda:
    """The state of the simulated module, with counts of the calls made.

    Args:
        gpu: the GPU that sessions run on.
        missing: names of libraries that cannot be loaded.
        cuda_version: CUDA version that the package was built for.
        starts: False if the provider does not start, which ONNX Runtime silently accepts.
        opening: message of the error that opening a session raises.
        version: version of the package; None for the installed one's.
        cpu_operators: operators that sessions assign to the CPU; by default some shape arithmetic.
    """

    def __init__(
        self,
        gpu: SimulatedGpu | None = None,
        *,
        missing: tuple[str, ...] = (),
        cuda_version: str = "13.0",
        starts: bool = True,
        opening: str | None = None,
        version: str | None = None,
        cpu_operators: tuple[str, ...] = ("Concat", "Squeeze"),
    ) -> None:
        self.gpu = gpu or SimulatedGpu(pace="random")
        self.missing, self.cuda_version = missing, cuda_version
        self.starts, self.opening = starts, opening
        self.version, self.cpu_operators = version, cpu_operators
        self.paths: list[Path] = []
        """The graphs of the sessions opened."""
        self.options: list[dict[str, str]] = []
        """Their provider options."""
        self.running: list[str] = []
        """Messages of the errors that the next runs raise, in order."""
        self.capturing: list[str] = []
        """Messages of the errors that the next captures raise, in order."""
        self.during_capture: Callable[[], None] = lambda: None
        """Called in each capture."""
        self.counts: Counter[str] = Counter()
        self.loaded: list[str] = []

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Replace ``onnxruntime`` and ``cuda.core`` by the simulations, with no libraries loaded yet."""
        self.gpu.install(monkeypatch)
        monkeypatch.setitem(sys.modules, "onnxruntime", self.module())
        monkeypatch.setattr("sd2rt.engines.onnxruntime.cuda_libraries._loaded", False)
        monkeypatch.setattr("sd2rt.engines.onnxruntime.cuda_libraries.CDLL", self.load_library)

    def module(self) -> Any:
        module: Any = ModuleType("onnxruntime")
        vars(module).update(vars(onnxruntime))
        module.cuda_version = self.cuda_version
        module.__version__ = self.version or onnxruntime.__version__
        module.get_available_providers = lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"]
        module.preload_dlls = self.preload_dlls
        module.InferenceSession = lambda *given, **options: InferenceSession(self, *given, **options)
        module.IOBinding = bind_session
        return module

    def load_library(self, path: str) -> None:
        name = Path(path).name
        if name in self.missing:
            raise OSError(f"{name}: cannot open shared object file: No such file or directory")
        self.loaded.append(name)

    def preload_dlls(self) -> None:
        self.counts["preload"] += 1
        # Gives other threads time to arrive here.
        time.sleep(0.02)
        for name in self.missing:
            print(f"Failed to load {name}")


CUDA_OPTIONS = {"cudnn_conv_algo_search", "device_id", "enable_cuda_graph", "use_tf32", "user_compute_stream"}
"""The provider options that sd2rt sets; others are rejected."""
CAPTURE_REFUSED = (
    "[ONNXRuntimeError] : 1 : FAIL : This session cannot use the graph capture feature as requested by the user "
    " as all compute graph nodes have not been partitioned to the CUDAExecutionProvider"
)
CAPTURE_BROKEN = (
    "CUDA failure 901: operation failed due to a previous error during capture ; GPU=0 ; hostname=gpu-1"
)


@dataclass(frozen=True)
class AssignedSubgraph:
    ep_name: str
    nodes: list[Any]

    def get_nodes(self) -> list[Any]:
        return self.nodes


@dataclass(frozen=True)
class BoundTensor:
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    address: int


class IOBinding:
    def __init__(self, session: InferenceSession) -> None:
        self._names = {item.name for item in (*session.get_inputs(), *session.get_outputs())}
        self.inputs: dict[str, BoundTensor] = {}
        self.outputs: dict[str, BoundTensor] = {}

    def bind_input(self, *given: Any) -> None:
        self._bind(self.inputs, *given)

    def bind_output(self, *given: Any) -> None:
        self._bind(self.outputs, *given)

    def _bind(
        self,
        bound: dict[str, BoundTensor],
        name: str,
        device_type: str,
        device_id: int,
        element_type: Any,
        shape: tuple[int, ...],
        buffer_ptr: int,
    ) -> None:
        assert (device_type, device_id) == ("cuda", 0)
        if name not in self._names:
            raise RuntimeError(f"[ONNXRuntimeError] : 2 : INVALID_ARGUMENT : no such tensor {name}")
        bound[name] = BoundTensor(tuple(shape), np.dtype(element_type), buffer_ptr)


def bind_session(session: Any) -> Any:
    """Create the binding of a simulated session, or of a real one on the CPU."""
    kind = IOBinding if isinstance(session, InferenceSession) else onnxruntime.IOBinding
    return kind(session)


class InferenceSession:
    def __init__(
        self, cuda: SimulatedCuda, path: Any, options: Any, *, providers: list[Any], enable_fallback: int
    ) -> None:
        assert not enable_fallback
        (name, given), fallback = providers
        assert (name, fallback) == ("CUDAExecutionProvider", "CPUExecutionProvider")
        assert set(given) <= CUDA_OPTIONS
        if cuda.opening is not None:
            raise RuntimeError(cuda.opening)
        cuda.gpu.forbid_in_capture(any_thread=True)
        self._cuda, self._gpu = cuda, cuda.gpu
        self._captures = given["enable_cuda_graph"] == "1"
        self._stream = cuda.gpu.streams[int(given["user_compute_stream"])]
        self._graphs_of_thread = threading.local()
        self._warm_bindings: set[int] = set()
        cuda.paths.append(Path(path))
        cuda.options.append(given)
        self._session = onnxruntime.InferenceSession(path, options, providers=[fallback])
        on_cpu = {node.op_type for subgraph in self._on_cpu() for node in subgraph.get_nodes()}
        if self._captures and not on_cpu <= SHAPE_ARITHMETIC:
            raise RuntimeError(CAPTURE_REFUSED)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    def get_providers(self) -> list[str]:
        return ["CUDAExecutionProvider"] * self._cuda.starts + ["CPUExecutionProvider"]

    def get_provider_graph_assignment_info(self) -> list[AssignedSubgraph]:
        # The real call fails unless the session was told to record the assignment.
        nodes = [
            node
            for subgraph in self._session.get_provider_graph_assignment_info()
            for node in subgraph.get_nodes()
        ]
        on_cpu = [node for node in nodes if node.op_type in self._cuda.cpu_operators]
        on_gpu = [node for node in nodes if node.op_type not in self._cuda.cpu_operators]
        return [
            AssignedSubgraph("CUDAExecutionProvider", on_gpu),
            AssignedSubgraph("CPUExecutionProvider", on_cpu),
        ]

    def _on_cpu(self) -> list[AssignedSubgraph]:
        assigned = self.get_provider_graph_assignment_info()
        return [subgraph for subgraph in assigned if subgraph.ep_name == "CPUExecutionProvider"]

    def run_with_iobinding(self, binding: IOBinding, options: Any) -> None:
        if self._cuda.running:
            raise RuntimeError(self._cuda.running.pop(0))
        graph_id = options.get_run_config_entry("gpu_graph_id")
        assert self._captures or graph_id == "-1"
        assert self._stream.captured is None, (
            "the process ends: page-locked memory is freed in the caller's capture"
        )
        graphs: dict[str, list[Operation]] = self._graphs_of_thread.__dict__
        if graph_id == "-1":
            self._run(binding)
        elif graph_id in graphs:
            self._replay(graphs[graph_id])
        else:
            self._run(binding)
            self._run(binding)
            graphs[graph_id] = self._capture(binding)
            self._replay(graphs[graph_id])
        if options.get_run_config_entry("disable_synchronize_execution_providers") != "1":
            self._stream.sync()

    def _capture(self, binding: IOBinding) -> list[Operation]:
        stream = self._stream
        self._gpu.called("capture")
        stream.begin_capture()
        self._run(binding)
        self._cuda.during_capture()
        if self._cuda.capturing:
            stream.broken = True
            raise RuntimeError(self._cuda.capturing.pop(0))
        if stream.broken:
            raise RuntimeError(CAPTURE_BROKEN)
        operations, stream.captured = stream.captured, None
        assert operations is not None
        return operations

    def _replay(self, graph: list[Operation]) -> None:
        self._gpu.called("graph launch")
        for operation in graph:
            self._stream.enqueue(operation)

    def _run(self, binding: IOBinding) -> None:
        gpu, session = self._gpu, self._session
        if id(binding) not in self._warm_bindings:
            # Activations are allocated, and algorithms are measured.
            gpu.forbid_in_capture(any_thread=True)
            self._warm_bindings.add(id(binding))
        inputs, outputs = dict(binding.inputs), dict(binding.outputs)

        def run() -> None:
            feeds = {
                name: gpu.load(item.address, item.shape, item.dtype.str) for name, item in inputs.items()
            }
            gpu.counts["run"] += 1
            for (name, item), array in zip(outputs.items(), session.run(list(outputs), feeds), strict=True):
                assert (array.shape, array.dtype) == (item.shape, item.dtype), name
                gpu.store(item.address, array)

        gpu.counts["enqueue"] += 1
        self._stream.enqueue(run)
