"""Describe the machine of a measurement, so that results can be compared."""

from __future__ import annotations

import datetime
import os
import platform
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from sd2rt.engines.cuda.gpu_info import device_memory, gpu_at_hand

PACKAGES = (
    "sd2rt",
    "onnxruntime",
    "onnxruntime-gpu",
    "tensorrt",
    "tensorrt-cu13",
    "tensorrt-lean-cu13",
    "tensorrt-rtx",
    "tensorrt-rtx-cu13",
    "cuda-python",
    "cuda-bindings",
    "cuda-core",
    "numpy",
    "pillow",
    "tokenizers",
    "pydantic",
    "typer",
)
"""Packages whose versions are recorded."""
_FLAGS = ("avx2", "fma", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_tile", "amx_bf16")


def facts(packages: Sequence[str] = PACKAGES) -> dict[str, Any]:
    """Return hardware, software, date and load. Host, user and folder names are left out on purpose."""
    cpu = _fields("/proc/cpuinfo")
    memory = _fields("/proc/meminfo")
    flags = set(cpu.get("flags", "").split())
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "cpu": cpu.get("model name", platform.processor()),
        "cpu_family_model_stepping": [cpu.get(name) for name in ("cpu family", "model", "stepping")],
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "instructions": [flag for flag in _FLAGS if flag in flags],
        "memory_bytes": int(memory.get("MemTotal", "0 kB").split()[0]) * 1024,
        "os": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
        "packages": {name: installed for name in packages if (installed := _version(name)) is not None},
        "load_average": load_average(),
    }


def gpu_facts(index: int) -> dict[str, Any] | None:
    """Return the GPU's name, compute capability, driver and memory, or None if cuda-python finds no GPU.

    This initialises CUDA in the process, which uses host and device memory.
    """
    gpu = gpu_at_hand(index)
    if gpu is None:
        return None
    memory = device_memory(index)
    return {
        "name": gpu.name,
        "compute_capability": gpu.compute_capability,
        "driver": gpu.driver,
        "memory_bytes": None if memory is None else memory[1],
    }


def load_average() -> list[float]:
    """Return the system's load average over the last 1, 5 and 15 minutes."""
    return [round(load, 2) for load in os.getloadavg()]


def _fields(path: str) -> dict[str, str]:
    """Parse ``name : value`` lines of a file under /proc, keeping the first of each name; empty on other systems."""
    try:
        lines = Path(path).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return {}
    fields: dict[str, str] = {}
    for line in lines:
        name, colon, value = line.partition(":")
        if colon:
            fields.setdefault(name.strip(), value.strip())
    return fields


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
