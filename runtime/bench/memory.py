"""Peak memory of this process, from the kernel."""

from __future__ import annotations

import resource
from pathlib import Path

_PEAK = "VmHWM:"


def peak_rss_bytes() -> int:
    """Return the peak resident memory since the process began or :func:`reset_peak`, including mapped files."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        lines = []
    for line in lines:
        if line.startswith(_PEAK):
            return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def reset_peak() -> bool:
    """Reset the peak to the current memory use. Returns False if the system does not allow it."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True
