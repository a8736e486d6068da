"""Denoiser calls that have been made and have not said yet whether what they left is finite."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from sd2rt.engines.errors import EngineError
from sd2rt.engines.interface import Array, Session
from sd2rt.runtime.denoising.trajectory import Trajectory

WATCHED = "finite"


class FiniteChecks:
    """The calls of one step loop, in their order; what a device says of them may come some steps late."""

    def __init__(self) -> None:
        self._waiting: deque[tuple[Session, Sequence[Trajectory], list[int]]] = deque()
        self._heard: dict[Session, deque[Array]] = {}

    def enter(self, session: Session) -> None:
        """Launches of this session follow: what a loop before, that an error ended, did not hear is forgotten."""
        if session not in self._heard:
            session.watched(wait=True)
            self._heard[session] = deque()

    def add(self, session: Session, made: Sequence[Trajectory]) -> bool:
        """A launch that has just brought these trajectories to where they are; true where one has failed by now."""
        if not self._waiting:
            told = session.watched(wait=False)
            if told and all(told[0].tolist()):
                # Where a launch is done when it returns, all that a step costs here is this.
                return False
            self._heard[session].extend(told)
        self._waiting.append((session, made, [trajectory.done for trajectory in made]))
        return self.settle(wait=False)

    def settle(self, *, wait: bool) -> bool:
        """Give trajectories their errors: of the launches that are finished by now, or of all where ``wait``.

        True where one of them has failed. Launches are heard strictly in order, across sessions: the first step
        that went wrong is the one that its error names.

        Raises:
            EngineError: the device reported an error.
        """
        failed = False
        while self._waiting:
            session, made, steps = self._waiting[0]
            heard = self._heard[session]
            if not heard:
                heard.extend(session.watched(wait=wait))
            if not heard:
                break
            self._waiting.popleft()
            flags = heard.popleft().tolist()
            if all(flags):
                continue
            for trajectory, step, finite in zip(made, steps, flags, strict=True):
                if not finite and trajectory.error is None:
                    trajectory.error = _not_finite(trajectory, step)
                    failed = True
        return failed


def _not_finite(trajectory: Trajectory, step: int) -> EngineError:
    return EngineError(
        f"seed {trajectory.seed}: step {step} of {trajectory.length} (timestep {trajectory.timesteps[step - 1]:g}) "
        "left latents that are not finite: the weights overflow in this precision, or guidance is too strong; try "
        "a fp32 bundle or a lower guidance scale"
    )
