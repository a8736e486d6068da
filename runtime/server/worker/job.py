"""A request in the front: its events until the consumer takes them."""

from __future__ import annotations

import asyncio
from collections import deque

from sd2rt.runtime.server.errors import ServerError
from sd2rt.runtime.server.generation import Event, GenerationRequest, Stepped


class Job:
    """An unfinished request that a worker has, or is about to get.

    Args:
        steps: estimate of its denoiser calls, over all images.
    """

    def __init__(self, number: int, request: GenerationRequest, steps: int) -> None:
        self.number, self.request = number, request
        self.steps, self.done = steps, 0
        self.began = self.started = False
        """Work on it has begun; its first step is made."""
        self.failed_stage: str | None = None
        self._events: deque[Event] = deque()
        self._error: ServerError | None = None
        self._changed = asyncio.Event()

    @property
    def steps_left(self) -> int:
        """Estimate of the denoiser calls that are left."""
        return max(self.steps - self.done, 1)

    def add(self, event: Event) -> None:
        """Add an event; a step takes the place of one that was not taken."""
        if isinstance(event, Stepped):
            self.done, self.steps = event.step, event.steps
            if self._events and isinstance(self._events[-1], Stepped):
                self._events.pop()
        self._events.append(event)
        self._changed.set()

    def fail(self, error: ServerError) -> None:
        """End it with an error, after the events that were added before."""
        if self._error is None:
            self._error = error
            self._changed.set()

    async def next_event(self) -> Event:
        """Wait for the next event.

        Raises:
            ServerError: the request has failed.
        """
        while not self._events:
            if self._error is not None:
                raise self._error
            self._changed.clear()
            await self._changed.wait()
        return self._events.popleft()
