"""The kernels that TensorRT for RTX compiles when an engine is first used, kept from process to process."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path
from typing import Any

from sd2rt.engines.bundle.cache import cache_dir
from sd2rt.engines.bundle.files import atomic_write
from sd2rt.engines.cuda.device import CudaDevice
from sd2rt.engines.errors import BundleError


class KernelCache:
    """Kernels of one engine on one GPU and driver, in a file of the cache directory.

    Args:
        module: TensorRT for RTX.
        engine: the backend's own.
        sha256: of the engine's file.
        device: the GPU that it runs on.
    """

    def __init__(self, module: Any, engine: Any, sha256: str, device: CudaDevice) -> None:
        self._trt = module
        config = engine.create_runtime_config()
        self._cache = config.create_runtime_cache()
        gpu = re.sub(r"[^A-Za-z0-9]+", "-", device.name)
        self._path: Path | None = None
        self._known = b""
        # No home directory, or nothing there: they are compiled again. A cache of another driver or version is
        # refused by the backend itself.
        with contextlib.suppress(BundleError, OSError):
            self._path = cache_dir() / "kernels" / f"{sha256}-{gpu}-{device.driver}.bin"
            known = self._path.read_bytes()
            if self._cache.deserialize(known):
                self._known = known

    def use_in(self, config: Any) -> None:
        """Let a context take its kernels from here, and leave them here."""
        trt = self._trt
        config.set_runtime_cache(self._cache)
        # The first launch compiles what fits its shapes: what a graph captures stays, so it is to be the best.
        config.dynamic_shapes_kernel_specialization_strategy = (
            trt.DynamicShapesKernelSpecializationStrategy.EAGER
        )
        # The session captures more than the engine alone.
        config.cuda_graph_strategy = trt.CudaGraphStrategy.DISABLED

    def save(self) -> None:
        """Write what is new; a cache that cannot be written costs time in the next process, nothing else."""
        if self._path is None:
            return
        with contextlib.suppress(OSError, RuntimeError):
            serialized = self._cache.serialize()
            if serialized is None or (content := bytes(memoryview(serialized))) == self._known:
                return
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(self._path) as temporary:
                temporary.write_bytes(content)
            self._known = content
