"""One image of a request: how its latents are made, whole or in tiles, and what becomes of them."""

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
    """An image on its way.

    One trajectory makes each tile, mostly the only one. They begin with pieces of the same noise, so that what
    two tiles share begins equal.
    """

    conditioning: Conditioning
    trajectories: list[Trajectory]
    tiling: Tiling

    @property
    def error(self) -> EngineError | None:
        """The first of its trajectories' errors."""
        return next((t.error for t in self.trajectories if t.error is not None), None)

    def latents(self) -> Latents:
        """What its trajectories have come to, [C, h, w]."""
        return self.tiling.blend(trajectory.latents for trajectory in self.trajectories)

    def finished(self, unit: NDArray[np.float32]) -> NDArray[np.float32]:
        """The decoded image [H', W', 3] in [0, 1] as it is handed out: without padding, with what is pasted."""
        pictures = self.conditioning
        unit = unit[: pictures.height, : pictures.width]
        return pictures.pasted(unit)
