"""A few cases of every kind that `python -m benchmarks.faults serve` counts."""

from __future__ import annotations

import asyncio
from pathlib import Path
from random import Random

from benchmarks.faults.recorder import Recorder
from benchmarks.faults.serve_deaths import DEATHS
from benchmarks.faults.serve_requests import hostile, leaving, many
from benchmarks.faults.served import FAULTY, Served


def test_every_group_holds(small_bundle: Path) -> None:
    """The small bundle takes the demo's place; kills of fronts have a test beside the supervisor's."""

    async def run(recorder: Recorder) -> None:
        source = Random(1)
        async with Served(small_bundle, command=FAULTY) as served:
            await leaving(recorder, served, 4, source)
            await hostile(recorder, served, 10, source)
            await many(recorder, served, 75, source)
            group = "worker killed by its engine"
            await DEATHS[group](recorder, group, served, 0, source)

    with Recorder() as recorder:
        asyncio.run(run(recorder))
    assert recorder.faults == []
    assert {group: sum(counts.values()) for group, counts in recorder.counts().items()} == {
        "clients that leave": 4,
        "hostile requests": 10,
        "many requests": 4,
        "worker killed by its engine": 1,
    }
