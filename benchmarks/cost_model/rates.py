"""What a machine can do at most: the rate of a matrix product, and of a copy in memory, on some threads."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

# Read when PyTorch loads its OpenMP: threads that spin would slow what is measured next.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

_GEMM_SIDE = 2048
_SECONDS = 0.3
_LEAST_COPY_BYTES = 1 << 28


class Rates:
    """Measures this machine's rates, again at each call, so that they can take turns with what they bound.

    Products are of PyTorch (oneDNN, MKL), where it is installed, and else of NumPy's BLAS, which has no bf16. They
    are square and large, of random numbers. The copy is from one array to another, both far larger than the caches,
    a piece on each thread.

    Args:
        threads: how many.
    """

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self.library, self.products = _products(threads)
        self.copy_bytes = max(_LEAST_COPY_BYTES, 4 * last_cache_bytes())
        self._source = np.ones(self.copy_bytes // 8)
        self._target = np.zeros_like(self._source)
        self._pool = ThreadPoolExecutor(threads)

    def measure(self) -> dict[str, float]:
        """Operations per second by precision (``gemm_fp32``, ``gemm_bf16``), and bytes per second (``copy``)."""
        found = {f"gemm_{name}": 2 * _GEMM_SIDE**3 * _rate(work) for name, work in self.products.items()}
        # Each byte is read once and written once.
        return found | {"copy": 2 * self.copy_bytes * _rate(self._copy)}

    def facts(self) -> dict[str, Any]:
        """How they are measured."""
        return {
            "gemm": {"library": self.library, "side": _GEMM_SIDE, "threads": self.threads},
            "copy": {"library": f"NumPy {np.__version__}", "bytes": self.copy_bytes, "threads": self.threads},
        }

    def _copy(self) -> None:
        pieces = np.array_split(self._source, self.threads), np.array_split(self._target, self.threads)
        list(self._pool.map(np.copyto, pieces[1], pieces[0]))


def _rate(work: Callable[[], object]) -> float:
    """Calls per second of the fastest of those that fit into the time, after one that does not count."""
    work()
    fastest, end = float("inf"), time.perf_counter() + _SECONDS
    while True:
        start = time.perf_counter()
        work()
        now = time.perf_counter()
        fastest = min(fastest, now - start)
        if now >= end:
            return 1 / fastest


def _products(threads: int) -> tuple[str, dict[str, Callable[[], object]]]:
    try:
        import torch
    except ImportError:
        numbers = np.random.default_rng(0).standard_normal((_GEMM_SIDE, _GEMM_SIDE), np.float32)
        return f"NumPy {np.__version__}, its own choice of threads", {"fp32": lambda: numbers @ numbers}
    torch.set_num_threads(threads)

    def product(dtype: torch.dtype) -> Callable[[], object]:
        a = torch.randn(_GEMM_SIDE, _GEMM_SIDE).to(dtype)
        out = torch.empty_like(a)
        return lambda: torch.mm(a, a, out=out)

    made = {"fp32": product(torch.float32), "bf16": product(torch.bfloat16)}
    return f"PyTorch {torch.__version__}", made


def last_cache_bytes() -> int:
    """Of the largest cache of the first core; 0 where the system does not say."""
    sizes = []
    for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        text = path.read_text().strip()
        sizes.append(int(text.rstrip("KM")) << {"K": 10, "M": 20}.get(text[-1], 0))
    return max(sizes, default=0)
