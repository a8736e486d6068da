"""Classifier-free guidance per call: its scale, its rescaling, and the calls that skip it."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sd2rt.runtime.prompts.text_conditioning import TextConditioning


@dataclass(frozen=True, slots=True, eq=False)
class Guidance:
    """Guidance of one trajectory's N calls."""

    values: NDArray[np.float32]  # [N, 2]: scale and rescale; 1 and 0 for calls without guidance
    guided: tuple[bool, ...]

    def apply(self, texts: Sequence[TextConditioning]) -> tuple[TextConditioning, ...]:
        """Drop the unconditional row from the text of each call that is not guided."""
        without = {text: unguided(text) for text in dict.fromkeys(texts)}
        return tuple(
            text if guided else without[text] for text, guided in zip(texts, self.guided, strict=True)
        )


def plan_guidance(
    scale: float | Sequence[float],
    rescale: float,
    interval: tuple[float, float] | None,
    levels: Sequence[float],
) -> Guidance:
    """Plan the guidance of calls at the noise levels (noise-to-signal ratios sigma) of a plan.

    Several scales are spread evenly over the calls and interpolated linearly: two make a ramp, N set one per call.
    A call is guided if its scale is above 1, as in diffusers, and low < level <= high for the interval: equation 5
    of Kynkaanniemi et al. 2024 (arXiv:2404.07724).

    Raises:
        ValueError: there is an interval, but the plan has no noise levels.
    """
    count = len(levels)
    knots = np.atleast_1d(np.asarray(scale, np.float64))
    scales = np.interp(np.linspace(0, 1, count), np.linspace(0, 1, len(knots)), knots)
    guided = scales > 1
    if interval is not None:
        if np.isnan(levels).any():
            raise ValueError("a guidance interval needs a plan with noise levels")
        low, high = interval
        within = (np.asarray(levels) > low) & (np.asarray(levels) <= high)
        if guided.any() and not (guided & within).any():
            warnings.warn(
                f"no step is guided: the guidance interval is {low:g} to {high:g}, but the steps' noise levels are "
                f"{', '.join(f'{level:.3g}' for level in levels)}",
                stacklevel=2,
            )
        guided &= within
    values = np.where(guided[:, None], np.stack([scales, np.full(count, rescale)], 1), (1.0, 0.0))
    return Guidance(values.astype(np.float32), tuple(guided.tolist()))


def unguided(texts: TextConditioning) -> TextConditioning:
    """Drop the unconditional row, which a single prompt does not need at scale 1.

    A composition of several prompts, or a share other than 1, still needs it and is returned unchanged.
    """
    if texts.uncond is None or texts.shares != (1.0,):
        return texts
    return TextConditioning(texts.conds)
