"""Inputs of the denoiser's step, for tests that compare the outputs of sessions."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from sd2rt.engines.interface import Session

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
