"""Waits for runs that are about to ask again: two callers in virtual time, who would otherwise take turns."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from sd2rt.runtime.scheduling.cost_curve import CostCurve
from sd2rt.runtime.scheduling.lingering import Pace, patience

H200 = {1: 0.167, 2: 0.183, 3: 0.186, 4: 0.240}
LINEAR = {batch: 0.167 * batch for batch in H200}
FLAT = dict.fromkeys(H200, 0.167)
INSTANT = 1e-4
"""Seconds in which a caller without a pause asks again."""


def curve_of(costs: dict[int, float]) -> CostCurve:
    curve = CostCurve()
    for batch, seconds in costs.items():
        curve.measure(batch, seconds)
    return curve


@dataclass(eq=False)
class Caller:
    """Iterates over the steps of its run, with a pause after each."""

    pause: float
    pace: Pace = field(default_factory=Pace)
    asks: float | None = 0.0
    steps: int = 0


@dataclass
class Served:
    seconds_a_step: list[float]
    calls: list[int]
    waited: float


def serve(pauses: list[float], costs: dict[int, float], *, linger: bool, end: float = 30.0) -> Served:
    """One device; whoever has asked first makes the next call, for all that have asked by then."""
    callers = [Caller(max(pause, INSTANT), asks=INSTANT * index) for index, pause in enumerate(pauses)]
    curve, now, waited, calls = curve_of(costs), 0.0, 0.0, list[int]()
    last: list[Caller] = []

    def asked() -> list[Caller]:
        return [caller for caller in callers if caller.asks is not None and caller.asks <= now]

    def note() -> None:
        for caller in asked():
            if caller.pace.asked != caller.asks:
                assert caller.asks is not None
                caller.pace.ask(caller.asks)

    while now < end:
        if not asked():
            now = min(caller.asks for caller in callers if caller.asks is not None)
        note()
        ready = asked()
        others = [(caller.pace, 1) for caller in last if caller not in ready]
        wait = patience(now, ready[0].pace, len(ready), others, curve, 4) if linger else 0.0
        if wait:
            expected = [caller for caller in last if caller not in ready]
            comes = [
                caller.asks for caller in expected if caller.asks is not None and caller.asks <= now + wait
            ]
            until = max(comes) if len(comes) == len(expected) else now + wait
            waited, now = waited + until - now, until
            note()
            ready = asked()
        now += costs[len(ready)]
        calls.append(len(ready))
        for caller in ready:
            caller.steps += 1
            caller.pace.advanced = now
            caller.asks = now + caller.pause
        last = ready
    return Served([end / caller.steps for caller in callers], calls, waited)


@pytest.mark.parametrize("costs", [H200, LINEAR, FLAT])
@pytest.mark.parametrize("pause", [0.0, 0.01, 0.1, 1.0])
def test_one_caller_never_waits(costs: dict[int, float], pause: float) -> None:
    alone = serve([pause], costs, linger=True)
    assert alone.waited == 0
    assert alone == serve([pause], costs, linger=False)


@pytest.mark.parametrize("costs", [H200, FLAT])
@pytest.mark.parametrize("pauses", [[0.0] * 2, [0.01] * 2, [0.08] * 2, [0.02, 0.025], [0.0] * 3, [0.05] * 4])
def test_callers_of_like_pauses_share_calls(costs: dict[int, float], pauses: list[float]) -> None:
    turns, shared = (serve(pauses, costs, linger=linger) for linger in (False, True))
    assert set(shared.calls[5:]) == {len(pauses)}
    for before, now in zip(turns.seconds_a_step, shared.seconds_a_step, strict=True):
        assert now < 0.9 * before


def test_the_control_takes_turns() -> None:
    assert set(serve([0.01, 0.01], H200, linger=False).calls[2:]) == {1}


@pytest.mark.parametrize("pauses", [[0.0, 0.0], [0.01, 0.02], [0.0, 0.3], [0.1] * 4])
def test_where_sharing_saves_nothing_nobody_waits(pauses: list[float]) -> None:
    assert serve(pauses, LINEAR, linger=True).waited == 0


@pytest.mark.parametrize("costs", [H200, FLAT])
@pytest.mark.parametrize("other", [0.0, 0.01, 0.03, 0.05, 0.08, 0.12, 0.16, 0.2, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("pause", [0.0, 0.02, 0.08, 0.2, 0.5])
def test_nobody_loses_more_than_the_slack(costs: dict[int, float], pause: float, other: float) -> None:
    """Whatever the pauses: at most a tenth of a call and of the time that a step took, and rarely that."""
    turns, shared = (serve([pause, other], costs, linger=linger) for linger in (False, True))
    for before, now in zip(turns.seconds_a_step, shared.seconds_a_step, strict=True):
        assert now <= before + 0.1 * costs[1] + 0.1 * before
    assert sum(1 / now for now in shared.seconds_a_step) >= 0.97 * sum(
        1 / before for before in turns.seconds_a_step
    )


def test_what_was_never_measured_is_tried() -> None:
    curve = CostCurve()
    curve.measure(1, 1.0)
    own, other = Pace(asked=10.0, advanced=9.0), Pace(asked=8.0, advanced=10.0, pause=0.05)
    assert patience(10.0, own, 1, [(other, 1)], curve, 2) == pytest.approx(0.15)
    curve.measure(2, 1.95)
    assert patience(10.0, own, 1, [(other, 1)], curve, 2) == 0
    assert patience(10.0, own, 1, [(other, 1)], CostCurve(), 2) == 0


def test_a_full_call_is_made_at_once() -> None:
    curve = curve_of(FLAT)
    assert patience(1.0, Pace(1.0, 0.9), 4, [(Pace(0.9, 1.0), 1)], curve, 4) == 0
