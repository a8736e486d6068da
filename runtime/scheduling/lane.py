"""A lane: jobs that can share denoiser calls, and the choice of those that do."""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Sequence
from itertools import islice
from typing import NamedTuple

from sd2rt.runtime.scheduling.cost_curve import CostCurve
from sd2rt.runtime.scheduling.settings import Settings
from sd2rt.runtime.scheduling.waiting_queue import WaitingQueue, level
from sd2rt.runtime.scheduling.work import Work


class _Start(NamedTuple):
    number: int
    time: float
    level: int
    """Urgency with which the work started."""


class Lane:
    """Continuous batching of the works of one lane: between two steps, works end and others join.

    If ``limit`` is above 1, a call has works of any runs. Otherwise it has works of one run: the first
    ``group_limit`` unfinished ones in the order of submission, so that a run's batches are those it would have alone.

    Started works go on until they are finished, with two exceptions: a work that is not ready yields its place, and
    takes it back when it is ready; and with ``Settings.preempt`` a more urgent work takes the place of the least
    urgent one. Both only suspend a work: its state lies outside of the batch.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.curve = CostCurve()
        """Of a step."""
        self.decoding = CostCurve()
        """Of decoding one image."""
        self.finished = self.decoded = 0
        self.limit = 1 if settings.max_batch == "auto" else settings.max_batch
        self.group_limit = settings.group_batch
        self._waiting: WaitingQueue[Work] = WaitingQueue(
            settings.ageing_seconds, lambda work: work.steps_left / settings.key_quantum_steps
        )
        self._started: dict[Work, _Start] = {}
        self._number = 0
        self._groups: dict[Hashable, dict[Work, None]] = {}
        """Unfinished works of each run, in the order of submission."""
        self._last: tuple[Work, ...] = ()
        """Unfinished works of the last call."""
        self.batch = self.limit
        """Works in the last call; the limit before the first."""

    @property
    def unfinished(self) -> int:
        """Number of works."""
        return len(self._waiting) + len(self._started)

    def __contains__(self, work: Work) -> bool:
        return work in self._started or work in self._waiting

    @property
    def started(self) -> int:
        """Number of works that have started and are not finished."""
        return len(self._started)

    @property
    def decode_seconds(self) -> float:
        """Expected decoding for each finished work: tiles share a decode, previews need further ones."""
        share = self.decoded / self.finished if self.finished else 1.0
        return share * (self.decoding.seconds(1) or 0.0)

    def calibrate(self) -> None:
        """Decide the limit by the measured costs, if the settings leave it open.

        The limit does not follow later measurements: on a device where batches do not pay, noise in them would put
        different runs together.
        """
        if self._settings.max_batch == "auto":
            self.limit = self.curve.best_batch(self._settings.largest_batch)

    def halve(self, batch: int) -> int:
        """Halve the limits, from ``batch`` images if that is less; return images that a call may have now."""
        self.limit = max(1, min(self.limit, batch) // 2)
        self.group_limit = max(1, min(self.group_limit, batch) // 2)
        return self.limit if self.limit > 1 else self.group_limit

    def add(self, work: Work) -> None:
        self._waiting.add(work)
        self._groups.setdefault(work.group, {})[work] = None

    def leave(self, work: Work) -> None:
        """Remove an unfinished work."""
        if work in self._started:
            self._waiting.refund(work)
        self._end(work)

    def advance(self, works: Sequence[Work], steps: int = 1) -> list[Work]:
        """Count steps of each work that has not left; return those that are finished."""
        finished = []
        for work in works:
            if work not in self:
                continue
            work.steps_left -= steps
            if work.steps_left <= 0:
                self._end(work)
                self.finished += 1
                finished.append(work)
        return finished

    def _end(self, work: Work) -> None:
        self._started.pop(work, None)
        self._waiting.end(work)
        # A work may keep its run alive, and a lane may stay idle for long.
        self._last = tuple(each for each in self._last if each is not work)
        group = self._groups[work.group]
        del group[work]
        if not group:
            del self._groups[work.group]

    @property
    def ready(self) -> bool:
        """True if there is something to call."""
        if self.limit == 1:
            return any(_all_ready(self._window(group)) for group in self._groups)
        return any(work.ready for works in self._groups.values() for work in works)

    def call(self, now: float) -> tuple[Work, ...]:
        """Choose the works of the next call; empty if none is ready."""
        chosen = self._of_one_group(now) if self.limit == 1 else self._of_any(now)
        if chosen:
            self._last, self.batch = chosen, len(chosen)
        return chosen

    def _of_any(self, now: float) -> tuple[Work, ...]:
        chosen = self.running(now)[: self.limit]
        while True:
            if len(chosen) < self.limit:
                work = self._waiting.pick(now)
            elif (above := self._preemptible(self._level(chosen[-1], now))) is not None:
                work = self._waiting.pick(now, above=above)
            else:
                break
            if work is None:
                break
            self._start(work, now)
            chosen = sorted((*chosen, work), key=lambda each: self._place(each, now))[: self.limit]
        # A batch takes over the states of the last one if those come first.
        last = {work: index for index, work in enumerate(self._last)}
        return tuple(sorted(chosen, key=lambda work: last.get(work, len(last))))

    def _of_one_group(self, now: float) -> tuple[Work, ...]:
        windows = (self._window(group) for group in {work.group: None for work in self._started})
        running = min(
            (
                window
                for window in windows
                if _all_ready(window) and all(work in self._started for work in window)
            ),
            key=lambda window: self._window_place(window, now),
            default=(),
        )
        above = self._preemptible(self._window_place(running, now)[0]) if running else None
        if running and above is None:
            return running
        joining: dict[Work, tuple[Work, ...]] = {}
        for window in filter(_all_ready, map(self._window, self._groups)):
            first_new = next((work for work in window if work not in self._started), None)
            if first_new is not None:
                joining[first_new] = window
        work = self._waiting.pick(now, joining, above)
        if work is None:
            return running
        for each in joining[work]:
            if each not in self._started:
                self._start(each, now)
        return joining[work]

    def _preemptible(self, urgency: int) -> int | None:
        """The level of started works, if waiting ones may take their places; else None."""
        return urgency if self._settings.preempt and self._waiting.any_above(urgency) else None

    def _window(self, group: Hashable) -> tuple[Work, ...]:
        """The works of a run's next call."""
        return tuple(islice(self._groups[group], self.group_limit))

    def running(self, now: float) -> list[Work]:
        """Started works that are ready, in the order in which they get places."""
        return sorted((work for work in self._started if work.ready), key=lambda work: self._place(work, now))

    def expected(self, now: float, further: Sequence[Work] = ()) -> list[Work]:
        """Ready works, with ``further`` ones, in the order in which they would get places if no others came."""
        running, waiting = deque(self.running(now)), deque(self._waiting.order(now, further))
        ordered = []
        while running and waiting:
            overtakes = self._settings.preempt and waiting[0].priority < self._level(running[0], now)
            ordered.append((waiting if overtakes else running).popleft())
        return [*ordered, *running, *waiting]

    def _start(self, work: Work, now: float) -> None:
        self._started[work] = _Start(self._number, now, self._waiting.start(work, now))
        self._number += 1

    def _level(self, work: Work, now: float) -> int:
        """Urgency of a started work: it ages, so that it is suspended for a limited time."""
        start = self._started[work]
        return level(start.level, now - start.time, self._settings.ageing_seconds)

    def _place(self, work: Work, now: float) -> tuple[int, int]:
        return self._level(work, now), self._started[work].number

    def _window_place(self, window: tuple[Work, ...], now: float) -> tuple[int, int]:
        return min(self._place(work, now) for work in window)


def _all_ready(works: Sequence[Work]) -> bool:
    return all(work.ready for work in works)
