"""Memory that bundles need, and that a device has."""

from __future__ import annotations

import os
from pathlib import Path

from sd2rt.engines.bundle.manifest import Manifest
from sd2rt.engines.bundle.model_kinds import UNTILED
from sd2rt.engines.interface import Device

_BYTES_PER_PIXEL = 6 << 10
"""Of an image that is generated, in float32 with SD2's widths: 1.5 to 1.9 GB beside the weights were measured for
512x512 pixels (the peak of a process, less its weights)."""
_SD2_TEXT_WIDTH = 1024
_MEMINFO, _STATUS = Path("/proc/meminfo"), Path("/proc/self/status")
_CGROUP = Path("/sys/fs/cgroup")


def needed_bytes(manifest: Manifest) -> int:
    """Estimate the memory of a loaded bundle that generates one image of its native size."""
    files = [manifest.tokenizer.file, manifest.embeddings.file]
    for name, part in manifest.parts.items():
        # A tiled part has the weights of its counterpart, and is loaded for large images only.
        if name not in UNTILED:
            files += part.files
    weights = sum({file.sha256: file.size for file in files}.values())
    width, height = manifest.native_sizes[0]
    share = manifest.embeddings.width / _SD2_TEXT_WIDTH
    if manifest.embeddings.dtype == "float16":
        share /= 2
    return weights + int(width * height * _BYTES_PER_PIXEL * share)


def available_bytes(device: Device) -> int | None:
    """Memory that is free on a device; None if that is unknown."""
    if device.kind == "cuda":
        from sd2rt.engines.cuda.gpu_info import device_memory

        used_and_total = device_memory(device.index)
        return None if used_and_total is None else used_and_total[1] - used_and_total[0]
    known = [value for value in (_entry(_MEMINFO, "MemAvailable:"), _cgroup_room()) if value is not None]
    return min(known, default=None)


def used_bytes(device: Device) -> int | None:
    """Memory in use: on a GPU that of all processes, else the resident memory of this one."""
    if device.kind == "cuda":
        from sd2rt.engines.cuda.gpu_info import device_memory

        used_and_total = device_memory(device.index)
        return None if used_and_total is None else used_and_total[0]
    return _entry(_STATUS, "VmRSS:")


def in_units(size: int) -> str:
    """Format a number of bytes: ``1.5 GB`` or ``50 MB``."""
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"


def _entry(file: Path, name: str) -> int | None:
    try:
        for line in file.read_text().splitlines():
            if line.startswith(name):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    return None


def _cgroup_room() -> int | None:
    """Memory that a container's limit leaves; None without a limit."""
    for limit, used in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        try:
            room = int((_CGROUP / limit).read_text()) - int((_CGROUP / used).read_text())
        except (OSError, ValueError):
            continue
        # Without a limit, the old interface has a number near 2**63.
        return max(room, 0) if room < os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") else None
    return None
