"""A simulated onnxruntime-gpu: the installed ONNX Runtime, which pretends to have the CUDA provider.

Sessions of the CUDA provider run on the CPU. Like the real package it prints the libraries that it cannot load to
standard output, and rejects unknown provider options.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import onnxruntime
import pytest


class SimulatedCuda:
    """The state of the simulated module, with counts of the calls made.

    Args:
        missing: names of libraries that cannot be loaded.
        cuda_version: CUDA version that the package was built for.
        starts: False if the provider does not start, which ONNX Runtime silently accepts.
        opening: message of the error that opening a session raises.
        version: version of the package; None for the installed one's.
        cpu_operators: operators that sessions assign to the CPU; by default some shape arithmetic.
    """

    def __init__(
        self,
        *,
        missing: tuple[str, ...] = (),
        cuda_version: str = "13.0",
        starts: bool = True,
        opening: str | None = None,
        version: str | None = None,
        cpu_operators: tuple[str, ...] = ("Concat", "Squeeze"),
    ) -> None:
        self.missing, self.cuda_version = missing, cuda_version
        self.starts, self.opening = starts, opening
        self.version, self.cpu_operators = version, cpu_operators
        self.paths: list[Path] = []
        """The graphs of the sessions opened."""
        self.running: list[str] = []
        """Messages of the errors that the next runs raise, in order."""
        self.graph_ids: list[str] = []
        self.counts: Counter[str] = Counter()
        self.loaded: list[str] = []

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Replace ``onnxruntime`` by the simulation, with no libraries loaded yet."""
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
        module.OrtValue = SimpleNamespace(
            ortvalue_from_numpy=lambda array, device="cpu", index=0: onnxruntime.OrtValue.ortvalue_from_numpy(
                array
            )
        )
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


CUDA_OPTIONS = {"cudnn_conv_algo_search", "device_id", "enable_cuda_graph", "use_tf32"}
"""The provider options that sd2rt sets; others are rejected."""


@dataclass(frozen=True)
class AssignedSubgraph:
    ep_name: str
    nodes: list[Any]

    def get_nodes(self) -> list[Any]:
        return self.nodes


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
        self._cuda = cuda
        cuda.paths.append(Path(path))
        self._session = onnxruntime.InferenceSession(path, options, providers=[fallback])

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

    def run_with_iobinding(self, binding: Any, options: Any) -> None:
        self._cuda.graph_ids.append(options.get_run_config_entry("gpu_graph_id"))
        if self._cuda.running:
            raise RuntimeError(self._cuda.running.pop(0))
        self._session.run_with_iobinding(binding, options)
