"""A toy problem with an exact solution: clean images x_0 ~ N(mean, spread**2), one number each.

The optimal network is linear in its input, so a plan transforms the mean and covariance of its state by matrices. The
resulting distribution is computed exactly, without drawing samples.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt

import numpy as np
from numpy.typing import NDArray

from sd2rt.engines.bundle.sampler_config import STATE_SLOTS, PredictionType
from sd2rt.runtime.samplers.plan import Plan, Step

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Gaussian:
    mean: float = 0.7
    spread: float = 0.5

    def network(self, kind: PredictionType, level: float) -> tuple[float, float]:
        """Slope and offset of the optimal output for x = alpha x_0 + sigma eps, with sigma / alpha the level."""
        alpha = 1 / sqrt(level**2 + 1)
        sigma = alpha * level
        pull = self.spread**2 * alpha / (alpha**2 * self.spread**2 + sigma**2)
        clean = np.array([pull, self.mean - pull * alpha * self.mean])
        noise = (np.array([1.0, 0.0]) - alpha * clean) / sigma
        output = {"sample": clean, "epsilon": noise, "v_prediction": alpha * noise - sigma * clean}[kind]
        return float(output[0]), float(output[1])

    def marginal(self, level: float) -> Array:
        """Mean and standard deviation of x_0 + level eps."""
        return np.array([self.mean, sqrt(self.spread**2 + level**2)])


def error(plan: Plan, toy: Gaussian, kind: PredictionType, calls: int) -> float:
    """Largest error of mean and standard deviation after ``calls`` calls, started from the exact distribution.

    Without fresh noise the exact flow is x = mean + deviation z with the same z, so this is the strong error; with
    fresh noise it is the weak error.
    """
    mean, covariance = np.zeros(STATE_SLOTS), np.zeros((STATE_SLOTS, STATE_SLOTS))
    first, following = plan.steps[0], plan.steps[calls]
    start = toy.marginal(first.level) / _scale(first)
    mean[0], covariance[0, 0] = start[0], start[1] ** 2
    for step in plan.steps[:calls]:
        move, shift, noise = _linear(step, *toy.network(kind, step.level))
        mean = move @ mean + shift
        covariance = move @ covariance @ move.T + np.outer(noise, noise)
    actual = _scale(following) * np.array([mean[0], sqrt(covariance[0, 0])])
    return float(np.abs(actual - toy.marginal(following.level)).max())


def _scale(step: Step) -> float:
    """Factor that converts S_0 to x_0 + level eps."""
    return float(step.weights[0]) * sqrt(step.level**2 + 1)


def _linear(step: Step, slope: float, offset: float) -> tuple[Array, Array, Array]:
    """Combine a step and the network: a matrix, a constant, and the weights of fresh noise."""
    output = step.update[:, STATE_SLOTS]
    move = step.update[:, :STATE_SLOTS] + slope * np.outer(output, step.weights)
    return move, offset * output, step.update[:, -1] if step.draws_noise else 0 * output
