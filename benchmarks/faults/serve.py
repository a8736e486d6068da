"""Faults of serving: clients that leave, killed workers and fronts, hostile input, memory over many requests.

Workers are real processes that serve the demo. After each case nothing may be left behind: no place in the queue, no
process, no thread, no descriptor; and the next picture is that of an undisturbed request.
"""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path
from random import Random

from benchmarks.faults.recorder import Recorder
from benchmarks.faults.serve_deaths import DEATHS, killed_fronts
from benchmarks.faults.serve_requests import hostile, leaving, many
from benchmarks.faults.served import FAULTY, Served
from benchmarks.recording.bundle import build_demo

CASES = 100
"""Clients that leave; there are a fifth as many kills of each kind, and ten times as many requests."""


def run(recorder: Recorder, cases: int, seed: int) -> None:
    """Serve the demo through ``cases`` clients that leave, and the other faults in proportion."""
    with tempfile.TemporaryDirectory(prefix="sd2rt-faults-") as name:
        bundle = build_demo(Path(name))
        asyncio.run(_run(recorder, bundle, cases, seed))
        killed_fronts(recorder, bundle, max(cases // 5, 1), seed)


async def _run(recorder: Recorder, bundle: Path, cases: int, seed: int) -> None:
    source = Random(seed)
    async with Served(bundle, command=FAULTY) as served:
        await leaving(recorder, served, cases, source)
        await hostile(recorder, served, cases, source)
        await many(recorder, served, 10 * cases, source)
    for group, death in DEATHS.items():
        # Three deaths in a minute end a server: each has two.
        for first in range(0, max(cases // 5, 1), 2):
            async with Served(bundle, command=FAULTY) as served:
                for case in range(first, min(first + 2, max(cases // 5, 1))):
                    await death(recorder, group, served, case, source)
