"""When what began and ended: spans of one thread, nested by their times."""

from __future__ import annotations

import time
from types import TracebackType
from typing import NamedTuple, Protocol, Self


class Span(NamedTuple):
    """Something that was done, on the clock of ``time.perf_counter_ns``."""

    name: str
    detail: str
    """The part of the bundle, where it is one's."""
    start: int
    end: int

    @property
    def nanoseconds(self) -> int:
        return self.end - self.start


class Ranges(Protocol):
    """What shows spans to a profiler as they happen; the package ``nvtx`` is one."""

    def push_range(self, message: str) -> object: ...

    def pop_range(self) -> object: ...


class Timeline:
    """Records spans in the order in which they end.

    Args:
        ranges: who is told of every span, beside.
    """

    def __init__(self, ranges: Ranges | None = None) -> None:
        self.ranges = ranges
        self._recorded: list[tuple[str, str, int, int]] = []
        self.add = self._recorded.append
        """Record a span that is over, as a tuple like :class:`Span`: what each step can afford."""

    def span(self, name: str, detail: str = "") -> Recording:
        """A context that is recorded as a span, also where an error leaves it."""
        return Recording(self, name, detail)

    def take(self) -> list[Span]:
        """What was recorded since the last call."""
        spans = [Span(*recorded) for recorded in self._recorded]
        self._recorded.clear()
        return spans


class Recording:
    """A span that is not over."""

    __slots__ = ("_detail", "_name", "_ranges", "_start", "_timeline")

    def __init__(self, timeline: Timeline, name: str, detail: str) -> None:
        self._timeline, self._ranges = timeline, timeline.ranges
        self._name, self._detail = name, detail

    def __enter__(self) -> Self:
        if self._ranges is not None:
            self._ranges.push_range(f"{self._name} {self._detail}".strip())
        self._start = time.perf_counter_ns()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._timeline.add((self._name, self._detail, self._start, time.perf_counter_ns()))
        if self._ranges is not None:
            self._ranges.pop_range()
