"""The step loop: one denoiser call after another, for one image or many at different points of their way."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence

import numpy as np

from sd2rt.engines.errors import EngineError, RequestError
from sd2rt.engines.sampling import STATE_SLOTS
from sd2rt.engines.session import Engine, Session
from sd2rt.runtime.rows import Rows
from sd2rt.runtime.trajectory import Latents, Trajectory

_CARRY = {"state_out": "state"}


def run_steps(denoiser: Engine, trajectories: Iterable[Trajectory], max_batch: int) -> Generator[Batch]:
    """Bring every trajectory to its end, at most ``max_batch`` in a call; they must be able to share a batch.

    Yields the batch after each call. Every trajectory has its own plan, prompts and guidance. One that ends
    leaves the batch and the next one waiting takes its place, between two steps. One whose latents are no
    longer finite leaves with ``error`` set; the others go on.
    """
    waiting, batch = deque(trajectories), Batch(denoiser, [], None)
    while True:
        going = [trajectory for trajectory in batch.active if not trajectory.finished]
        joining = [waiting.popleft() for _ in range(min(len(waiting), max_batch - len(going)))]
        if not (going or joining):
            return
        batch, turned = Batch(denoiser, [*going, *joining], batch), False
        while not turned:
            turned = batch.step()
            try:
                yield batch
            except GeneratorExit:
                # The caller stops here: what the steps so far have made is the result.
                batch.collect(everything=True)
                raise
        batch.collect(everything=False)


def _initial_state(trajectory: Trajectory) -> Latents:
    state = np.zeros((STATE_SLOTS, *trajectory.latents.shape), np.float32)
    state[0] = trajectory.latents
    return state


class Batch:
    """The trajectories of one call, and the session whose buffers hold them.

    Remade when they change, or the texts that one of them is told: from ``last``, whose states it takes over.
    """

    def __init__(self, denoiser: Engine, active: Sequence[Trajectory], last: Batch | None) -> None:
        self.active = tuple(active)
        if last is None:
            return
        self._rows = rows = Rows.of([t.texts[t.done] for t in self.active])
        _, h, w = self.active[0].latents.shape
        dims = {"B": len(self.active), **rows.dims, "h": h, "w": w}
        self._session: Session = denoiser.session(dims, _CARRY)
        self._buffers = buffers = self._session.buffers
        self._timestep, self._weights, self._update, self._guidance, self._noise, self._finite = (
            buffers[name] for name in ("timestep", "weights", "update", "guidance", "noise", "finite")
        )
        # Sizes that come again come with their session: what it holds already may be in place.
        own = bool(last.active) and last._session is self._session
        rows.write(buffers, last._rows if own else None)
        self._guidance.write(np.stack([t.guidance[t.done] for t in self.active]))
        if own and last.active == self.active:
            return
        # A copy: the session may be the one that the states are written to, in another order.
        states = dict(last.states())
        buffers["state"].write(
            np.stack([states[t] if t in states else _initial_state(t) for t in self.active])
        )
        for name in ("extra", "noise_level"):
            if name in buffers:
                buffers[name].write(np.stack([getattr(t, name) for t in self.active]))
        self._noise.write(np.zeros(self._noise.shape, np.float32))

    def step(self) -> bool:
        """Make one call and move every trajectory one step on; true where the batch must be remade for the next."""
        timesteps, weights, updates = self._timestep.host, self._weights.host, self._update.host
        draws = ramps = turned = False
        for index, trajectory in enumerate(self.active):
            done = trajectory.done
            timesteps[index] = trajectory.timesteps[done]
            weights[index] = trajectory.weights[done]
            updates[index] = trajectory.updates[done]
            if trajectory.ramps[done]:
                self._guidance.host[index] = trajectory.guidance[done]
                ramps = True
            if trajectory.noisy[done]:
                self._noise.host[index] = trajectory.generator.randn(trajectory.latents.shape)
                draws = True
        self._timestep.push()
        self._weights.push()
        self._update.push()
        if ramps:
            self._guidance.push()
        if draws:
            # A sample that draws none has a zero column for it: what is left from earlier steps is harmless.
            self._noise.push()
        self._session.launch()
        finite = self._finite.pull()
        for index, trajectory in enumerate(self.active):
            trajectory.done += 1
            if not finite[index]:
                trajectory.error = _not_finite(trajectory)
                turned = True
            elif trajectory.turns[trajectory.done]:
                turned = True
        return turned

    def latents(self) -> Latents:
        """A copy of the latents, [B, C, h, w], in the order of ``active``."""
        return self._buffers["state"].pull()[:, 0].copy()

    def replace(self, latents: Latents) -> None:
        """Put other latents in their place.

        Raises:
            RequestError: they have another shape.
        """
        state = self._buffers["state"].read()
        if latents.shape != state[:, 0].shape:
            raise RequestError(
                f"a callback returned latents of the shape {list(latents.shape)}, expected {list(state[:, 0].shape)}"
            )
        state[:, 0] = latents
        self._buffers["state"].write(state)

    def states(self) -> Iterator[tuple[Trajectory, Latents]]:
        """Each trajectory with its whole state."""
        if not self.active:
            return iter(())
        return zip(self.active, self._buffers["state"].read(), strict=True)

    def collect(self, everything: bool) -> None:
        """Hand trajectories their latents: those that have just ended, or all."""
        for trajectory, state in self.states():
            if everything or trajectory.finished:
                trajectory.latents = state[0]


def _not_finite(trajectory: Trajectory) -> EngineError:
    step, t = trajectory.done, trajectory.timesteps[trajectory.done - 1]
    return EngineError(
        f"seed {trajectory.seed}: step {step} of {trajectory.length} (timestep {t:g}) left latents that are not "
        "finite: the weights overflow in this precision, or guidance is too strong; try a fp32 bundle or a lower "
        "guidance scale"
    )
