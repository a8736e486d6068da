"""Checks that latents stay finite, for launches whose result the device has not reported yet."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from weakref import WeakKeyDictionary

from sd2rt.engines.errors import NotFiniteError
from sd2rt.engines.interface import Array, Session
from sd2rt.runtime.denoising.trajectory import Trajectory

WATCHED = "finite"
"""Denoiser output with one flag per sample: whether its latents are finite."""


class FiniteChecks:
    """Track launched steps until their finite checks arrive, which may be several steps later."""

    def __init__(self) -> None:
        self._pending: deque[tuple[Session, Sequence[Trajectory], list[int]]] = deque()
        self._flags: WeakKeyDictionary[Session, deque[Array]] = WeakKeyDictionary()

    def register(self, session: Session) -> None:
        """Prepare for launches of a session: discard flags left by an earlier loop that ended with an error."""
        if session not in self._flags:
            session.watched(wait=True)
            self._flags[session] = deque()

    def add(self, session: Session, trajectories: Sequence[Trajectory]) -> bool:
        """Track a launch that has just advanced these trajectories. Returns True if one is known to have failed."""
        if not self._pending:
            arrived = session.watched(wait=False)
            if arrived and all(arrived[0][: len(trajectories)].tolist()):
                # The fast path where launches are synchronous.
                return False
            self._flags[session].extend(arrived)
        self._pending.append((session, trajectories, [trajectory.done for trajectory in trajectories]))
        return self.drain(wait=False)

    def drain(self, *, wait: bool) -> bool:
        """Process the checks of finished launches, or of all launches if ``wait``, and set trajectories' errors.

        Returns True if a trajectory has failed. Launches are processed strictly in order, across sessions, so that
        the error names the first step that went wrong.

        Raises:
            EngineError: the device reported an error.
        """
        failed = False
        while self._pending:
            session, trajectories, steps = self._pending[0]
            arrived = self._flags[session]
            if not arrived:
                arrived.extend(session.watched(wait=wait))
            if not arrived:
                break
            self._pending.popleft()
            # Samples of padding come last.
            flags = arrived.popleft()[: len(trajectories)].tolist()
            if all(flags):
                continue
            for trajectory, step, finite in zip(trajectories, steps, flags, strict=True):
                if not finite and trajectory.error is None:
                    trajectory.error = _not_finite(trajectory, step)
                    failed = True
        return failed


def _not_finite(trajectory: Trajectory, step: int) -> NotFiniteError:
    return NotFiniteError(
        f"seed {trajectory.seed}: latents are not finite after step {step} of {trajectory.length} "
        f"(timestep {trajectory.timesteps[step - 1]:g}): the weights overflow in this precision, or guidance is "
        "too strong; try an fp32 bundle or a lower guidance scale",
        "step",
    )
