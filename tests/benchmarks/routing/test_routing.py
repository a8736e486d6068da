"""Devices, routers and workload of the routing benchmark, on requests that can be followed by hand."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest

from benchmarks.routing.__main__ import Case, cases, run
from benchmarks.routing.fleet import MAX_IMAGES, Device, serve
from benchmarks.routing.routers import POLICIES, Chooser
from benchmarks.routing.workload import CURVES, KEEP, LOAD_SECONDS, Request, draw
from benchmarks.scheduling.policies import continuous
from benchmarks.scheduling.simulation import curve_cost
from benchmarks.scheduling.workload import H200
from benchmarks.scheduling.workload import Request as PlainRequest


class Fixed:
    """A router that takes devices by number."""

    def __init__(self, devices: list[Device], numbers: list[int]) -> None:
        self._chosen = iter([devices[number] for number in numbers])

    def choose(self, request: Request, now: float) -> Device:
        return next(self._chosen)


def asked(at: float, bundle: str = "a", steps: int = 10, size: int = 512) -> Request:
    return Request(at, bundle, size, steps)


def fleet(count: int, *requests: tuple[int, Request]) -> list[Device]:
    """Devices that have accepted requests."""
    devices = [Device(number) for number in range(count)]
    for number, request in requests:
        devices[number].accept(request, 0.0)
    return devices


def choices(devices: list[Device], policy: Any, affinity: Any, request: Request, **options: Any) -> set[int]:
    """Numbers of the devices that routers with many seeds choose."""
    return {
        Chooser(devices, policy, affinity, seed, **options).choose(request, 1.0).number for seed in range(40)
    }


def test_a_device_serves_as_its_scheduler_does_once_the_bundle_is_loaded() -> None:
    requests = [asked(LOAD_SECONDS + at, steps=steps) for at, steps in ((0.0, 3), (0.1, 20), (0.5, 4))]
    served = serve([asked(0.0, steps=1), *requests], devices := [Device(0)], Fixed(devices, [0] * 4))
    step = CURVES[512][1]
    plain = [PlainRequest(each.at, each.steps, each.steps * step) for each in requests]
    first = PlainRequest(LOAD_SECONDS, 1, step)
    expected = continuous(H200)([first, *plain], curve_cost(H200)).ends
    ends = [served.ends[each] for each in requests]
    assert ends == pytest.approx([expected[each] for each in plain])
    assert (served.loads, served.images) == (1, 28)


def test_a_bundle_is_loaded_in_the_place_of_an_idle_one() -> None:
    """The third bundle waits until a request of the two others has ended: both places are in use."""
    requests = [asked(0.0, "a", 1), asked(0.0, "b", 30), asked(0.0, "c", 1)]
    assert KEEP == 2
    served = serve(requests, devices := [Device(0)], Fixed(devices, [0] * 3))
    first, _, third = (served.ends[each] for each in requests)
    assert served.loads == 3
    assert LOAD_SECONDS < first < third
    assert third > first + LOAD_SECONDS
    assert devices[0].requests == 0
    assert devices[0].seconds_left == pytest.approx(0)


def test_a_full_device_refuses() -> None:
    requests = [asked(0.0) for _ in range(MAX_IMAGES + 3)]
    served = serve(requests, devices := [Device(0)], Fixed(devices, [0] * len(requests)))
    assert len(served.ends) == MAX_IMAGES


def test_every_policy_without_affinity() -> None:
    devices = fleet(3, (0, asked(0, steps=50)), (1, asked(0, steps=4)), (1, asked(0, steps=4)))
    assert choices(devices, "random", "none", asked(1)) == {0, 1, 2}
    assert choices(devices, "least work", "none", asked(1)) == {2}
    # Of two devices the one with fewer requests, not with less work; device 1 has most.
    assert choices(devices, "power of two", "none", asked(1)) == {0, 2}
    turns = Chooser(devices, "round robin", "none", 1)
    assert {turns.choose(asked(1), 1.0).number for _ in range(3)} == {0, 1, 2}


@pytest.mark.parametrize("policy", POLICIES)
def test_affinity_keeps_to_devices_that_have_the_bundle(policy: Any) -> None:
    devices = fleet(4, (1, asked(0, "a", size=768)), (2, asked(0, "a")), (3, asked(0, "b")))
    assert choices(devices, policy, "bundle", asked(1, "a")) <= {1, 2}
    assert choices(devices, policy, "bundle and size", asked(1, "a")) == {2}
    assert choices(devices, policy, "bundle", asked(1, "b")) == {3}
    # Nobody has it.
    assert choices(devices, policy, "bundle", asked(1, "c")) <= {0, 1, 2, 3}
    # Those who have it are busy.
    assert choices(devices, "least work", "bundle", asked(1, "b"), spill=1) == {0}


def test_loading_counts_as_work() -> None:
    short = asked(0, "a", steps=4)
    devices = fleet(2, (1, short))
    assert choices(devices, "least work", "none", asked(1, "a")) == {0}
    assert choices(devices, "least work", "loading counted", asked(1, "a")) == {1}
    long = asked(0, "a", steps=1000)
    assert choices(fleet(2, (1, long)), "least work", "loading counted", asked(1, "a")) == {0}


def test_late_news_are_used_until_the_next_look() -> None:
    devices = fleet(2)
    router = Chooser(devices, "least work", "none", 1, period=10.0)
    assert router.choose(asked(0), 0.5).number == 0
    devices[1].accept(asked(0, steps=500), 0.6)
    # It knows of its own choice, and not of the other's work.
    assert router.choose(asked(1), 1.0).number == 1
    assert router.choose(asked(11), 11.0).number == 0


def test_bursts_have_the_mean_rate_of_the_others() -> None:
    lasted = {traffic: draw(20_000, 1.0, 8, traffic, 1)[-1].at for traffic in ("poisson", "bursty")}
    assert lasted["bursty"] == pytest.approx(lasted["poisson"], rel=0.2)
    gaps = {
        traffic: [later.at - each.at for each, later in pairwise(drawn)]
        for traffic in ("poisson", "bursty")
        if (drawn := draw(20_000, 1.0, 8, traffic, 1))
    }
    squares = {name: sum(gap * gap for gap in each) / len(each) for name, each in gaps.items()}
    assert squares["bursty"] > 1.3 * squares["poisson"]


def test_a_case_is_repeated_from_its_seed() -> None:
    case = Case(2, 1.0, "bursty", "power of two", "bundle")
    assert run(case, 20, 3) == run(case, 20, 3) != run(case, 20, 4)


def test_cases_differ() -> None:
    assert len(set(cases())) == len(cases())
