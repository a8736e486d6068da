"""Events of a request in the front: in order, steps replaced by later ones, an error last."""

from __future__ import annotations

import asyncio

import pytest

from sd2rt.runtime.server.errors import ServerError
from sd2rt.runtime.server.generation import GenerationRequest, Partial, Started, Stepped
from sd2rt.runtime.server.worker.job import Job

REQUEST = GenerationRequest(request_id="a", model="demo", fields={})


def test_a_slow_consumer_gets_the_last_of_each_row_of_steps() -> None:
    async def run() -> None:
        job = Job(1, REQUEST, 50)
        job.add(Started(1.0))
        for step in range(1, 11):
            job.add(Stepped(step, 20))
        job.add(Partial(0, b"a"))
        for step in range(11, 16):
            job.add(Stepped(step, 20))
        job.fail(ServerError("worker_died", "first"))
        job.fail(ServerError("draining", "second"))
        assert (job.done, job.steps, job.steps_left) == (15, 20, 5)
        events = [await job.next_event() for _ in range(4)]
        assert events == [Started(1.0), Stepped(10, 20), Partial(0, b"a"), Stepped(15, 20)]
        for _ in range(2):
            with pytest.raises(ServerError, match="first"):
                await job.next_event()

    asyncio.run(run())


def test_a_consumer_that_waits_is_woken() -> None:
    async def run() -> None:
        job = Job(1, REQUEST, 50)
        waiting = asyncio.create_task(job.next_event())
        await asyncio.sleep(0)
        job.add(Started(1.0))
        assert await waiting == Started(1.0)
        waiting = asyncio.create_task(job.next_event())
        await asyncio.sleep(0)
        job.fail(ServerError("worker_died", "x"))
        with pytest.raises(ServerError):
            await waiting

    asyncio.run(run())
