"""The step loop: one denoiser call after another, for one image or many at different points of their way."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable

from sd2rt.engines.interface import Engine
from sd2rt.runtime.denoising.batch import Batch
from sd2rt.runtime.denoising.finite_checks import FiniteChecks
from sd2rt.runtime.denoising.trajectory import Trajectory


def run_steps(denoiser: Engine, trajectories: Iterable[Trajectory], max_batch: int) -> Generator[Batch]:
    """Bring every trajectory to its end, at most ``max_batch`` in a call; they must be able to share a batch.

    Yields the batch after each call. Every trajectory has its own plan, prompts and guidance. One that ends
    leaves the batch and the next one waiting takes its place, between two steps. One whose latents are no
    longer finite leaves with ``error`` set; the others go on.

    A step is enqueued when the batch is yielded, and no step waits for the one before: where the device is behind,
    an error is noticed some steps late, and still names its step. What waits is the end of a trajectory.
    """
    waiting, batch = deque(trajectories), Batch(denoiser, [], None, FiniteChecks())
    while True:
        going = [trajectory for trajectory in batch.active if not trajectory.finished]
        joining = [waiting.popleft() for _ in range(min(len(waiting), max_batch - len(going)))]
        if not (going or joining):
            return
        batch, turned = Batch(denoiser, [*going, *joining], batch, batch.launches), False
        while not turned:
            turned = batch.step()
            try:
                yield batch
            except GeneratorExit:
                # The caller stops here: what the steps so far have made is the result.
                batch.collect(everything=True)
                raise
        batch.collect(everything=False)
