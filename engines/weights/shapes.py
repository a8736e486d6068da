"""Shapes of weights that are the same weight."""

from __future__ import annotations


def linear_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape, with a 1x1 convolution's [O, I, 1, 1] as that of the linear layer which does the same: [O, I]."""
    return shape[:2] if shape[2:] == (1, 1) else shape
