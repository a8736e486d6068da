"""The step loop: one denoiser call after another, for one image or many at different points of their way."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable, Iterator

import numpy as np

from sd2rt.engines.errors import EngineError, RequestError
from sd2rt.engines.sampling import STATE_SLOTS
from sd2rt.engines.session import Engine, Session
from sd2rt.runtime.trajectory import Latents, StepEvent, Trajectory

_CARRY = {"state_out": "state"}


def run_steps(denoiser: Engine, trajectories: Iterable[Trajectory], max_batch: int) -> Generator[StepEvent]:
    """Bring every trajectory to its end, at most ``max_batch`` in a call; they must be of one group.

    Each has its own plan, prompt and guidance. One that ends leaves the batch and the next one waiting takes
    its place, between two steps. One whose latents are no longer finite leaves with ``error`` set; the others
    go on.
    """
    waiting, batch = deque(trajectories), _Batch(denoiser, [])
    while waiting or batch.active:
        if (waiting and len(batch.active) < max_batch) or any(t.finished for t in batch.active):
            going = [(t, latents) for t, latents in batch.states() if not t.finished]
            joining = [waiting.popleft() for _ in range(min(len(waiting), max_batch - len(going)))]
            if not (going or joining):
                return
            batch = _Batch(denoiser, [*going, *((t, _initial_state(t)) for t in joining)])
        batch.step()
        try:
            yield StepEvent(tuple(batch.active), batch.latents, batch.replace)
        except GeneratorExit:
            # The caller stops here: what the steps so far have made is the result.
            batch.collect(everything=True)
            raise
        batch.collect(everything=False)


def _initial_state(trajectory: Trajectory) -> Latents:
    state = np.zeros((STATE_SLOTS, *trajectory.latents.shape), np.float32)
    state[0] = trajectory.latents
    return state


class _Batch:
    """The trajectories of one call, and the session whose buffers hold them; remade when they change."""

    def __init__(self, denoiser: Engine, members: list[tuple[Trajectory, Latents]]) -> None:
        self.active = [trajectory for trajectory, _ in members]
        if not members:
            return
        count, first = len(members), self.active[0]
        texts, row, uncond, cond = [], [], [], []
        for index, trajectory in enumerate(self.active):
            if trajectory.uncond is not None:
                texts.append(trajectory.uncond)
                row.append(index)
            texts.append(trajectory.cond)
            row.append(index)
            cond.append(len(row) - 1)
            uncond.append(len(row) - (1 if trajectory.uncond is None else 2))
        _, h, w = first.latents.shape
        dims = {"B": count, "R": len(row), "L": len(first.cond), "h": h, "w": w}
        self._session: Session = denoiser.session(dims, _CARRY)
        self._buffers = buffers = self._session.buffers
        buffers["state"].write(np.stack([state for _, state in members]))
        buffers["text"].write(np.stack(texts))
        buffers["row"].write(np.array(row))
        buffers["uncond"].write(np.array(uncond))
        buffers["cond"].write(np.array(cond))
        guidance = [(t.guidance_scale, t.guidance_rescale) for t in self.active]
        buffers["guidance"].write(np.array(guidance, np.float32))
        buffers["noise"].write(np.zeros(buffers["noise"].shape, np.float32))
        # The step's small inputs are gathered here, then copied in one piece each.
        self._timestep = np.empty(count, np.float32)
        self._weights = np.empty((count, STATE_SLOTS), np.float32)
        self._update = np.empty((count, STATE_SLOTS, STATE_SLOTS + 2), np.float32)
        self._noise = np.zeros(buffers["noise"].shape, np.float32)

    def step(self) -> None:
        """Make one call, and move every trajectory one step on."""
        buffers, draws = self._buffers, False
        for index, trajectory in enumerate(self.active):
            done = trajectory.done
            self._timestep[index] = trajectory.timesteps[done]
            self._weights[index] = trajectory.weights[done]
            self._update[index] = trajectory.updates[done]
            if trajectory.noisy[done]:
                self._noise[index] = trajectory.generator.randn(trajectory.latents.shape)
                draws = True
        buffers["timestep"].write(self._timestep)
        buffers["weights"].write(self._weights)
        buffers["update"].write(self._update)
        if draws:
            # A sample that draws none has a zero column for it: what is left from earlier steps is harmless.
            buffers["noise"].write(self._noise)
        self._session.launch()
        finite = buffers["finite"].read()
        for index, trajectory in enumerate(self.active):
            trajectory.done += 1
            if not finite[index]:
                trajectory.error = _not_finite(trajectory)

    def latents(self) -> Latents:
        return self._buffers["state"].read()[:, 0]

    def replace(self, latents: Latents) -> None:
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
        if everything or any(t.finished for t in self.active):
            for trajectory, state in self.states():
                if everything or trajectory.finished:
                    trajectory.latents = state[0]


def _not_finite(trajectory: Trajectory) -> EngineError:
    step, t = trajectory.done, trajectory.timesteps[trajectory.done - 1]
    return EngineError(
        f"step {step} of {trajectory.length} (timestep {t:g}) left latents that are not finite: the weights "
        "overflow in this precision, or guidance is too strong; try a fp32 bundle or a lower guidance scale"
    )
