"""Measure the machine's peak rates: a large matrix product and a memory copy."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

# Set before PyTorch loads OpenMP: spinning threads would slow the next measurement.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

_GEMM_SIDE = 2048
_SECONDS = 0.3
_LEAST_COPY_BYTES = 1 << 28


class Rates:
    """Measures the machine's rates at each call, so that they can be taken in turns with the parts they bound.

    Matrix products use PyTorch (oneDNN, MKL) if installed, else NumPy's BLAS, which has no bf16. The matrices are
    square, large and random. The copy runs on all threads, between arrays far larger than the caches.
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
        rates = {f"gemm_{name}": 2 * _GEMM_SIDE**3 * _rate(work) for name, work in self.products.items()}
        # Each byte is read once and written once.
        return rates | {"copy": 2 * self.copy_bytes * _rate(self._copy)}

    def facts(self) -> dict[str, Any]:
        """Libraries and sizes used for the measurement."""
        return {
            "gemm": {"library": self.library, "side": _GEMM_SIDE, "threads": self.threads},
            "copy": {"library": f"NumPy {np.__version__}", "bytes": self.copy_bytes, "threads": self.threads},
        }

    def _copy(self) -> None:
        pieces = np.array_split(self._source, self.threads), np.array_split(self._target, self.threads)
        list(self._pool.map(np.copyto, pieces[1], pieces[0]))


def _rate(work: Callable[[], object]) -> float:
    """Calls per second of the fastest call within the time limit, after a warm-up call."""
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
        return f"NumPy {np.__version__}, default threads", {"fp32": lambda: numbers @ numbers}
    torch.set_num_threads(threads)

    def product(dtype: torch.dtype) -> Callable[[], object]:
        a = torch.randn(_GEMM_SIDE, _GEMM_SIDE).to(dtype)
        out = torch.empty_like(a)
        return lambda: torch.mm(a, a, out=out)

    products = {"fp32": product(torch.float32), "bf16": product(torch.bfloat16)}
    return f"PyTorch {torch.__version__}", products


def last_cache_bytes() -> int:
    """Size of the largest cache of the first core; 0 if the system does not report it."""
    sizes = []
    for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        text = path.read_text().strip()
        sizes.append(int(text.rstrip("KM")) << {"K": 10, "M": 20}.get(text[-1], 0))
    return max(sizes, default=0)
