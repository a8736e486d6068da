"""The limit on this process's address space (``ulimit -v``), compared with the least that a program needs."""

from __future__ import annotations

import os

from sd2rt.engines.errors import EngineError

_CORES = 2
"""Cores of the machine of the measurements; each further one adds threads, with their stacks and heaps."""


def require_address_space(purpose: str, megabytes: int, megabytes_per_core: int, threads: int = 0) -> None:
    """Check the limit before native code is loaded, which ends the process when it gets no memory.

    Args:
        purpose: the program in the message.
        megabytes: its least address space on two cores, in MB.
        megabytes_per_core: that of each further core or thread.
        threads: threads that were asked for, if there are more of them than cores.

    Raises:
        EngineError: the limit is lower.
    """
    try:
        import resource
    except ImportError:
        # Not on Unix: there is no such limit.
        return
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    needed = (megabytes + megabytes_per_core * max(0, max(_cores(), threads) - _CORES)) * 1_000_000
    if limit != resource.RLIM_INFINITY and limit < needed:
        raise EngineError(
            f"the address space is limited to {limit / 1e6:.0f} MB, and {purpose} needs at least "
            f"{needed / 1e6:.0f} MB: raise the limit (ulimit -v)"
        )


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
