"""The machine that something was measured on: what a reader needs to compare it with another."""

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
"""Those that making images can take."""
_FLAGS = ("avx2", "fma", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_tile", "amx_bf16")


def facts(packages: Sequence[str] = PACKAGES) -> dict[str, Any]:
    """What the hardware, the software and the moment are; nothing that names a host, a user or a folder."""
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
        "packages": {name: found for name in packages if (found := _version(name)) is not None},
        "load_average": load_average(),
    }


def gpu_facts(index: int) -> dict[str, Any] | None:
    """The GPU's name, compute capability, driver and memory; None where cuda-python sees none.

    It makes CUDA start in this process, which takes memory on both sides.
    """
    found = gpu_at_hand(index)
    if found is None:
        return None
    memory = device_memory(index)
    return {
        "name": found.name,
        "compute_capability": found.compute_capability,
        "driver": found.driver,
        "memory_bytes": None if memory is None else memory[1],
    }


def load_average() -> list[float]:
    """Processes that were running or waited to, over the last 1, 5 and 15 minutes."""
    return [round(load, 2) for load in os.getloadavg()]


def _fields(path: str) -> dict[str, str]:
    """The ``name : value`` lines of a file under /proc, the first of each name; none on other systems."""
    try:
        lines = Path(path).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return {}
    found: dict[str, str] = {}
    for line in lines:
        name, colon, value = line.partition(":")
        if colon:
            found.setdefault(name.strip(), value.strip())
    return found


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
