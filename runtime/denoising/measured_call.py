"""Denoiser calls on random numbers: to have a session allocated and captured, and to measure what a call costs."""

from __future__ import annotations

import time
from collections.abc import Mapping
from statistics import median

import numpy as np

from sd2rt.engines.interface import Array, Engine, Session
from sd2rt.runtime.denoising.batch import CARRY
from sd2rt.runtime.denoising.finite_checks import WATCHED

CALLS = 5
"""Calls whose median is the cost."""
SECONDS = 2.0
"""Time after which no further call is measured."""


def launch(denoiser: Engine, dims: Mapping[str, int], calls: int) -> None:
    """Make calls of these sizes and wait for them.

    The second call of a session captures its graph, unless the device's activation memory has moved meanwhile. No
    trajectory's state may lie in the session's buffers.

    Raises:
        EngineError: the device failed or ran out of memory.
    """
    session = denoiser.session(dims, CARRY, WATCHED)
    _fill(denoiser, session)
    for _ in range(calls):
        session.launch()
    session.watched(wait=True)
    # Memory for reads is allocated by the largest one.
    session.buffers["state"].pull()


def measured_seconds(denoiser: Engine, dims: Mapping[str, int], calls: int = CALLS) -> float:
    """Median seconds of calls of these sizes, launched before; fewer calls if they take longer than two seconds.

    Raises:
        EngineError: the device failed or ran out of memory.
    """
    session = denoiser.session(dims, CARRY, WATCHED)
    measured: list[float] = []
    while len(measured) < calls and sum(measured) < SECONDS:
        start = time.perf_counter()
        session.buffers["timestep"].push()
        session.launch()
        session.watched(wait=True)
        measured.append(time.perf_counter() - start)
    return median(measured)


def _fill(denoiser: Engine, session: Session) -> None:
    """Write every input, which allocates its staging memory.

    Numbers are random, as a device may be faster, or its clock higher, with zeros. The state stays the same.
    """
    generator = np.random.default_rng(0)
    for tensor in denoiser.part.inputs:
        buffer = session.buffers[tensor.name]
        values: Array = np.zeros(buffer.shape, buffer.dtype)
        if tensor.name in ("state", "text", "noise", "extra"):
            values[:] = generator.standard_normal(buffer.shape, np.float32)
        elif tensor.name == "update":
            values[:, :, : buffer.shape[1]] = np.eye(buffer.shape[1])
        elif tensor.name == "timestep":
            values[:] = 500
        elif tensor.name == "weights":
            values[:, 0] = 1
        elif tensor.name == "row":
            values[:] = np.arange(len(values)) * session.buffers["uncond"].shape[0] // len(values)
        elif tensor.name == "guidance":
            values[:] = 7.5, 0
        buffer.write(values)
