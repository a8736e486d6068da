"""The machine that a result was made on: what its reader needs to compare it with another."""

from __future__ import annotations

import datetime
import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

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
    "torch",
    "triton",
    "diffusers",
    "transformers",
    "accelerate",
    "onnx",
    "onnxscript",
    "numpy",
    "pillow",
    "tokenizers",
    "pydantic",
    "typer",
)
_FLAGS = ("avx2", "fma", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_tile", "amx_bf16")
_ROOT = Path(__file__).resolve().parent.parent


def facts() -> dict[str, Any]:
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
        "packages": {name: found for name in PACKAGES if (found := _version(name)) is not None},
        "commit": _git("rev-parse", "HEAD"),
        "dirty": bool(_git("status", "--porcelain", "--", "engines", "export", "runtime", "benchmarks/*.py")),
        "load_average": load_average(),
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


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", _ROOT, *arguments], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


if __name__ == "__main__":
    import json

    print(json.dumps(facts(), indent=1))
