"""Load the CUDA libraries for ONNX Runtime once per process, from the pip packages or the system."""

from __future__ import annotations

import threading
from ctypes import CDLL
from pathlib import Path
from typing import Any

from sd2rt.engines.errors import MissingDependencyError
from sd2rt.engines.install_hint import install_hint

CUDA_MAJOR, CUDNN_MAJOR = 13, 9
OLDEST_ONNXRUNTIME = (1, 31)
"""The first version with the attention kernels that the graphs need and a record of the operators left to the CPU."""
_REQUIRED = (
    # cuBLAS needs cuBLASLt, so that comes first.
    f"libcublasLt.so.{CUDA_MAJOR}",
    f"libcublas.so.{CUDA_MAJOR}",
    "libcurand.so.10",
    f"libcudart.so.{CUDA_MAJOR}",
    f"libcudnn.so.{CUDNN_MAJOR}",
)
_LOCK = threading.Lock()
_loaded = False


def load_cuda_libraries(ort: Any) -> None:
    """Load the libraries that the CUDA provider needs; the dynamic loader does not search the pip packages.

    Safe to call from several threads. ``preload_dlls`` prints the libraries it cannot load to standard output, so
    it is called only after all of those have been loaded here.

    Raises:
        MissingDependencyError: a library is missing, or ONNX Runtime is too old or built for another CUDA version.
    """
    global _loaded
    with _LOCK:
        if _loaded:
            return
        _check_build(ort)
        packages = Path(ort.__file__).resolve().parent.parent / "nvidia"
        for name in _REQUIRED:
            _load(packages, name)
        # Loads the optional libraries and registers them with ONNX Runtime.
        ort.preload_dlls()
        _loaded = True


def _check_build(ort: Any) -> None:
    version = tuple(map(int, str(ort.__version__).split(".")[:2]))
    if version < OLDEST_ONNXRUNTIME:
        raise MissingDependencyError(
            f"this ONNX Runtime ({ort.__version__}) is too old for CUDA, {'.'.join(map(str, OLDEST_ONNXRUNTIME))} or "
            f"later is needed: in a fresh environment, {install_hint('cuda')}"
        )
    if str(ort.cuda_version).split(".")[0] != str(CUDA_MAJOR):
        raise MissingDependencyError(
            f"this ONNX Runtime ({ort.__version__}) was built for CUDA {ort.cuda_version or '?'}, expected "
            f"CUDA {CUDA_MAJOR}: in a fresh environment, {install_hint('cuda')}"
        )


def _load(packages: Path, name: str) -> None:
    """Load a library from NVIDIA's pip packages, or else from the system."""
    reason: OSError | None = None
    for path in (*sorted(packages.glob(f"*/lib/{name}")), Path(name)):
        try:
            CDLL(str(path))
        except OSError as error:
            reason = reason or error
        else:
            return
    raise MissingDependencyError(
        f"ONNX Runtime's CUDA provider needs {name} ({reason}): {install_hint('cuda')}"
    )
