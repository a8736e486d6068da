"""The step loop: one denoiser call after another, for one image or many at different points of their way."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable, Iterator

import numpy as np

from sd2rt.engines.errors import EngineError, RequestError
from sd2rt.engines.sampling import STATE_SLOTS
from sd2rt.engines.session import Engine, Session
from sd2rt.runtime.trajectory import Latents, Trajectory

_CARRY = {"state_out": "state"}


def run_steps(denoiser: Engine, trajectories: Iterable[Trajectory], max_batch: int) -> Generator[Batch]:
    """Bring every trajectory to its end, at most ``max_batch`` in a call; they must be of one group.

    Yields the batch after each call. Every trajectory has its own plan, prompt and guidance. One that ends
    leaves the batch and the next one waiting takes its place, between two steps. One whose latents are no
    longer finite leaves with ``error`` set; the others go on.
    """
    waiting, batch, ended = deque(trajectories), Batch(denoiser, []), True
    while True:
        if ended:
            going = [(t, state) for t, state in batch.states() if not t.finished]
            joining = [waiting.popleft() for _ in range(min(len(waiting), max_batch - len(going)))]
            if not (going or joining):
                return
            batch = Batch(denoiser, [*going, *((t, _initial_state(t)) for t in joining)])
        ended = batch.step()
        try:
            yield batch
        except GeneratorExit:
            # The caller stops here: what the steps so far have made is the result.
            batch.collect(everything=True)
            raise
        if ended:
            batch.collect(everything=False)


def _initial_state(trajectory: Trajectory) -> Latents:
    state = np.zeros((STATE_SLOTS, *trajectory.latents.shape), np.float32)
    state[0] = trajectory.latents
    return state


class Batch:
    """The trajectories of one call, and the session whose buffers hold them; remade when they change."""

    def __init__(self, denoiser: Engine, members: list[tuple[Trajectory, Latents]]) -> None:
        self.active = tuple(trajectory for trajectory, _ in members)
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
        for name in ("extra", "noise_level"):
            if name in buffers:
                buffers[name].write(np.stack([getattr(t, name) for t in self.active]))
        guidance = [(t.guidance_scale, t.guidance_rescale) for t in self.active]
        buffers["guidance"].write(np.array(guidance, np.float32))
        buffers["noise"].write(np.zeros(buffers["noise"].shape, np.float32))
        self._timestep, self._weights, self._update, self._noise, self._finite = (
            buffers[name] for name in ("timestep", "weights", "update", "noise", "finite")
        )

    def step(self) -> bool:
        """Make one call and move every trajectory one step on; true where one of them ended."""
        timesteps, weights, updates = self._timestep.host, self._weights.host, self._update.host
        draws = ended = False
        for index, trajectory in enumerate(self.active):
            done = trajectory.done
            timesteps[index] = trajectory.timesteps[done]
            weights[index] = trajectory.weights[done]
            updates[index] = trajectory.updates[done]
            if trajectory.noisy[done]:
                self._noise.host[index] = trajectory.generator.randn(trajectory.latents.shape)
                draws = True
        self._timestep.push()
        self._weights.push()
        self._update.push()
        if draws:
            # A sample that draws none has a zero column for it: what is left from earlier steps is harmless.
            self._noise.push()
        self._session.launch()
        finite = self._finite.pull()
        for index, trajectory in enumerate(self.active):
            trajectory.done += 1
            if not finite[index]:
                trajectory.error = _not_finite(trajectory)
            ended = ended or trajectory.finished
        return ended

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
