"""GPU state and its two measured ceilings: matrix product rate and copy bandwidth."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterator

from benchmarks.gpu.settings import Settings
from benchmarks.gpu.stage import Record
from benchmarks.gpu.timing import spread
from benchmarks.recording import machine

_QUERY = (
    "name", "compute_cap", "driver_version", "memory.total", "memory.used", "clocks.sm", "clocks.max.sm",
    "clocks.mem", "power.draw", "power.limit", "temperature.gpu", "persistence_mode",
)  # fmt: skip
_GEMM = 8192
_COPY_BYTES = 1 << 31
_TIMES = 30


def facts(settings: Settings, _: str) -> Iterator[Record]:
    """Packages, GPU state by nvidia-smi and cuda-python, and the rates of a matrix product and a copy."""
    yield {"what": "packages", "value": machine.facts()["packages"]}
    if shutil.which("nvidia-smi") is not None:
        yield from smi_records()
    if settings.device == "cuda":
        from sd2rt.engines.cuda.gpu_info import gpu_at_hand

        gpu = gpu_at_hand()
        if gpu is not None:
            yield {"what": "cuda-python", "value": [gpu.name, f"sm {gpu.compute_capability}", gpu.driver]}
    yield from ceilings(settings.device)


def smi_records() -> Iterator[Record]:
    """GPU state as nvidia-smi reports it, a record for each field."""
    command = ["nvidia-smi", f"--query-gpu={','.join(_QUERY)}", "--format=csv,noheader"]
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    if process.returncode != 0:
        yield {"what": "nvidia-smi", "value": " ".join((process.stdout + process.stderr).split())[:300]}
        return
    values = process.stdout.strip().splitlines()[0].split(", ")
    for name, value in zip(_QUERY, values, strict=True):
        yield {"what": name, "value": value}


def ceilings(device: str) -> Iterator[Record]:
    """Rates of a matrix product and of a copy, by torch where it is installed.

    On random numbers: on zeros a GPU draws less power and runs faster than on data.
    """
    try:
        import torch
    except ImportError:
        return
    real = device == "cuda"
    dtype = torch.float16 if real else torch.float32
    side, size = (_GEMM, _COPY_BYTES) if real else (256, 1 << 20)
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    times = [t * 1e-3 for t in _milliseconds(lambda: a @ b, real)]
    yield {"what": "gemm_tflops", "value": spread((2 * side**3 / t / 1e12 for t in times), 3)}
    source = torch.randn(size // dtype.itemsize, device=device, dtype=dtype)
    target = torch.empty_like(source)
    times = [t * 1e-3 for t in _milliseconds(lambda: target.copy_(source), real)]
    # Each byte is read and written once.
    yield {"what": "copy_gb_s", "value": spread((2 * size / t / 1e9 for t in times), 1)}


def _milliseconds(work: Callable[[], object], real: bool) -> list[float]:
    import time

    import torch

    times = []
    for index in range(_TIMES + 5):
        if real:
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
            start.record()
            work()
            end.record()
            end.synchronize()
            elapsed = start.elapsed_time(end)
        else:
            began = time.perf_counter()
            work()
            elapsed = (time.perf_counter() - began) * 1e3
        if index >= 5:
            times.append(elapsed)
    return times
