"""Classifier-free guidance, call by call: how strong it is, and which calls do without."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sd2rt.runtime.prompts.text_conditioning import TextConditioning


@dataclass(frozen=True, slots=True, eq=False)
class Guidance:
    """The guidance of one trajectory's N calls."""

    values: NDArray[np.float32]  # [N, 2]: scale and rescale; 1 and 0 where a call is not guided
    guided: tuple[bool, ...]

    def of(self, texts: Sequence[TextConditioning]) -> tuple[TextConditioning, ...]:
        """What each call is told, of what it would be told if it were guided: fewer rows where it is not."""
        alone = {told: unguided(told) for told in dict.fromkeys(texts)}
        return tuple(told if guided else alone[told] for told, guided in zip(texts, self.guided, strict=True))


def plan_guidance(
    scale: float | Sequence[float],
    rescale: float,
    interval: tuple[float, float] | None,
    levels: Sequence[float],
) -> Guidance:
    """The guidance of calls at these noise levels, the noise-to-signal ratios sigma that a plan tells.

    Several scales are spread evenly over the calls, with straight lines between them: as many as there are
    calls are one each, two are a ramp. A call is guided where its scale is above 1, as in diffusers, and its
    level above the interval's lower end and not above its upper one: equation 5 of Kynkaanniemi et al. 2024
    (arXiv:2404.07724).
    """
    count = len(levels)
    knots = np.atleast_1d(np.asarray(scale, np.float64))
    scales = np.interp(np.linspace(0, 1, count), np.linspace(0, 1, len(knots)), knots)
    guided = scales > 1
    if interval is not None:
        if np.isnan(levels).any():
            raise ValueError("a guidance interval needs a plan that tells its noise levels")
        low, high = interval
        within = (np.asarray(levels) > low) & (np.asarray(levels) <= high)
        if guided.any() and not (guided & within).any():
            warnings.warn(
                f"no call is guided: the guidance interval is {low:g} to {high:g}, the calls' noise levels are "
                f"{', '.join(f'{level:.3g}' for level in levels)}",
                stacklevel=2,
            )
        guided &= within
    values = np.where(guided[:, None], np.stack([scales, np.full(count, rescale)], 1), (1.0, 0.0))
    return Guidance(values.astype(np.float32), tuple(guided.tolist()))


def unguided(texts: TextConditioning) -> TextConditioning:
    """What stays of a call's rows at scale 1: the prompt's alone.

    A composition of several prompts, or of a share other than 1, needs the row without a prompt even so.
    """
    if texts.uncond is None or texts.shares != (1.0,):
        return texts
    return TextConditioning(texts.conds)
