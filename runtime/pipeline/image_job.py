"""One image of a request: its trajectories, whole or in tiles, and its final latents and pixels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sd2rt.engines.errors import EngineError
from sd2rt.runtime.denoising.trajectory import Latents, Trajectory
from sd2rt.runtime.pipeline.conditioning import Conditioning
from sd2rt.runtime.tiling.tiling import Tiling


@dataclass(slots=True, eq=False)
class ImageJob:
    """An image being generated.

    It has one trajectory per tile; most images are a single tile. The tiles start from crops of the same noise, so
    overlapping areas start equal.
    """

    conditioning: Conditioning
    trajectories: list[Trajectory]
    tiling: Tiling

    @property
    def error(self) -> EngineError | None:
        """First error among its trajectories, None if there is none."""
        return next((t.error for t in self.trajectories if t.error is not None), None)

    def latents(self) -> Latents:
        """Blend the trajectories' latents into those of the image, [C, h, w]."""
        return self.tiling.blend(trajectory.latents for trajectory in self.trajectories)

    def finish(self, unit: NDArray[np.float32]) -> NDArray[np.float32]:
        """Crop the padding from a decoded image [H', W', 3] in [0, 1]; paste it into the original if requested."""
        conditioning = self.conditioning
        unit = unit[: conditioning.height, : conditioning.width]
        return conditioning.finish(unit)
