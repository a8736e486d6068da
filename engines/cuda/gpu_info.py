"""The GPU at hand, as far as engines are bound to it."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module


@dataclass(frozen=True, slots=True)
class GpuFacts:
    """A GPU: its name, its compute capability such as ``8.9``, and the CUDA version of its driver."""

    name: str
    compute_capability: str
    driver: str


def sm_number(compute_capability: str) -> str:
    """A compute capability without its point, as compilers and ``--sm`` have it: ``89`` for ``8.9``."""
    return compute_capability.replace(".", "")


def gpu_at_hand(index: int = 0) -> GpuFacts | None:
    """The GPU of this number, or None where there is none that cuda-python can see: it never fails."""
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
        # No cuda-python, no driver, no GPU: whoever needs one says so.
        return None


def device_memory(index: int = 0) -> tuple[int, int] | None:
    """Bytes of a GPU's memory that are in use, by all processes, and bytes in all; None where nobody says.

    What a pool keeps for reuse is in use.
    """
    try:
        import_module("cuda.core").Device(index).set_current()
        result, free, total = import_module("cuda.bindings.driver").cuMemGetInfo()
    except Exception:
        return None
    return None if int(result) else (int(total) - int(free), int(total))
