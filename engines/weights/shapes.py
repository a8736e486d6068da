"""Equivalent shapes of weights."""

from __future__ import annotations


def linear_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Reduce the shape of a 1x1 convolution, [O, I, 1, 1], to that of its linear layer, [O, I]; keep other shapes."""
    return shape[:2] if shape[2:] == (1, 1) else shape
