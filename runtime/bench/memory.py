"""Memory of this process, as the kernel counts it."""

from __future__ import annotations

import resource
from pathlib import Path

_PEAK = "VmHWM:"


def peak_rss_bytes() -> int:
    """Most memory in core since the process began, or since :func:`forget_peak`; mapped files count where in core."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        lines = []
    for line in lines:
        if line.startswith(_PEAK):
            return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def forget_peak() -> bool:
    """Count the peak anew from here on; false where the system does not allow it."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True
