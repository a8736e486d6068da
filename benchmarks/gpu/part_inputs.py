"""Seeded inputs of a part at given sizes: one guided step for each image."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from sd2rt.engines.bundle.manifest import Manifest
from sd2rt.engines.bundle.model_kinds import PartName
from sd2rt.engines.bundle.schema import shape_of, symbols_of

_TOKENS = 77


def dims_of(manifest: Manifest, part: PartName, side: int, batch: int = 1) -> dict[str, int]:
    """Values of a part's shape symbols for guided images of this side in pixels."""
    latent = side // manifest.latents.vae_factor
    sizes = {"B": batch, "R": 2 * batch, "P": 1, "L": _TOKENS, "h": latent, "w": latent, "M": 16}
    return {symbol: sizes[symbol] for symbol in symbols_of(manifest.parts[part])}


def part_inputs(
    manifest: Manifest, part: PartName, dims: dict[str, int], seed: int = 0, still: bool = False
) -> dict[str, NDArray[Any]]:
    """Seeded input arrays, by name.

    Args:
        still: use an update that keeps the denoiser's state, so that many launches stay finite.
    """
    rng = np.random.default_rng(seed)
    arrays: dict[str, NDArray[Any]] = {}
    for tensor in manifest.parts[part].inputs:
        shape = shape_of(tensor, dims)
        arrays[tensor.name] = (
            np.zeros(shape, np.int64)
            if tensor.dtype == "int64"
            else rng.standard_normal(shape).astype(tensor.dtype)
        )
    if part == "denoiser":
        batch, slots = arrays["weights"].shape
        arrays["timestep"] = np.linspace(801, 21, batch, dtype=np.float32)
        arrays["guidance"] = np.tile(np.array([[7.5, 0.0]], np.float32), (batch, 1))
        arrays["weights"] = np.eye(slots, dtype=np.float32)[:1].repeat(batch, 0)
        arrays["row"] = np.arange(batch).repeat(2)
        arrays["uncond"] = np.arange(batch) * 2
        arrays["cond"] = arrays["uncond"][:, None] + 1
        arrays["shares"] = np.ones((batch, 1), np.float32)
        if still:
            arrays["update"][:] = 0
            arrays["update"][:, range(slots), range(slots)] = 1
    if "stats" in arrays:
        # Blend the given statistics and the tile's own equally. Variances and weights are positive.
        arrays["given"] = np.array([0.5], np.float32)
        arrays["stats"][..., 1] = np.exp(arrays["stats"][..., 1])
        arrays["weights"] = rng.uniform(0.1, 1, arrays["weights"].shape).astype(np.float32)
    return arrays
