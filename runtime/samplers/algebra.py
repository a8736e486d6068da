"""Symbolic tensors for sampler formulas: rows of weights over the inputs of a step.

``x = S[0]`` is the first slot of the state, ``D`` the guided network output, ``NOISE`` the step's fresh noise. Sums
and multiples of rows are rows too, so an update is written like the formula in its paper, and yields a matrix.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sd2rt.engines.bundle.sampler_config import STATE_SLOTS, PredictionType
from sd2rt.engines.errors import RequestError
from sd2rt.runtime.samplers.plan import Step

Row = NDArray[np.float64]  # [K+3]

_BASIS = np.eye(STATE_SLOTS + 2)
_BASIS.setflags(write=False)

S: tuple[Row, ...] = tuple(_BASIS[:STATE_SLOTS])
D: Row = _BASIS[STATE_SLOTS]
NOISE: Row = _BASIS[STATE_SLOTS + 1]


def predict(
    prediction_type: PredictionType, x: Row, output: Row, alpha: float, sigma: float
) -> tuple[Row, Row]:
    """Compute the clean image x_0 and the noise eps of x = alpha x_0 + sigma eps from the network's output.

    alpha**2 + sigma**2 is 1. For the v-prediction v = alpha eps - sigma x_0 see arXiv:2202.00512, appendix D.

    Raises:
        RequestError: alpha is 0 and the network predicts noise, which does not determine the image then.
    """
    if prediction_type == "v_prediction":
        return alpha * x - sigma * output, sigma * x + alpha * output
    if prediction_type == "sample":
        return output, (x - alpha * output) / sigma
    if alpha == 0:
        raise RequestError(
            "a network that predicts noise cannot start from pure noise (zero terminal SNR): leave "
            "rescale_betas_zero_snr out, or use a checkpoint that predicts v"
        )
    return (x - sigma * output) / alpha, output


def make_step(
    timestep: float,
    level: float,
    *slots: Row,
    input_scale: float = 1.0,
    draws_noise: bool | None = None,
    interval: tuple[float, float] | None = None,
    kept_level: float | None = None,
) -> Step:
    """Make a step that calls the network on ``input_scale`` times S_0 and sets the state to ``slots``.

    Other slots are set to zero, so that no old values reach later steps. By default the step draws noise if its
    update uses noise; ``draws_noise`` overrides this.
    """
    weights = np.zeros(STATE_SLOTS)
    weights[0] = input_scale
    update = np.zeros((STATE_SLOTS, STATE_SLOTS + 2))
    update[: len(slots)] = slots
    if draws_noise is None:
        draws_noise = bool(update[:, -1].any())
    weights.setflags(write=False)
    update.setflags(write=False)
    return Step(float(timestep), weights, update, float(level), draws_noise, interval, kept_level)
