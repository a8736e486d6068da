"""The algebra that samplers are written in: a tensor is the row of its weights over what a step is given.

``x = S[0]`` is the first slot of the state, ``D`` the guided network output, ``NOISE`` the step's fresh
noise. Sums and multiples of rows are rows, so an update reads as its paper's formula does, and is a matrix
in the end.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sd2rt.engines.sampling import STATE_SLOTS, PredictionType
from sd2rt.runtime.plan import Step

Row = NDArray[np.float64]  # [K+3]

_BASIS = np.eye(STATE_SLOTS + 2)
_BASIS.setflags(write=False)

S: tuple[Row, ...] = tuple(_BASIS[:STATE_SLOTS])
D: Row = _BASIS[STATE_SLOTS]
NOISE: Row = _BASIS[STATE_SLOTS + 1]


def predict(
    prediction_type: PredictionType, x: Row, output: Row, alpha: float, sigma: float
) -> tuple[Row, Row]:
    """What the network's output says of x = alpha x_0 + sigma eps: the clean image x_0 and the noise eps.

    alpha**2 + sigma**2 is 1. For the v-prediction v = alpha eps - sigma x_0 see arXiv:2202.00512, appendix D.
    """
    if prediction_type == "epsilon":
        return (x - sigma * output) / alpha, output
    return alpha * x - sigma * output, sigma * x + alpha * output


def make_step(timestep: float, *slots: Row, level: float, input_scale: float = 1.0) -> Step:
    """The step that shows ``input_scale`` times S_0 to the network and leaves the given slots; the others are
    left at zero, so that nothing stale can reach a later step. ``level`` is the noise-to-signal ratio of what
    is shown."""
    weights = np.zeros(STATE_SLOTS)
    weights[0] = input_scale
    update = np.zeros((STATE_SLOTS, STATE_SLOTS + 2))
    update[: len(slots)] = slots
    weights.setflags(write=False)
    update.setflags(write=False)
    return Step(float(timestep), weights, update, level)
