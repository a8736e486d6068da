"""An onnxruntime-gpu that is not there: the installed ONNX Runtime, which says that it has the CUDA provider.

What runs on the CUDA provider runs on the CPU's kernels. As strict as the real one is where that matters: it prints
to standard output what it cannot load.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Any

import onnxruntime
import pytest


class SimulatedCuda:
    """The module's state: what is missing, and what happened.

    Args:
        missing: names of libraries that are not there.
        cuda_version: that the package was built for.
    """

    def __init__(self, *, missing: tuple[str, ...] = (), cuda_version: str = "13.0") -> None:
        self.missing, self.cuda_version = missing, cuda_version
        self.counts: Counter[str] = Counter()
        self.loaded: list[str] = []

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Be what ``import onnxruntime`` finds, with nothing loaded yet."""
        monkeypatch.setitem(sys.modules, "onnxruntime", self.module())
        monkeypatch.setattr("sd2rt.engines.onnxruntime.cuda_libraries._ready", False)
        monkeypatch.setattr("sd2rt.engines.onnxruntime.cuda_libraries.CDLL", self.load_library)

    def module(self) -> Any:
        module: Any = ModuleType("onnxruntime")
        vars(module).update(vars(onnxruntime))
        module.cuda_version = self.cuda_version
        module.get_available_providers = lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"]
        module.preload_dlls = self.preload_dlls
        return module

    def load_library(self, path: str) -> None:
        name = Path(path).name
        if name in self.missing:
            raise OSError(f"{name}: cannot open shared object file: No such file or directory")
        self.loaded.append(name)

    def preload_dlls(self) -> None:
        self.counts["preload"] += 1
        # Long enough for another thread to be here too.
        time.sleep(0.02)
        for name in self.missing:
            print(f"Failed to load {name}")
