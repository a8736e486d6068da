"""Devices in virtual time, each with a real scheduler and bundles that are loaded when they are needed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush
from itertools import count
from typing import Protocol

from benchmarks.routing.workload import CURVES, KEEP, LOAD_SECONDS, SHARED_SECONDS, Lane, Request
from benchmarks.scheduling.simulation import curve_cost
from sd2rt.runtime.scheduling.scheduler import Scheduler
from sd2rt.runtime.scheduling.work import Call, Work

MAX_IMAGES = 64
"""Unfinished images that a device admits, as `sd2rt serve` does."""
_COSTS = {size: curve_cost(curve) for size, curve in CURVES.items()}


class Device:
    """A scheduler and its device.

    Args:
        number: place among the devices.
    """

    def __init__(self, number: int) -> None:
        self.number = number
        self.lanes: Counter[Lane] = Counter()
        """Unfinished requests."""
        self.requests = 0
        self.seconds_left = 0.0
        """Estimate of the time until all requests are finished: remaining steps in the best batches."""
        self.loads = self.calls = self.images = 0
        self._bundles: dict[str, bool] = {}
        """Loaded and loading bundles, with whether they are loaded; least recently used first."""
        self._in_bundle: Counter[str] = Counter()
        self._waiting: list[Request] = []
        self._of: dict[Work, Request] = {}
        self._scheduler = Scheduler()
        self._calibrated: set[Lane] = set()
        self.call: Call | None = None

    def has(self, bundle: str) -> bool:
        """True if a bundle is loaded or loading."""
        return bundle in self._bundles

    def accept(self, request: Request, now: float) -> str | None:
        """Admit a request; return a bundle whose loading begins, if one does."""
        self.requests += 1
        self.seconds_left += request.shared_seconds
        self.lanes[request.lane] += 1
        self._in_bundle[request.bundle] += 1
        if self._bundles.get(request.bundle):
            self._bundles[request.bundle] = self._bundles.pop(request.bundle)
            self._submit(request, now)
            return None
        self._waiting.append(request)
        return self.begin_loading()

    def begin_loading(self) -> str | None:
        """Begin to load the bundle of the request that has waited longest, if there is room; return its name."""
        wanted = next((each.bundle for each in self._waiting if each.bundle not in self._bundles), None)
        if wanted is None:
            return None
        if len(self._bundles) == KEEP:
            idle = next((name for name in self._bundles if not self._in_bundle[name]), None)
            if idle is None:
                return None
            del self._bundles[idle]
        self._bundles[wanted] = False
        self.loads += 1
        return wanted

    def loaded(self, bundle: str, now: float) -> None:
        """Submit the requests that waited for a bundle."""
        self._bundles[bundle] = True
        for request in [each for each in self._waiting if each.bundle == bundle]:
            self._waiting.remove(request)
            self._submit(request, now)

    def _submit(self, request: Request, now: float) -> None:
        if request.lane not in self._calibrated:
            self._calibrated.add(request.lane)
            self._scheduler.calibrate(request.lane, CURVES[request.size])
        work = Work(lane=request.lane, group=request, arrival=now, steps_left=request.steps)
        self._of[work] = request
        self._scheduler.submit([work], now)

    def next_call(self, now: float) -> float | None:
        """Begin the next call if none is under way; return its seconds."""
        if self.call is not None:
            return None
        self.call = self._scheduler.next_call(now)
        if self.call is None:
            return None
        return _COSTS[self.call.lane[1]](self.call.lane, len(self.call.works))  # type: ignore[index]

    def end_call(self, seconds: float, now: float) -> list[Request]:
        """End the call; return the requests that it finished."""
        assert self.call is not None
        call, self.call = self.call, None
        self.calls += 1
        self.images += len(call.works)
        self.seconds_left -= len(call.works) * SHARED_SECONDS[call.lane[1]]  # type: ignore[index]
        finished = [self._of.pop(work) for work in self._scheduler.done(call, seconds, now)]
        for request in finished:
            self.requests -= 1
            self.lanes[request.lane] -= 1
            self._in_bundle[request.bundle] -= 1
        return finished


class Router(Protocol):
    """Chooses a device for each request."""

    def choose(self, request: Request, now: float) -> Device: ...


@dataclass(slots=True)
class Served:
    """Results of a run."""

    ends: dict[Request, float] = field(default_factory=dict)
    """Time at which each request was finished; refused ones are missing."""
    loads: int = 0
    calls: int = 0
    images: int = 0
    """Image-steps of all calls."""


def serve(requests: Sequence[Request], devices: Iterable[Device], router: Router) -> Served:
    """Serve requests, in order of time, until all are finished or refused."""
    served, numbers = Served(), count()
    events: list[tuple[float, int, Device, str | None, float]] = []
    position = 0

    def later(now: float, seconds: float, device: Device, bundle: str | None) -> None:
        heappush(events, (now + seconds, next(numbers), device, bundle, seconds))

    def go_on(device: Device, now: float) -> None:
        if (seconds := device.next_call(now)) is not None:
            later(now, seconds, device, None)

    while events or position < len(requests):
        if position < len(requests) and (not events or requests[position].at <= events[0][0]):
            request, now = requests[position], requests[position].at
            position += 1
            device = router.choose(request, now)
            if device.requests == MAX_IMAGES:
                continue
            bundle = device.accept(request, now)
        else:
            now, _, device, ended, seconds = heappop(events)
            if ended is None:
                served.ends |= dict.fromkeys(device.end_call(seconds, now), now)
                bundle = device.begin_loading()
            else:
                device.loaded(ended, now)
                bundle = None
        if bundle is not None:
            later(now, LOAD_SECONDS, device, bundle)
        go_on(device, now)
    for device in devices:
        served.loads += device.loads
        served.calls += device.calls
        served.images += device.images
    return served
