"""Inputs of the denoiser's step, for tests that compare the outputs of sessions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sd2rt.engines.interface import Engine, Session

CARRY = {"state_out": "state"}


def step_inputs(session: Session, seed: int = 0) -> dict[str, NDArray[Any]]:
    """Inputs of a guided multistep step: every slot of the new state depends on the old ones, and each sample has its
    own prompt."""
    random = np.random.default_rng(seed)
    count = session.buffers["state"].shape[0]
    drawn = {
        name: random.standard_normal(session.buffers[name].shape).astype(np.float32)
        for name in ("state", "noise", "text")
    }
    return drawn | {
        "update": (0.3 * random.standard_normal((count, 5, 7))).astype(np.float32),
        "timestep": random.integers(1, 999, count).astype(np.float32),
        "weights": np.tile(np.array([1, 0.5, 0, 0, 0], np.float32), (count, 1)),
        "guidance": np.tile(np.array([2, 0.5], np.float32), (count, 1)),
        "row": np.repeat(np.arange(count), 2),
        "uncond": np.arange(0, 2 * count, 2),
        "cond": np.arange(1, 2 * count, 2)[:, None],
        "shares": np.ones((count, 1), np.float32),
    }


def fill(session: Session, seed: int = 0) -> None:
    """Write the inputs of a step."""
    for name, value in step_inputs(session, seed).items():
        session.buffers[name].write(value)


def run_steps(
    engine: Engine, dims: Mapping[str, int], steps: int, *, wait: bool = False
) -> tuple[Any, list[Any]]:
    """Run steps with new small inputs and noise each; return the final state and the watched outputs."""
    session = engine.session(dims, CARRY, "finite")
    assert session.watched(wait=True) == []
    fill(session)
    watched = []
    for step in range(steps):
        for name in ("timestep", "update", "noise"):
            buffer = session.buffers[name]
            # In place, while copies of earlier steps may still be in flight.
            buffer.host[...] = step_inputs(session, step)[name]
            buffer.push()
        session.launch()
        watched += session.watched(wait=wait)
    watched += session.watched(wait=True)
    return session.buffers["state"].read(), watched
