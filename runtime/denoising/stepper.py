"""The step loop: one denoiser call after another, for images that may be at different steps."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable
from contextlib import nullcontext

from sd2rt.engines.interface import Engine
from sd2rt.runtime.denoising.batch import Batch, Use
from sd2rt.runtime.denoising.finite_checks import FiniteChecks
from sd2rt.runtime.denoising.trajectory import Trajectory


def run_steps(
    denoiser: Engine, trajectories: Iterable[Trajectory], max_batch: int, use: Use = nullcontext
) -> Generator[Batch]:
    """Run every trajectory to its end, at most ``max_batch`` per call, and yield the batch after each call.

    The trajectories must be able to share a batch (see :func:`batchable`); each has its own plan, prompts and
    guidance. When one ends it leaves the batch, and the next waiting one joins before the following step. If its
    latents are no longer finite it leaves with ``error`` set, and the others continue.

    The batch is yielded as soon as its step is enqueued, and no step waits for the previous one. On an asynchronous
    device an error is therefore noticed some steps late, but it names the step that failed. The loop waits for the
    device only when a trajectory ends. A caller that stops early collects the latents of the last batch itself.

    Args:
        use: see :class:`Batch`. The caller makes each step within it.
    """
    waiting, batch = deque(trajectories), Batch(denoiser, [], None, FiniteChecks(), use)
    while True:
        continuing = [trajectory for trajectory in batch.active if not trajectory.finished]
        joining = [waiting.popleft() for _ in range(min(len(waiting), max_batch - len(continuing)))]
        if not (continuing or joining):
            return
        batch, outdated = Batch(denoiser, [*continuing, *joining], batch, batch.checks, use), False
        while not outdated:
            outdated = batch.step()
            yield batch
        batch.collect(everything=False)
