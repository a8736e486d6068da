"""Time the calls of a denoiser."""

from __future__ import annotations

import time
from collections.abc import Callable

Synchronise = Callable[[], object]


class StepClock:
    """Record the seconds of each call after the first.

    GPU calls are only enqueued, and synchronising after each would slow them down. With ``synchronise``, the clock
    synchronises after the first and last call only, and reports one value: the mean between them.
    """

    def __init__(self, synchronise: Synchronise | None = None) -> None:
        self._synchronise = synchronise
        self._ends: list[float] = []
        self._first_call = self._last_call = 0

    def stamp(self, call: int, calls: int) -> None:
        """Record that call number ``call`` of ``calls``, counted from 1, has returned."""
        if self._synchronise is not None:
            if call not in (1, calls):
                return
            self._synchronise()
        if not self._ends:
            self._first_call = call
        self._last_call = call
        self._ends.append(time.perf_counter())

    @property
    def seconds(self) -> list[float]:
        """Seconds of each call after the first; empty after a single call."""
        if self._synchronise is not None:
            calls = self._last_call - self._first_call
            return [(self._ends[-1] - self._ends[0]) / calls] if calls else []
        return [end - start for start, end in zip(self._ends, self._ends[1:], strict=False)]
