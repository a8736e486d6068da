"""Ways to choose a device, with and without affinity, and with news that are late."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Literal

from benchmarks.routing.fleet import MAX_IMAGES, Device
from benchmarks.routing.workload import LOAD_SECONDS, Request

Policy = Literal["random", "round robin", "power of two", "least work"]
Affinity = Literal["none", "bundle", "bundle and size", "loading counted"]
POLICIES: tuple[Policy, ...] = ("random", "round robin", "power of two", "least work")
AFFINITIES: tuple[Affinity, ...] = ("none", "bundle", "bundle and size")
SPILL = 8
"""Unfinished requests from which on a device counts as busy, and gives up its affinity."""


class Chooser:
    """A router that knows all devices.

    - bundle: among the devices that have the bundle and are not busy, else among all.
    - bundle and size: the same, first among those that also have requests of this size for it.
    - loading counted: no preference, but a device without the bundle counts as loading it first (least work only).

    Args:
        devices: to choose from.
        policy: by which one is chosen among candidates.
        seed: of random choices.
        spill: unfinished requests from which on a device counts as busy.
        period: seconds between looks at the devices' load; 0 for at every request.
        routers: that share the requests and do not know of each other's choices since the last look.
    """

    def __init__(
        self,
        devices: Sequence[Device],
        policy: Policy,
        affinity: Affinity,
        seed: int,
        *,
        spill: int = SPILL,
        period: float = 0.0,
        routers: int = 1,
    ) -> None:
        self._devices, self._policy, self._affinity, self._spill = devices, policy, affinity, spill
        self._random = random.Random(seed)
        self._turn = 0
        self._period = period
        self._views = [_View(devices) for _ in range(routers)]

    def choose(self, request: Request, now: float) -> Device:
        view = self._views[self._random.randrange(len(self._views))]
        if now >= view.next_look:
            view.look()
            view.next_look = now if not self._period else (now // self._period + 1) * self._period
        device = self._among(self._candidates(request, view), request, view)
        view.requests[device.number] += 1
        view.seconds[device.number] += request.shared_seconds
        return device

    def _candidates(self, request: Request, view: _View) -> Sequence[Device]:
        if self._affinity in ("none", "loading counted"):
            return self._devices
        near = [
            each
            for each in self._devices
            if each.has(request.bundle) and view.requests[each.number] < self._spill
        ]
        if self._affinity == "bundle and size":
            near = [each for each in near if each.lanes[request.lane]] or near
        if near:
            return near
        free = [each for each in self._devices if view.requests[each.number] < MAX_IMAGES]
        return free or self._devices

    def _among(self, candidates: Sequence[Device], request: Request, view: _View) -> Device:
        match self._policy:
            case "random":
                return self._random.choice(candidates)
            case "round robin":
                self._turn += 1
                return candidates[self._turn % len(candidates)]
            case "power of two":
                two = self._random.sample(candidates, min(2, len(candidates)))
                return min(two, key=lambda each: view.requests[each.number])
            case "least work":
                loading = LOAD_SECONDS if self._affinity == "loading counted" else 0.0
                key: Callable[[Device], tuple[float, bool]] = lambda each: (  # noqa: E731
                    view.seconds[each.number] + (0.0 if each.has(request.bundle) else loading),
                    not each.has(request.bundle),
                )
                return min(candidates, key=key)


class _View:
    """Loads of all devices as one router knows them."""

    def __init__(self, devices: Sequence[Device]) -> None:
        self._devices = devices
        self.next_look = 0.0
        self.requests: list[int] = []
        self.seconds: list[float] = []

    def look(self) -> None:
        self.requests = [device.requests for device in self._devices]
        self.seconds = [device.seconds_left for device in self._devices]
