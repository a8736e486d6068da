"""Progress of a run: the state after one of its steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from sd2rt.engines.errors import RequestError
from sd2rt.runtime.denoising.trajectory import Latents
from sd2rt.runtime.networks.preview import Preview
from sd2rt.runtime.pipeline.image_job import ImageJob
from sd2rt.runtime.pipeline.run_state import RunState
from sd2rt.runtime.pipeline.snapshot import Snapshot, take_snapshots
from sd2rt.runtime.pipeline.step_loop import StepLoop

if TYPE_CHECKING:
    from PIL.Image import Image


class Progress:
    """State of a run after a denoiser call. Its latents can be read and replaced until the next one.

    A call may take some of the run's images, beside those of other runs, which are not shown.
    """

    __slots__ = ("_active", "_calls", "_jobs", "_loop", "_run", "done", "step", "steps", "total")

    done: int
    """Steps made so far, over all images of the run."""
    total: int
    """Steps of the whole run, over all images."""
    step: int
    """Steps made for the run's first image in the call, counted from 1."""
    steps: int
    """Steps that this image takes in total."""

    def __init__(self, loop: StepLoop, run: RunState, jobs: Sequence[Sequence[ImageJob]], total: int) -> None:
        self._jobs = jobs
        self._loop, self._run, self._calls, self._active = loop, run, run.calls, run.active
        self.done, self.total = run.done, total
        first = run.active[0]
        self.step, self.steps = first.done, first.length

    @property
    def timestep(self) -> float:
        """Training timestep of this image in the call."""
        return float(self._active[0].timesteps[self.step - 1])

    @property
    def images(self) -> int:
        """Number of the run's images, or tiles, in the call."""
        return len(self._active)

    @property
    def rough(self) -> Preview:
        """Map for rough pictures of latents."""
        return self._loop.networks.preview

    def latents(self) -> Latents:
        """Copy the latents of the run's images in the call, [B, C, h, w].

        Raises:
            RequestError: the run has made another step, or is closed.
        """
        with self._loop.turn():
            self._require_current()
            return self._loop.stepper.latents(self._active)

    def replace(self, latents: Latents) -> None:
        """Replace the latents of the run's images in the call, [B, C, h, w], for the next step.

        Raises:
            RequestError: the shape differs, the run has made another step, or it is closed.
        """
        with self._loop.turn():
            self._require_current()
            expected = (len(self._active), *self._active[0].latents.shape)
            if latents.shape != expected:
                raise RequestError(f"got latents of shape {list(latents.shape)}, expected {list(expected)}")
            self._loop.stepper.replace(self._active, latents)

    def previews(self, *, decoder: bool = False) -> list[Image]:
        """Make a picture of each of the run's images that has a step in the call.

        An image that is generated in tiles is shown whole; tiles that have made no step yet are noise.

        Args:
            decoder: decode the latents, at the images' size: one between two steps of other runs. Otherwise pictures
                are rough and have one pixel a latent.

        Raises:
            RequestError: the run has made another step, or is closed.
            EngineError: the device failed or ran out of memory.
        """
        snapshots = self.snapshots()
        if not decoder:
            return [snapshot.rough(self.rough) for snapshot in snapshots]
        decoded = self._loop.decode_now(self._run, snapshots)
        return [snapshot.picture(image) for snapshot, image in zip(snapshots, decoded, strict=True)]

    def preview(self, *, decoder: bool = False) -> Image:
        """Make a picture of the first of the run's images in the call; see :meth:`previews`."""
        return self.previews(decoder=decoder)[0]

    def snapshots(self) -> list[Snapshot]:
        """Copy the latents of the run's images in the call, for later pictures; raises like :meth:`latents`."""
        with self._loop.turn():
            self._require_current()
            jobs = [job for group in self._jobs for job in group]
            return take_snapshots(self._loop.stepper, jobs, self._active)

    def _require_current(self) -> None:
        self._run.require_open()
        if self._run.calls != self._calls:
            raise RequestError("the run has made another step: use the latents of a step before the next one")
