"""Cache the kernels that TensorRT for RTX compiles on an engine's first launch, across processes."""

from __future__ import annotations

import contextlib
import logging
import re
from pathlib import Path
from typing import Any

from sd2rt.engines.bundle.cache import cache_dir
from sd2rt.engines.bundle.files import atomic_write
from sd2rt.engines.cuda.device import CudaDevice
from sd2rt.engines.errors import BundleError
from sd2rt.engines.regular_file import read_regular

_LOG = logging.getLogger(__name__)

_MAX_BYTES = 1 << 30


class KernelCache:
    """Kernels of one engine for one GPU and driver, kept in a file of the cache directory.

    Args:
        module: TensorRT for RTX.
        engine: the backend's ICudaEngine.
        sha256: hash of the engine file.
        device: the GPU that the engine runs on.
    """

    def __init__(self, module: Any, engine: Any, sha256: str, device: CudaDevice) -> None:
        self._trt = module
        config = engine.create_runtime_config()
        self._cache = config.create_runtime_cache()
        gpu = re.sub(r"[^A-Za-z0-9]+", "-", device.name)
        self._path: Path | None = None
        self._saved = b""
        # Without a cache directory or a file the kernels are compiled again. The backend refuses a cache of
        # another driver or version.
        with contextlib.suppress(BundleError, OSError):
            self._path = cache_dir() / "kernels" / f"{sha256}-{gpu}-{device.driver}.bin"
            content = read_regular(self._path, _MAX_BYTES)
            if self._cache.deserialize(content):
                self._saved = content
                _LOG.debug("kernels loaded from %s", self._path)

    def use_in(self, config: Any) -> None:
        """Make contexts created with ``config`` load kernels from the cache and add new ones to it."""
        trt = self._trt
        config.set_runtime_cache(self._cache)
        # Compile specialised kernels at the first launch: a captured graph keeps the kernels it was captured with.
        config.dynamic_shapes_kernel_specialization_strategy = (
            trt.DynamicShapesKernelSpecializationStrategy.EAGER
        )
        # The session captures its own graph, which also has the carry copies.
        config.cuda_graph_strategy = trt.CudaGraphStrategy.DISABLED

    def save(self) -> None:
        """Write the cache if it has new kernels; if it cannot be written, the next process compiles them again."""
        if self._path is None:
            return
        with contextlib.suppress(OSError, RuntimeError):
            serialized = self._cache.serialize()
            if serialized is None or (content := bytes(memoryview(serialized))) == self._saved:
                return
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(self._path) as temporary:
                temporary.write_bytes(content)
            self._saved = content
            _LOG.debug("kernels saved to %s", self._path)
