"""When the denoiser's calls ended."""

from __future__ import annotations

import time
from collections.abc import Callable

Synchronise = Callable[[], object]


class StepClock:
    """The seconds of each call after the first.

    A GPU's calls are enqueued, and to wait for each would slow them down: with ``synchronise`` the device is
    waited for after the first and the last call alone, and the mean between the two is the one value.
    """

    def __init__(self, synchronise: Synchronise | None = None) -> None:
        self._synchronise = synchronise
        self._ends: list[float] = []
        self._first_call = self._last_call = 0

    def stamp(self, call: int, calls: int) -> None:
        """Call number ``call`` of ``calls``, from 1, has returned."""
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
        """Empty where there was one call."""
        if self._synchronise is not None:
            calls = self._last_call - self._first_call
            return [(self._ends[-1] - self._ends[0]) / calls] if calls else []
        return [end - start for start, end in zip(self._ends, self._ends[1:], strict=False)]
