"""The scheduler: which call comes next, over all lanes."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence

from sd2rt.engines.errors import RequestError
from sd2rt.runtime.scheduling.admission import Admitted, DeadlineUnreachableError, QueueFullError
from sd2rt.runtime.scheduling.cost_curve import CostCurve
from sd2rt.runtime.scheduling.deficit_ring import DeficitRing
from sd2rt.runtime.scheduling.forecast import LaneForecast, elapsed
from sd2rt.runtime.scheduling.lane import Lane
from sd2rt.runtime.scheduling.settings import Settings
from sd2rt.runtime.scheduling.waiting_queue import WaitingQueue
from sd2rt.runtime.scheduling.work import Call, Decode, Job, Priority, Work

_IDLE_LANES = 64
"""Lanes without works whose measurements are kept. Calibrated lanes are always kept."""


class Scheduler:
    """Chooses calls one after another for a driver that makes them: :meth:`next_call`, then :meth:`done`.

    Equal inputs give equal calls. Not thread-safe. All times are seconds of one clock, which the driver reads.
    """

    def __init__(self, settings: Settings | None = None) -> None:
        self.settings = Settings() if settings is None else settings
        self._lanes: dict[Hashable, Lane] = {}
        """Most recently used last."""
        self._calibrated: set[Hashable] = set()
        self._ring: DeficitRing[Hashable] = DeficitRing()
        self._decodes: WaitingQueue[Decode] = WaitingQueue(self.settings.ageing_seconds, lambda decode: 1.0)
        self._admitted = Admitted()
        self._call: Call | None = None
        self._decoded_last = False

    @property
    def waiting(self) -> int:
        """Works that have not started."""
        return sum(lane.unfinished - lane.started for lane in self._lanes.values())

    @property
    def running(self) -> int:
        """Works that have started and are not finished."""
        return sum(lane.started for lane in self._lanes.values())

    @property
    def images(self) -> int:
        """Unfinished images."""
        return len(self._admitted)

    def calibrate(self, lane: Hashable, seconds: Mapping[int, float]) -> int:
        """Start a lane with measured seconds by batch size; return its limit of images of different runs."""
        known = self._lane(lane)
        for batch, cost in seconds.items():
            known.curve.measure(batch, cost)
        known.calibrate()
        self._calibrated.add(lane)
        return known.limit

    def limit(self, lane: Hashable) -> int:
        """The most images of different runs in a call of a lane."""
        return self._lane(lane).limit

    def curve(self, lane: Hashable) -> CostCurve:
        """Measured costs of a lane."""
        return self._lane(lane).curve

    def halve(self, lane: Hashable, batch: int | None = None) -> int:
        """Halve a lane's limits after it ran out of memory; return images that its calls may have now.

        Args:
            batch: images in the call that failed. Without it the limits alone are halved.
        """
        known = self._lane(lane)
        return known.halve(max(known.limit, known.group_limit) if batch is None else batch)

    def submit(self, works: Sequence[Work], now: float) -> None:
        """Admit works of one run or several: all of them, or none.

        Raises:
            RequestError: there are more images than are ever admitted.
            QueueFullError: too many images are unfinished.
            DeadlineUnreachableError: a work would be finished after its deadline.
            ValueError: a work has no steps left, or is submitted twice.
        """
        for work in works:
            if work.steps_left < 1:
                raise ValueError(f"a work has {work.steps_left} steps left: it needs at least one")
            if work in self._lane(work.lane):
                raise ValueError("a work was submitted before, and is not finished")
        if len(set(works)) < len(works):
            raise ValueError("a work is submitted twice")
        self._check_room(works, now)
        if any(work.deadline is not None for work in works):
            times = self.finish_estimate(works, now)
            for work in works:
                if work.deadline is not None and now + times[work] > work.deadline:
                    raise DeadlineUnreachableError(times[work], work.deadline - now)
        for work in works:
            lane = self._lane(work.lane)
            lane.add(work)
            self._lanes[work.lane] = self._lanes.pop(work.lane)
            self._ring.add(work.lane)
            self._admitted.add(work)
        self._forget_idle_lanes()

    def _check_room(self, works: Sequence[Work], now: float) -> None:
        limit = self.settings.max_images
        if limit is None:
            return
        images = self._admitted.with_further(works)
        if images <= limit:
            return
        if images - self.images > limit:
            raise RequestError(
                f"{images - self.images} images at once are more than the queue holds ({limit}): ask for fewer"
            )
        raise QueueFullError(self.images, limit, self._until_finished(images - limit, now))

    def submit_decode(self, decode: Decode) -> None:
        """Add a decode. It is never refused: the image was admitted."""
        self._decodes.add(decode)
        self._admitted.add(decode)

    def leave(self, job: Job) -> None:
        """Remove a work or decode at any time, also during its call; does nothing if it is finished or unknown."""
        if isinstance(job, Work):
            lane = self._lanes.get(job.lane)
            if lane is None or job not in lane:
                return
            lane.leave(job)
            self._after_end(job)
        elif isinstance(job, Decode) and job in self._decodes:
            self._decodes.end(job)
            self._admitted.remove(job)

    def _after_end(self, work: Work) -> None:
        self._admitted.remove(work)
        if not self._lanes[work.lane].unfinished:
            self._ring.discard(work.lane)

    def next_call(self, now: float) -> Call | None:
        """Return the next call, or None if nothing is ready.

        Raises:
            RuntimeError: the last call is neither done nor failed.
        """
        if self._call is not None:
            raise RuntimeError("the last call is not done: report it by done() or failed()")
        ready = {key for key, lane in self._lanes.items() if lane.ready}
        if not (ready and self._decoded_last):
            decode = self._decodes.pick(now)
            if decode is not None:
                self._decodes.start(decode, now)
                self._decoded_last = True
                self._call = Call(decode.lane, (), decode)
                return self._call
        if not ready:
            return None
        self._decoded_last = False
        key = self._ring.pick(ready)
        self._call = Call(key, self._lanes[key].call(now))
        return self._call

    def done(self, call: Call, seconds: float | None, now: float) -> list[Work]:
        """Account for a call that was made; return the works that it finished.

        Args:
            seconds: its measured cost; None if it was not measured, which counts as the estimate.
        """
        self._take(call)
        if call.decode is None:
            return self.repeated(call, 1, seconds)
        lane = self._lane(call.lane)
        if seconds is not None:
            lane.decoding.measure(1, seconds)
        self._charge(call.lane, lane.decoding.seconds(1) if seconds is None else seconds)
        lane.decoded += 1
        self._end_decode(call.decode)
        return []

    def repeated(self, call: Call, count: int, seconds: float | None) -> list[Work]:
        """Account for further calls of the same works, which a driver may make while there are no other jobs.

        Args:
            count: calls since :meth:`done`, or since the last :meth:`repeated`.
            seconds: mean of their measured costs; None as in :meth:`done`.
        """
        lane, batch = self._lane(call.lane), len(call.works)
        if seconds is not None:
            lane.curve.measure(batch, seconds)
        self._charge(call.lane, lane.curve.seconds(batch) if seconds is None else seconds, count)
        finished = lane.advance(call.works, count)
        for work in finished:
            self._after_end(work)
        return finished

    def failed(self, call: Call) -> None:
        """Take back a call that made no step. Its works stay; a decode does not."""
        self._take(call)
        if call.decode is not None:
            self._end_decode(call.decode)

    def _take(self, call: Call) -> None:
        if call is not self._call:
            raise RuntimeError("this is not the call that is under way")
        self._call = None

    def _end_decode(self, decode: Decode) -> None:
        self._decodes.end(decode)
        self._admitted.remove(decode)

    def _charge(self, key: Hashable, seconds: float | None, count: int = 1) -> None:
        """Charge a lane for calls; the costs of all lanes are relative to the active one whose steps take longest."""
        steps = [
            lane.curve.seconds(lane.batch) or 0.0
            for other, lane in self._lanes.items()
            if lane.unfinished or other == key
        ]
        longest = max(steps, default=0.0)
        share = 1.0 if seconds is None or not longest else seconds / longest
        self._ring.charge(key, count * share / self.settings.quantum_steps)

    def wait_estimate(
        self,
        now: float,
        lane: Hashable = None,
        priority: Priority = Priority.NORMAL,
        key: Hashable = None,
    ) -> float:
        """Estimate the seconds until a work submitted now would start; without ``lane``, the longest of all lanes.

        Works that are not ready, and costs that have not been measured, count as nothing.
        """
        lanes = [each for each, known in self._lanes.items() if known.unfinished] if lane is None else [lane]
        waits = [0.0]
        for each in lanes:
            probe = Work(lane=each, group=object(), arrival=now, steps_left=0, priority=priority, key=key)
            waits.append(self.finish_estimate([probe], now)[probe] - self._lane(each).decode_seconds)
        return max(waits)

    def finish_estimate(self, works: Sequence[Work], now: float) -> dict[Work, float]:
        """Estimate the seconds until each of these works would be finished and decoded if it was submitted now."""
        forecasts = self._forecasts(works, now)
        pending = self._pending_decodes()
        return {work: pending + self._elapsed(work, forecasts) for work in works}

    def _until_finished(self, count: int, now: float) -> float:
        forecasts = self._forecasts((), now)
        ends = sorted(self._elapsed(work, forecasts) for each in forecasts.values() for work in each.ends)
        return self._pending_decodes() + (ends[min(count, len(ends)) - 1] if ends else 0.0)

    def _forecasts(self, further: Sequence[Work], now: float) -> dict[Hashable, LaneForecast]:
        keys = dict.fromkeys((*self._lanes, *(work.lane for work in further)))
        return {
            key: LaneForecast.of(self._lane(key), now, [work for work in further if work.lane == key])
            for key in keys
        }

    @staticmethod
    def _elapsed(work: Work, forecasts: Mapping[Hashable, LaneForecast]) -> float:
        return elapsed(
            work, forecasts[work.lane], [each for key, each in forecasts.items() if key != work.lane]
        )

    def _pending_decodes(self) -> float:
        return sum(self._lane(decode.lane).decoding.seconds(1) or 0.0 for decode in self._decodes)

    def _lane(self, key: Hashable) -> Lane:
        if key not in self._lanes:
            self._lanes[key] = Lane(self.settings)
        return self._lanes[key]

    def _forget_idle_lanes(self) -> None:
        idle = [
            key for key, lane in self._lanes.items() if not lane.unfinished and key not in self._calibrated
        ]
        for key in idle[: max(0, len(idle) - _IDLE_LANES)]:
            del self._lanes[key]
