"""The turnstile: a bounded number inside, the most urgent first, no place lost by cancelling."""

from __future__ import annotations

import asyncio
import random

from sd2rt.runtime.server.worker.turnstile import Turnstile


def test_urgent_tasks_pass_first() -> None:
    async def run() -> list[str]:
        turnstile, order = Turnstile(1), list[str]()

        async def one(name: str, urgency: int) -> None:
            async with turnstile.pass_through(urgency):
                order.append(name)
                await asyncio.sleep(0)

        names = [("a", 2), ("b", 2), ("c", 0), ("d", 1), ("e", 0)]
        await asyncio.gather(*(one(*each) for each in names))
        return order

    assert asyncio.run(run()) == ["a", "c", "e", "d", "b"]


def test_no_place_is_lost_or_added() -> None:
    async def run() -> None:
        source, turnstile = random.Random(1), Turnstile(3)
        inside = most = 0

        async def one() -> None:
            nonlocal inside, most
            async with turnstile.pass_through(source.randrange(3)):
                inside += 1
                most = max(most, inside)
                try:
                    for _ in range(source.randrange(4)):
                        await asyncio.sleep(0)
                finally:
                    inside -= 1

        for _ in range(200):
            tasks = [asyncio.create_task(one()) for _ in range(12)]
            for _ in range(source.randrange(6)):
                await asyncio.sleep(0)
                source.choice(tasks).cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        assert inside == 0
        assert most == 3
        assert turnstile._free == 3
        assert not turnstile._waiting

    asyncio.run(run())
