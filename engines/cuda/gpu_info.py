"""Query the properties of the installed GPU that engines depend on."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module


@dataclass(frozen=True, slots=True)
class GpuFacts:
    """A GPU's name, compute capability such as ``8.9``, and its driver's CUDA version."""

    name: str
    compute_capability: str
    driver: str


def sm_number(compute_capability: str) -> str:
    """Format a compute capability as compilers and ``--sm`` do: ``89`` for ``8.9``."""
    return compute_capability.replace(".", "")


def gpu_at_hand(index: int = 0) -> GpuFacts | None:
    """Describe a GPU; None if cuda-python, the driver or the GPU is missing. Never raises."""
    try:
        from cuda.bindings import driver
        from cuda.core import Device

        device = Device(index)
        device.set_current()
        capability = device.compute_capability
        _, version = driver.cuDriverGetVersion()
        cuda = f"CUDA {int(version) // 1000}.{int(version) % 1000 // 10}"
        return GpuFacts(str(device.name), f"{capability.major}.{capability.minor}", cuda)
    except Exception:
        # The caller raises if it needs a GPU.
        return None


def device_memory(index: int = 0) -> tuple[int, int] | None:
    """Used and total bytes of a GPU's memory, over all processes; None if they cannot be queried.

    Memory that a pool keeps for reuse counts as used.
    """
    try:
        import_module("cuda.core").Device(index).set_current()
        result, free, total = import_module("cuda.bindings.driver").cuMemGetInfo()
    except Exception:
        return None
    return None if int(result) else (int(total) - int(free), int(total))
