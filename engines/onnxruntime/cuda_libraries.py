"""CUDA's libraries for ONNX Runtime: loaded once a process, from the pip packages or from the system."""

from __future__ import annotations

import threading
from ctypes import CDLL
from pathlib import Path
from typing import Any

from sd2rt.engines.errors import MissingDependencyError

CUDA_MAJOR, CUDNN_MAJOR = 13, 9
_REQUIRED = (
    # cuBLAS needs cuBLASLt, so that comes first.
    f"libcublasLt.so.{CUDA_MAJOR}",
    f"libcublas.so.{CUDA_MAJOR}",
    "libcurand.so.10",
    f"libcudart.so.{CUDA_MAJOR}",
    f"libcudnn.so.{CUDNN_MAJOR}",
)
_LOCK = threading.Lock()
_ready = False


def load_cuda_libraries(ort: Any) -> None:
    """Load what the CUDA provider needs, which the loader would not find in the pip packages; once a process.

    Engines are opened by several threads, and ONNX Runtime prints what it cannot load to standard output, which is
    not its own: so it is asked only where everything that it would name is loaded, by one thread alone.

    Raises:
        MissingDependencyError: a library is not there, or ONNX Runtime is for another CUDA.
    """
    global _ready
    with _LOCK:
        if _ready:
            return
        _check_build(ort)
        packages = Path(ort.__file__).resolve().parent.parent / "nvidia"
        for name in _REQUIRED:
            _load(packages, name)
        # The rest, which it can do without, and its own registration.
        ort.preload_dlls()
        _ready = True


def _check_build(ort: Any) -> None:
    if str(ort.cuda_version).split(".")[0] != str(CUDA_MAJOR):
        raise MissingDependencyError(
            f"this ONNX Runtime ({ort.__version__}) was built for CUDA {ort.cuda_version or '?'}, and not "
            f"for CUDA {CUDA_MAJOR}: in a fresh environment, pip install 'sd2rt[cuda]'"
        )


def _load(packages: Path, name: str) -> None:
    """Load a library of a pip package, of which the name says where; else the system's, if it has one."""
    reason: OSError | None = None
    for path in (*sorted(packages.glob(f"*/lib/{name}")), Path(name)):
        try:
            CDLL(str(path))
        except OSError as error:
            reason = reason or error
        else:
            return
    raise MissingDependencyError(
        f"ONNX Runtime's CUDA provider needs {name} ({reason}): pip install 'sd2rt[cuda]'"
    )
