"""The range of a tensor's shapes in an optimisation profile, in TensorRT's form."""

from __future__ import annotations

from sd2rt.engines.bundle.engine_entry import Profile
from sd2rt.engines.bundle.schema import Tensor, shape_of

ShapeRange = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]
"""Minimum shape, optimum shape that kernels are tuned for, and maximum shape."""


def profile_shapes(tensor: Tensor, profile: Profile) -> ShapeRange:
    """Compute the range of a tensor's shapes in a profile.

    Raises:
        ValueError: the profile has no size for a symbol of the tensor.
    """
    minimum, optimum, maximum = (
        shape_of(tensor, {symbol: sizes[index] for symbol, sizes in profile.dims.items()})
        for index in range(3)
    )
    return minimum, optimum, maximum
