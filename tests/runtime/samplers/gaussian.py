"""A toy problem with an exact answer: clean images x_0 ~ N(mean, spread**2), one number each.

The best network there is then is linear in what it is shown, so a plan moves the mean and covariance of its whole
state by matrices: what follows from it is exact, with no samples drawn.
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
        """The slope and offset of what it answers to x = alpha x_0 + sigma eps, alpha / sigma being the level."""
        alpha = 1 / sqrt(level**2 + 1)
        sigma = alpha * level
        pull = self.spread**2 * alpha / (alpha**2 * self.spread**2 + sigma**2)
        clean = np.array([pull, self.mean - pull * alpha * self.mean])
        noise = (np.array([1.0, 0.0]) - alpha * clean) / sigma
        answer = {"sample": clean, "epsilon": noise, "v_prediction": alpha * noise - sigma * clean}[kind]
        return float(answer[0]), float(answer[1])

    def marginal(self, level: float) -> Array:
        """Mean and standard deviation at a level, of x_0 + level eps."""
        return np.array([self.mean, sqrt(self.spread**2 + level**2)])


def error(plan: Plan, toy: Gaussian, kind: PredictionType, calls: int) -> float:
    """How far mean and standard deviation are from the exact ones once that many calls are made, from the exact ones
    at the first call's level to the next call's.

    Without fresh noise the exact flow is x = mean + deviation z for one and the same z, so this is the strong error;
    with it, the weak one.
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
    """What makes x_0 + level eps of the state."""
    return float(step.weights[0]) * sqrt(step.level**2 + 1)


def _linear(step: Step, slope: float, offset: float) -> tuple[Array, Array, Array]:
    """What a step and the network are together: a matrix, a constant, and the share of fresh noise."""
    output = step.update[:, STATE_SLOTS]
    move = step.update[:, :STATE_SLOTS] + slope * np.outer(output, step.weights)
    return move, offset * output, step.update[:, -1] if step.draws_noise else 0 * output
