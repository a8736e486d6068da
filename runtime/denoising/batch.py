"""Trajectories that share one denoiser call: the session's inputs, their states in it, and one step of all."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sd2rt.engines.bundle.sampler_config import STATE_SLOTS
from sd2rt.engines.errors import RequestError
from sd2rt.engines.interface import Engine, Session
from sd2rt.runtime.denoising.batch_rows import BatchRows
from sd2rt.runtime.denoising.finite_checks import WATCHED, FiniteChecks
from sd2rt.runtime.denoising.trajectory import Latents, Trajectory

CARRY = {"state_out": "state"}
"""The denoiser's output that is its next call's input."""


class Batch:
    """The trajectories of one call, and the session whose buffers hold them.

    Remade when they change, or the texts that one of them is told: from ``last``, whose states it takes over.
    Those of them that were in ``last`` come first.
    """

    def __init__(
        self, denoiser: Engine, active: Sequence[Trajectory], last: Batch | None, launches: FiniteChecks
    ) -> None:
        self.active, self.launches = tuple(active), launches
        if last is None:
            return
        self._rows = rows = BatchRows.of([t.texts[t.done] for t in self.active])
        _, h, w = self.active[0].latents.shape
        dims = {"B": len(self.active), **rows.dims, "h": h, "w": w}
        self._session: Session = denoiser.session(dims, CARRY, WATCHED)
        launches.enter(self._session)
        self._buffers = buffers = self._session.buffers
        self._timestep, self._weights, self._update, self._guidance, self._noise, self._state = (
            buffers[name] for name in ("timestep", "weights", "update", "guidance", "noise", "state")
        )
        # Sizes that come again come with their session: what it holds already may be in place.
        own = bool(last.active) and last._session is self._session
        rows.write(buffers, last._rows if own else None)
        self._guidance.write(np.stack([t.guidance[t.done] for t in self.active]))
        if own and last.active == self.active:
            return
        places = {trajectory: index for index, trajectory in enumerate(last.active)}
        kept = [(places[t], index) for index, t in enumerate(self.active) if t in places]
        if kept:
            self._state.take(last._state, kept)
        for index in range(len(kept), len(self.active)):
            self._state.host[index] = _initial_state(self.active[index])
        self._state.push(slice(len(kept), len(self.active)))
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
        for trajectory in self.active:
            trajectory.done += 1
            turned |= trajectory.turns[trajectory.done]
        return self.launches.add(self._session, self.active) or turned

    def latents(self) -> Latents:
        """A copy of the latents, [B, C, h, w], in the order of ``active``."""
        return self._state.pull()[:, 0].copy()

    def replace(self, latents: Latents) -> None:
        """Put other latents in their place.

        Raises:
            RequestError: they have another shape.
        """
        state = self._state.read()
        if latents.shape != state[:, 0].shape:
            raise RequestError(
                f"a callback returned latents of the shape {list(latents.shape)}, expected {list(state[:, 0].shape)}"
            )
        state[:, 0] = latents
        self._state.write(state)

    def collect(self, everything: bool) -> None:
        """Hand trajectories their latents: those that have just ended, or all; waits for them."""
        if not (everything or any(trajectory.finished for trajectory in self.active)):
            return
        self.launches.settle(wait=True)
        for trajectory, latents in zip(self.active, self.latents(), strict=True):
            if everything or trajectory.finished:
                trajectory.latents = latents


def _initial_state(trajectory: Trajectory) -> Latents:
    state = np.zeros((STATE_SLOTS, *trajectory.latents.shape), np.float32)
    state[0] = trajectory.latents
    return state
