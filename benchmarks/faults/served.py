"""A worker client with a worker that serves the demo, and checks that nothing is left behind."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from benchmarks.recording import process
from sd2rt.runtime.server.errors import ServerError
from sd2rt.runtime.server.generation import Completed, GenerationRequest
from sd2rt.runtime.server.worker.supervisor import COMMAND
from sd2rt.runtime.server.worker_client import WorkerClient
from sd2rt.runtime.server.worker_settings import WorkerSettings

FAULTY = (sys.executable, "-P", str(Path(__file__).with_name("faulty_worker.py")))
"""Starts a worker that runs out of memory, or dies, at images of some sizes."""
LIMIT_SECONDS = 60.0
"""Time for a case: a picture takes a tenth of a second."""
LONG = 900
"""Steps that are never all made."""


class Served:
    """A client with one worker; an async context manager.

    Args:
        bundle: the demo's folder.
        command: starts the worker.
    """

    def __init__(self, bundle: Path, *, command: Sequence[str] = COMMAND) -> None:
        self.client = WorkerClient(WorkerSettings(bundles={"demo": str(bundle)}, threads=1), command=command)
        self.expected: Completed | None = None
        """The picture of :meth:`undisturbed`."""

    async def __aenter__(self) -> Self:
        await self.client.start()
        self.expected = await self.undisturbed()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.client.close(0)

    @property
    def worker(self) -> int:
        """Process of the worker."""
        return self.client.pids["cpu"]

    async def completed(self, request: GenerationRequest) -> Completed:
        """Generate a request.

        Raises:
            ServerError: it was refused or failed.
        """
        last: Any = None
        async for event in self.client.generate(request):
            last = event
        assert isinstance(last, Completed)
        return last

    async def undisturbed(self) -> Completed:
        """Generate the request that is compared."""
        return await self.completed(asked(0))

    async def fill_pools(self) -> None:
        """Have threads made that pools make when several calls want one: they stay, and there are no more."""
        for _ in range(3):
            requests = [replace(asked(number), previews=True, partial_images=3) for number in range(12)]
            await asyncio.gather(*map(self.completed, requests))

    async def fault(self) -> str | None:
        """Check that places are free and the next picture is the expected one; describes what is not so."""
        try:
            async with asyncio.timeout(LIMIT_SECONDS):
                await until(self.is_free)
                result = await self.undisturbed()
        except TimeoutError:
            return "a place in the queue is not free, or the next request hangs"
        except ServerError as error:
            return f"the next request is refused: {error}"
        assert self.expected is not None
        return None if result.images == self.expected.images else "the next picture differs"

    def is_free(self) -> bool:
        """True if no request is unfinished."""
        stats = self.client.stats
        return stats.waiting == stats.running == 0

    def resources(self) -> tuple[int, int, int]:
        """Threads, descriptors and anonymous resident bytes of the worker."""
        folder = f"/proc/{self.worker}"
        return (
            len(os.listdir(f"{folder}/task")),
            len(os.listdir(f"{folder}/fd")),
            process.memory(self.worker)[1],
        )


def asked(number: int, request_id: str = "", images: Any = None, **fields: Any) -> GenerationRequest:
    """A small request unlike those of other numbers."""
    own = {
        "prompt": f"a red circle {number}",
        "seed": number,
        "num_inference_steps": 3,
        "width": 64,
        "height": 64,
    }
    return GenerationRequest(
        request_id=request_id or f"case-{number}",
        model="demo",
        fields=own | fields,
        images=images or {},
    )


async def until(true: Callable[[], object]) -> None:
    """Wait until something is true."""
    while not true():
        await asyncio.sleep(0.002)


def is_alive(number: int) -> bool:
    """True if a process exists and is no zombie."""
    try:
        return Path(f"/proc/{number}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except OSError:
        return False


def since(start: float) -> str:
    """Seconds since a time of :func:`time.monotonic`, for a case's detail."""
    return f"{time.monotonic() - start:.3f} s"
