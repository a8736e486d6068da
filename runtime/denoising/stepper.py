"""Denoiser calls for trajectories that join, wait and leave between steps."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence

import numpy as np

from sd2rt.engines.interface import Engine
from sd2rt.runtime.denoising.batch import Batch
from sd2rt.runtime.denoising.buckets import Buckets
from sd2rt.runtime.denoising.finite_checks import FiniteChecks
from sd2rt.runtime.denoising.trajectory import Latents, Trajectory


class Stepper:
    """Makes denoiser calls for any trajectories that share one, and keeps the states of those that wait.

    A trajectory joins, takes part in calls, and leaves; its state stays in the session's buffers as long as it is in
    every call, and is kept on the host meanwhile. One thread at a time may use a stepper.

    No step waits for the previous one. On an asynchronous device an error is therefore noticed some steps late, but
    it names the step that failed. The device is waited for only when a trajectory ends, or its state is put aside.

    Args:
        denoiser: returns the engine; called when a batch is built.
        buckets: sizes that calls are padded to; None for exact sizes.
    """

    def __init__(self, denoiser: Callable[[], Engine], buckets: Buckets | None = None) -> None:
        self._denoiser, self._buckets = denoiser, buckets
        self._states: dict[Trajectory, Latents | None] = {}
        """States [slots, C, h, w] of members that are not in the batch; None for those that are, or have none yet."""
        self.reset()

    def reset(self) -> None:
        """Forget the last batch and all members, before the engine is replaced."""
        self._states.clear()
        self._checks = FiniteChecks()
        self._batch = Batch(None, [], None, self._checks)
        self._outdated = True

    def join(self, trajectory: Trajectory) -> None:
        """Add a member, which starts from its own latents."""
        self._states[trajectory] = None

    def leave(self, trajectory: Trajectory) -> None:
        """Remove a member with its state; does nothing if it has left."""
        self._states.pop(trajectory, None)

    def step(self, members: Sequence[Trajectory]) -> Batch:
        """Make one call, which advances these members by one step, and return its batch.

        A member whose latents are no longer finite gets its ``error``, at this step or a later one; the others
        continue. A member that has finished has its result after :meth:`settle`.

        Args:
            members: unfinished, of one shape; see :func:`batchable`. Those of the last call come first in the batch.
                The last batch's ``active`` itself is recognised fastest.

        Raises:
            EngineError: the device failed or ran out of memory. The step was not made, and may be made again with
                fewer members if the device can go on.
        """
        active = self._batch.active
        if self._outdated or (
            members is not active and (len(members) != len(active) or {*members} != {*active})
        ):
            self._switch(members)
        self._outdated = True  # if the call fails
        self._outdated = self._batch.step()
        return self._batch

    def settle(self) -> None:
        """If a member of the last call has finished, wait for the device and set its latents."""
        self._batch.collect(everything=False)

    def collect(self, members: Iterable[Trajectory]) -> None:
        """Wait for the device, and set the latents of members to those after their last step."""
        self._checks.drain(wait=True)
        for trajectory in members:
            trajectory.latents = self.latents([trajectory])[0]

    def latents(self, members: Sequence[Trajectory]) -> Latents:
        """Copy the current latents of members of one shape, [n, C, h, w]."""
        rows, copied = {t: row for row, t in enumerate(self._batch.active)}, None
        latents = []
        for trajectory in members:
            state = self._states.get(trajectory)
            if state is not None:
                latents.append(state[0])
            elif trajectory in rows:
                copied = self._batch.latents() if copied is None else copied
                latents.append(copied[rows[trajectory]])
            else:
                latents.append(trajectory.latents)
        return np.stack(latents)

    def replace(self, members: Sequence[Trajectory], latents: Latents) -> None:
        """Replace the current latents of members of one shape, [n, C, h, w]; also of some that have finished."""
        rows = {t: row for row, t in enumerate(self._batch.active)}
        current: Latents | None = None
        for trajectory, replacement in zip(members, latents, strict=True):
            state = self._states.get(trajectory)
            if state is not None:
                state[0] = replacement
            elif trajectory in rows:
                current = self._batch.latents() if current is None else current
                current[rows[trajectory]] = replacement
            else:
                trajectory.latents = replacement.copy()
        if current is not None:
            self._batch.replace(current)

    def _switch(self, members: Sequence[Trajectory]) -> None:
        last, chosen = self._batch, {*members}
        self.settle()
        waiting = [
            (row, t)
            for row, t in enumerate(last.active)
            if t not in chosen and t in self._states and not t.finished
        ]
        if waiting:
            states = last.states()
            for row, trajectory in waiting:
                self._states[trajectory] = states[row].copy()
        there = {*last.active}
        active = [t for t in last.active if t in chosen] + [t for t in members if t not in there]
        try:
            self._batch = Batch(self._denoiser(), active, last, self._checks, self._states, self._buckets)
        except BaseException:
            last.rows_written = None
            raise
        for trajectory in active:
            self._states[trajectory] = None


def run_steps(
    denoiser: Engine, trajectories: Iterable[Trajectory], max_batch: int, buckets: Buckets | None = None
) -> Generator[Batch]:
    """Run every trajectory to its end, at most ``max_batch`` per call, and yield the batch after each call.

    The trajectories must be able to share a batch (see :func:`batchable`); each has its own plan, prompts and
    guidance. When one ends it leaves the batch, and the next waiting one joins before the following step. If its
    latents are no longer finite it leaves with ``error`` set, and the others continue.

    The batch is yielded as soon as its step is enqueued. A caller that stops early collects its latents itself.
    """
    stepper = Stepper(lambda: denoiser, buckets)
    waiting, running = deque(trajectories), list[Trajectory]()
    while True:
        running = [trajectory for trajectory in running if not trajectory.finished]
        while waiting and len(running) < max_batch:
            running.append(waiting.popleft())
            stepper.join(running[-1])
        if not running:
            return
        yield stepper.step(running)
        stepper.settle()
