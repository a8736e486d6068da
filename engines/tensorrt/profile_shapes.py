"""The shapes that a tensor has in an optimisation profile, as TensorRT wants and tells them."""

from __future__ import annotations

from sd2rt.engines.bundle.engine_entry import Profile
from sd2rt.engines.bundle.schema import Tensor
from sd2rt.engines.bundle.shapes import shape_of

ShapeRange = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]
"""The least shape, the one that kernels are tuned for, and the most."""


def profile_shapes(tensor: Tensor, profile: Profile) -> ShapeRange:
    """The range of a tensor's shape in a profile.

    Raises:
        ValueError: the profile has no size for a symbol of the tensor.
    """
    least, tuned, most = (
        shape_of(tensor, {symbol: sizes[index] for symbol, sizes in profile.dims.items()})
        for index in range(3)
    )
    return least, tuned, most
