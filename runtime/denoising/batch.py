"""A batch of trajectories for one denoiser call: fill the session's buffers, launch, and read the latents back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

import numpy as np

from sd2rt.engines.bundle.sampler_config import STATE_SLOTS
from sd2rt.engines.interface import Array, Engine, Session
from sd2rt.runtime.denoising.batch_rows import BatchRows
from sd2rt.runtime.denoising.buckets import Buckets
from sd2rt.runtime.denoising.finite_checks import WATCHED, FiniteChecks
from sd2rt.runtime.denoising.trajectory import Latents, Trajectory

CARRY = {"state_out": "state"}
"""Denoiser output that becomes the input of the next call."""


class Batch:
    """Trajectories denoised together, and the session whose buffers hold them.

    A new batch is built whenever the set of trajectories or the text of one of them changes. It takes over the
    sampler states in ``last``; trajectories already in ``last`` must come first in ``active``.

    With buckets, samples of padding follow the trajectories: their states, weights and updates are zero, they draw no
    noise, and nobody reads them.

    Args:
        denoiser: None for the batch before the first, which is empty.
        states: sampler states [slots, C, h, w] of trajectories that are not in ``last`` but have made steps.
        buckets: sizes that the call is padded to; None for the exact ones.
    """

    def __init__(
        self,
        denoiser: Engine | None,
        active: Sequence[Trajectory],
        last: Batch | None,
        checks: FiniteChecks,
        states: Mapping[Trajectory, Latents | None] = MappingProxyType({}),
        buckets: Buckets | None = None,
    ) -> None:
        self.active, self.checks = tuple(active), checks
        self.rows_written: BatchRows | None = None
        """Rows that the session's buffers hold, None if unknown."""
        self._keeps = any(trajectory.kept is not None for trajectory in self.active)
        if denoiser is None or last is None:
            return
        rows = BatchRows.from_samples([t.texts[t.done] for t in self.active])
        _, h, w = self.active[0].latents.shape
        dims = {"B": len(self.active), **rows.dims, "h": h, "w": w}
        if buckets is not None:
            dims = buckets.padded(dims)
            rows = rows.padded(dims)
        self._session: Session = denoiser.session(dims, CARRY, WATCHED)
        checks.register(self._session)
        self._buffers = buffers = self._session.buffers
        self._timestep, self._weights, self._update, self._guidance, self._noise, self._state = (
            buffers[name] for name in ("timestep", "weights", "update", "guidance", "noise", "state")
        )
        # Engines return the same session for the same sizes: its buffers may already hold these values.
        same_session = bool(last.active) and last._session is self._session
        rows.write(buffers, last.rows_written if same_session else None)
        self.rows_written = rows
        self._write("guidance", [t.guidance[t.done] for t in self.active])
        if same_session and last.active == self.active:
            return
        last_index = {trajectory: index for index, trajectory in enumerate(last.active)}
        continuing = [(last_index[t], index) for index, t in enumerate(self.active) if t in last_index]
        if continuing:
            self._state.take(last._state, continuing)
        for index in range(len(continuing), len(self.active)):
            trajectory = self.active[index]
            state = states.get(trajectory)
            self._state.host[index] = _initial_state(trajectory) if state is None else state
        self._state.host[len(self.active) :] = 0
        self._state.push(slice(len(continuing), dims["B"]))
        for name in ("extra", "noise_level"):
            if name in buffers:
                self._write(name, [getattr(t, name) for t in self.active])
        self._noise.write(np.zeros(self._noise.shape, np.float32))
        # Padding: the session may have had more trajectories before.
        for small in (self._timestep, self._weights, self._update):
            small.host[len(self.active) :] = 0

    def _write(self, name: str, values: Sequence[Array]) -> None:
        """Write a value for each trajectory, and zeros for padding."""
        buffer = self._buffers[name]
        buffer.host[: len(values)] = values
        buffer.host[len(values) :] = 0
        buffer.push()

    def step(self) -> bool:
        """Launch one call and advance every trajectory by one step.

        Returns True if a new batch must be built before the next call.
        """
        timesteps, weights, updates = self._timestep.host, self._weights.host, self._update.host
        noise_drawn = guidance_changed = outdated = False
        for index, trajectory in enumerate(self.active):
            done = trajectory.done
            timesteps[index] = trajectory.timesteps[done]
            weights[index] = trajectory.weights[done]
            updates[index] = trajectory.updates[done]
            if trajectory.guidance_changes[done]:
                self._guidance.host[index] = trajectory.guidance[done]
                guidance_changed = True
            if trajectory.draws_noise[done]:
                self._noise.host[index] = trajectory.noise()
                noise_drawn = True
        self._timestep.push()
        self._weights.push()
        self._update.push()
        if guidance_changed:
            self._guidance.push()
        if noise_drawn:
            # Samples that draw no noise at this step multiply the buffer by zero, so old noise in it is harmless.
            self._noise.push()
        self._session.launch()
        # Only masks that the network does not know of make a step wait for the device.
        states = self._state.pull() if self._keeps else None
        for index, trajectory in enumerate(self.active):
            trajectory.advance(None if states is None else states[index])
            if trajectory.kept is not None:
                self._state.push(slice(index, index + 1))
            outdated |= trajectory.texts_change[trajectory.done]
        return self.checks.add(self._session, self.active) or outdated

    def latents(self) -> Latents:
        """Return a copy of the latents, [B, C, h, w], in the order of ``active``."""
        return self._state.pull()[: len(self.active), 0].copy()

    def states(self) -> Latents:
        """Read the sampler states, [B, slots, C, h, w], in the order of ``active``; do not keep the array."""
        return self._state.pull()[: len(self.active)]

    def replace(self, latents: Latents) -> None:
        """Replace the latents of all trajectories, [B, C, h, w].

        Raises:
            ValueError: the shape differs.
        """
        state = self._state.read()
        current = state[: len(self.active), 0]
        if latents.shape != current.shape:
            raise ValueError(f"latents have shape {list(latents.shape)}, expected {list(current.shape)}")
        current[:] = latents
        self._state.write(state)

    def collect(self, everything: bool) -> None:
        """Wait for the device and copy latents to the trajectories that have finished, or to all of them."""
        if not (everything or any(trajectory.finished for trajectory in self.active)):
            return
        self.checks.drain(wait=True)
        for trajectory, latents in zip(self.active, self.latents(), strict=True):
            if everything or trajectory.finished:
                trajectory.latents = latents


def _initial_state(trajectory: Trajectory) -> Latents:
    state = np.zeros((STATE_SLOTS, *trajectory.latents.shape), np.float32)
    state[0] = trajectory.latents
    return state
