"""Time that the scheduler itself takes on this machine."""

from __future__ import annotations

import time
from typing import Any

from benchmarks.recording import report
from sd2rt.runtime.scheduling.scheduler import Scheduler
from sd2rt.runtime.scheduling.work import Work

_CALLS = 300


def overhead(waiting: int, curve: dict[int, float]) -> dict[str, Any]:
    """Microseconds of a call in the middle of a lane's works, of one that joins works, and of an estimate.

    Args:
        waiting: works that have not started, each of a run of its own.
    """
    scheduler = Scheduler()
    limit = scheduler.calibrate("lane", curve)

    def submit(count: int) -> None:
        scheduler.submit(
            [Work(lane="lane", group=i, arrival=0.0, steps_left=20, key=i % 4) for i in range(count)], 0.0
        )

    submit(waiting + limit)
    staying, joining = list[float](), list[float]()
    while len(staying) + len(joining) < _CALLS:
        before = scheduler.waiting
        start = time.perf_counter()
        call = scheduler.next_call(0.0)
        assert call is not None
        scheduler.done(call, 0.4, 0.0)
        seconds = time.perf_counter() - start
        (staying if scheduler.waiting == before else joining).append(seconds * 1e6)
        submit(waiting + limit - scheduler.waiting - scheduler.running)
    start = time.perf_counter()
    scheduler.wait_estimate(0.0)
    return {
        "waiting": waiting,
        "batch": limit,
        "staying_us": report.summary(staying, 1),
        "joining_us": report.summary(joining, 1),
        "estimate_us": round((time.perf_counter() - start) * 1e6, 1),
    }
