"""One image of a run as it was after a step, for previews."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from sd2rt.engines.interface import Float32Array
from sd2rt.runtime.denoising.stepper import Stepper
from sd2rt.runtime.denoising.trajectory import Latents, Trajectory
from sd2rt.runtime.images.write import to_pil, to_unit
from sd2rt.runtime.networks.preview import Preview
from sd2rt.runtime.pipeline.image_job import ImageJob

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True, slots=True, eq=False)
class Snapshot:
    """Copy of an image's latents after a step; whole, also if the step was one of its tiles.

    Tiles that have made no step yet are noise.
    """

    job: ImageJob
    tiles: tuple[Latents, ...]
    """Latents [C, h, w] of each trajectory, on the scale of the denoiser's input: some samplers' own are larger."""

    @property
    def trajectories(self) -> list[Trajectory]:
        return self.job.trajectories

    def latents(self) -> Latents:
        """Blend the tiles, [C, h, w]."""
        return self.job.tiling.blend(self.tiles)

    def rough(self, preview: Preview) -> Image:
        """Make a picture by a matrix, one pixel a latent."""
        shown = self.job.conditioning
        return preview.image(self.latents()).crop(
            (0, 0, shown.width // shown.factor, shown.height // shown.factor)
        )

    def picture(self, decoded: Float32Array) -> Image:
        """Make a picture of the decoded latents [3, H, W]; gray where they are not finite."""
        return to_pil(self.job.finish(to_unit(np.nan_to_num(decoded, nan=0.0))))


def take_snapshots(
    stepper: Stepper, jobs: Iterable[ImageJob], active: Collection[Trajectory]
) -> list[Snapshot]:
    """Copy the latents of the images that have a trajectory in ``active``, in the order of ``jobs``.

    Args:
        active: trajectories of one shape; at least one is of these jobs.
    """
    chosen = [job for job in jobs if any(trajectory in active for trajectory in job.trajectories)]
    trajectories = [trajectory for job in chosen for trajectory in job.trajectories]
    latents = iter(stepper.latents(trajectories))
    return [Snapshot(job, tuple(next(latents) * _input_scale(t) for t in job.trajectories)) for job in chosen]


def _input_scale(trajectory: Trajectory) -> np.float32:
    """Scale of a trajectory's latents in the next denoiser call; 1 for finished ones."""
    done = trajectory.done
    return np.float32(1) if done == trajectory.length else np.float32(trajectory.weights[done, 0])
