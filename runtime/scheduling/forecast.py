"""Forecasts of finishing times, from remaining steps and measured costs."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush

from sd2rt.runtime.scheduling.lane import Lane
from sd2rt.runtime.scheduling.work import Work


def finish_times(lane: Lane, now: float, further: Sequence[Work] = ()) -> dict[Work, float]:
    """Seconds of the lane's own calls until each ready work is finished, if no others came; by finishing time.

    Costs that have not been measured count as zero. Runs that are not put together are assumed to follow each other.

    Args:
        further: works as if they were submitted now.
    """

    def cost(batch: int) -> float:
        return lane.curve.seconds(batch) or 0.0

    ordered = lane.expected(now, further)
    if lane.limit > 1:
        return dict(_follow(ordered, lane.limit, cost, 0.0))
    groups: dict[object, list[Work]] = {}
    for work in ordered:
        groups.setdefault(work.group, []).append(work)
    times: dict[Work, float] = {}
    start = 0.0
    for works in groups.values():
        times |= _follow(works, lane.group_limit, cost, start)
        start = max(times.values())
    return times


@dataclass(frozen=True, slots=True)
class LaneForecast:
    """Expected use of the device by one lane."""

    ends: dict[Work, float]
    """Seconds of the lane's own steps until each work is finished, ascending."""
    decode_seconds: float
    """Expected decoding for each finished work."""

    @staticmethod
    def of(lane: Lane, now: float, further: Sequence[Work] = ()) -> LaneForecast:
        return LaneForecast(finish_times(lane, now, further), lane.decode_seconds)

    def use(self, seconds: float) -> float:
        """Seconds of steps and decodes while another lane uses ``seconds`` for its steps."""
        ends = list(self.ends.values())
        steps = min(seconds, ends[-1]) if ends else 0.0
        return steps + self.decode_seconds * bisect_right(ends, steps)


def elapsed(work: Work, own: LaneForecast, others: Collection[LaneForecast]) -> float:
    """Seconds until a work is finished and its image decoded, if lanes share the device's time equally."""
    return own.use(own.ends[work]) + sum(other.use(own.ends[work]) for other in others)


def _follow(
    works: Iterable[Work], limit: int, cost: Callable[[int], float], start: float
) -> Iterator[tuple[Work, float]]:
    """Follow continuous batching from one finished work to the next; yield each with its time."""
    active: list[tuple[int, int, Work]] = []  # step at which it is finished, tie-breaker, work
    seconds, step = start, 0

    def finish() -> tuple[Work, float]:
        nonlocal seconds, step
        batch = len(active)
        end, _, work = heappop(active)
        seconds, step = seconds + (end - step) * cost(batch), end
        return work, seconds

    for number, work in enumerate(works):
        if len(active) == limit:
            yield finish()
        heappush(active, (step + work.steps_left, number, work))
    while active:
        yield finish()
